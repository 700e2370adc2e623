"""The engine of a name: ours, or a third party's through the entry-point group ``llem_airflow.engines``."""

from __future__ import annotations

import importlib
import importlib.metadata
import os

from llem_airflow.measurement.engines.contract import Engine
from llem_airflow.measurement.failure import MeasurementError

ENGINES = {
    "transformers": "llem_airflow.measurement.engines.transformers:TransformersEngine",
    "vllm": "llem_airflow.measurement.engines.vllm:VllmEngine",
    "tensorrt": "llem_airflow.measurement.engines.tensorrt:TensorRTEngine",
}

ENTRY_POINT_GROUP = "llem_airflow.engines"

# Set before an engine is imported, and only where the user has not: they are read at import time.
QUIET_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "VLLM_NO_USAGE_STATS": "1",
}


def engine_names() -> tuple[str, ...]:
    """Names of the engines that this image could be asked for, ours first."""
    installed = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    return (*ENGINES, *sorted({entry.name for entry in installed} - set(ENGINES)))


def open_engine(name: str, *, offline: bool) -> Engine:
    """Import the engine's module and make the engine, without loading a model.

    Args:
        name: The engine's name as the study gives it.
        offline: The weights are at hand: no look at the hub.

    Raises:
        MeasurementError: There is no such engine, or its library is not in this image.
    """
    for variable, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    if offline:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    target = _target(name)
    module_name, _, class_name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise MeasurementError(
            f"engine {name!r}: the module {error.name!r} is not in this image; "
            f"choose an image that holds the engine (images: {{{name}: …}} in the study) or install it",
            category="engine_missing",
        ) from error
    engine: Engine = getattr(module, class_name)()
    return engine


def _target(name: str) -> str:
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        if entry.name == name:
            return entry.value
    if name in ENGINES:
        return ENGINES[name]
    raise MeasurementError(
        f"engine {name!r} is not known; engines here: {', '.join(engine_names())}",
        category="engine_missing",
    )
