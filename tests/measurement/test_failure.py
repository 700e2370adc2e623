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
