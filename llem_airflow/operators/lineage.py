"""What a run read and wrote, for OpenLineage where its provider is installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from llem_airflow.study import Study


def run_lineage(study: Study | None, outcome: Mapping[str, Any]) -> Any:
    """The models that were measured as inputs, the run's results as output, the key numbers as a facet of the run.

    Args:
        study: What was measured, as far as it is known.
        outcome: What the aggregate returned.

    Returns:
        An OperatorLineage, or None where there is no OpenLineage.
    """
    if not find_spec("airflow.providers.openlineage"):
        return None
    import attrs  # noqa: PLC0415 - OpenLineage's facets are attrs classes, and it is an optional dependency
    from airflow.providers.common.compat.openlineage.facet import Dataset, RunFacet  # noqa: PLC0415
    from airflow.providers.openlineage.extractors import OperatorLineage  # noqa: PLC0415

    @attrs.define
    class EnergyRunFacet(RunFacet):  # type: ignore[misc]  # untyped where OpenLineage is not installed
        """Key numbers of a run; the same as in the asset event."""

        study: str
        planned: int
        valid: int
        energyKind: str  # noqa: N815 - OpenLineage's facets are in camel case
        experiments: dict[str, Any]
        comparison: dict[str, Any] | None

    url = urlsplit(outcome["run"])
    models = sorted({each.model for each in study.experiments}) if study else []
    return OperatorLineage(
        inputs=[Dataset(namespace="model", name=model) for model in models],
        outputs=[Dataset(namespace=f"{url.scheme or 'file'}://{url.netloc}", name=url.path)],
        run_facets={
            "llem_energy": EnergyRunFacet(
                study=outcome["study"],
                planned=outcome["planned"],
                valid=outcome["valid"],
                energyKind=outcome["energy_kind"],
                experiments=outcome["experiments"],
                comparison=outcome.get("comparison"),
            )
        },
    )
