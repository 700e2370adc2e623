"""The leaderboard over all studies that a user may read: the newest run of each study, DAG and release competes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from typing import Any

from llem_airflow.analysis.leaderboard import LATENCIES, Entrant, boards, entrants_of
from llem_airflow.results import StoredRun, layout
from llem_airflow.web.explore import metric_facts
from llem_airflow.web.index import Entry
from llem_airflow.web.kept import Kept


def leaderboard(entries: Iterable[Entry], latency: str, limit_s: float | None, kept: Kept) -> dict[str, Any]:
    """The boards of all workloads.

    Args:
        entries: The runs that the user may read, oldest first.
        latency: One of LATENCIES.
        limit_s: The most that it may be, in seconds; None for no limit.
        kept: Where what was read is kept.

    Raises:
        ValueError: There is no such latency, or the limit is not above 0.
    """
    entrants, problems, runs = [], [], 0
    for entry in _newest(entries):
        try:
            version = entry.version_of(layout.EXPERIMENTS_TABLE)
            told = kept.of("entrants", entry.run.folder.path, version, partial(_entrants, entry.run))
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        runs += 1
        extra = {
            "dag_id": entry.dag_id,
            "release": entry.release,
            "started_epoch_ns": entry.started_epoch_ns or None,
        }
        entrants += [Entrant(**{**one, "source": one["source"] | extra}) for one in told]
    found = boards(entrants, latency, limit_s)
    return {
        "latency": metric_facts(latency),
        "latencies": [metric_facts(name) for name in LATENCIES],
        "limit_s": limit_s,
        "runs": runs,
        "problems": problems,
        "boards": [
            {
                "workload": one.workload,
                "ranked": [
                    {
                        **_row(each.entrant, latency),
                        "rank": each.rank,
                        "level": each.level,
                        "tried": each.tried,
                    }
                    for each in one.ranked
                ],
                **{
                    key: [_row(each, latency) for each in getattr(one, key)]
                    for key in ("beyond", "unknown", "apart")
                },
            }
            for one in found
        ],
    }


def _entrants(run: StoredRun) -> list[dict[str, Any]]:
    return [asdict(one) for one in entrants_of(run)]


def _row(one: Entrant, latency: str) -> dict[str, Any]:
    told = asdict(one)
    del told["latencies_s"]
    return told | {"latency_s": one.latencies_s.get(latency)}


def _newest(entries: Iterable[Entry]) -> list[Entry]:
    """The newest aggregated run of each study's folder, DAG and release."""
    found: dict[tuple[str, str, str], Entry] = {}
    for entry in entries:
        found_in = entry.run.folder.above().path
        if entry.has(layout.EXPERIMENTS_TABLE):
            found[found_in, entry.dag_id, entry.release] = entry
    return list(found.values())
