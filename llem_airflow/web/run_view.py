"""What the Energy tab of a DAG run shows: what happens now, what was measured, what failed and what to do."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from llem_airflow.analysis.metrics import BY_NAME
from llem_airflow.analysis.plan import Planned, planned
from llem_airflow.results import StoredRun, layout
from llem_airflow.text.wording import counted
from llem_airflow.web.cells import Key, failed_attempts, matrix, named_by_plan, places, stored_numbers
from llem_airflow.web.eta import time_left_searching
from llem_airflow.web.kept import Kept
from llem_airflow.web.seen import SeenRun, SeenTask
from llem_airflow.web.session_view import session_rows

_TITLES = {
    "queued": "This run waits to start",
    "running": "This run is at work",
    "failed": "This run failed",
    "success": "This run has ended",
}
_FAILED = {"failed", "up_for_retry"}
_DONE = {"success", "failed", "skipped", "upstream_failed", "removed"}
_SHOWN_FAILURES = 50


def run_view(
    seen: SeenRun,
    run: StoredRun | None,
    root_url: str,
    kept: Kept,
    past_s: Mapping[Key, list[float]],
    *,
    may_read_logs: bool,
) -> dict[str, Any]:
    """The view of a run.

    Args:
        seen: What Airflow knows of it.
        run: What is stored of it; None before something is.
        root_url: Where results were looked for.
        kept: Where what was read is kept.
        past_s: How long its cycles took in earlier runs, in seconds.
        may_read_logs: Whether the user may see the output of attempts.
    """
    view: dict[str, Any] = {
        "title": _TITLES.get(seen.state, "This run"),
        "state": seen.state,
        "ended": seen.ended,
        "now_epoch_ns": time.time_ns(),
        "started_epoch_ns": seen.started_epoch_ns,
        "comparisons": [{**found, "label": _called(found.get("metric"))} for found in seen.comparisons],
        "failures": _failures(seen),
        "states": _states(seen),
        "study_text": seen.study_text,
        "experiments": [],
        "sessions": [],
        "eta": None,
        "problem": "",
        "report": False,
        "explorable": False,
        "foreign": False,
    }
    if run is None:
        return view | {"said": _nothing_stored(seen, root_url), "foreign": not seen.ours}
    view |= {"study": run.study, "url": run.url, "report": run.folder.exists(layout.REPORT)}
    try:
        return view | _stored(seen, run, kept, past_s, may_read_logs=may_read_logs)
    except (OSError, ValueError) as error:
        return view | {"problem": str(error), "said": "The results of this run cannot be read whole."}


def _stored(
    seen: SeenRun, run: StoredRun, kept: Kept, past_s: Mapping[Key, list[float]], *, may_read_logs: bool
) -> dict[str, Any]:
    stored = run.plan()
    plan = planned(stored)
    seen = replace(seen, tasks=named_by_plan(seen.tasks, plan))
    numbers, unread = stored_numbers(run, kept, whole=seen.ended)
    failures = run.failures()
    skipped = run.skipped(needed=False)
    rows = matrix(
        plan,
        seen.tasks,
        numbers,
        {**run.skipped(needed=True), **skipped},
        failed_attempts(failures, with_tails=may_read_logs),
        _hosts(stored, plan),
    )
    measured = sum(cell["state"] == "measured" for row in rows for cell in row["cells"])
    eta = None if seen.ended else _eta(seen, plan, numbers, past_s, skipped)
    needed = len(plan.cycles) - sum(key in skipped and key not in numbers for key in plan.cycles)
    return {
        "study_text": run.study_text() or seen.study_text,
        "experiments": rows,
        "sessions": session_rows(run, plan, stored.get("sessions"), seen.tasks, numbers, kept),
        "planned": needed,
        "measured": measured,
        "failed_attempts": len(failures),
        "unread": unread,
        "preliminary": not seen.ended,
        "explorable": run.folder.exists(layout.SUMMARY),
        "eta": asdict(eta) if eta else None,
        "said": _progress(seen, measured, needed, len(failures)),
    }


def _hosts(stored: Mapping[str, Any], plan: Planned) -> dict[Key, str]:
    """The host of each cycle of a study that is spread over several."""
    hosts = [str(name or "") for name in stored.get("hosts") or ()]
    return dict(zip(plan.cycles, hosts, strict=True)) if len(hosts) == len(plan.cycles) else {}


def cycle_of_task(seen: SeenRun, run: StoredRun | None, task_id: str, map_index: int) -> Key | None:
    """Experiment and cycle that a task measures; None for another task.

    Args:
        seen: The run in Airflow.
        run: What is stored of it.
        task_id: The task.
        map_index: Its index, or -1.

    Raises:
        ResultReadError: The plan cannot be read.
    """
    tasks = named_by_plan(seen.tasks, planned(run.plan())) if run else seen.tasks
    return next(
        (task.cycle for task in tasks if (task.task_id, task.map_index) == (task_id, map_index)), None
    )


def _eta(
    seen: SeenRun,
    plan: Planned,
    numbers: Mapping[Key, Any],
    past_s: Mapping[Key, list[float]],
    skipped: Mapping[Key, str],
) -> Any:
    tasks = {task.cycle: task for task in seen.tasks if task.cycle}
    known = {key: list(values) for key, values in past_s.items()}
    for key, task in tasks.items():
        if task.state == "success" and task.duration_s:
            known.setdefault(key, []).append(task.duration_s)
    left = {
        key: _gone_s(tasks.get(key))
        for key in plan.cycles
        if (tasks[key].state not in _DONE if key in tasks else key not in numbers) and key not in skipped
    }
    asked = {name for name, _ in numbers} | {
        key[0] for key, task in tasks.items() if task.state in ("running", "success")
    }
    return time_left_searching(left, known, seen.at_a_time, plan.searches, asked)


def _gone_s(task: SeenTask | None) -> float:
    if task is None or task.state != "running" or task.started_epoch_ns is None:
        return 0.0
    return max(0.0, (time.time_ns() - task.started_epoch_ns) / 1e9)


def _progress(seen: SeenRun, measured: int, needed: int, attempts: int) -> str:
    failed = f", {counted(attempts, 'attempt')} failed" if attempts else ""
    last = "" if seen.ended else " The report appears when the task aggregate has run."
    return f"{measured} of {counted(needed, 'planned cycle')} measured{failed}.{last}"


def _nothing_stored(seen: SeenRun, root_url: str) -> str:
    if seen.comparisons:
        return ""
    if not seen.ended:
        return "No cycle has begun yet. The numbers appear here as cycles are measured."
    if any(task.cycle and task.state == "success" for task in seen.tasks):
        return (
            f"Its cycles were measured, but their results are not under {root_url} (option results_root of section "
            "[llem]): they were moved or removed, or lie under another root."
        )
    return "No cycle was measured."


def _failures(seen: SeenRun) -> list[dict[str, Any]]:
    """What tasks failed with, each text once with the tasks that it ended; problems in a file by line and column."""
    named: dict[str, list[SeenTask]] = {}
    for task in seen.tasks:
        if task.state in _FAILED and task.cycle is None:
            named.setdefault(task.failure, []).append(task)
    return [
        {
            "tasks": [
                {"name": task.name, "task_id": task.task_id, "map_index": task.map_index} for task in tasks
            ],
            "text": text,
            "places": places(text),
        }
        for text, tasks in list(named.items())[:_SHOWN_FAILURES]
    ]


def _called(metric: object) -> str:
    return BY_NAME[str(metric)].label if metric in BY_NAME else str(metric or "")


def _states(seen: SeenRun) -> list[dict[str, Any]]:
    return [
        {"state": state.replace("_", " "), "tasks": count}
        for state, count in Counter(task.state for task in seen.tasks).most_common()
    ]
