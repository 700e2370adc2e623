from __future__ import annotations

import errno

import pytest

from llem_airflow.measurement.failure import MeasurementError, attempt_error, recognise, redact
from llem_airflow.protocol.result import ERROR_CATEGORIES


class OutOfMemoryError(RuntimeError):
    """As torch.cuda names it."""


class GatedRepoError(OSError):
    """As huggingface_hub names it."""


SEEN = [
    (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "out_of_memory_gpu"),
    (RuntimeError("CUDA error: out of memory"), "out_of_memory_gpu"),
    (
        ValueError("No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"),
        "out_of_memory_gpu",
    ),
    (MemoryError(), "out_of_memory_host"),
    (
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        "out_of_memory_host",
    ),
    (RuntimeError("Insufficient space in /dev/shm ... 160 MiB required, 64 MiB free"), "out_of_memory_host"),
    (GatedRepoError("You are trying to access a gated repo."), "model_gated"),
    (
        OSError("m is not a local folder and is not a valid model identifier listed on 'https://hf.co'"),
        "model_missing",
    ),
    (OSError("m does not appear to have a file named config.json."), "model_missing"),
    (OSError("Can't load tokenizer for 'm'."), "tokenizer_missing"),
    (ValueError("Couldn't instantiate the backend tokenizer from one of: ..."), "tokenizer_missing"),
    (TypeError("LLM.__init__() got an unexpected keyword argument 'gpu_memory'"), "bad_parameter"),
    (ValueError("The following `model_kwargs` are not used by the model: ['temprature']"), "bad_parameter"),
    (ImportError("Using `bitsandbytes` 8-bit quantization requires bitsandbytes"), "engine_missing"),
    (ImportError("libcuda.so.1: cannot open shared object file"), "gpu_access"),
    (RuntimeError("The NVIDIA driver on your system is too old (found version 11040)."), "driver_mismatch"),
    (RuntimeError("No CUDA GPUs are available"), "gpu_access"),
    (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
]


@pytest.mark.parametrize(
    ("error", "category"), SEEN, ids=[f"{category}-{type(e).__name__}" for e, category in SEEN]
)
def test_known_failures_are_recognised_and_say_what_to_do(error: Exception, category: str) -> None:
    found, _, advice = recognise(error)
    assert found == category
    assert found in ERROR_CATEGORIES
    assert advice.endswith(".")


def test_the_cause_below_a_wrapper_is_recognised() -> None:
    wrapper = RuntimeError("Engine core initialization failed")
    wrapper.__cause__ = OutOfMemoryError("CUDA out of memory")
    assert recognise(wrapper)[0] == "out_of_memory_gpu"


def test_an_unknown_failure_claims_nothing() -> None:
    assert recognise(RuntimeError("the moon is full")) == (None, None, "")


def test_an_error_of_ours_keeps_its_own_words_and_category() -> None:
    error = attempt_error(MeasurementError("no such folder", category="model_missing"), "load")
    assert (error.category, error.retryable_hint, error.message, error.phase) == (
        "model_missing",
        False,
        "no such folder",
        "load",
    )


def test_an_exception_without_text_still_has_a_message() -> None:
    assert attempt_error(KeyError(), "load").message == "KeyError"


def test_secrets_of_the_environment_do_not_get_into_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "very-secret-value")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "shown-value")
    error = attempt_error(RuntimeError("401 for very-secret-value"), "load")
    assert "very-secret-value" not in error.dumps()
    assert "***" in error.message
    assert redact("shown-value hf_abcdefghijklmnopqrstuvwxyz") == "shown-value hf_***"


class ConnectError(Exception):
    """As httpx names it."""


def refusing() -> None:
    raise ValueError(
        "`streamer` cannot be used with beam search (yet!). Make sure that `num_beams` is set to 1."
    )


