"""What an engine is told to load."""

from __future__ import annotations

from pathlib import Path

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
