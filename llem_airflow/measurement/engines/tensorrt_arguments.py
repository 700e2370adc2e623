"""What TensorRT-LLM is given, in a batch and as a server: pure, and importable without the library."""

from __future__ import annotations

from typing import Any

from llem_airflow.measurement.engines.model_source import source_of
from llem_airflow.measurement.failure import MeasurementError
from llem_airflow.measurement.generation import engine_params
from llem_airflow.protocol.spec import ExperimentSpec

BACKENDS = ("pytorch", "tensorrt")
"""The default first."""


def engine_arguments(spec: ExperimentSpec) -> tuple[str, dict[str, Any]]:
    """The backend, and the arguments of its class: the study's over our defaults.

    The prompt set is repeated until the window is long enough; with the reuse of cache blocks on, every pass
    after the first would skip most of its prefill. It is off unless the study turns it on.

    Args:
        spec: The experiment.

    Raises:
        MeasurementError: There is no such backend.
    """
    given = {key: value for key, value in engine_params(spec).items() if value is not None}
    backend = {"trt": "tensorrt"}.get(str(given.get("backend")), given.get("backend")) or BACKENDS[0]
    given.pop("backend", None)  # it chooses the class and is no argument of it
    if backend not in BACKENDS:
        raise MeasurementError(
            f"tensorrt.engine_params.backend: {backend!r} is not known; use {' or '.join(BACKENDS)}",
            category="bad_parameter",
        )
    ours: dict[str, Any] = {"model": source_of(spec)}
    if spec.model.hub_revision is not None:
        ours["revision"] = spec.model.hub_revision
    cache = given.pop("kv_cache_config", {})
    if isinstance(cache, dict):
        cache = {"enable_block_reuse": False, **cache}
    return backend, {**ours, "kv_cache_config": cache, **given}
