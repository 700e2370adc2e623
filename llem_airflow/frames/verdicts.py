"""Frames of what runs say about each other: the history of a study, and comparisons, as the command tells them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from llem_airflow.analysis.compare import COMPARED, How, PairReport
from llem_airflow.analysis.compare_named import Compared, compare_named
from llem_airflow.analysis.history import Point, Trend, histories
from llem_airflow.analysis.metrics import BY_NAME
from llem_airflow.frames.asked import Both, Problems, Root, Run, Swept, reads, results_root
from llem_airflow.frames.tables import not_aggregated
from llem_airflow.frames.typed import as_json, rows_table, typed
from llem_airflow.results import ResultReadError, ResultsRoot, StoredRun, layout
from llem_airflow.results.store import some_runs

_TEXT, _WHOLE, _REAL, _TIME, _TRUTH = (
    pa.string(),
    pa.int64(),
    pa.float64(),
    pa.timestamp("ns", tz="UTC"),
    pa.bool_(),
)
_CHANGE = [("change_ratio", _REAL), ("change_p", _REAL), ("change_verdict", _TEXT), ("told_ratio", _REAL)]
_NEWEST = [
    ("verdict", _TEXT),
    ("state", _TEXT),
    ("began", _TEXT),
    ("outlier", _TRUTH),
    ("newest_ratio", _REAL),
    ("detectable_ratio", _REAL),
    ("note", _TEXT),
]
_COMPARED_SCHEMA = pa.schema(
    [
        ("baseline", _TEXT),
        ("candidate", _TEXT),
        ("metric", _TEXT),
        ("unit", _TEXT),
        ("decides", _TRUTH),
        ("verdict", _TEXT),
        *(
            (f"{what}_{side}", kind)
            for what, kind in (("n", _WHOLE), ("mean", _REAL))
            for side in ("baseline", "candidate")
        ),
        *(
            (name, _REAL)
            for name in (
                "difference_ratio",
                "low_ratio",
                "high_ratio",
                "p",
                "p_adjusted",
                "equivalence_p",
                "mann_whitney_p",
                "hedges_g",
                "detectable_ratio",
                "threshold_ratio",
            )
        ),
        *((name, _TEXT) for name in ("method", "better", "reason", "answers", "caution", "differences")),
        ("estimate", _TRUTH),
    ]
)


@reads
def history_df(
    study: str, *, root: Root = None, metric: str = COMPARED[0], strict: bool = True
) -> pd.DataFrame | Both:
    """One row a run of each experiment of a study, oldest first: what ``llem-airflow history`` tells.

    The column named as the metric is its mean over ``cycles`` cycles; ``compared`` is false for earlier runs under
    other conditions. ``change_ratio`` stands at the run where a change began, looking back; ``told_ratio`` at the run
    whose verdict told one. ``verdict`` and what follows it stand at the newest run of each experiment alone.

    Args:
        study: Name of the study.
        root: Folder or URL of the results, or a ``ResultsRoot``; default: LLEM_RESULTS_ROOT, then ``./results``.
        metric: Name of the metric.
        strict: Raise when a run cannot be read or was not aggregated; else return the frame and what is wrong.

    Raises:
        FrameError: Strict, and a run is left out.
        NoSuchRunError: There is no run of the study.
        ValueError: There is no such metric.
    """
    if metric not in BY_NAME:
        raise ValueError(f"{metric!r} is no metric; there are: {', '.join(BY_NAME)}")
    problems, where = Problems(), results_root(root)
    runs = some_runs(where, study)
    for run in runs:
        if not run.folder.exists(layout.CYCLES_TABLE):
            problems.add(run, str(not_aggregated(run)))
    trends = histories(where, study, metric, on_damaged=lambda run, error: problems.add(run, str(error)))
    swept, by_id = Swept.of(runs, problems), {run.run_id: run for run in runs}
    rows = []
    for (experiment, _), trend in trends.items():
        keys = swept.of_experiment(by_id[trend.points[-1].run_id], experiment)
        rows += [row | keys for row in _history_rows(study, experiment, trend, metric)]
    table = rows_table(rows, _history_schema(metric))
    return problems.beside(typed(table), strict=strict)


@reads
def compare_df(
    a: Run, b: Run | Iterable[Run], *, root: Root = None, strict: bool = True, **how: Any
) -> pd.DataFrame | Both:
    """One row a metric of each pair of experiments: what ``llem-airflow compare`` tells.

    The row that ``decides`` has the pair's verdict. A pair that is not comparable is one row, with the conditions that
    differ as JSON in ``differences``; so is an experiment that only one side has, with the other side NA. What is
    under study and differs has two columns, ``<key>_baseline`` and ``<key>_candidate``.

    Args:
        a: The reference run, as for ``experiments_df``, ``study@release`` or ``previous``; ``#experiment`` behind it
            names one experiment.
        b: The candidate, or several: runs, ``study@release``, ``study@*``; likewise.
        root: Where names are looked up; as for ``runs_df``.
        strict: Raise when a run cannot be read or was not aggregated; else return the frame and what is wrong.
        how: As ``analysis.compare_named.How``, which are the options of the command: ``metric``, ``threshold_ratio``
            (2 % by default), ``factor``, ``ignore``, ``paired``, ``without_flagged``.

    Raises:
        FrameError: Strict, and something cannot be read.
        NoSuchRunError: A name names no run.
        ValueError: The names or options do not fit together.
    """
    problems, where = Problems(), results_root(root)
    asked = How(**how)
    several = [b] if isinstance(b, (str, Path, StoredRun)) else list(b)
    found = Compared(())
    with problems.caught(None, errors=(OSError, ResultReadError)):
        found = compare_named(_name(a, where), [_name(one, where) for one in several], where, asked)
    rows = [row for report in found.reports for row in _pair_rows(report, asked.metric, found.notes)]
    rows += [
        {"candidate": url, "reason": "no earlier run of this study and release"}
        for url in found.without_baseline
    ]
    rows += [{"baseline": name, "reason": "only the reference run has it"} for name in found.only_baseline]
    rows += [{"candidate": name, "reason": "only the candidate has it"} for name in found.only_candidate]
    return problems.beside(typed(rows_table(rows, _COMPARED_SCHEMA)), strict=strict)


def _name(run: Run, root: ResultsRoot) -> str:
    """The run as the command names it: below the root by study and run, so that the root's storage options hold."""
    return (run.url if isinstance(run, StoredRun) else str(run)).removeprefix(f"{root.url}/")


