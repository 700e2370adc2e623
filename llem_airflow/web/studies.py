"""What the overview and a study's tab show of its runs: headline numbers, their history, the newest verdict."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from llem_airflow.analysis.history import Point, change_points
from llem_airflow.analysis.metrics import BY_NAME
from llem_airflow.analysis.nights import Alike, Column, Night, column
from llem_airflow.analysis.plan import distinct_labels, factor_label
from llem_airflow.analysis.statistics import tells_interval
from llem_airflow.results import StoredRun, layout
from llem_airflow.results.parquet import read_table
from llem_airflow.web.explore import HEADLINES, metric_facts
from llem_airflow.web.index import Entry
from llem_airflow.web.kept import Kept
from llem_airflow.web.seen import SeenDag

NIGHTS = 30
"""Runs that a sparkline has."""
SHOWN_RUNS = 50
"""Runs that the list of a DAG has."""
_COLUMNS = ("experiment", "hash", "planned", "valid", "energy_kind", "factors")


def study_rows(runs: Mapping[str, Sequence[Entry]], dags: dict[str, SeenDag]) -> list[dict[str, Any]]:
    """One row a study and DAG, of the DAGs that are given: where its newest run stands, and when the next is due.

    Args:
        runs: Those of each study's folder, oldest first.
        dags: What Airflow knows of the DAGs that the user may read, by id.
    """
    rows = []
    for study, found in runs.items():
        by_dag: dict[str, list[Entry]] = {}
        for entry in found:
            if entry.dag_id in dags:
                by_dag.setdefault(entry.dag_id, []).append(entry)
        for dag_id, entries in by_dag.items():
            newest, dag = entries[-1], dags[dag_id]
            rows.append(
                {
                    "study": newest.run.study,
                    "folder": study,
                    "dag_id": dag_id,
                    "run_id": newest.run.run_id,
                    "started_epoch_ns": newest.started_epoch_ns or None,
                    "runs": len(entries),
                    "state": dag.state if dag.run_id == newest.run.run_id else "",
                    "next_epoch_ns": None if dag.paused else dag.next_epoch_ns,
                    "paused": dag.paused,
                }
            )
    return sorted(rows, key=lambda row: -(row["started_epoch_ns"] or 0))


def headline(entries: Sequence[Entry], kept: Kept, visible: Collection[str]) -> dict[str, Any]:
    """The headline number of a study's newest aggregated run, what it was before, and the verdict on it.

    The number is that of the experiment with the least energy per output token (the most tokens per second where there
    is no energy); the same experiment is followed through the earlier runs by its identity.

    Args:
        entries: The runs of a study and DAG, oldest first.
        kept: Where what was read is kept.
        visible: Ids of the study's runs that the user may see: a change against another one is not told.
    """
    told = [(entry, rows) for entry in entries[-NIGHTS:] if (rows := run_numbers(entry, kept))]
    if not told:
        return {"number": None, "history": [], "since": None}
    newest, rows = told[-1]
    best = best_of(rows)
    if best is None:
        return {"number": None, "history": [], "since": None, "run_id": newest.run.run_id}
    row, metric = best
    changes = _changes(entries[-NIGHTS:], row, metric, len(rows), kept)
    history = [
        {
            "run_id": entry.run.run_id,
            "started_epoch_ns": entry.started_epoch_ns or None,
            "change_ratio": changes.get(entry.run.run_id),
            **told_value(one, metric),
        }
        for entry, found in told
        for one in found
        if one["hash"] == row["hash"] and one["experiment"] == row["experiment"] and one[metric] is not None
    ]
    labels = labels_of(rows)
    return {
        "run_id": newest.run.run_id,
        "number": {
            "metric": metric_facts(metric),
            "experiment": row["experiment"],
            "label": labels[row["experiment"]],
            "experiments": len(rows),
            "energy_kind": row["energy_kind"],
            **told_value(row, metric),
        },
        "planned": sum(one["planned"] for one in rows),
        "valid": sum(one["valid"] for one in rows),
        "history": history,
        "since": _since(newest.run, kept, visible, row["experiment"], metric),
    }


def _changes(
    entries: Sequence[Entry], row: Mapping[str, Any], metric: str, experiments: int, kept: Kept
) -> dict[str, float]:
    """Where an experiment changed, looking back over some runs: the size by the run that began it."""
    points = [
        Point.of(night, one)
        for night in nights_of(entries, metric, kept)[0]
        for one in night.measured
        if (one.identity, one.experiment) == (row["hash"], row["experiment"])
    ]
    same = [one for one in points if one.conditions == points[-1].conditions]
    found = change_points(same, BY_NAME[metric].better, experiments=experiments) if same else ()
    return {one.run_id: one.ratio for one in found}


def run_rows(entries: Sequence[Entry], kept: Kept) -> list[dict[str, Any]]:
    """One row a run, the newest first: what was planned and valid, and its best experiment."""
    found = []
    for entry in reversed(entries[-SHOWN_RUNS:]):
        row: dict[str, Any] = {
            "run_id": entry.run.run_id,
            "study": entry.run.study,
            "started_epoch_ns": entry.started_epoch_ns or None,
            "release": entry.release,
            "number": None,
        }
        if rows := run_numbers(entry, kept):
            row |= {key: sum(one[key] for one in rows) for key in ("planned", "valid")}
            if best := best_of(rows):
                one, metric = best
                row["number"] = {
                    "metric": metric_facts(metric),
                    "label": labels_of(rows)[one["experiment"]],
                    "energy_kind": one["energy_kind"],
                    **told_value(one, metric),
                }
        found.append(row)
    return found


def run_numbers(entry: Entry, kept: Kept) -> list[dict[str, Any]]:
    """The headline numbers of a run's experiments; nothing for one without a readable table."""
    version = entry.version_of(layout.EXPERIMENTS_TABLE)
    if not version:
        return []
    try:
        found: list[dict[str, Any]] = kept.of(
            "headline", entry.run.folder.path, version, lambda: _numbers(entry.run)
        )
    except (OSError, ValueError):
        return []  # a damaged table hides no other run; the run's own page says what is wrong
    return found


