"""The sessions of a run: which cycles share a living container, where they stand in it, and how its health was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from llem_airflow.analysis.plan import Planned
from llem_airflow.protocol.session import EVIDENCE
from llem_airflow.results import CycleRef, StoredRun
from llem_airflow.results.folder import ResultReadError
from llem_airflow.web.cells import Key
from llem_airflow.web.kept import Kept
from llem_airflow.web.seen import SeenTask

GROUP = "session-"
AROUND = ("start_session", "stop_session")
"""As the factory names a session's task group and the tasks in it."""


def session_rows(
    run: StoredRun,
    plan: Planned,
    sessions: object,
    tasks: Iterable[SeenTask],
    numbers: Mapping[Key, Mapping[str, Any]],
    kept: Kept,
) -> list[dict[str, Any]]:
    """One row a session, in the order of the plan; none where each cycle has a container of its own.

    Args:
        run: The run.
        plan: What was planned.
        sessions: The session of each planned cycle, as plan.json has it.
        tasks: Tasks of the run.
        numbers: What is known of each cycle that has a result.
        kept: Where what was read is kept.
    """
    if not isinstance(sessions, list) or len(sessions) != len(plan.cycles):
        return []
    cycles: dict[str, list[Key]] = {}
    for key, session in zip(plan.cycles, sessions, strict=True):
        cycles.setdefault(str(session), []).append(key)
    around = _around(tasks)
    return [
        {
            "id": session,
            "start": around.get((session, AROUND[0]), ""),
            "stop": around.get((session, AROUND[1]), ""),
            "cycles": [_cycle(key, numbers.get(key)) for key in keys],
            **_evidence(run, [key for key in keys if _was_in(numbers.get(key), session)], kept),
        }
        for session, keys in cycles.items()
    ]


def _around(tasks: Iterable[SeenTask]) -> dict[tuple[str, str], str]:
    """State of the tasks that start and stop each session."""
    found = {}
    for task in tasks:
        group, _, name = task.task_id.rpartition(".")
        if name in AROUND:
            found[group.rpartition(".")[2].removeprefix(GROUP), name] = task.state
    return found


def _was_in(row: Mapping[str, Any] | None, session: str) -> bool:
    return row is not None and row.get("session") == session


def _cycle(key: Key, row: Mapping[str, Any] | None) -> dict[str, Any]:
    known = row or {}
    return {
        "experiment": key[0],
        "cycle": key[1],
        "start_kind": known.get("start_kind"),
        "position": known.get("position_in_session"),
    }


def _evidence(run: StoredRun, measured: list[Key], kept: Kept) -> dict[str, Any]:
    """What the session's guard has noted until its last result, which has all that came before."""
    said = {"restarts": [], "checks": 0, "problems": [], "temperature_c": [], "unread": ""}
    ref = run.cycle(*measured[-1]) if measured else None
    if ref is None:
        return said
    try:
        found: dict[str, Any] = kept.of_file("session", ref.folder, EVIDENCE, partial(_read, ref))
    except ResultReadError as error:
        return said | {"unread": str(error)}
    return said | found


def _read(ref: CycleRef) -> dict[str, Any]:
    evidence = ref.session()
    health = [line for line in _dicts(evidence.get("health")) if "problems" in line]
    celsius = [
        gpu["temperature_c"]
        for line in health
        for gpu in _dicts(line.get("gpus"))
        if gpu.get("temperature_c") is not None
    ]
    return {
        "restarts": [str(one.get("after")) for one in _dicts(evidence.get("lives"))[1:]],
        "checks": len(health),
        "problems": [str(text) for line in health for text in line["problems"]],
        "temperature_c": [min(celsius), max(celsius)] if celsius else [],
    }


def _dicts(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
