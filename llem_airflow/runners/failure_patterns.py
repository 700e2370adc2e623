"""What failures look like from outside, in the order in which the wordings are tried.

Those of the Docker engine, of registries and of the GPU toolkit come before those of the engines and their libraries
(``protocol.failure_texts``).
"""

from __future__ import annotations

from llem_airflow.protocol.failure_texts import LIBRARIES, rule
from llem_airflow.protocol.failures import CATEGORIES

__all__ = ["CATEGORIES", "EXIT_CODES", "PATTERNS"]

EXIT_CODES: dict[int | None, tuple[str, str | None]] = {
    126: ("image_config", "the entrypoint is not executable in this image"),
    127: ("image_config", "the entrypoint or a program that it calls is not in this image"),
    132: ("crash", "illegal instruction: the image was built for another CPU"),
    134: ("crash", None),
    135: (
        "crash",
        "a bus error: often the shared memory is too small (shm_size), or a disk under a mapped file full",
    ),
    136: ("crash", None),
    137: ("killed", None),
    139: ("crash", None),
    143: ("cancelled", None),
    -6: ("crash", None),
    -7: ("crash", "a bus error: often the shared memory is too small, or a disk under a mapped file full"),
    -9: ("killed", None),
    -11: ("crash", None),
    -15: ("cancelled", None),
}
"""What exit codes say alone. A signal is 128 + its number in a container, negative in a process."""

_FROM_REGISTRY = (
    r"(?:/v2/|/images/create|\bregistry\b|\bpulling\b|\bdial tcp\b|\b(?:Get|Head) \"?https?://"
    r"|\bfailed to resolve reference\b).*"
)

_ENDED_FROM_OUTSIDE = (
    # However the engine then words the loss of its container.
    rule(r"\bAirflowTaskTimeout\b", "timeout_wall_clock", hint="raise the task's execution_timeout"),
    rule(r"\bProcess terminated by signal\b", "killed"),
)

_ENGINE = (
    rule(
        r"permission denied while trying to connect to the docker|PermissionError\(13, 'Permission denied'\)",
        "permission",
        hint="let the worker's user use the Docker socket (group `docker`), or use another engine",
    ),
    rule(
        r"\bauthorization denied by plugin\b",
        "permission",
        hint="the host's Docker policy refused: set the cgroup parent and labels that it asks for",
    ),
    rule(
        r"cannot connect to the docker daemon|error while fetching server api version"
        r"|failed to establish connection to any given docker hosts"
        r"|UnixHTTPConnectionPool\(.*(?:Read timed out|refused|No such file)",
        "daemon_down",
    ),
)

_REGISTRY = (
    # What passes by itself is retried; what needs a person is not.
    rule(
        r"\btoomanyrequests\b|\bpull rate limit\b|\b429 Too Many Requests\b(?!.*(?:huggingface|hf\.co))",
        "image_pull",
        retryable=True,
        hint="the registry limits anonymous pulls: `docker login` on the engine's host, or use a mirror",
    ),
    rule(
        r"no basic auth credentials|pull access denied|requested access to the resource is denied"
        r"|\bunauthorized: |\bdenied: (?:access|permission|your authorization|requested)|\binsufficient_scope\b"
        r"|\berror getting credentials\b|\bfailed to authorize\b.*\b40[13] |\bincorrect username or password\b",
        "image_pull",
        hint="`docker login` to the image's registry as the worker's user, or correct the image's name",
    ),
    rule(
        r"\bno matching manifest for\b|\bno match for platform in manifest\b|\bexec format error\b",
        "image_config",
        hint="take an image for this CPU",
    ),
    rule(
        r"\bmanifest unknown\b|\bmanifest for \S+ not found\b|\brepository \S+ not found\b|\bname unknown\b"
        r"|\bfailed to resolve reference \S+ \S+: not found\b",
        "image_pull",
        hint="there is no such image or tag: correct its name, or build it (see images/)",
    ),
    rule(
        r"\binvalid reference format\b",
        "image_config",
        hint="correct the image's name: [registry/]name[:tag]",
    ),
    rule(
        r"\bx509: |\bcertificate signed by unknown authority\b|\bserver gave HTTP response to HTTPS client\b"
        rf"|{_FROM_REGISTRY}\b(?:remote error: )?tls: (?!handshake timeout)",
        "image_pull",
        hint="let the engine trust the registry's certificate (/etc/docker/certs.d), or name it in "
        "`insecure-registries`",
    ),
    rule(
        rf"{_FROM_REGISTRY}"
        r"(?:no such host|connection refused|i/o timeout|TLS handshake timeout|connection reset|server misbehaving"
        r"|Client\.Timeout|context deadline exceeded|unexpected EOF|: EOF|\b50[0234]\b|network is unreachable"
        r"|no route to host|connection timed out|operation timed out)"
        r"|\blookup [\w.-]+(?: on \S+)?: (?:no such host|server misbehaving|i/o timeout|.*timeout)"
        r"|\bfilesystem layer verification failed\b|\breceived unexpected HTTP status: 5\d\d\b",
        "image_pull",
        retryable=True,
        hint="the engine cannot reach the registry: check its network and proxy, or load the image first",
    ),
    rule(
        r"\bno such image\b",  # the engine's first word on what it then cannot pull: its reason stands above
        "image_pull",
        hint="there is no such image or tag: correct its name, or build it (see images/)",
    ),
)