def _numbers(run: StoredRun) -> list[dict[str, Any]]:
    columns = [f"{metric}{end}" for metric in HEADLINES for end in ("", "_n", "_low", "_high")]
    rows: list[dict[str, Any]] = read_table(
        run.folder, layout.EXPERIMENTS_TABLE, [*_COLUMNS, "hosts", *columns], optional=("hosts",)
    ).to_pylist()
    return rows


def best_of(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], str] | None:
    """The experiment that stands for a run, and the metric by which it is the best."""
    for metric, sign in zip(HEADLINES, (1, -1), strict=True):
        if known := [row for row in rows if row[metric] is not None]:
            return min(known, key=lambda row: sign * row[metric]), metric
    return None


def told_value(row: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Mean, n, hosts, and the interval where it tells something, of an experiment's row."""
    n, hosts = int(row.get(f"{metric}_n") or 0), len(row.get("hosts") or ()) or 1
    shown = tells_interval(n, hosts)
    return {
        "mean": row[metric],
        "n": n,
        "hosts": hosts,
        "low": row.get(f"{metric}_low") if shown else None,
        "high": row.get(f"{metric}_high") if shown else None,
    }


def labels_of(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What each experiment of a run is called, by its id."""
    ids = [str(row["experiment"]) for row in rows]
    texts = [factor_label(json.loads(row["factors"] or "{}"), row["experiment"]) for row in rows]
    return dict(zip(ids, distinct_labels(ids, texts), strict=True))


def _since(
    run: StoredRun, kept: Kept, visible: Collection[str], experiment: str, metric: str
) -> dict[str, Any] | None:
    """The change of an experiment against the run before, with the verdicts on all, as the aggregate told it."""
    if not run.folder.exists(layout.PREVIOUS):
        return None
    try:
        found = kept.of_file(
            "since", run.folder, layout.PREVIOUS, lambda: run.folder.read_object(layout.PREVIOUS)
        )
    except (OSError, ValueError):
        return None
    if found.get("schema_version") != 1 or found["run_id"] not in visible:
        return None
    own = found["experiments"].get(experiment, {})
    return {
        "run_id": found["run_id"],
        "problem": found["problem"],
        "verdicts": dict(Counter(one["verdict"] for one in found["experiments"].values())),
        "verdict": own.get("verdict"),
        **dict(
            zip(
                ("ratio", "low_ratio", "high_ratio"),
                own.get("changes", {}).get(metric) or [None] * 3,
                strict=True,
            )
        ),
    }


def nights_of(entries: Sequence[Entry], metric: str, kept: Kept) -> tuple[list[Night], list[str]]:
    """The runs that have tables, and what is wrong with those whose tables do not read."""
    nights, problems, alike = [], [], Alike()
    for entry in entries:
        version = entry.version_of(layout.CYCLES_TABLE)
        if not version:
            continue
        try:
            read = partial(column, entry.run, metric, alike)
            found = kept.of_object(f"nights {metric}", entry.run.folder.path, version, read, Column.size)
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        nights.append(Night(entry.run.run_id, entry.started_epoch_ns, entry.release, found.measured()))
    return nights, problems
