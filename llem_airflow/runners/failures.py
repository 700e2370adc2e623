"""Failures: what went wrong with an attempt, whether another try can help, and what a person should do.

The wordings are tried in order: those of the Docker engine, of registries and of the GPU toolkit come before those of
the engines and their libraries (protocol.failure_texts).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from llem_airflow.protocol.failure_texts import LIBRARIES, Rule, first, rule
from llem_airflow.protocol.failures import CATEGORIES, advice, category_of, causes, is_refusal, raised_in
from llem_airflow.protocol.redaction import Redactor
from llem_airflow.protocol.result import AttemptError

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

_BY_SSH = "as the user of the worker, `ssh HOST docker version` has to answer without a question"

_ENGINE = (
    rule(r"at ssh://\S+: the user may not use", "permission", hint=_BY_SSH),
    rule(r"cannot connect to the docker daemon at ssh://", "daemon_down", hint=_BY_SSH),
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


_SYMPTOMS = frozenset({"crash", "network", "unknown"})
"""What an attempt may see of a process that the kernel has killed; the kernel's own word says more."""

_FRAME = re.compile(r'\bFile "[^"]+", line \d+')
_CODE = re.compile(r"(?:^|[\])] ) {4,}\S|[\^~]{2,}\s*$")

_STARTS = re.compile(
    r"\bEngine core initialization failed\b|\bEngine process failed to start\b|\bSee root cause\b"
)
_REFUSED = re.compile(r"(?:^|\s)(ValueError|TypeError|NotImplementedError): (?P<what>[^\n]+)")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed.

    Attributes:
        category: One of CATEGORIES.
        retryable: Whether the same attempt can succeed later without anybody changing anything.
        hint: What to do, for a person.
    """

    category: str
    retryable: bool
    hint: str


class AttemptFailedError(RuntimeError):
    """An attempt failed; what it ran in is gone and what it wrote has been brought out.

    Attributes:
        failure: Category, retry advice, hint.
        headline: What happened, in one sentence.
        evidence: Where the evidence lies.
        log_tail: Last lines of output.
        folder: Folder with what could be collected.
        exit_code: Exit code, or None when it is not known.
    """

    def __init__(
        self,
        failure: Failure,
        headline: str,
        *,
        folder: Path,
        evidence: str | None = None,
        log_tail: tuple[str, ...] = (),
        exit_code: int | None = None,
    ) -> None:
        self.failure = failure
        self.headline = headline
        self.folder = folder
        self.evidence = evidence or str(folder)
        self.log_tail = log_tail
        self.exit_code = exit_code
        super().__init__(self._text())

    def _text(self) -> str:
        lines = [f"{self.headline} [{self.failure.category}]", f"What to do: {self.failure.hint}"]
        if self.log_tail:
            lines += ["Last lines of output:", *(f"  | {line}" for line in _telling(self.log_tail)[-15:])]
        return "\n".join(lines)

    def advise(self, text: str) -> None:
        """Add to what a person should do."""
        self.failure = replace(self.failure, hint=f"{self.failure.hint}; {text}")
        self.args = (self._text(),)

    def blank(self, redactor: Redactor) -> None:
        """Take the secrets out of every text."""
        self.headline, self.evidence = redactor.text(self.headline), redactor.text(self.evidence)
        self.failure = replace(self.failure, hint=redactor.text(self.failure.hint))
        self.log_tail = tuple(map(redactor.text, self.log_tail))
        self.args = (self._text(),)


def _telling(lines: tuple[str, ...]) -> list[str]:
    """Lines without the frames of tracebacks, which would push the error itself out of the last few."""
    kept: list[str] = []
    in_frame = False
    for line in lines:
        if _FRAME.search(line):
            in_frame = True
        elif not (in_frame and _CODE.search(line)):
            in_frame = False
            kept.append(line)
    return kept


@contextmanager
def told_without_secrets(redactor: Redactor) -> Iterator[None]:
    """Whatever is raised inside names no secret, and neither do its causes, which a task's log shows too."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, AttemptFailedError):
            error.blank(redactor)
        redactor.blank(error)
        raise


class GPUUnavailableError(AttemptFailedError):
    """No GPU that fits is free; the headline says who holds them."""


def failure(category: str, *, retryable: bool | None = None, hint: str | None = None) -> Failure:
    """The failure of a category, with the advice that the category usually gets."""
    usual = CATEGORIES[category]
    return Failure(category, usual.retryable if retryable is None else retryable, hint or usual.hint)


def classify(
    exit_code: int | None,
    text: str,
    *,
    oom_killed: bool = False,
    error: AttemptError | BaseException | None = None,
) -> Failure:
    """Tell what kind of failure this is.

    What the attempt itself recognised comes first, then what the engine says of the container's end, then
    patterns in the text, then the exit code.

    Args:
        exit_code: Exit code of the container or process, or None when nothing ran.
        text: Last output of the attempt, or the text of an engine's refusal.
        oom_killed: Whether the kernel ended a process of the container for want of memory.
        error: The structured error that the attempt wrote, or the exception that was raised outside.
    """
    if isinstance(error, AttemptError):
        return _structured(error, text, oom_killed=oom_killed)
    if oom_killed:
        return failure("out_of_memory_host")
    # The last word is often a 404 that hides the reason.
    told = [f"{type(one).__name__}: {one}" for one in reversed(causes(error))]
    said = "\n".join(part for part in (*told, text) if part)
    return _by_text(said) or _by_exit_code(exit_code)


def _structured(error: AttemptError, text: str, *, oom_killed: bool) -> Failure:
    """The attempt's own word, then the kernel's, then what the output says of a failure that the attempt only wraps."""
    name = category_of(error.category)
    rule = first(LIBRARIES, f"{error.type}: {error.message}")
    found = failure(name) if name is not None else None
    if rule is not None and name in (None, rule.category):
        found = _of(rule)
    if found is None or found.category in _SYMPTOMS:
        if oom_killed:
            return failure("out_of_memory_host")
        found = _behind(error, text, found)
    if error.retryable_hint is not None and found.retryable != error.retryable_hint:
        found = replace(found, retryable=error.retryable_hint)
    return found


def _behind(error: AttemptError, text: str, found: Failure | None) -> Failure:
    """What is behind an error that names no reason: a benign line of the output must not win over one that does."""
    if is_refusal(error.type, raised_in(error.traceback)):
        return found or failure("config")
    seen = _by_text(text)
    if seen is not None and seen.category not in _SYMPTOMS:
        return seen
    refused = _REFUSED.findall(text) if _STARTS.search(error.message) else []
    if refused:
        return failure("config", hint=f"correct the value that the engine refused: {refused[-1][1].strip()}")
    return found or seen or failure("crash", hint=_crash_hint(error))


def _crash_hint(error: AttemptError) -> str:
    return f"the traceback of {error.type} is in the error file of the evidence (phase {error.phase!r})"


def headline_of(error: AttemptError, found: Failure) -> str:
    """What an attempt said of its failure, in one sentence; what to do about it is said beside."""
    said = error.message.removesuffix(advice(found.hint)).rstrip()
    return f"the attempt failed in phase {error.phase!r}: {error.type}: {said or error.type}"


def _by_text(text: str) -> Failure | None:
    found = first(PATTERNS, text)
    return None if found is None else _of(found)


def _of(rule: Rule) -> Failure:
    return failure(rule.category, retryable=rule.retryable, hint=rule.hint)


def _by_exit_code(exit_code: int | None) -> Failure:
    if exit_code in EXIT_CODES:
        category, hint = EXIT_CODES[exit_code]
        return failure(category, hint=hint)
    return failure("unknown")
