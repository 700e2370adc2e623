"""What failures look like: patterns in the order in which they are tried, each with its advice.

A pattern is bounded by words, or anchored in the wording of the one program that writes it, because the text
it is tried on holds names that people chose: a model called ``zoom-7b`` is not out of memory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

CATEGORIES: dict[str, tuple[bool, str]] = {
    "image_pull": (False, "check the image's name and tag, and that the engine can log in to its registry"),
    "image_config": (
        False,
        "the image cannot run it: check its name, its entrypoint and its Python",
    ),
    "gpu_access": (False, "check the NVIDIA driver and the NVIDIA Container Toolkit (`llem-airflow doctor`)"),
    "gpu_unavailable": (True, "wait until a GPU is free, or ask for fewer"),
    "driver_mismatch": (False, "update the NVIDIA driver, or take an image of an older CUDA"),
    "out_of_memory_gpu": (
        False,
        "use a smaller batch, context or data type, or a larger GPU",
    ),
    "out_of_memory_host": (False, "raise the container's memory limit, or use a smaller model"),
    "timeout_wall_clock": (False, "raise the wall clock limit, or make the experiment shorter"),
    "timeout_silence": (True, "look for a hang in the log, or raise the silence limit"),
    "permission": (False, "give the worker's user the right that the message names"),
    "daemon_down": (True, "check that the Docker engine runs at DOCKER_HOST (`llem-airflow doctor`)"),
    "model_access": (
        False,
        "accept the model's licence on the hub; give a token by HF_TOKEN or the host's connection",
    ),
    "model_missing": (False, "check the model's name and revision, and that the container sees its files"),
    "engine_missing": (False, "the image does not hold the engine or a module of it: choose another image"),
    "disk_full": (False, "make room on the engine's disk (`llem-airflow gc`, `docker system df`)"),
    "config": (False, "correct the value that the message names"),
    "meter_unavailable": (False, "choose another meter, or give the attempt what that meter reads"),
    "network": (True, "the network or the hub did not answer: try again, or use models on the disk"),
    "crash": (
        True,
        "read the traceback in the evidence; if it comes again, report it to the engine's project",
    ),
    "killed": (True, "something outside ended it: look for a host policy (idle or runtime limits)"),
    "name_conflict": (True, "another container has this name: `llem-airflow gc` removes leftovers of ours"),
    "cancelled": (True, "it was cancelled: clear the task to run it again"),
    "unknown": (True, "read the log in the evidence"),
}
"""Category: (whether a retry can help, what to do)."""

EXIT_CODES: dict[int | None, tuple[str, str | None]] = {
    126: ("image_config", "the entrypoint is not executable in this image"),
    127: ("image_config", "the entrypoint or a program that it calls is not in this image"),
    132: ("crash", "illegal instruction: the image was built for another CPU"),
    134: ("crash", None),
    135: ("crash", None),
    136: ("crash", None),
    137: ("killed", None),
    139: ("crash", None),
    143: ("cancelled", None),
    -6: ("crash", None),
    -9: ("killed", None),
    -11: ("crash", None),
    -15: ("cancelled", None),
}
"""What exit codes say alone. A signal is 128 + its number in a container, negative in a process."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern and what it means; what is None is as usual for the category."""

    pattern: re.Pattern[str]
    category: str
    retryable: bool | None = None
    hint: str | None = None


def _rule(pattern: str, category: str, *, retryable: bool | None = None, hint: str | None = None) -> Rule:
    return Rule(re.compile(pattern, re.IGNORECASE | re.MULTILINE), category, retryable, hint)


