"""What an engine is told to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llem_airflow.measurement.failure import MeasurementError
from llem_airflow.protocol.spec import ExperimentSpec


def source_of(spec: ExperimentSpec) -> str:
    """The folder of the weights, or the name on the hub.

    Raises:
        MeasurementError: The folder of the weights is not there.
    """
    if spec.model.path is None:
        return spec.model.name
    if not (Path(spec.model.path) / "config.json").is_file():
        raise MeasurementError(
            f"model {spec.model.name!r}: {spec.model.path} holds no config.json here; "
            "check that the folder of the models is mounted and that the name is right",
            category="model_missing",
        )
    return spec.model.path


def weights_folder(spec: ExperimentSpec) -> Path:
    """The folder of the loaded weights: the given one, or the snapshot in the cache; if unknown, one of nothing."""
    if spec.model.path is not None:
        return Path(spec.model.path)
    try:
        import huggingface_hub  # noqa: PLC0415  # every engine that takes a model from the hub brings it
    except ModuleNotFoundError:
        return Path(spec.model.name)
    found = huggingface_hub.try_to_load_from_cache(
        spec.model.name, "config.json", revision=spec.model.revision
    )
    return Path(found).parent if isinstance(found, str) else Path(spec.model.name)


def source_facts(spec: ExperimentSpec) -> dict[str, Any]:
    """Name, path, revision, and of a model of the hub the commit that was loaded."""
    folder = weights_folder(spec)
    return {
        "name": spec.model.name,
        "path": spec.model.path,
        "revision": spec.model.revision,
        "commit": folder.name if spec.model.path is None and folder.parent.name == "snapshots" else None,
    }