@pytest.mark.parametrize(
    ("error", "category", "retryable"),
    [
        (OSError("We couldn't connect to 'https://huggingface.co' to load the files"), "network", True),
        (ConnectError("[Errno -3] Temporary failure in name resolution"), "network", True),
        (
            RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
            "gpu_unavailable",
            True,
        ),
        (OSError(errno.ENOSPC, "No space left on device", "/hub/x"), "disk_full", True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full", True),
        (OSError(errno.ENOSPC, "No space left on device", "/dev/shm/x"), "out_of_memory_host", False),
        (PermissionError(errno.EACCES, "Permission denied", "/models/x"), "permission", False),
        (RuntimeError("could not find device MIG-1a2b3c4d"), "gpu_access", False),
        (TypeError("unsupported operand type(s) for /: 'str' and 'int'"), "bad_parameter", False),
    ],
)
def test_whether_a_retry_helps_is_as_the_one_table_says(
    error: Exception, category: str, retryable: bool
) -> None:
    assert recognise(error)[:2] == (category, retryable)


def test_a_hub_that_was_not_asked_is_a_model_that_is_not_there() -> None:
    error = OSError("We couldn't connect to 'https://huggingface.co' to load the files")
    error.__cause__ = RuntimeError("Cannot reach https://huggingface.co/x: offline mode is enabled.")
    assert recognise(error)[:2] == ("model_missing", False)


def test_a_library_s_refusal_is_a_bad_parameter_also_below_a_wrapper() -> None:
    with pytest.raises(ValueError, match="streamer") as caught:
        refusing()
    wrapper = RuntimeError("generation failed")
    wrapper.__cause__ = caught.value
    assert recognise(wrapper)[:2] == ("bad_parameter", False)
    assert recognise(UnicodeDecodeError("utf-8", b"x", 0, 1, "boom"))[0] is None


def test_a_fault_of_our_own_code_is_no_bad_parameter() -> None:
    with pytest.raises(TypeError) as caught:
        redact(None)  # type: ignore[arg-type]  # the fault
    error = attempt_error(caught.value, "load")
    assert (error.category, error.retryable_hint) == (None, None)


@pytest.mark.parametrize(
    ("number", "category"),
    [
        (errno.ENOSPC, "disk_full"),
        (errno.EDQUOT, "disk_full"),
        (errno.ENOMEM, "out_of_memory_host"),
        (errno.EACCES, "permission"),
        (errno.EROFS, "permission"),
    ],
)
def test_the_system_s_error_numbers(number: int, category: str) -> None:
    assert recognise(OSError(number, "whatever the language"))[0] == category


@pytest.mark.parametrize(
    ("retryable", "found"),
    [(None, ("network", True)), (False, ("network", False)), (True, ("network", True))],
)
def test_an_error_of_ours_may_know_better_whether_a_retry_helps(
    retryable: bool | None, found: tuple[str, bool]
) -> None:
    error = MeasurementError("no", category="network", retryable=retryable)
    assert recognise(error) == (*found, "")
    assert recognise(MeasurementError("no", category="a word of nobody"))[:2] == ("a word of nobody", False)


def test_a_meter_that_is_not_there_and_a_package_that_is_missing_are_told() -> None:
    class MeterUnavailableError(RuntimeError): ...

    assert recognise(MeterUnavailableError("x"))[0] == "meter_unavailable"
    assert recognise(ImportError("x"))[0] == "engine_missing"
    assert recognise(ValueError("'foo' is not a valid choice"))[0] == "bad_parameter"


def test_a_ring_of_causes_ends() -> None:
    one, other = RuntimeError("one"), RuntimeError("other")
    one.__cause__, other.__cause__ = other, one
    assert recognise(one) == (None, None, "")


def test_an_error_says_its_type_text_and_advice() -> None:
    error = attempt_error(OSError(errno.ENOSPC, "No space"), "load")
    assert (error.schema_version, error.type, error.phase) == (1, "OSError", "load")
    assert error.message.splitlines()[0] == "[Errno 28] No space"
    assert error.message.splitlines()[1].startswith("Make room on the engine's disk")
    assert error.traceback.startswith("OSError: [Errno 28] No space")
