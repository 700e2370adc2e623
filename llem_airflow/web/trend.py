"""The trend of a study: each experiment over nights and releases, where it changed, and what changed around it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from llem_airflow.analysis.history import RUNS, Followed, Point, change_points, points_of, trends_of
from llem_airflow.analysis.metrics import BY_NAME, METRICS
from llem_airflow.analysis.nights import Night, changes_around
from llem_airflow.analysis.statistics import shown_interval
from llem_airflow.results import ResultReadError, StoredRun, layout
from llem_airflow.results.parquet import read_table
from llem_airflow.web.answers import json_text
from llem_airflow.web.explore import HEADLINES, metric_facts
from llem_airflow.web.index import Entry
from llem_airflow.web.kept import Kept
from llem_airflow.web.studies import best_of, labels_of, nights_of, run_numbers

SHOWN = 3
"""Experiments that are shown before any is chosen."""
LARGEST_CHOICE = 12
"""Experiments that are shown at most: more lines in one picture cannot be told apart."""


def studies_of(runs: Sequence[tuple[str, Sequence[Entry]]]) -> list[dict[str, Any]]:
    """The studies of a DAG, the one with the newest run first.

    Args:
        runs: The DAG's runs by the study's folder, oldest first; folders without one are left out.
    """
    there = [(folder, entries) for folder, entries in runs if entries]
    there.sort(key=lambda item: -item[1][-1].started_epoch_ns)
    return [{"folder": folder, "study": entries[-1].run.study} for folder, entries in there]


def trend_view(entries: Sequence[Entry], metric: str, chosen: Sequence[str], kept: Kept) -> dict[str, Any]:
    """The histories of the chosen experiments, and of all of them where they changed.

    Args:
        entries: The runs of a study and DAG, oldest first.
        metric: Name of the metric; empty for the first of the headlines that has a value.
        chosen: Ids of experiments; none for the best ones of the newest run.
        kept: Where what was read is kept.

    Raises:
        ResultReadError: There is no such metric, or none of which less or more is better.
    """
    shown, newest = entries[-RUNS:], _newest_numbers(entries, kept)
    metric = metric or next(
        (name for name in HEADLINES if any(row[name] is not None for row in newest)), HEADLINES[0]
    )
    if metric not in BY_NAME or BY_NAME[metric].better == "-":
        there = ", ".join(one.name for one in METRICS if one.better != "-")
        raise ResultReadError(f"{metric!r} has no trend; there are: {there}")
    whole: dict[str, Any] = kept.of(
        "trend", _key(entries, metric), _versions(shown), lambda: _whole(shown, metric, kept)
    )
    labels, known = labels_of(newest), whole["experiments"]
    wanted = [name for name in dict.fromkeys(chosen) if name in known] or _first(newest, list(known))
    told = {name: json.loads(known[name]["told"]) for name in wanted[:LARGEST_CHOICE]}
    return {
        "metric": metric_facts(metric),
        "metrics": [metric_facts(name) for name in _metrics(entries, kept)],
        "runs": whole["runs"],
        "problems": whole["problems"],
        "experiments": [
            {
                "experiment": name,
                "label": labels.get(name, name),
                "runs": one["runs"],
                "changes": one["changes"],
                "measured_last": name in labels,
            }
            for name, one in known.items()
        ],
        "chosen": wanted[:LARGEST_CHOICE],
        "histories": [
            _history(one, metric) for name in known if name in told for one in told[name]["histories"]
        ],
        "around": {name: each["around"] for name, each in told.items()},
    }


def verdicts(entries: Sequence[Entry], metric: str, kept: Kept) -> dict[str, Any]:
    """What the nightly verdict says of each experiment, as ``llem-airflow history`` tells it.

    It is worked out night by night, so a year x 100 experiments takes seconds, once a night.

    Raises:
        ResultReadError: There is no such metric, or none of which less or more is better.
    """
    if metric not in BY_NAME or BY_NAME[metric].better == "-":
        raise ResultReadError(f"{metric!r} has no trend")
    shown = entries[-RUNS:]
    found: dict[str, Any] = kept.of(
        "verdicts",
        _key(entries, metric),
        _versions(shown),
        lambda: _verdicts(nights_of(shown, metric, kept)[0], metric),
    )
    return found


def _verdicts(nights: Sequence[Night], metric: str) -> dict[str, Any]:
    return {
        "verdicts": [
            {
                "experiment": name.experiment,
                "release": name.release,
                "verdict": str(one.verdict),
                "state": one.state,
                "began": one.began,
                "outlier": one.outlier,
                "newest_ratio": one.newest_ratio,
                "detectable_ratio": one.detectable_ratio,
                "note": one.note,
                "told": [
                    {
                        "run_id": one.points[alarm.told].run_id,
                        "began": one.points[alarm.began].run_id,
                        "ratio": alarm.ratio,
                        "drift": alarm.drift,
                    }
                    for alarm in one.alarms
                ],
            }
            for name, one in trends_of(nights, metric, looking_back=False).items()
        ]
    }


def _whole(entries: Sequence[Entry], metric: str, kept: Kept) -> dict[str, Any]:
    """All histories; those of an experiment as JSON text, because a page reads those of a few out of a hundred.

    Their intervals are worked out for those few.
    """
    nights, problems = nights_of(entries, metric, kept)
    place = {night.run_id: index for index, night in enumerate(nights)}
    points, newest = points_of(nights)
    found: dict[str, list[dict[str, Any]]] = {}
    for name, own in points.items():
        found.setdefault(name.experiment, []).append(_followed(name, own, metric, newest, place))
    around = changes_around(nights)
    return {
        "runs": [
            {"run_id": one.run_id, "started_epoch_ns": one.t_epoch_ns or None, "release": one.release}
            for one in nights
        ],
        "problems": problems,
        "experiments": {
            name: {
                "runs": sum(len(one["points"]) for one in histories),
                "changes": sum(len(one["changes"]) for one in histories),
                "told": json_text(
                    {
                        "histories": histories,
                        "around": [
                            {**one._asdict(), "run": place[one.run_id]} for one in around.get(name, ())
                        ],
                    }
                ),
            }
            for name, histories in found.items()
        },
    }


def _followed(
    name: Followed, points: Sequence[Point], metric: str, experiments: int, place: dict[str, int]
) -> dict[str, Any]:
    """One history: its change points, and of each point run, values, their hosts and whether it is compared."""
    now = points[-1].conditions
    same = [one for one in points if one.conditions == now]
    changes = change_points(same, BY_NAME[metric].better, experiments=experiments)
    return {
        "experiment": name.experiment,
        "release": name.release,
        "estimate": points[-1].is_estimate,
        "points": [(place[one.run_id], one.values, one.hosts, one.conditions == now) for one in points],
        "changes": [
            {"run": place[one.run_id], "ratio": one.ratio, "p": one.p, "verdict": str(one.verdict)}
            for one in changes
        ],
    }


def _history(followed: dict[str, Any], metric: str) -> dict[str, Any]:
    """The same; a point is run, mean, ends of its interval, n, hosts, and whether it is compared with the newest."""
    rows = []
    for run, values, hosts, compared in followed["points"]:
        interval = shown_interval(values, signed=BY_NAME[metric].signed, hosts=hosts)
        ends = (interval.low, interval.high) if interval else (None, None)
        mean = Point("", 0, values, hosts=hosts).mean
        rows.append([run, mean, *ends, len(values), len(set(hosts)) or 1, compared])
    return {**followed, "points": rows}


def _newest_numbers(entries: Sequence[Entry], kept: Kept) -> list[dict[str, Any]]:
    return next((rows for entry in reversed(entries) if (rows := run_numbers(entry, kept))), [])


def _first(newest: Sequence[dict[str, Any]], known: Sequence[str]) -> list[str]:
    """The best experiment of the newest run, then the next ones as the study has them."""
    best = best_of(newest)
    names = [str(best[0]["experiment"])] if best else []
    names += [str(row["experiment"]) for row in newest]
    return [name for name in dict.fromkeys([*names, *reversed(known)]) if name in known][:SHOWN]


def _metrics(entries: Sequence[Entry], kept: Kept) -> list[str]:
    """Metrics of which less or more is better and that the newest run has."""
    for entry in reversed(entries):
        run = entry.run
        try:
            if version := entry.version_of(layout.EXPERIMENTS_TABLE):
                found: list[str] = kept.of("metrics", run.folder.path, version, partial(_present, run))
                return found
        except (OSError, ValueError):
            continue
    return []


def _present(run: StoredRun) -> list[str]:
    names = [one.name for one in METRICS if one.better != "-"]
    table = read_table(run.folder, layout.EXPERIMENTS_TABLE, names, optional=names)
    return [name for name in names if name in table.column_names and table[name].null_count < len(table)]


def _key(entries: Sequence[Entry], metric: str) -> str:
    newest = entries[-1]
    return f"{newest.run.folder.above().path} {newest.dag_id} {metric}"


def _versions(entries: Sequence[Entry]) -> str:
    """Changes when a table is written again, and when a run comes or goes."""
    return repr([(entry.run.folder.name, entry.version_of(layout.CYCLES_TABLE)) for entry in entries])
