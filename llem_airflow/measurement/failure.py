"""Failures of an attempt that it can recognise itself, and what it says about them."""

from __future__ import annotations

import errno
import os
import re
import traceback
from dataclasses import dataclass

from llem_airflow.protocol import PROTOCOL_VERSION
from llem_airflow.protocol.result import AttemptError


class MeasurementError(RuntimeError):
    """The attempt cannot go on, and says what to do.

    Attributes:
        category: One of ``protocol.result.ERROR_CATEGORIES``.
        retryable: Whether trying again can help; None if unknown.
    """

    def __init__(self, message: str, *, category: str, retryable: bool | None = False) -> None:
        super().__init__(message)
        self.category = category
        self.retryable = retryable


@dataclass(frozen=True)
class Pattern:
    """How one kind of failure looks.

    Attributes:
        category: One of ``protocol.result.ERROR_CATEGORIES``.
        types: Class names of exceptions that always mean this.
        text: What the message holds, searched without case.
        retryable: Whether trying again can help; None if it depends.
        advice: What to do, one sentence.
    """

    category: str
    types: tuple[str, ...]
    text: str
    retryable: bool | None
    advice: str


# Order matters: the first match wins, so the narrower come first. Texts are those of torch, huggingface_hub,
# transformers, vLLM and TensorRT-LLM as seen in their sources or in runs.
PATTERNS = (
    Pattern(
        "out_of_memory_gpu",
        ("OutOfMemoryError",),
        r"CUDA (error: )?out of memory|CUBLAS_STATUS_ALLOC_FAILED|No available memory for the cache blocks"
        r"|larger than the (maximum number of tokens|available KV cache memory)"
        r"|less than desired GPU memory utilization|Insufficient GPU memory",
        False,
        "Lower the batch size, the token limits or the engine's memory share, or ask for a larger GPU.",
    ),
    Pattern(
        "out_of_memory_host",
        ("MemoryError",),
        r"DefaultCPUAllocator: (can't|not enough memory)|Cannot allocate memory"
        r"|Insufficient space in /dev/shm|unable to (allocate|open) shared memory"
        r"|Unable to allocate \S+ [KMGT]iB",
        False,
        "Raise the container's memory limit or its /dev/shm size, or choose a smaller model or batch.",
    ),
    Pattern(
        "model_gated",
        ("GatedRepoError",),
        r"gated repo|awaiting a review|access to model .+ is restricted|401 Client Error|403 Client Error"
        r"|Invalid user token",
        False,
        "Accept the model's terms on the hub and give the attempt a token that may read it (HF_TOKEN).",
    ),
    Pattern(
        "tokenizer_missing",
        (),
        r"Can't load tokenizer|Couldn't instantiate the backend tokenizer|no tokenizer (file|was) found"
        r"|Tokenizer class \S+ does not exist|Unable to load vocabulary",
        False,
        "Put the tokenizer's files (tokenizer.json, tokenizer_config.json) next to the weights.",
    ),
    Pattern(
        "model_missing",
        (
            "RepositoryNotFoundError",
            "RevisionNotFoundError",
            "EntryNotFoundError",
            "LocalEntryNotFoundError",
            "OfflineModeIsEnabled",
            "HFValidationError",
        ),
        r"is not a local folder and is not a valid model identifier|does not appear to have a file named"
        r"|We couldn't connect to .+ to load|no file named .+ found in directory|Can't load (the )?model"
        r"|Can't load (the )?configuration|is not a valid git identifier|Invalid repository ID"
        r"|Unrecognized model in|Cannot find an appropriate cached",
        False,
        "Check the model's name, its path as the container sees it, and the revision; "
        "an attempt without network needs the weights mounted.",
    ),
    Pattern(
        "model_missing",
        ("SafetensorError",),
        r"Error while deserializing header|PytorchStreamReader failed|file is (truncated|corrupted)",
        False,
        "The weights are damaged or incomplete: copy or download them again.",
    ),
    Pattern(
        "driver_mismatch",
        (),
        r"NVIDIA driver on your system is too old|driver version is insufficient|no kernel image is available"
        r"|forward compatibility was attempted|CUDA_ERROR_SYSTEM_DRIVER_MISMATCH|unsupported display driver",
        False,
        "The image's CUDA and the host's driver do not fit: use an image of an older CUDA, "
        "or update the driver of the host.",
    ),
    Pattern(
        "meter_unavailable",
        ("MeterUnavailableError",),
        r"(?!)",
        False,
        "Choose a meter that this host has (measurement.meter), or give the attempt access to it.",
    ),
    Pattern(
        "gpu_access",
        (),
        r"No CUDA GPUs are available|not compiled with CUDA enabled|Found no NVIDIA driver|no CUDA-capable device"
        r"|CUDA_ERROR_NO_DEVICE"
        r"|GPU is lost|device\(s\) is/are busy or unavailable|NVML_ERROR|Failed to infer device type"
        r"|libcuda\.so",
        True,
        "Check that the attempt was given a GPU and that the host's driver answers (nvidia-smi).",
    ),
    Pattern(
        "bad_parameter",
        ("ValidationError",),
        r"unexpected keyword argument|is not a valid|are not used by the model|got multiple values for"
        r"|must be (a |one of|positive|greater|in)|validation error|not supported for"
        r"|is longer than the maximum model length|The only possible arguments are|has to be (a|in)"
        r"|extra (inputs|fields) (are )?not permitted"
        r"|should be (one of|a|in)",
        False,
        "Correct the engine's section of the study; the engine names the parameter above.",
    ),
    Pattern(
        "engine_missing",
        ("ImportError",),
        r"(?!)",
        False,
        "A setting needs a package that is not in this image: use an image that holds it, or remove the setting.",
    ),
)


def recognise(error: BaseException) -> tuple[str | None, bool | None, str]:
    """Category, retry hint and advice for an exception; ``(None, None, "")`` when it is not known."""
    for cause in _chain(error):
        if isinstance(cause, MeasurementError):
            return cause.category, cause.retryable, ""
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            return "disk_full", True, "Free space where the exchange volume and the caches lie."
        for pattern in PATTERNS:
            if _matches(pattern, cause):
                return pattern.category, pattern.retryable, pattern.advice
    return None, None, ""


def attempt_error(error: BaseException, phase: str) -> AttemptError:
    """The structured error of a failed attempt, without secrets.

    Args:
        error: What was raised.
        phase: The phase it was raised in.
    """
    category, retryable, advice = recognise(error)
    message = f"{error}".strip() or type(error).__name__
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return AttemptError(
        schema_version=PROTOCOL_VERSION,
        type=type(error).__name__,
        message=redact(f"{message}\n{advice}".strip()),
        traceback=redact(text),
        phase=phase,
        retryable_hint=retryable,
        category=category,
    )


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name is likely to hold a secret."""
    return bool(
        re.search(r"TOKEN(?!IZER|S\b|_)|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY|_PAT$", name)
    )


def redact(text: str) -> str:
    """The text with every value of a secret environment variable replaced."""
    for name, value in os.environ.items():
        if is_secret_name(name) and len(value) >= 6:
            text = text.replace(value, "***")
    return re.sub(r"\bhf_[A-Za-z0-9]{20,}", "hf_***", text)


def _chain(error: BaseException) -> list[BaseException]:
    # The outermost exception is often a wrapper ("Engine core initialization failed"), its cause the reason.
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found


def _matches(pattern: Pattern, error: BaseException) -> bool:
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & set(pattern.types)) or bool(re.search(pattern.text, str(error), re.IGNORECASE))
