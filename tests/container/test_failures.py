"""What failures are taken for: everything that was recorded, and texts that only look like something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.container.failure_patterns import CATEGORIES
from llem_airflow.container.failures import AttemptFailedError, classify, failure
from llem_airflow.protocol.result import ERROR_CATEGORIES, AttemptError

RECORDED = json.loads((Path(__file__).parent.parent / "recorded" / "docker-failures.json").read_text())[
    "failures"
]

# (text, exit code, category, whether a retry can help)
WORDINGS: list[tuple[str, int | None, str, bool]] = [
    # GPU memory, as torch, vLLM and TensorRT-LLM word it
    (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has",
        1,
        "out_of_memory_gpu",
        False,
    ),
    ("RuntimeError: CUDA error: out of memory", 1, "out_of_memory_gpu", False),
    ("ValueError: No available memory for the cache blocks. Try increasing", 1, "out_of_memory_gpu", False),
    (
        "ValueError: Free memory on device (3.1/79.1 GiB) on startup is less than desired GPU",
        1,
        "out_of_memory_gpu",
        False,
    ),
    (
        "[TensorRT-LLM][ERROR] CUDA runtime error in cudaMallocAsync failed: out of memory",
        1,
        "out_of_memory_gpu",
        False,
    ),
    # host memory
    ("MemoryError", 1, "out_of_memory_host", False),
    ("terminate called after throwing an instance of 'std::bad_alloc'", 134, "out_of_memory_host", False),
    (
        "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory",
        1,
        "out_of_memory_host",
        False,
    ),
    (
        "Bus error: insufficient shared memory (shm)",
        135,
        "out_of_memory_host",
        False,
    ),
    # the hub
    (
        "huggingface_hub.errors.GatedRepoError: 403 Client Error. (Request ID: x)\nCannot access gated repo",
        1,
        "model_access",
        False,
    ),
    ("OSError: You are trying to access a gated repo.", 1, "model_access", False),
    (
        "requests.exceptions.HTTPError: 401 Client Error: Unauthorized for url: https://huggingface.co/x",
        1,
        "model_access",
        False,
    ),
    (
        "OSError: nosuch/model is not a local folder and is not a valid model identifier listed on",
        1,
        "model_missing",
        False,
    ),
    ("OSError: /models/m does not appear to have a file named config.json", 1, "model_missing", False),
    ("huggingface_hub.errors.RevisionNotFoundError: 404 Client Error", 1, "model_missing", False),
    ("OSError: We couldn't connect to 'https://huggingface.co' to load the files", 1, "network", True),
    ("HTTPSConnectionPool(host='huggingface.co', port=443): Max retries exceeded", 1, "network", True),
    ("429 Client Error: Too Many Requests for url: https://huggingface.co/api/models", 1, "network", True),
    # driver
    (
        "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.8",
        128,
        "driver_mismatch",
        False,
    ),
    (
        "RuntimeError: The NVIDIA driver on your system is too old (found version 12020)",
        1,
        "driver_mismatch",
        False,
    ),
    ("Failed to initialize NVML: Driver/library version mismatch", 1, "driver_mismatch", False),
    ("CUDA error: no kernel image is available for execution on the device", 1, "driver_mismatch", False),
    # GPU
    ("RuntimeError: No CUDA GPUs are available", 1, "gpu_access", False),
    (
        "ImportError: libcuda.so.1: cannot open shared object file: No such file or directory",
        1,
        "gpu_access",
        False,
    ),
    ("Failed to initialize NVML: Unknown Error", 1, "gpu_access", True),
    ("pynvml.NVMLError_GpuIsLost: GPU is lost", 1, "gpu_access", False),
    (
        "RuntimeError: CUDA error: CUDA-capable device(s) is/are busy or unavailable",
        1,
        "gpu_unavailable",
        True,
    ),
    # registries
    ("toomanyrequests: You have reached your unauthenticated pull rate limit.", None, "image_pull", True),
    (
        "pull access denied for x/y, repository does not exist or may require 'docker login'",
        None,
        "image_pull",
        False,
    ),
    ("unauthorized: authentication required", None, "image_pull", False),
    ('Get "https://ghcr.io/v2/": net/http: TLS handshake timeout', None, "image_pull", True),
    ('Get "https://ghcr.io/v2/": x509: certificate signed by unknown authority', None, "image_pull", False),
    ('error pulling image configuration: Get "https://x/": unexpected EOF', None, "image_pull", True),
    ("no matching manifest for linux/arm64/v8 in the manifest list entries", None, "image_config", False),
    ("exec /usr/bin/python3: exec format error", 1, "image_config", False),
    # engines
    ("ModuleNotFoundError: No module named 'vllm'", 1, "engine_missing", False),
    ("AssertionError: Torch not compiled with CUDA enabled", 1, "engine_missing", False),
    (
        "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0",
        1,
        "config",
        False,
    ),
    ("TypeError: LLM.__init__() got an unexpected keyword argument 'block_siez'", 1, "config", False),
    ("pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig", 1, "config", False),
    ("requires you to execute the configuration file in that repo on your local machine", 1, "config", False),
    ("vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue", 1, "crash", True),
    ("torch.AcceleratorError: CUDA error: an illegal memory access was encountered", 1, "crash", True),
    ("Watchdog caught collective operation timeout: WorkNCCL(SeqNum=12)", 134, "crash", True),
    # host
    ("OSError: [Errno 28] No space left on device", 1, "disk_full", False),
    ("OSError: [Errno 28] No space left on device: '/dev/shm/vllm_x'", 1, "out_of_memory_host", False),
    ("PermissionError: [Errno 13] Permission denied: '/models/x'", 1, "permission", False),
    (
        "Error response from daemon: authorization denied by plugin opa-docker-authz: cgroup",
        None,
        "permission",
        False,
    ),
    ("", 139, "crash", True),
    ("", 137, "killed", True),
    ("", 143, "cancelled", True),
    ("", 127, "image_config", False),
    ("", -9, "killed", True),
    ("", None, "unknown", True),
]

# Texts with a word of a failure in them that are no such failure: names, notes, good news.
INNOCENT = [
    "loading model zoom-7b",
    "loading bigscience/bloom-560m",
    "model: /models/oom-detector-1b",
    "oom_score_adj is 0",
    "dataset: out-of-memory-questions",
    "INFO set PYTORCH_CUDA_ALLOC_CONF to avoid running out of memory",
    "INFO OOM guard is on",
    "prompt: Why does my program print MemoryError?",
    "memory usage 3.2 GiB, no memory error",
    "model permission-denied-llm loaded",
    "prompt: what does permission denied mean",
    "chmod: permission bits kept",
    "using gated-linear-attention",
    "model acme/gated-repo-7b loaded",
    "gated MLP: true",
    "model: timeout-1b",
    "timeout set to 600 s",
    "nccl timeout: 1800 s",
    "torchvision not found, skipping",
    "flash_attn not found, using sdpa",
    "GPU is fine",
    "xid-bench loaded",
    "registry of engines: transformers, vllm",
    "manifest-1.2 loaded",
    "unauthorised access is a topic of prompt 12",
    "image-pull-bench v2",
    "killed 0 stale workers",
    "cancelled 0 requests",
    "crash-test-llm loaded",
    "segmentation model loaded",
    "segment fault-tolerant training",
    "no module is frozen",
    "disk usage 12 %",
    "space left on the plate",
    "cuda:0 ready",
    "CUDA 12.8, driver 570.86",
    "driver version 570 is new enough",
    "device 0: NVIDIA A100",
    "unknown tokens: 0",
    "500 prompts, 404 tokens, 137 iterations",
    "exit code of the tokenizer: 0",
    "error rate 0.0",
    "0 errors, 0 failures",
    "connection pool of 10",
    "rate limit of the scheduler: 16 sequences",
    "requires 14 GiB, has 80 GiB",
    "read-only weights mapped",
    "signal to noise 137",
    "x5090 x5099 baseline",
    "exec plan ready",
    "conflict-free sharding",
    "name: invalid-reference-format-7b",
    "validation set of 12 prompts",
    "pydantic 2.11",
    "keyword arguments: {}",
    "dev/shm is 1 GiB",
    "the model Room-GPT-13b is loaded",
    "mushroom.safetensors mapped",
    "eofs: 3",
    "traceback of tokens: 3",
    "huggingface_hub 1.2.0",
    "offline mode is on",
]


@pytest.mark.parametrize("case", RECORDED, ids=[f"{case['via']}: {case['case']}" for case in RECORDED])
def test_recorded_failure_is_what_it_was(case: dict[str, Any]) -> None:
    found = classify(case["exit_code"], case["text"], oom_killed=case["oom_killed"])
    assert (found.category, found.retryable) == (case["category"], case["retryable"])


def test_all_recorded_failures_are_there() -> None:
    assert len(RECORDED) == 83


@pytest.mark.parametrize(("text", "exit_code", "category", "retryable"), WORDINGS)
def test_wording_is_recognised(text: str, exit_code: int | None, category: str, retryable: bool) -> None:
    found = classify(exit_code, text)
    assert (found.category, found.retryable) == (category, retryable)


@pytest.mark.parametrize("text", INNOCENT)
def test_innocent_text_is_not_taken_for_a_failure(text: str) -> None:
    assert classify(1, text).category == "unknown"


def test_there_are_enough_look_alikes() -> None:
    assert len(INNOCENT) >= 60


def test_every_category_says_what_to_do() -> None:
    assert all(failure(category).hint for category in CATEGORIES)


def error(category: str | None = None, message: str = "boom", hint: bool | None = None) -> AttemptError:
    return AttemptError(1, "ValueError", message, "Traceback …", "load", hint, category)


@pytest.mark.parametrize("category", ERROR_CATEGORIES)
def test_every_category_that_an_attempt_can_name_is_understood(category: str) -> None:
    assert classify(1, "", error=error(category)).category not in ("unknown", "crash")


def test_the_attempts_own_word_comes_before_the_output() -> None:
    found = classify(1, "No space left on device", error=error("model_gated"))
    assert found.category == "model_access"


def test_a_memory_kill_comes_before_the_output() -> None:
    assert (
        classify(1, "BrokenProcessPool\nNo module named x", oom_killed=True).category == "out_of_memory_host"
    )


def test_an_unnamed_error_keeps_the_attempts_retry_advice() -> None:
    assert classify(1, "", error=error(hint=False)).retryable is False
    assert classify(1, "", error=error(hint=True)).retryable is True


def test_an_unnamed_error_is_recognised_by_its_message() -> None:
    found = classify(1, "", error=error(message="CUDA out of memory. Tried to allocate 1 GiB"))
    assert found.category == "out_of_memory_gpu"


def test_the_cause_is_found_behind_the_last_exception() -> None:
    last = RuntimeError("404 No such container")
    last.__cause__ = PermissionError(13, "Permission denied")
    assert classify(None, "", error=last).category == "permission"


def test_the_error_says_what_happened_what_to_do_and_the_last_lines(tmp_path: Path) -> None:
    text = str(
        AttemptFailedError(
            failure("disk_full"),
            "the disk is full",
            folder=tmp_path,
            log_tail=("line one", "line two"),
            exit_code=1,
        )
    )
    assert text.splitlines() == [
        "the disk is full [disk_full]",
        "What to do: make room on the engine's disk (`llem-airflow gc`, `docker system df`)",
        "Last lines of output:",
        "  | line one",
        "  | line two",
    ]
