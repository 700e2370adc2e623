"""Histories of the experiments of a study, read from its aggregated runs."""

from __future__ import annotations

import json
from typing import Any

from llem_airflow.analysis.cycle import HAS_RESULT
from llem_airflow.analysis.fingerprint import FACTORS
from llem_airflow.analysis.history import Point, Trend, trend
from llem_airflow.analysis.metrics import BY_NAME
from llem_airflow.analysis.run_rows import cycle_rows
from llem_airflow.results import ResultsRoot, names


def histories(root: ResultsRoot, study: str, metric: str) -> dict[str, Trend]:
    """The history of each experiment of a study, by its newest id: one point a run and identity.

    Args:
        root: Where the runs lie.
        study: Name of the study.
        metric: Name of the metric.
    """
    points: dict[str, list[Point]] = {}
    labels: dict[str, str] = {}
    for run in root.runs(study):
        if not run.folder.exists(names.CYCLES_TABLE):
            continue
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in cycle_rows(run):
            if row["status"] in HAS_RESULT and row.get(metric) is not None and row["hash"]:
                groups.setdefault(str(row["hash"]), []).append(row)
        for identity, rows in groups.items():
            values = tuple(float(row[metric]) for row in rows)
            conditions = _conditions(rows)
            points.setdefault(identity, []).append(
                Point(run.run_id, run.started_epoch_ns(), values, conditions)
            )
            labels[identity] = str(rows[0]["experiment"])
    better = BY_NAME[metric].better
    return {labels[identity]: trend(found, better) for identity, found in points.items()}


def _conditions(rows: list[dict[str, Any]]) -> str:
    """Conditions without the factors: a history looks for what a new engine version does, not a new GPU."""
    kept = set()
    for row in rows:
        fields = json.loads(row["fingerprint"] or "{}")
        kept.add(json.dumps({k: v for k, v in fields.items() if k not in FACTORS}, sort_keys=True))
    return "|".join(sorted(kept))
