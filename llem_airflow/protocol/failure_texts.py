"""How engines and their libraries word a failure: patterns in the order in which they are tried.

The same list serves the attempt itself, which looks at its exceptions, and the outside, which may have nothing but the
output. A pattern is bounded by words, or anchored in the wording of the one program that writes it: the text holds
names that people chose (a model called ``zoom-7b`` is not out of memory) and advice ("to avoid running out of memory").
Sources: the public issue threads named in ``tests/recorded/public-failures.json``, and the libraries' own code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llem_airflow.protocol.failures import CATEGORIES


@dataclass(frozen=True)
class Rule:
    """A pattern and what it means; what is None is as usual for the category.

    Attributes:
        pattern: What the text holds, in any line and whatever the case. Not compiled here: every
            parse of a DAG imports the table.
        category: One of CATEGORIES.
        retryable: Whether another try can help.
        hint: What to do.
        said_inside: The error file's word, where it is narrower than the category.
    """

    pattern: str
    category: str
    retryable: bool | None = None
    hint: str | None = None
    said_inside: str | None = None


def rule(
    pattern: str,
    category: str,
    *,
    retryable: bool | None = None,
    hint: str | None = None,
    said_inside: str | None = None,
) -> Rule:
    """A rule of the table.

    Raises:
        KeyError: There is no such category.
    """
    CATEGORIES[category]
    return Rule(pattern, category, retryable, hint, said_inside)


_NO_ADVICE = "".join(
    rf"(?<!\b{word} )"
    for word in (
        "avoid", "avoids", "avoiding", "prevent", "prevents", "preventing", "if", "when", "on", "for", "against",
        "handle", "handles", "handling", "check", "checks", "checking", "detect", "detecting", "about", "no", "never",
        "of", "a", "without", "reduce", "run", "runs", "running", "test", "tests", "testing", "catch", "catches",
    )
)  # fmt: skip
"""Before words that name a failure: a sentence of advice or a name, not the failure itself."""

GPU_DEVICES = (
    rule(
        r"\bDriver/library version mismatch\b",
        "driver_mismatch",
        hint="the driver was updated while loaded: reload its modules or reboot the host",
    ),
    rule(
        r"CUDA driver version is insufficient|NVIDIA driver on your system is too old|\bcudaErrorInsufficientDriver\b"
        r"|\bforward compatibility was attempted\b|\bCUDA_ERROR_(?:SYSTEM_DRIVER_MISMATCH"
        r"|COMPAT_NOT_SUPPORTED_ON_DEVICE|UNSUPPORTED_PTX_VERSION)\b|\bunsupported display driver\b"
        r"|provided PTX was compiled with an unsupported toolchain",
        "driver_mismatch",
    ),
    rule(
        r"\bno kernel image is available for execution\b|\bnot compatible with the current PyTorch installation\b"
        r"|\bCUDA_ERROR_NO_BINARY_FOR_GPU\b|\bcudaErrorNoKernelImageForDevice\b",
        "driver_mismatch",
        hint="the image's engine was not built for this GPU: take another image or another GPU",
    ),
    rule(
        r"\bCUDA-capable devices? ?(?:\(s\) )?(?:is/are|are|is) busy or unavailable\b|\bdevice\(s\) is/are busy"
        r"|\bdevices unavailable\b|CUDA_ERROR_DEVICE_UNAVAILABLE|\bcudaErrorDevicesUnavailable\b"
        r"|\bError in memory profiling\b.*\bother processes\b",
        "gpu_unavailable",
        hint="another process holds the GPU (exclusive compute mode?): `nvidia-smi` names it",
    ),
    rule(
        r"\bGPU[\w ]{0,30}\bquota\b[^\n]{0,40}\b(?:exceeded|reached|exhausted|used up)\b"
        r"|\b(?:exceed(?:s|ed|ing)?|over|reached|exhausted)\b[^\n]{0,30}\bGPU[ _-]?quota\b|\bExceedsGPUQuota\b"
        r"|\bQuota '[\w-]*GPUS?[\w-]*' exceeded\b|\bexceeded quota: [^\n]*nvidia\.com/"
        r"|\bquota limits?: [^\n]*gpus?\b|\bInsufficient nvidia\.com/",
        "gpu_unavailable",
        hint="your quota of GPUs on this host is used up: wait for your other jobs, or ask for fewer GPUs",
    ),
    rule(
        r"Failed to initialize NVML: Unknown Error",
        "gpu_access",
        retryable=True,
        hint="the container lost its GPU (a systemd reload does that): a new container gets it back",
    ),
    rule(
        r"\b(?:could not|cannot|can't|failed to|unable to) find (?:the |a )?(?:GPU |MIG )?device\b"
        r"|\binvalid device ordinal\b|\bCUDA_ERROR_INVALID_DEVICE\b|\bno such device: (?:GPU|MIG)-"
        r"|\bno NVIDIA GPU device is present\b|\b(?:GPU|MIG)-[0-9a-f-]{8,}\S* (?:not found|does not exist)\b",
        "gpu_access",
        hint="the host has no GPU of that id (any more): check `gpus` in the study and `nvidia-smi -L`",
    ),
    rule(
        r"\bno CUDA-capable device is detected\b|\bNo CUDA GPUs are available\b|\bCUDA_ERROR_NO_DEVICE\b"
        r"|\bCUDA driver initialization failed\b|\bFailed to infer device type\b|\bCUDA unknown error\b"
        r"|lib(?:cuda|nvidia-ml)\.so\.1: cannot open shared object|Found no NVIDIA driver on your system"
        r"|NVMLError_(?:LibraryNotFound|DriverNotLoaded|NotFound)|\bNVML_ERROR_\w+"
        r"|\bcouldn't communicate with the NVIDIA driver\b|\bAccelerator can't be found\b"
        r"|\bUnable to determine the device handle for GPU|\bTorch not compiled with CUDA enabled\b(?=.*\bGPU\b)",
        "gpu_access",
    ),
    rule(
        r"\bGPU is lost\b|NVMLError_GpuIsLost|\bfallen off the bus\b|\buncorrectable ECC error\b|\bXid \(PCI"
        r"|\bCUDA_ERROR_ECC_UNCORRECTABLE\b|\bCUDA_ERROR_SYSTEM_NOT_READY\b|\bsystem not yet initialized\b",
        "gpu_access",
        hint="the GPU has a fault: look at `dmesg` for Xid lines, reset it or reboot",
    ),
)

MEMORY = (
    rule(
        r"\bOut of memory: Killed process\b|\boom-kill:constraint=|\bMemory cgroup out of memory\b"
        r"|\bray\.exceptions\.OutOfMemoryError\b|\bnode running low on memory\b",
        "out_of_memory_host",
    ),
    rule(
        rf"{_NO_ADVICE}\b(?:\w*\.)?OutOfMemoryError\b(?! (?:handl|guard|detect))"
        rf"|{_NO_ADVICE}\b(?:CUDA|HIP|XPU|NPU|MPS|MPS backend) out of memory\b"
        r"(?![ -](?:handl|guard|detect|protect|test|check|errors? (?:can|may|might|could|will|is))|\?)"
        r"|\b(?:CUDA|HIP)(?: runtime)? error\b[^\n]{0,200}?\bout of memory\b|\bCuda Runtime \(out of memory\)"
        r"|\bCuda Error in \S+: \d+ \(out of memory\)|\bCuda failure \d* ?'out of memory'"
        r"|\bcu(?:da)?Malloc\w*\b[^\n]{0,200}\b(?:failed|returned)\b[^\n]{0,80}\bout of memory\b"
        r"|\bcudaErrorMemoryAllocation\b|\b(?:cuda|hip)ErrorOutOfMemory\b|\bCUDA_ERROR_OUT_OF_MEMORY\b"
        r"|\bCU(?:BLAS|DNN|SOLVER|SPARSE)_STATUS_ALLOC_FAILED\b|\bRESOURCE_EXHAUSTED: Out of memory\b"
        r"|\bUR_RESULT_ERROR_OUT_OF_(?:DEVICE_MEMORY|RESOURCES)\b|\bError Code \d+: OutOfMemory\b"
        r"|\bOutOfMemory Error in \w+|\[TensorRT-LLM\]\[ERROR\][^\n]*\bout ?of ?memory\b"
        r"|\bRequested amount of (?:GPU )?memory \(\d+ bytes\) could not be allocated\b",
        "out_of_memory_gpu",
    ),
    rule(
        r"\bNo available memory for the cache blocks\b|\bFree memory on device\b[^\n]*\bless than desired\b"
        r"|\bless than desired GPU memory utilization\b|\bInsufficient GPU memory\b"
        r"|\bmaximum number of tokens that can be stored in (?:the )?KV cache\b"
        r"|\bKV cache is needed, which is larger than the available\b"
        r"|\blarger than the available KV cache memory\b|\bNot enough memory\. Please try to increase --mem-fraction"
        r"|\bNo enough (?:GPU )?memory\b|\bnot enough (?:GPU|device) memory\b"
        r"|\benough GPU RAM to fit the quantized model\b",
        "out_of_memory_gpu",
    ),
    rule(
        r"\binsufficient shared memory\b|/dev/shm\b[^\n]*No space left on device|No space left on device[^\n]*/dev/shm"
        r"|\bposix_fallocate failed ?: No space left\b|\bcreating shared memory segment\b[^\n]*(?:/dev/shm|nccl-shm)"
        r"|\bfailed to extend /dev/shm/|\bInsufficient space in /dev/shm\b|\bout of shared memory\b"
        r"|\bunable to (?:allocate|open|mmap)[^\n]{0,40} ?(?:shared memory|from file </torch_)",
        "out_of_memory_host",
        hint="the shared memory is too small for the engine's worker processes: raise shm_size",
    ),
    rule(
        r"^(?:[\w.]+: )?MemoryError\b|\bCannot allocate memory\b|\bstd::bad_alloc\b"
        r"|DefaultCPUAllocator: (?:can't|not enough)|\bArrayMemoryError\b|\bUnable to allocate [\d.]+ [KMGT]iB\b"
        r"|\bmemory allocation of \d+ bytes failed\b|\bnot enough memory: you tried to allocate\b",
        "out_of_memory_host",
    ),
)

OFFLINE = rule(
    r"\bOfflineModeIsEnabled\b|\boffline mode is enabled\b|\boutgoing traffic has been disabled\b",
    "model_missing",
    hint="the attempt has no network and the model is not on the disk: put it into the models folder",
)

MODELS = (
    OFFLINE,
    rule(
        r"\bGatedRepoError\b|\bCannot access gated repo\b|\bAccess to model \S+ is restricted\b"
        r"|\bYou are trying to access a gated repo\b|\bawaiting a review from the repo authors\b"
        r"|\benable access to public gated repositories\b|\bis a gated (?:repo|model)\b[^\n]*\baccess\b",
        "model_access",
        said_inside="model_gated",
    ),
    rule(
        r"\bRepository Not Found for url\b|\bRevision Not Found for url\b|\bEntry Not Found for url\b",
        "model_missing",
        hint="check the model's name and revision; a private model needs a token that may read it (HF_TOKEN)",
    ),
    rule(
        r"\bInvalid credentials in Authorization header\b|\bInvalid user token\b|\bLocalTokenNotFoundError\b"
        r"|\bUser Access Token .* (?:expired|invalid)|\bToken is required \(`token=True`\)"
        r"|\b40[13] (?:Client Error|Unauthorized|Forbidden)\b.*(?:huggingface|hf\.co)|\bInvalid username or password\b",
        "model_access",
        hint="the hub refused the token: set a valid one in HF_TOKEN or the host's connection",
        said_inside="model_gated",
    ),
    rule(
        r"\b429 (?:Client Error|Too Many Requests)\b.*(?:huggingface|hf\.co)|\bWe had to rate limit (?:your IP|you)\b",
        "network",
        hint="the hub limits requests: set HF_TOKEN, or fetch the model once beforehand",
    ),
    rule(
        r"\bCERTIFICATE_VERIFY_FAILED\b",
        "network",
        retryable=False,
        hint="the container does not trust the certificate of the hub or a proxy before it: give it the CA bundle",
    ),
    rule(
        r"\bLocalEntryNotFoundError\b|\bWe couldn't connect to\b|\bcouldn't connect to 'https?://"
        r"|HTTPS?ConnectionPool\(host='(?:[\w-]+\.)*(?:huggingface\.co|hf\.co)'"
        r"|\bTemporary failure in name resolution\b|\bName or service not known\b|\bgetaddrinfo failed\b"
        r"|\bhuggingface\.co\b.*timed out|\b50[0234] Server Error\b.*(?:huggingface|hf\.co)"
        r"|\bConsistency check failed: file should be of size\b|\bcannot find the requested files in the local cache\b"
        r"|\bFailed to establish a new connection: \[Errno (?!111|2\b)\d+\]|\bhf_transfer\b.*\bError\b"
        r"|\bconnect(?:ion)? .*cas-\w+\.xethub\.hf\.co",
        "network",
    ),
    rule(
        r"\bCan't load tokenizer\b|\bCouldn't instantiate the backend tokenizer\b|\bno tokenizer (?:file|was) found\b"
        r"|\bTokenizer class \S+ does not exist\b|\bUnable to load vocabulary\b",
        "model_missing",
        hint="put the tokenizer's files (tokenizer.json, tokenizer_config.json) next to the weights",
        said_inside="tokenizer_missing",
    ),
    rule(
        r"\bSafetensorError\b|\bError while deserializing header\b|\bPytorchStreamReader failed\b"
        r"|\binvalid load key, '[^']'|\bfile is (?:truncated|corrupted)\b|\bMetadataIncompleteBuffer\b",
        "model_missing",
        hint="the weights are damaged or incomplete (a Git LFS pointer?): copy or download them again",
    ),
    rule(
        r"\bmodel type `\S+` but Transformers does not recognize this architecture\b"
        r"|\bModel architectures \[[^\]]*\] (?:are not supported|failed to be inspected)",
        "engine_missing",
        hint="the engine in this image does not know the model's architecture: take a newer image",
    ),
    rule(
        r"\bRepositoryNotFoundError\b|\bRevisionNotFoundError\b|\bEntryNotFoundError\b|\bHFValidationError\b"
        r"|\bis not a local folder and is not a valid model identifier\b"
        r"|\bCan't load (?:the )?(?:config\w*|model)\b|\bdoes not appear to have a file named\b"
        r"|\bError no file named\b|\bno file named .+ found in directory\b|\bis not a valid git identifier\b"
        r"|\bIncorrect path_or_model_id\b|\bInvalid repository ID\b|\bUnrecognized model in\b"
        r"|\bCannot find an appropriate cached\b|\bCannot find any model weights with\b",
        "model_missing",
    ),
)

SETTINGS = (
    rule(
        r"\brequires you to execute (?:the|code|some)|\btrust_remote_code=True\b.*\bto (?:remove|allow)\b",
        "config",
        hint="the model brings its own code: set trust_remote_code in the engine's section if you trust it",
    ),
    rule(
        r"\bonly supported on GPUs with compute capability\b|\bunexpected keyword argument\b"
        r"|\bunrecognized arguments?\b|\berror: argument -|\bNo such option: -|\bInvalid value for '-"
        r"|\bpydantic\w*(?:\.\w+)*\.?ValidationError\b|\bvalidation errors? for \w+"
        r"|\bProtocolError: \S+\.json|User-specified max_model_len|must be divisible by tensor parallel size"
        r"|\bare not used by the model\b|\bgot multiple values for\b|\bout of resources?: shared memory\b"
        r"|\bis longer than the maximum model length\b|\bThe only possible arguments are\b"
        r"|\bextra (?:inputs|fields) (?:are )?not permitted\b",
        "config",
    ),
    rule(
        r"\bModuleNotFoundError\b|\bTorch not compiled with CUDA enabled\b|\bcannot import name\b"
        r"|^ImportError: |\bImportError: (?:lib\S+: cannot open shared object file|Using `)|\bundefined symbol: ",
        "engine_missing",
    ),
    rule(
        r"\bNo space left on device\b|\bDisk quota exceeded\b|\bdatabase or disk is full\b|\becho: I/O error\b",
        "disk_full",
    ),
    rule(
        r"\bRead-only file system\b",
        "permission",
        hint="the image's file system is read-only: write below /tmp, or set read_only to false",
    ),
    rule(
        r"\bPermissionError: \[Errno (?:1|13)\]|\[Errno 13\] Permission denied|: Permission denied$"
        r"|\bNVMLError_NoPermission\b",
        "permission",
    ),
)

CRASHES = (
    rule(
        r"\bdevice-side assert triggered\b|\billegal memory access was encountered\b|\bCUDA(?: runtime)? error\b: "
        r"|\bCUDA runtime error in \S|\bNCCL error\b|\bnccl(?:Internal|System|UnhandledCuda|Remote|Invalid\w+)Error\b"
        r"|\bcaught collective operation timeout\b|\bDistStoreError\b|\bDistBackendError\b|\bEngineDeadError\b"
        r"|\bRPC call to \w+ timed out\b|\bEngine core (?:initialization failed|proc died)"
        r"|\bCU(?:BLAS|DNN)_STATUS_\w+|\bSegmentation fault\b|^Fatal Python error: |\bSIGSEGV\b|\bcore dumped\b"
        r"|\bBus error\b",
        "crash",
    ),
)

LIBRARIES = (*GPU_DEVICES, *MEMORY, *MODELS, *SETTINGS, *CRASHES)


def first(rules: tuple[Rule, ...], text: str) -> Rule | None:
    """The first rule whose pattern the text holds."""
    return next((each for each in rules if re.search(each.pattern, text, re.IGNORECASE | re.MULTILINE)), None)
