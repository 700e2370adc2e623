"""TensorRT-LLM: the PyTorch-backend class and the compiled-engine class, streamed for a time per token.

Written against the recorded API of 1.2; it has not been run on hardware.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorrt_llm
from tensorrt_llm import llmapi

from llem_airflow.measurement.engines.contract import (
    Completion,
    EngineFacts,
    Prompt,
    only_answer,
    plain,
)
from llem_airflow.measurement.engines.model_size import weight_counts
from llem_airflow.measurement.engines.model_source import (
    TokenizerEncoder,
    source_facts,
    weights_folder,
)
from llem_airflow.measurement.generation import (
    TENSORRT_BACKENDS,
    generation,
    llem_execution,
    request_arguments,
    tensorrt_arguments,
)
from llem_airflow.protocol.spec import ExperimentSpec

LIBRARIES = (
    "tensorrt_llm",
    "tensorrt",
    "torch",
    "transformers",
    "flashinfer-python",
    "nvidia-modelopt",
    "numpy",
)
ENV_BUILD_CACHE_ROOT = "TLLM_LLMAPI_BUILD_CACHE_ROOT"

# Sections that the study writes as a mapping and the library wants as an object.
OBJECTS = {
    "kv_cache_config": "KvCacheConfig",
    "quant_config": "QuantConfig",
    "calib_config": "CalibConfig",
    "build_config": "BuildConfig",
}


class TensorRTEngine(TokenizerEncoder):
    """``LLM`` of either backend with all prompts of a pass handed over at once."""

    def __init__(self) -> None:
        self._llm: Any = None
        self._sampling: dict[str, Any] = {}
        self._described: dict[str, Any] = {}
        self._model: dict[str, Any] = {}
        self._backend = TENSORRT_BACKENDS[0]

    def open_context(self) -> bool:
        """Not possible: the engine's workers make their own contexts."""
        return False

    def load(self, spec: ExperimentSpec) -> None:
        """Load the weights, or build or load the compiled engine."""
        self.reset(spec)
        self._backend, arguments = tensorrt_arguments(spec)
        self._described = dict(arguments)
        if self._backend == "tensorrt":
            arguments.update(build_cache(arguments))
        self._llm = _class_of(self._backend)(**_as_objects(arguments))
        wrapper = self._llm.tokenizer  # of the Hugging Face tokenizer
        self._tokenizer = getattr(wrapper, "tokenizer", wrapper)
        self._model = {
            **source_facts(spec),
            "dtype": str(arguments.get("dtype", "auto")),
            "device": "cuda",
            **weight_counts(weights_folder(spec)),
        }

    def reset(self, spec: ExperimentSpec) -> None:
        """The next experiment's sampling and seed, which each request brings; the engine has nothing else to reset."""
        chosen = generation(spec)
        self._chat_template = bool(llem_execution(spec).get("chat_template"))
        self._sampling = sampling_arguments(chosen.parameters, chosen.seed)

    def batch_size(self) -> int | None:
        """The whole prompt set: ``max_batch_size`` of the engine says how many run at once."""
        return None

    def generate(self, batch: Sequence[Prompt], on_step: Callable[[int], None]) -> list[Completion]:
        """Stream all prompts at once."""
        return asyncio.run(self._stream_all(batch, on_step))

    async def _stream_all(self, batch: Sequence[Prompt], on_step: Callable[[int], None]) -> list[Completion]:
        return list(await asyncio.gather(*(self._stream(prompt, on_step) for prompt in batch)))

    async def _stream(self, prompt: Prompt, on_step: Callable[[int], None]) -> Completion:
        parameters = tensorrt_llm.SamplingParams(**request_arguments(self._sampling, prompt.output_tokens))
        tokens: list[int] = []
        times_ns: list[int] = []
        reason = "unknown"
        t_submit_ns = time.monotonic_ns()
        stream = self._llm.generate_async(
            inputs=list(prompt.token_ids), sampling_params=parameters, streaming=True
        )
        async for output in stream:
            now_ns = time.monotonic_ns()
            answer = only_answer("tensorrt", output)
            new = answer.token_ids_diff
            tokens += new
            times_ns += [now_ns] * len(new)
            reason = answer.finish_reason or reason
            on_step(len(tokens))
        return Completion(prompt.index, tuple(tokens), t_submit_ns, tuple(times_ns), str(reason))

    def sync(self) -> None:
        """The last token has been received when ``generate`` returns: nothing is under way."""

    def reset_peaks(self) -> None:
        """The engine takes its memory at its start; there is no peak to forget."""

    def describe(self) -> EngineFacts:
        """What the engine was loaded with."""
        return EngineFacts(
            version=tensorrt_llm.__version__,
            model=self._model,
            libraries=LIBRARIES,
            settings={
                "backend": self._backend,
                "engine_params": {key: plain(value) for key, value in self._described.items()},
                "sampling_params": self._sampling,
            },
        )

    def memory(self) -> dict[str, int | None]:
        """Unknown: the engine's workers hold the device. The sampler sees the memory of the whole GPU."""
        return {"gpu_peak_bytes": None}

    def close(self) -> None:
        """End the engine's workers."""
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None


def sampling_arguments(given: dict[str, Any], seed: int) -> dict[str, Any]:
    """Arguments of ``SamplingParams`` that every request shares.

    Args:
        given: Preset and ``sampling_params`` of the study.
        seed: Of the random numbers.
    """
    parameters = {key: value for key, value in given.items() if value is not None}
    greedy = parameters.pop("do_sample", None) is False or parameters.get("temperature") == 0
    if greedy:
        # Both backends take the single best token for this; a temperature of zero only one of them.
        for key in ("temperature", "top_p", "min_p"):
            parameters.pop(key, None)
        parameters["top_k"] = 1
    else:
        parameters.setdefault("seed", seed)
    return {"detokenize": False, **parameters}


def build_cache(arguments: dict[str, Any]) -> dict[str, Any]:
    """Where compiled engines are kept: per GPU, because the library's own key does not hold its name.

    Args:
        arguments: What the class is given; a cache that the study names itself stays.
    """
    root = os.environ.get(ENV_BUILD_CACHE_ROOT)
    if root is None or "enable_build_cache" in arguments:
        return {}
    import torch  # noqa: PLC0415  # the engine's own torch, needed for the name of the GPU only

    gpu = (
        re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower())
        if torch.cuda.is_available()
        else "none"
    )
    return {"enable_build_cache": llmapi.BuildCacheConfig(cache_root=Path(root) / gpu)}


def _class_of(backend: str) -> Any:
    if backend == "pytorch":
        return tensorrt_llm.LLM
    from tensorrt_llm import _tensorrt_engine  # noqa: PLC0415  # only there where engines are compiled

    return _tensorrt_engine.LLM


def _as_objects(arguments: dict[str, Any]) -> dict[str, Any]:
    made = dict(arguments)
    for key, name in OBJECTS.items():
        if isinstance(made.get(key), dict):
            made[key] = getattr(llmapi, name)(**made[key])
    return made