_TOOLKIT = (
    rule(
        r"could not select device driver|\bunknown(?: or invalid)? runtime (?:specified|name)\b"
        r"|\bno known GPU vendor\b|\bexec: \"\S*nvidia-container-\S*\": |\bnvidia-container-runtime\S*: no such file",
        "gpu_access",
        hint="the engine has no GPU support: install the NVIDIA Container Toolkit, "
        "`nvidia-ctk runtime configure`, restart the engine",
    ),
    rule(
        r"\bDriver/library version mismatch\b",
        "driver_mismatch",
        hint="the driver was updated while loaded: reload its modules or reboot the host",
    ),
    rule(r"unsatisfied condition: (?:cuda|driver|brand|arch)", "driver_mismatch"),
    rule(
        r"nvidia-container-cli(?:\.real)?: device error|unresolvable CDI devices|\bunknown device(?:: unknown|$)",
        "gpu_access",
        hint="the host has no GPU of that id (any more): check `gpus` in the study and `nvidia-smi -L`",
    ),
    rule(
        r"nvidia-container-cli(?:\.real)?: |\bnvml error: |CDI device injection failed|\bfailed to inject CDI devices\b"
        r"|error gathering device information while adding custom device \"/dev/nvidia",
        "gpu_access",
    ),
)

_ENTRYPOINT = (
    rule(
        r"exec: \"[^\"]*\": (?:executable file not found|permission denied|stat .*no such file)"
        r"|\bexec user process caused\b|\[FATAL tini [^\n]*exec \S+ failed"
        r"|\bunable to find (?:user|group) |\bexec [^:\n]+: no such file or directory",
        "image_config",
        hint="the image's entrypoint is not there or not executable: does it have Python?",
    ),
)

_CREATION = (
    rule(
        r"\binvalid mount config\b|\bbind source path does not exist\b",
        "config",
        hint="the path of a mount is one of the *engine's* host: make it there, or correct the models folder",
    ),
    rule(
        r"Minimum memory limit allowed|specified value for memory|cannot set both Count and DeviceIDs"
        r"|invalid argument \".*\" for \".*\" flag|error gathering device information"
        r"|\binvalid (?:CPU|range of CPUs)|Requested CPUs are not available"
        r"|cgroup-parent for systemd cgroup should be",
        "config",
    ),
    rule(r"\bname \S+ is already in use by container\b", "name_conflict"),
)

_VANISHED = (
    rule(
        r"\bNo such container\b|removal of container \S+ is already in progress"
        r"|\bcannot connect to a removed container",
        "cancelled",
        hint="the container was removed from outside: `docker events` on its host says when",
    ),
    rule(r"'Connection aborted\.'|\bRemoteDisconnected\b|\bRead timed out\b", "daemon_down"),
    rule(r"^Traceback \(most recent call last\)", "crash"),
)

PATTERNS = (
    *_ENDED_FROM_OUTSIDE,
    *_ENGINE,
    *_REGISTRY,
    *_TOOLKIT,
    *_ENTRYPOINT,
    *_CREATION,
    *LIBRARIES,
    *_VANISHED,
)
