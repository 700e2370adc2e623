"""What failures are taken for: everything that was recorded, and texts that only look like something."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.measurement.failure import recognise
from llem_airflow.protocol.failures import category_of
from llem_airflow.protocol.result import ERROR_CATEGORIES, AttemptError
from llem_airflow.runners.failures import CATEGORIES, AttemptFailedError, Failure, classify, failure

RECORDED = json.loads((Path(__file__).parent.parent / "recorded" / "docker-failures.json").read_text())[
    "failures"
]

PUBLIC = json.loads((Path(__file__).parent.parent / "recorded" / "public-failures.json").read_text())[
    "failures"
]

# (text, exit code, category, whether a retry can help)
WORDINGS: list[tuple[str, int | None, str, bool]] = [
    # The hub, and models
    (
        "OfflineModeIsEnabled: Cannot reach https://huggingface.co/api/models/x: offline mode is enabled",
        1,
        "model_missing",
        False,
    ),
    (
        "ssl.SSLCertVerificationError: [SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate",
        1,
        "network",
        False,
    ),
    (
        "ValueError: model type `new` but Transformers does not recognize this architecture. This could be",
        1,
        "engine_missing",
        False,
    ),
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
    ("RuntimeError: CUDA out of memory", 1, "out_of_memory_gpu", False),
    (
        "ERROR 05-08 [core.py:1136] torch.OutOfMemoryError: HIP out of memory. Tried",
        1,
        "out_of_memory_gpu",
        False,
    ),
    ("RuntimeError: MPS backend out of memory (MPS allocated: 8.8 GB", 1, "out_of_memory_gpu", False),
    ("RuntimeError: XPU out of memory, please use `empty_cache`", 1, "out_of_memory_gpu", False),
    (
        "ValueError: To serve at least one request, (5.62 GiB KV cache is needed, which is larger than the available",
        1,
        "out_of_memory_gpu",
        False,
    ),
    (
        "RuntimeError: CUDA out of memory occurred when warming up sampler with 256 dummy requests.",
        1,
        "out_of_memory_gpu",
        False,
    ),
    ("cublasCreate: CUBLAS_STATUS_ALLOC_FAILED", 1, "out_of_memory_gpu", False),
    ("NCCL WARN Cuda failure 2 'out of memory'", 1, "out_of_memory_gpu", False),
    (
        "ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory",
        1,
        "out_of_memory_gpu",
        False,
    ),
    (
        "jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating",
        1,
        "out_of_memory_gpu",
        False,
    ),
    # host memory
    (
        "Memory cgroup out of memory: Killed process 4242 (python3) total-vm:9000kB",
        137,
        "out_of_memory_host",
        False,
    ),
    (
        "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.",
        1,
        "out_of_memory_host",
        False,
    ),
    (
        "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 3.2 GiB for an array",
        1,
        "out_of_memory_host",
        False,
    ),
    (
        "RuntimeError: unable to mmap 524288 bytes from file </torch_12_0>: Cannot allocate memory (12)",
        1,
        "out_of_memory_host",
        False,
    ),
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
    ("could not find device MIG-7d1a3b2c-1111-5222-8333-944445555666", 1, "gpu_access", False),
    ("GPU quota exceeded: 2 of 2 in use by ada", 1, "gpu_unavailable", True),
    (
        "pods is forbidden: exceeded quota: gpu, requested: requests.nvidia.com/gpu=1, used: 4",
        None,
        "gpu_unavailable",
        True,
    ),
    (
        "docker: Error response from daemon: unknown or invalid runtime name: nvidia.",
        125,
        "gpu_access",
        False,
    ),
    ("CUDA error: invalid device ordinal", 1, "gpu_access", False),
    (
        "RuntimeError: Failed to infer device type, please set the environment variable",
        1,
        "gpu_access",
        False,
    ),
    # registries
    ("dial tcp: lookup ghcr.io on 127.0.0.53:53: no such host", None, "image_pull", True),
    (
        'Head "https://nvcr.io/v2/x": dial tcp 1.2.3.4:443: connect: no route to host',
        None,
        "image_pull",
        True,
    ),
    (
        "error pulling image configuration: download failed after attempts=6: dial tcp: i/o timeout",
        None,
        "image_pull",
        True,
    ),
    (
        "denied: Your authorization token has expired. Reauthenticate and try again.",
        None,
        "image_pull",
        False,
    ),
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
    ("OSError: [Errno 28] No space left on device", 1, "disk_full", True),
    ("OSError: [Errno 28] No space left on device: '/dev/shm/vllm_x'", 1, "out_of_memory_host", False),
    ("PermissionError: [Errno 13] Permission denied: '/models/x'", 1, "permission", False),
    (
        "Error response from daemon: authorization denied by plugin opa-docker-authz: cgroup",
        None,
        "permission",
        False,
    ),
    ("Killed", 137, "killed", True),
    ("Killed\nchild rc=137", 1, "unknown", True),
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
    "memory limit: 64g",
    "checking out of memory handling",
    "CUDA out of memory handling is on",
    "using expandable segments to avoid CUDA out of memory",
    "will lower the batch if CUDA out of memory",
    "test_cuda_out_of_memory_error_is_caught passed",
    "If out-of-memory error occurs during cudagraph capture, consider decreasing `gpu_memory_utilization`",
    "[TRT] [W] Skipping tactic 0 due to insufficient memory on requested size of 41472 detected",
    "NCCL INFO Channel 00 : 0[100000] -> 1[200000] via direct shared memory",
    "NCCL version 2.27.3+cuda12.9",
    "GPU quota: 2 of 4 in use",
    "prompt: how do I find a device driver?",
    "serving on http://0.0.0.0:8000/v2/models",
    "tls: enabled, certificate: /etc/ssl/x.pem",
    "rate limited logging: 429 lines dropped",
    "quota of prompts exceeded the target by 2",
    "retrying on ValueError is off",
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
    assert len(PUBLIC) >= 70


@pytest.mark.parametrize(
    "case", PUBLIC, ids=[case["source"].removeprefix("https://github.com/") for case in PUBLIC]
)
def test_a_publicly_reported_failure_is_what_it_was(case: dict[str, Any]) -> None:
    found = classify(case["exit_code"], case["text"])
    assert (found.category, found.retryable) == (case["category"], case["retryable"])


@pytest.mark.parametrize(
    "case", PUBLIC, ids=[case["source"].removeprefix("https://github.com/") for case in PUBLIC]
)
def test_the_attempt_itself_says_the_same_of_it(case: dict[str, Any]) -> None:
    if case["category"] in ("image_pull", "image_config", "crash") or "nvidia-container" in case["text"]:
        return  # seen from outside only, or not named by an attempt
    if "CDI devices" in case["text"] or "from daemon" in case["text"]:
        return
    category, retryable, _ = recognise(RuntimeError(case["text"]))
    assert (category_of(category), retryable) == (case["category"], case["retryable"])


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


@pytest.mark.parametrize(
    ("category", "hint", "found", "retryable"),
    [
        ("network", None, "network", True),
        ("gpu_unavailable", True, "gpu_unavailable", True),
        ("disk_full", True, "disk_full", True),
        ("disk_full", None, "disk_full", True),
        ("model_missing", True, "model_missing", True),
        ("gpu_access", True, "gpu_access", True),
        ("bad_parameter", None, "config", False),
        ("permission", None, "permission", False),
        ("of a later version", None, "crash", True),
    ],
)
def test_what_the_attempt_knows_of_a_retry_counts_for_every_category(
    category: str, hint: bool | None, found: str, retryable: bool
) -> None:
    said = replace(error(category, hint=hint), type="RuntimeError")
    assert _pair(classify(1, "", error=said)) == (found, retryable)


def _pair(found: Failure) -> tuple[str, bool]:
    return found.category, found.retryable


@pytest.mark.parametrize("kind", ["ValueError", "TypeError", "NotImplementedError"])
def test_a_library_s_refusal_of_a_parameter_is_no_crash_and_our_own_fault_is(kind: str) -> None:
    library = (
        'Traceback…\n  File "/usr/lib/python3/site-packages/transformers/generation/utils.py", line 3, in x\n'
    )
    ours = 'Traceback…\n  File "/run/llem/llem.pyz/llem_airflow/measurement/attempt.py", line 3, in x\n'
    said = replace(error(message="`streamer` cannot be used with beam search (yet!)"), type=kind)
    assert _pair(classify(1, "", error=replace(said, traceback=library))) == ("config", False)
    assert classify(1, "", error=replace(said, traceback=ours)).category == "crash"


def test_a_benign_line_does_not_win_over_a_structured_error() -> None:
    log = "memory limit: 64g\nchecking out of memory handling\n[Errno 28] No space left on device (ignored)"
    assert classify(1, log, error=error(message="num_beams must be 1")).category == "config"


def test_a_wrapper_s_reason_is_found_in_the_output() -> None:
    wrapper = replace(
        error(message="Engine core initialization failed. See root cause above."), type="RuntimeError"
    )
    log = (
        "(EngineCore pid=7) ERROR [core.py:700] ValueError: Unknown quantization method: awq9. Must be one of"
    )
    assert _pair(classify(1, log, error=wrapper)) == ("config", False)
    log = "(EngineCore pid=7) torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
    assert classify(1, log, error=wrapper).category == "out_of_memory_gpu"
    assert _pair(classify(1, "nothing of note", error=wrapper)) == ("crash", True)


def test_the_kernel_s_word_comes_before_symptoms_and_after_reasons() -> None:
    wrapper = replace(error(message="EngineDeadError: EngineCore encountered an issue"), type="RuntimeError")
    assert classify(1, "", oom_killed=True, error=wrapper).category == "out_of_memory_host"
    assert classify(1, "", oom_killed=True, error=error("bad_parameter")).category == "config"


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


def test_the_last_lines_hold_the_error_and_not_the_frames_before_it(tmp_path: Path) -> None:
    frames = [
        line
        for number in range(30)
        for line in (
            f'  File "/x/{number}.py", line {number}, in f',
            "    self.call(argument)",
            "         ^^^^^^^^^",
        )
    ]
    tail = ("loading", "Traceback (most recent call last):", *frames, "ValueError: boom", "bye")
    text = str(AttemptFailedError(failure("crash"), "it fell", folder=tmp_path, log_tail=tail))
    assert text.splitlines()[3:] == [
        "  | loading",
        "  | Traceback (most recent call last):",
        "  | ValueError: boom",
        "  | bye",
    ]
    prefixed = tuple(f"(EngineCore pid=7) ERROR [core.py:9] {line}" for line in tail)
    text = str(AttemptFailedError(failure("crash"), "it fell", folder=tmp_path, log_tail=prefixed))
    assert "ValueError: boom" in text
    assert "self.call" not in text
