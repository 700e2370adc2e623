"""What the study says to its engine: parameters, and how tokens are chosen. Pure, and importable without an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llem_airflow.measurement.engines.model_source import source_of
from llem_airflow.measurement.failure import MeasurementError
from llem_airflow.protocol.spec import ExperimentSpec

# The presets of the study grammar. Without one an experiment is greedy: two versions can then be compared
# by what they answer, and repetitions do the same work.
PRESETS: dict[str, dict[str, Any]] = {
    "deterministic": {"temperature": 0.0},
    "standard": {"temperature": 1.0, "top_p": 0.95},
    "creative": {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.1},
    "factual": {"temperature": 0.3},
}
DEFAULT_PRESET = "deterministic"


@dataclass(frozen=True)
class Generation:
    """How the tokens of an experiment are chosen.

    Attributes:
        parameters: The preset's parameters under those that the study gives, unknown ones passed through.
        seed: Of the random numbers.
    """

    parameters: dict[str, Any]
    seed: int


def section(spec: ExperimentSpec) -> dict[str, Any]:
    """The engine's own section of the experiment."""
    found = spec.config.get(spec.engine)
    return found if isinstance(found, dict) else {}


def engine_params(spec: ExperimentSpec) -> dict[str, Any]:
    """What is passed to the engine's constructor."""
    return {**(section(spec).get("engine_params") or {}), **(spec.config.get("passthrough_kwargs") or {})}


def llem_execution(spec: ExperimentSpec) -> dict[str, Any]:
    """What the harness itself does for the engine: batch size, compilation, chat template."""
    return dict(section(spec).get("llem_execution") or {})


def generation(spec: ExperimentSpec) -> Generation:
    """How the tokens of the experiment are chosen; what the study writes out wins over its preset."""
    own = section(spec).get("sampling_params") or {}
    preset = spec.config.get("sampling_preset")
    chosen = PRESETS[preset] if preset else {} if own.get("do_sample") is True else PRESETS[DEFAULT_PRESET]
    seed = (spec.config.get("task") or {}).get("random_seed")
    return Generation(parameters={**chosen, **own}, seed=42 if seed is None else int(seed))


def request_arguments(shared: dict[str, Any], output_tokens: int) -> dict[str, Any]:
    """Arguments of one ``SamplingParams`` of vLLM or TensorRT-LLM: a fixed length, unless the study says otherwise.

    Args:
        shared: What every request of the engine is given.
        output_tokens: Tokens to generate.
    """
    fixed = {} if "ignore_eos" in shared else {"min_tokens": output_tokens}
    return {"max_tokens": output_tokens, **fixed, **shared}


TENSORRT_BACKENDS = ("pytorch", "tensorrt")
"""The default first."""


def tensorrt_arguments(spec: ExperimentSpec) -> tuple[str, dict[str, Any]]:
    """The backend, and the arguments of its class: the study's over our defaults.

    The prompt set is repeated until the window is long enough; with the reuse of cache blocks on, every pass
    after the first would skip most of its prefill. It is off unless the study turns it on.

    Args:
        spec: The experiment.

    Raises:
        MeasurementError: There is no such backend.
    """
    given = {key: value for key, value in engine_params(spec).items() if value is not None}
    backend = {"trt": "tensorrt"}.get(str(given.get("backend")), given.get("backend")) or TENSORRT_BACKENDS[0]
    given.pop("backend", None)  # it chooses the class and is no argument of it
    if backend not in TENSORRT_BACKENDS:
        raise MeasurementError(
            f"tensorrt.engine_params.backend: {backend!r} is not known; use {' or '.join(TENSORRT_BACKENDS)}",
            category="bad_parameter",
        )
    ours: dict[str, Any] = {"model": source_of(spec)}
    if spec.model.hub_revision is not None:
        ours["revision"] = spec.model.hub_revision
    cache = given.pop("kv_cache_config", {})
    if isinstance(cache, dict):
        cache = {"enable_block_reuse": False, **cache}
    return backend, {**ours, "kv_cache_config": cache, **given}