def _pair_rows(report: PairReport, metric: str, notes: Iterable[str]) -> list[dict[str, Any]]:
    pair: dict[str, Any] = {
        "baseline": report.baseline,
        "candidate": report.candidate,
        "answers": report.answers.finding if report.answers else None,
        "caution": " ".join(notes) if report.baseline == report.candidate else report.caution,
        "differences": as_json(report.differences) if report.differences else None,
        "estimate": report.estimate,
    }
    for key, sides in report.factors.items():
        pair |= {f"{key}_{side}": value for side, value in zip(("baseline", "candidate"), sides, strict=True)}
    if not report.metrics:
        return [{**pair, "metric": metric, "decides": True, "verdict": str(report.verdict)}]
    return [
        {
            **pair,
            **asdict(found),
            "metric": name,
            "unit": BY_NAME[name].unit,
            "decides": not place,
            "verdict": str(found.verdict),
        }
        for place, (name, found) in enumerate(report.metrics.items())
    ]


def _history_rows(study: str, experiment: str, trend: Trend, metric: str) -> list[dict[str, Any]]:
    changes = {change.run_id: change for change in trend.changes}
    told = {trend.points[alarm.told].run_id: alarm.ratio for alarm in trend.alarms}
    rows = []
    for point in sorted((*trend.left_out, *trend.points), key=_began):
        compared = point in trend.points
        change = changes.get(point.run_id) if compared else None
        rows.append(
            {
                "study": study,
                "experiment": experiment,
                "run_id": point.run_id,
                "started": point.t_epoch_ns or None,
                metric: point.mean,
                "cycles": len(point.values),
                "compared": compared,
                "change_ratio": change.ratio if change else None,
                "change_p": change.p if change else None,
                "change_verdict": str(change.verdict) if change else None,
                "told_ratio": told.get(point.run_id) if compared else None,
                **(_of_newest(trend) if point is trend.points[-1] else {}),
            }
        )
    return rows


def _of_newest(trend: Trend) -> Mapping[str, Any]:
    found = {name: getattr(trend, name) for name, _ in _NEWEST}
    return {**found, "verdict": str(trend.verdict)}


def _began(point: Point) -> int:
    return point.t_epoch_ns


def _history_schema(metric: str) -> Any:
    point = [("run_id", _TEXT), ("started", _TIME), (metric, _REAL), ("cycles", _WHOLE), ("compared", _TRUTH)]
    return pa.schema([("study", _TEXT), ("experiment", _TEXT), *point, *_CHANGE, *_NEWEST])
