"""Histories of the experiments of a study, read from its aggregated runs."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llem_airflow.analysis.baseline import aggregated_beside
from llem_airflow.analysis.cycle import HAS_RESULT
from llem_airflow.analysis.fingerprint import FACTORS
from llem_airflow.analysis.history import Point, Trend, trends
from llem_airflow.analysis.metrics import BY_NAME
from llem_airflow.analysis.run_rows import cycle_rows
from llem_airflow.analysis.verdict import THRESHOLD_RATIO
from llem_airflow.results import ResultsRoot, StoredRun, layout

RUNS = 400
"""Newest runs that a history has: over a year of nights."""

log = logging.getLogger(__name__)


def _logged(run: StoredRun, error: Exception) -> None:
    log.warning("%s is left out of the history: %s", run.url, error)


class Followed(NamedTuple):
    """What a history is of.

    Attributes:
        experiment: Id of the experiment.
        release: Its release, where the study has histories of the same experiment for several; else empty.
    """

    experiment: str
    release: str

    def __str__(self) -> str:
        return f"{self.experiment} of {self.release}" if self.release else self.experiment


def histories(
    root: ResultsRoot,
    study: str,
    metric: str,
    on_damaged: Callable[[StoredRun, Exception], None] = _logged,
) -> dict[Followed, Trend]:
    """The history of each experiment of a study, by its newest id, and of each release: one point a run and identity.

    Args:
        root: Where the runs lie.
        study: Name of the study.
        metric: Name of the metric.
        on_damaged: Told of each run whose table does not read; it is left out.
    """
    runs = [run for run in root.runs(study) if run.folder.exists(layout.CYCLES_TABLE)]
    found = _trends(runs, metric, THRESHOLD_RATIO, on_damaged)
    shared = Counter(name for name, _, _ in found)
    return {Followed(name, release * (shared[name] > 1)): one for name, release, one in found}


def history_until(run: StoredRun, metric: str, threshold_ratio: float = THRESHOLD_RATIO) -> dict[str, Trend]:
    """The histories of the experiments that a run measured, as they were when it had ended.

    Args:
        run: The run; later ones are not looked at.
        metric: Name of the metric.
        threshold_ratio: Smallest change that matters.
    """
    began = run.started_epoch_ns()
    earlier = [
        other
        for other in aggregated_beside(run)
        if other.url != run.url and other.started_epoch_ns() <= began
    ]
    earlier.sort(key=lambda other: other.started_epoch_ns())
    found = _trends([*earlier, run], metric, threshold_ratio)
    return {name: one for name, _, one in found if one.points[-1].run_id == run.run_id}


def _trends(
    runs: Sequence[StoredRun],
    metric: str,
    threshold_ratio: float,
    on_damaged: Callable[[StoredRun, Exception], None] = _logged,
) -> list[tuple[str, str, Trend]]:
    """(id of the experiment, release, its history) of each identity."""
    points: dict[str, list[Point]] = {}
    told: dict[str, tuple[str, str]] = {}
    newest = 0
    for run in runs[-RUNS:]:
        groups = _measured(run, metric, on_damaged)
        newest = len(groups) or newest
        for identity, rows in groups.items():
            values = tuple(float(row[metric]) for row in rows)
            point = Point(run.run_id, run.started_epoch_ns(), values, _conditions(rows))
            points.setdefault(identity, []).append(point)
            told[identity] = str(rows[0]["experiment"]), str(run.meta().get("version") or identity[:8])
    better = BY_NAME[metric].better
    found = trends(list(points.values()), better, experiments=newest, threshold_ratio=threshold_ratio)
    return [(*told[identity], one) for identity, one in zip(points, found, strict=True)]


def _measured(
    run: StoredRun, metric: str, on_damaged: Callable[[StoredRun, Exception], None]
) -> dict[str, list[dict[str, Any]]]:
    """Rows with a value of the metric by identity; a damaged table hides no other run."""
    try:
        rows = cycle_rows(run)
    except (OSError, ValueError) as error:
        on_damaged(run, error)
        return {}
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["status"] in HAS_RESULT and row.get(metric) is not None and row["hash"]:
            groups.setdefault(str(row["hash"]), []).append(row)
    return groups


def _conditions(rows: list[dict[str, Any]]) -> str:
    """Conditions without the factors: a history looks for what a new engine version does, not a new GPU."""
    kept = set()
    for row in rows:
        fields = json.loads(row["fingerprint"] or "{}")
        kept.add(json.dumps({k: v for k, v in fields.items() if k not in FACTORS}, sort_keys=True))
    return "|".join(sorted(kept))
