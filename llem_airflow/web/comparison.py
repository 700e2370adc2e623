"""The comparison of runs and releases: experiments x candidates, each with its change and its verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from llem_airflow.analysis.compare import COMPARED, How, PairReport, compare_sides
from llem_airflow.analysis.compare_named import compare_each
from llem_airflow.analysis.metrics import METRICS
from llem_airflow.analysis.tables import RunRows
from llem_airflow.results import ResultReadError, StoredRun, layout
from llem_airflow.results.parquet import read_table
from llem_airflow.web.explore import metric_facts
from llem_airflow.web.index import Entry
from llem_airflow.web.kept import Kept
from llem_airflow.web.studies import labels_of, run_numbers, told_value

RELEASE = "@"
"""Before the name of a release: its newest aggregated run."""
LARGEST_CANDIDATES = 12
SHOWN_RUNS = 200
"""Runs that can be chosen from, the newest; older ones by their link."""
_CELL = (
    "n_baseline",
    "n_candidate",
    "hosts",
    "mean_baseline",
    "mean_candidate",
    "difference_ratio",
    "low_ratio",
    "high_ratio",
)
_TESTED = ("p_adjusted", "detectable_ratio", "method", "reason")


def choices(entries: Sequence[Entry]) -> dict[str, Any]:
    """The aggregated runs, the newest first, and the releases with the newest run of each, the oldest first."""
    there = [entry for entry in entries if entry.has(layout.CYCLES_TABLE)]
    return {
        "runs": [_facts(entry) for entry in reversed(there[-SHOWN_RUNS:])],
        "releases": {name: _facts(entry) for name, entry in _releases(there).items()},
    }


def usual(entries: Sequence[Entry]) -> tuple[str, list[str]]:
    """What is compared before anything is chosen: all releases with the oldest, else the two newest runs.

    Args:
        entries: The runs of a study and DAG, oldest first.
    """
    there = [entry for entry in entries if entry.has(layout.CYCLES_TABLE)]
    names = [f"{RELEASE}{name}" for name in _releases(there)]
    if len(names) > 1:
        return names[0], names[1:][-LARGEST_CANDIDATES:]
    ids = [entry.run.run_id for entry in there[-2:]]
    return (ids[0], ids[1:]) if len(ids) == 2 else ("", [])


def named(name: str, entries: Sequence[Entry], dag_id: str) -> Entry:
    """The run that a name means: the id of a run, or the sign and name of a release.

    Raises:
        ResultReadError: The DAG has none of that name.
    """
    if name.startswith(RELEASE):
        there = [entry for entry in entries if entry.has(layout.CYCLES_TABLE)]
        found = _releases(there).get(name.removeprefix(RELEASE))
    else:
        found = next((entry for entry in reversed(entries) if entry.run.run_id == name), None)
    if found is None:
        raise ResultReadError(
            f"{name!r} names no run of the DAG {dag_id}; name a run by its id, or a release as @RELEASE"
        )
    return found


def comparison(baseline: Entry, candidates: Sequence[Entry], how: How, kept: Kept) -> dict[str, Any]:
    """Each experiment of the reference with each candidate, as ``llem-airflow compare`` tells it.

    Args:
        baseline: The run to compare against.
        candidates: The runs in question.
        how: How to compare.
        kept: Where what was read is kept.

    Raises:
        ResultReadError: A run was not aggregated, or its table does not read.
    """
    runs = [baseline.run, *(entry.run for entry in candidates)]
    what = repr([how, *(run.url for run in runs)])
    version = repr([entry.version_of(layout.CYCLES_TABLE) for entry in (baseline, *candidates)])
    found: dict[str, Any] = kept.of("comparison", what, version, lambda: _comparison(runs, how))
    labels = labels_of(run_numbers(baseline, kept))
    return {
        "baseline": _facts(baseline),
        "candidates": [_facts(entry) for entry in candidates],
        "metric": metric_facts(how.metric),
        "metrics": [metric_facts(one.name) for one in METRICS if one.better != "-"],
        "compared": [metric_facts(name) for name in dict.fromkeys((how.metric, *COMPARED))],
        "threshold_ratio": how.threshold_ratio,
        "ignored": sorted(how.ignore),
        **found,
        "rows": [{**row, "label": labels.get(row["experiment"], row["experiment"])} for row in found["rows"]],
    }


def pair(baseline: StoredRun, experiment: str, candidate: StoredRun, other: str) -> dict[str, Any]:
    """One pair of experiments: the mean and interval of each side, whether the answers agree, which cycles there are.

    Raises:
        ResultReadError: A run was not aggregated, or has no such experiment.
    """
    ours, theirs = (RunRows.of(run).side(name) for run, name in ((baseline, experiment), (candidate, other)))
    answers = compare_sides(ours, theirs).answers
    return {
        "answers": asdict(answers) if answers else None,
        "sides": [
            {
                "run_id": side.run.run_id,
                "dag_id": str(side.run.meta().get("dag_id") or ""),
                "experiment": side.experiment,
                "cycles": sorted(int(row["cycle"]) for row in side.rows),
                "metrics": _described(side.run, side.experiment),
            }
            for side in (ours, theirs)
        ],
    }


def _comparison(runs: Sequence[StoredRun], how: How) -> dict[str, Any]:
    found = compare_each(runs[0], runs[1:], how)
    place = {_name(run): index for index, run in enumerate(runs[1:])}
    cells: dict[str, list[Any]] = {}
    for report in found.reports:
        experiment = report.baseline.rpartition("#")[2]
        row = cells.setdefault(experiment, [None] * len(place))
        row[place[report.candidate.rpartition("#")[0]]] = _cell(report)
    return {
        "rows": [{"experiment": name, "cells": row} for name, row in cells.items()],
        "only_baseline": _ends(found.only_baseline, len(runs) - 1),
        "only_candidate": sorted({name.rpartition("#")[2] for name in found.only_candidate}),
        "notes": found.notes,
    }


def _ends(names: Iterable[str], least: int) -> list[str]:
    """Experiments that none of the candidates has."""
    times: dict[str, int] = {}
    for name in names:
        experiment = name.rpartition("#")[2]
        times[experiment] = times.get(experiment, 0) + 1
    return [name for name, count in times.items() if count >= least]


def _cell(report: PairReport) -> dict[str, Any]:
    return {
        "experiment": report.candidate.rpartition("#")[2],
        "verdict": str(report.verdict),
        "estimate": report.estimate,
        "caution": report.caution,
        "factors": report.factors,
        "differences": report.differences,
        "metrics": {
            name: {"verdict": str(one.verdict)} | {key: getattr(one, key) for key in (*_CELL, *_TESTED)}
            for name, one in report.metrics.items()
        },
    }


def _described(run: StoredRun, experiment: str) -> dict[str, Any]:
    """Mean, n and the interval for people of each compared metric, as experiments.parquet has them."""
    names = [one.name for one in METRICS if one.better != "-"]
    ends = ("", "_n", "_low", "_high")
    columns = [f"{name}{end}" for name in names for end in ends]
    rows = read_table(
        run.folder, layout.EXPERIMENTS_TABLE, ["experiment", "hosts", *columns], optional=("hosts", *columns)
    ).to_pylist()
    row: dict[str, Any] = next((one for one in rows if one["experiment"] == experiment), {})
    return {name: told_value(row, name) for name in names if row.get(name) is not None}


def _releases(entries: Sequence[Entry]) -> Mapping[str, Entry]:
    """The newest run of each release, the oldest of them first."""
    found: dict[str, Entry] = {}
    for entry in entries:
        if entry.release:
            found.pop(entry.release, None)
            found[entry.release] = entry
    return found


def _facts(entry: Entry) -> dict[str, Any]:
    return {
        "dag_id": entry.dag_id,
        "run_id": entry.run.run_id,
        "study": entry.run.study,
        "release": entry.release,
        "started_epoch_ns": entry.started_epoch_ns or None,
    }


def _name(run: StoredRun) -> str:
    return f"{run.study}/{run.folder.name}"
