"""A history run by run: for a terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from llem_airflow.analysis import quantity
from llem_airflow.analysis.history import Point, Trend
from llem_airflow.protocol.typed_json import to_json
from llem_airflow.text.terminal import Folding, Rows


def render_runs(trends: Mapping[str, Trend], metric: str) -> RenderableType:
    """One row a run for each experiment, oldest first, with what changed there."""
    parts: list[RenderableType] = []
    for name, found in trends.items():
        changes = {change.run_id: quantity.signed(change.ratio) for change in found.changes}
        rows = [
            (
                point.run_id,
                quantity.when(point.t_epoch_ns or None),
                quantity.quantity(metric, point.mean, estimate=_is_estimate(point)),
                str(len(point.values)),
                "other conditions" if point in found.left_out else changes.get(point.run_id, ""),
            )
            for point in sorted((*found.left_out, *found.points), key=lambda point: point.t_epoch_ns)
        ]
        table = Rows(("Run", "Began", "Mean", "n", "Change from here"), rows, whole=True)
        parts += [Folding(name, "bold"), table, Text("")]
    return Group(*parts)


def history_json(trends: Mapping[str, Trend], metric: str, study: str) -> dict[str, Any]:
    """The same with every value, for programs: ``{"study", "metric", "experiments": [{"id", "points", …}]}``."""
    experiments = [{"id": name, **to_json(found)} for name, found in trends.items()]
    return {"format": 1, "study": study, "metric": metric, "experiments": experiments}


def _is_estimate(point: Point) -> bool:
    return '"energy_kind": "estimate"' in point.conditions
