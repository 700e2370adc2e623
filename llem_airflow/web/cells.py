"""The matrix of a run: each planned cycle with its state, its numbers, and the attempts that failed."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from llem_airflow.analysis.cycle import read_cycle
from llem_airflow.analysis.plan import Planned, experiment_factors, experiment_labels
from llem_airflow.results import CycleRef, StoredRun, layout
from llem_airflow.results.parquet import read_table
from llem_airflow.results.records import FailureRef
from llem_airflow.web.kept import Kept
from llem_airflow.web.seen import SeenTask

READING_S = 0.5
"""So long an answer reads cycles that nobody has read yet; the others follow with the next one."""
SHOWN_FAILURES = 100
TAIL_LINES = 40
MAPPED_TASK = "cycle"
"""Last part of the id of a task whose instances are the planned cycles."""
_TAIL_BYTES = 16 << 10
_NUMBERS = ("energy_per_output_token_j", "energy_j", "output_tokens_per_s")
_WHERE = ("host", "start_kind", "session", "position_in_session")
_STATES = {
    "success": "measured",
    "up_for_retry": "waiting for another try",
    "deferred": "waiting",
    "scheduled": "waiting",
    "None": "waiting",
    "removed": "missing",
    "upstream_failed": "not begun",
}
_PLACE = re.compile(r"^\s*(?:.*?\.ya?ml|[^\s:]+):(\d+):(\d+): (.*)$")

Key = tuple[str, int]


def stored_numbers(run: StoredRun, kept: Kept, *, whole: bool) -> tuple[dict[Key, dict[str, Any]], int]:
    """What is known of each cycle that has a result, and how many are still to be read.

    Args:
        run: The run.
        kept: Where what was read is kept.
        whole: Whether nothing more comes: then the aggregate's table is read, and every cycle stands in it.
    """
    if whole and run.folder.exists(layout.CYCLES_TABLE):
        rows = kept.of_file("cells", run.folder, layout.CYCLES_TABLE, lambda: _table_rows(run))
        return {(row["experiment"], row["cycle"]): row for row in rows}, 0
    found, unread, begin_s = {}, 0, time.monotonic()
    for ref in run.cycles():
        if time.monotonic() - begin_s < READING_S:
            row = kept.of_file("cell", ref.folder, layout.RESULT, partial(_live_row, ref))
        else:
            row, unread = {"status": "measured"}, unread + 1
        found[ref.experiment_id, ref.cycle] = row
    return found, unread


def _table_rows(run: StoredRun) -> list[dict[str, Any]]:
    names = ["experiment", "cycle", "status", "reason", "energy_kind", "flags", "doubtful", *_NUMBERS]
    rows: list[dict[str, Any]] = read_table(
        run.folder, layout.CYCLES_TABLE, [*names, *_WHERE], optional=_WHERE
    ).to_pylist()
    return [row for row in rows if row["cycle"] is not None]


def _live_row(ref: CycleRef) -> dict[str, Any]:
    row, _ = read_cycle(ref, position=None, failed_attempts=0)
    return {
        "status": row.status,
        "reason": row.reason,
        "energy_kind": row.energy_kind,
        "flags": [flag.code for flag in row.flags],
        "doubtful": row.doubtful,
        **{name: row.measures.get(name) for name in _NUMBERS},
        **{name: getattr(row, name) for name in _WHERE},
    }


def matrix(
    plan: Planned,
    tasks: Iterable[SeenTask],
    numbers: Mapping[Key, Mapping[str, Any]],
    reasons: Mapping[Key, str],
    failures: Mapping[Key, list[dict[str, Any]]],
    hosts: Mapping[Key, str],
) -> list[dict[str, Any]]:
    """One row an experiment, one cell a planned cycle, in the order of the plan.

    Args:
        plan: What was planned.
        tasks: Tasks of the run.
        numbers: As ``stored_numbers`` gives them.
        reasons: Why a cycle is not needed, or was not begun.
        failures: As ``failed_attempts`` gives them.
        hosts: The host of each cycle, of a study that is spread over several.
    """
    by_cycle = {task.cycle: task for task in tasks if task.cycle}
    cycles: dict[str, list[int]] = defaultdict(list)
    for experiment, cycle in plan.cycles:
        cycles[experiment].append(cycle)
    return [
        {
            "id": name,
            "label": label,
            "cells": [
                _cell(
                    cycle,
                    by_cycle.get((name, cycle)),
                    numbers.get((name, cycle)),
                    reasons.get((name, cycle), ""),
                    failures.get((name, cycle), []),
                    hosts.get((name, cycle)),
                )
                for cycle in sorted(cycles[name])
            ],
        }
        for name, label in called(plan).items()
    ]


def named_by_plan(tasks: Sequence[SeenTask], plan: Planned) -> tuple[SeenTask, ...]:
    """The tasks, with each mapped cycle that has not begun named after its place in the plan.

    Airflow names an index when it begins. Indices stand in the order of the plan; where one that has a name is another
    cycle than that, or there are not as many as the plan has cycles, the run measures a part of it and none is named.

    Args:
        tasks: Tasks of the run.
        plan: What was planned.
    """
    mapped: dict[str, list[SeenTask]] = defaultdict(list)
    for task in tasks:
        if task.map_index >= 0 and task.task_id.rpartition(".")[2] == MAPPED_TASK:
            mapped[task.task_id].append(task)
    keys = list(plan.cycles)
    names = {
        (one.task_id, one.map_index): f"{keys[one.map_index][0]} cycle {keys[one.map_index][1]}"
        for found in mapped.values()
        if {one.map_index for one in found} == set(range(len(keys)))
        and all(one.cycle in {None, keys[one.map_index]} for one in found)
        for one in found
    }
    return tuple(
        replace(task, mapped_name=names.get((task.task_id, task.map_index), task.mapped_name))
        for task in tasks
    )


def called(plan: Planned) -> dict[str, str]:
    """What each planned experiment is called, as in every report."""
    own = experiment_factors(plan.experiments)
    named = [_Named(each.id, each.slug, own[each.id]) for each in plan.experiments.values()]
    return dict(zip(plan.experiments, experiment_labels(named), strict=True))


class _Named:
    def __init__(self, id_: str, slug: str, factors: dict[str, Any]) -> None:
        self.id, self.slug, self.factors = id_, slug, factors


def _cell(
    cycle: int,
    task: SeenTask | None,
    row: Mapping[str, Any] | None,
    reason: str,
    failures: list[dict[str, Any]],
    host: str | None,
) -> dict[str, Any]:
    state = _STATES.get(task.state, task.state) if task else "waiting"
    if row is not None and state not in {"running", "queued"}:
        state = str(row["status"])
        state = "measured" if state == "valid" else state
    elif state == "measured":
        state = "missing"  # its task ended well, and its result lies elsewhere or was removed
    return {
        "cycle": cycle,
        "state": state,
        "task_id": task.task_id if task else "",
        "map_index": task.map_index if task else -1,
        "try_number": task.try_number if task else 0,
        "started_epoch_ns": task.started_epoch_ns if task else None,
        "duration_s": task.duration_s if task else None,
        "reason": str(row.get("reason") or reason) if row else reason,
        "flags": list(row.get("flags") or ()) if row else [],
        "doubtful": bool(row.get("doubtful")) if row else False,
        "energy_kind": row.get("energy_kind") if row else None,
        **{name: row.get(name) if row else None for name in (*_NUMBERS, *_WHERE)},
        "spread_to": host,
        "failures": failures,
    }


def failed_attempts(failures: Iterable[FailureRef], *, with_tails: bool) -> dict[Key, list[dict[str, Any]]]:
    """The newest failed attempts by cycle, each with its category, what to do, and the last lines of its output.

    Args:
        failures: As the store gives them.
        with_tails: Whether the user may see the output.
    """
    found: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    for ref in list(failures)[-SHOWN_FAILURES:]:
        category, message = ref.reason()
        found[ref.experiment_id, ref.cycle].append(
            {
                "attempt": ref.attempt,
                "category": category,
                "message": message,
                "hint": ref.advice(),
                "tail": _tail(ref) if with_tails else None,
                "url": ref.folder.url,
            }
        )
    return found


def _tail(ref: FailureRef) -> list[str]:
    """The last lines of what the attempt wrote; of a log of any length only its end is read."""
    if not ref.folder.exists(layout.LOG):
        return []
    size = ref.folder.size(layout.LOG)
    with ref.folder.open(layout.LOG) as file:
        file.seek(max(0, size - _TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return lines[-TAIL_LINES:] if size <= _TAIL_BYTES else lines[1:][-TAIL_LINES:]


def places(text: str) -> list[dict[str, Any]]:
    """The problems of a study file in a text that has one a line: ``file:line:column: what``."""
    return [
        {"line": int(match[1]), "column": int(match[2]), "text": match[3]}
        for line in text.splitlines()
        if (match := _PLACE.match(line))
    ]