PATTERNS: tuple[Rule, ...] = (
    # What ended the attempt from outside, however the engine then words the loss of its container.
    _rule(r"\bAirflowTaskTimeout\b", "timeout_wall_clock", hint="raise the task's execution_timeout"),
    _rule(r"\bProcess terminated by signal\b", "killed"),
    # The engine and its socket.
    _rule(
        r"permission denied while trying to connect to the docker"
        r"|PermissionError\(13, 'Permission denied'\)",
        "permission",
        hint="let the worker's user use the Docker socket (group `docker`), or use another engine",
    ),
    _rule(
        r"\bauthorization denied by plugin\b",
        "permission",
        hint="the host's Docker policy refused: set the cgroup parent and labels that it asks for",
    ),
    _rule(
        r"cannot connect to the docker daemon|error while fetching server api version"
        r"|failed to establish connection to any given docker hosts"
        r"|UnixHTTPConnectionPool\(.*(?:Read timed out|refused|No such file)",
        "daemon_down",
    ),
    # Images: the registry's answers. What passes by itself is retried; what needs a person is not.
    _rule(
        r"\btoomanyrequests\b|\bpull rate limit\b",
        "image_pull",
        retryable=True,
        hint="the registry limits anonymous pulls: `docker login` on the engine's host, or use a mirror",
    ),
    _rule(
        r"no basic auth credentials|pull access denied|requested access to the resource is denied"
        r"|unauthorized: |\bdenied: (?:access|permission)",
        "image_pull",
        hint="`docker login` to the image's registry as the worker's user, or correct the image's name",
    ),
    _rule(
        r"\bno matching manifest for\b|\bexec format error\b",
        "image_config",
        hint="take an image for this CPU",
    ),
    _rule(
        r"\bmanifest unknown\b|\bmanifest for \S+ not found\b|\bno such image\b"
        r"|\brepository \S+ not found\b"
        r"|\bname unknown\b",
        "image_pull",
        hint="there is no such image or tag: correct its name, or build it (see images/)",
    ),
    _rule(
        r"\binvalid reference format\b",
        "image_config",
        hint="correct the image's name: [registry/]name[:tag]",
    ),
    _rule(
        r"\bx509: |\bcertificate signed by unknown authority\b",
        "image_pull",
        hint="let the engine trust the registry's certificate (/etc/docker/certs.d)",
    ),
    _rule(
        r"(?:/v2/|/images/create|\bregistry\b|\bpulling\b).*"
        r"(?:no such host|connection refused|i/o timeout|TLS handshake timeout|connection reset"
        r"|server misbehaving"
        r"|Client\.Timeout|context deadline exceeded|unexpected EOF|: EOF|50[234] |network is unreachable)",
        "image_pull",
        retryable=True,
        hint="the engine cannot reach the registry: check its network and proxy, or load the image first",
    ),
    # The image's entrypoint.
    _rule(
        r"exec: \"[^\"]*\": (?:executable file not found|permission denied|stat .*no such file)"
        r"|\bexec user process caused\b|\[FATAL tini [^\n]*exec \S+ failed"
        r"|\bunable to find (?:user|group) |\bexec [^:\n]+: no such file or directory",
        "image_config",
        hint="the image's entrypoint is not there or not executable: does it have Python?",
    ),
    # GPUs: driver and toolkit, before the general words in their messages.
    _rule(
        r"\bDriver/library version mismatch\b",
        "driver_mismatch",
        hint="the driver was updated while loaded: reload its modules or reboot the host",
    ),
    _rule(
        r"unsatisfied condition: (?:cuda|driver|brand)|CUDA driver version is insufficient"
        r"|NVIDIA driver on your system"
        r" is too old|\bforward compatibility was attempted\b|CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"
        r"|provided PTX was compiled with an unsupported toolchain",
        "driver_mismatch",
    ),
    _rule(
        r"\bno kernel image is available for execution\b"
        r"|\bnot compatible with the current PyTorch installation\b",
        "driver_mismatch",
        hint="the image's engine was not built for this GPU: take another image or another GPU",
    ),
    _rule(
        r"\bdevice\(s\) is/are busy or unavailable\b|\bdevices unavailable\b|CUDA_ERROR_DEVICE_UNAVAILABLE",
        "gpu_unavailable",
        hint="another process holds the GPU (exclusive compute mode?): `nvidia-smi` names it",
    ),
    _rule(
        r"Failed to initialize NVML: Unknown Error",
        "gpu_access",
        retryable=True,
        hint="the container lost its GPU (a systemd reload does that): a new container gets it back",
    ),
    _rule(
        r"could not select device driver|Unknown runtime specified|\bno known GPU vendor\b",
        "gpu_access",
        hint="the engine has no GPU support: install the NVIDIA Container Toolkit, "
        "`nvidia-ctk runtime configure`, "
        "restart the engine",
    ),
    _rule(
        r"nvidia-container-cli: device error|unresolvable CDI devices|\bunknown device: unknown\b",
        "gpu_access",
        hint="the host has no GPU of that id (any more): check `gpus` in the study and `nvidia-smi -L`",
    ),
    _rule(
        r"nvidia-container-cli: |\bnvml error: |CDI device injection failed"
        r"|error gathering device information while adding custom device \"/dev/nvidia"
        r"|\bno CUDA-capable device is detected\b|\bNo CUDA GPUs are available\b"
        r"|CUDA driver initialization failed"
        r"|libcuda\.so\.1: cannot open shared object|Found no NVIDIA driver on your system"
        r"|NVMLError_(?:LibraryNotFound|DriverNotLoaded)",
        "gpu_access",
    ),
    _rule(
        r"\bGPU is lost\b|NVMLError_GpuIsLost|\bfallen off the bus\b|uncorrectable ECC error|\bXid \(PCI",
        "gpu_access",
        hint="the GPU has a fault: look at `dmesg` for Xid lines, reset it or reboot",
    ),
    # Memory. Never the bare word: models are called zoom, bloom and room.
    _rule(
        r"\bOutOfMemoryError\b|\b(?:CUDA|HIP|XPU) out of memory\. |\b(?:CUDA|HIP) error: out of memory\b"
        r"|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY|CUBLAS_STATUS_ALLOC_FAILED"
        r"|ncclUnhandledCudaError: .*memory"
        r"|\bNo available memory for the cache blocks\b|\bFree memory on device\b.*\bis less than desired\b"
        r"|\bmaximum number of tokens that can be stored in (?:the )?KV cache\b"
        r"|\bKV cache is needed, which is larger than the available\b|\[TensorRT-LLM\].*OutOfMemory"
        r"|\bcudaMalloc\w* failed\b.*\bout of memory\b",
        "out_of_memory_gpu",
    ),
    _rule(
        r"\binsufficient shared memory\b|/dev/shm\b.*No space left on device"
        r"|No space left on device.*/dev/shm",
        "out_of_memory_host",
        hint="the shared memory is too small for the engine's worker processes: raise shm_size",
    ),
    _rule(
        r"^(?:\w+: )?MemoryError\b|\bCannot allocate memory\b|\bstd::bad_alloc\b"
        r"|DefaultCPUAllocator: (?:can't|not enough)"
        r"|numpy\S*ArrayMemoryError",
        "out_of_memory_host",
    ),
    # Models and the hub.
    _rule(
        r"\bGatedRepoError\b|\bCannot access gated repo\b|\bAccess to model \S+ is restricted\b"
        r"|\bYou are trying to access a gated repo\b",
        "model_access",
    ),
    _rule(
        r"\bInvalid credentials in Authorization header\b|\bInvalid user token\b"
        r"|\bUser Access Token .* (?:expired|invalid)"
        r"|401 Client Error.*(?:huggingface|hf\.co)|403 Client Error.*(?:huggingface|hf\.co)",
        "model_access",
        hint="the hub refused the token: set a valid one in HF_TOKEN or the host's connection",
    ),
    _rule(
        r"429 Client Error.*(?:huggingface|hf\.co)",
        "network",
        hint="the hub limits requests: set HF_TOKEN, or fetch the model once beforehand",
    ),
    _rule(
        r"\bLocalEntryNotFoundError\b|\bcouldn't connect to 'https?://|\bWe couldn't connect to\b"
        r"|\bOfflineModeIsEnabled\b"
        r"|HTTPS?ConnectionPool\(host='(?:[\w-]+\.)*(?:huggingface\.co|hf\.co)'"
        r"|\bTemporary failure in name resolution\b|\bName or service not known\b"
        r"|\bhuggingface\.co\b.*timed out",
        "network",
    ),
    _rule(
        r"\bRepositoryNotFoundError\b|\bRevisionNotFoundError\b|\bEntryNotFoundError\b"
        r"|\bHFValidationError\b"
        r"|\bis not a local folder and is not a valid model identifier\b"
        r"|\bCan't load (?:the )?(?:tokenizer|config\w*|model)\b"
        r"|\bdoes not appear to have a file named\b|\bError no file named\b"
        r"|\bis not a valid git identifier\b"
        r"|\bSafetensorError\b|\bIncorrect path_or_model_id\b",
        "model_missing",
    ),
    # Configuration, as the engines and Docker word it.
    _rule(
        r"\binvalid mount config\b|\bbind source path does not exist\b",
        "config",
        hint="the path of a mount is one of the *engine's* host: make it there, or correct the models folder",
    ),
    _rule(
        r"Minimum memory limit allowed|specified value for memory|cannot set both Count and DeviceIDs"
        r"|invalid argument \".*\" for \".*\" flag|error gathering device information|\binvalid (?:CPU"
        r"|range of CPUs)"
        r"|Requested CPUs are not available|cgroup-parent for systemd cgroup should be",
        "config",
    ),
    _rule(
        r"\bname \S+ is already in use by container\b",
        "name_conflict",
    ),
    _rule(
        r"\brequires you to execute (?:the|code|some)|\btrust_remote_code=True\b.*\bto (?:remove|allow)\b",
        "config",
        hint="the model brings its own code: set trust_remote_code in the engine's section if you trust it",
    ),
    _rule(
        r"\bonly supported on GPUs with compute capability\b|\bunexpected keyword argument\b"
        r"|\bunrecognized arguments?\b"
        r"|\bpydantic\w*(?:\.\w+)*\.?ValidationError\b|\bvalidation errors? for \w+"
        r"|\bProtocolError: \S+\.json"
        r"|User-specified max_model_len|must be divisible by tensor parallel size",
        "config",
    ),
    # Modules and libraries that the image lacks.
    _rule(
        r"\bNo module named\b|\bModuleNotFoundError\b|\bTorch not compiled with CUDA enabled\b"
        r"|ImportError: lib\S+: cannot open shared object file|\bundefined symbol: ",
        "engine_missing",
    ),
    # Disk and rights.
    _rule(
        r"\bNo space left on device\b|\bDisk quota exceeded\b|\bdatabase or disk is full\b"
        r"|\becho: I/O error\b",
        "disk_full",
    ),
    _rule(
        r"\bRead-only file system\b",
        "permission",
        hint="the image's file system is read-only: write below /tmp, or set read_only to false",
    ),
    _rule(
        r"\bPermissionError: \[Errno (?:1|13)\]|\[Errno 13\] Permission denied|: Permission denied$",
        "permission",
    ),
    # Crashes that say what they are.
    _rule(
        r"\bdevice-side assert triggered\b|\billegal memory access was encountered\b|\bCUDA error: "
        r"|\bNCCL error\b"
        r"|\bcaught collective operation timeout\b|\bEngineDeadError\b"
        r"|\bEngine core (?:initialization failed|proc died)"
        r"|\bSegmentation fault\b|^Fatal Python error: |\bSIGSEGV\b|\bcore dumped\b",
        "crash",
    ),
    # The container or the engine vanished.
    _rule(
        r"\bNo such container\b|removal of container \S+ is already in progress"
        r"|\bcannot connect to a removed container",
        "cancelled",
        hint="the container was removed from outside: `docker events` on its host says when",
    ),
    _rule(r"'Connection aborted\.'|\bRemoteDisconnected\b|\bRead timed out\b", "daemon_down"),
    _rule(r"^Traceback \(most recent call last\)", "crash"),
)
