"""The tasks around the cycles of a session: its container is started before them and removed after, come what may.

``start_session`` (setup) >> its cycles one after the other >> ``stop_session`` (teardown) >> ``ended``, after which the
next session may start. As many sessions live at a time as cycles may run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from airflow.sdk import TriggerRule

from llem_airflow.factory.clone import precede, precede_whatever_comes
from llem_airflow.operators import LLEMExperimentOperator, LLEMStartSessionOperator, LLEMStopSessionOperator
from llem_airflow.study import Study
from llem_airflow.study.plan.model import Session
from llem_airflow.study.plan.order import CANARY_CYCLE, canaries

SESSION_GROUP = "session-"
START_TASK_ID = "start_session"
STOP_TASK_ID = "stop_session"
ENDED_TASK_ID = "ended"


@dataclass(frozen=True, slots=True)
class SessionTasks:
    """The tasks around the cycles of one session, which start its container and remove it."""

    session: Session
    start: LLEMStartSessionOperator
    stop: LLEMStopSessionOperator


def session_tasks(
    study: Study, shared: Mapping[str, Any], cycles: Sequence[LLEMExperimentOperator], *, lanes: int
) -> list[SessionTasks]:
    """Put the tasks of each session around its cycles; so many ``lanes`` of sessions live at a time on a host."""
    task_of = {(task.experiment.id, task.cycle): task for task in cycles}
    made: list[SessionTasks] = []
    for session in study.plan.sessions:
        own = [task_of[run.experiment_id, run.cycle] for run in session.cycles]
        tasks = _tasks_of(study, session, shared, own)
        made.append(tasks)
        precede([tasks.start], own[:1])
        for before, after in pairwise(own):
            # Whatever became of the one before; where the start failed, Airflow holds back all that follow a setup.
            after.trigger_rule = TriggerRule.ALL_DONE
            precede([before], [after])
        precede(own[-1:], [tasks.stop])
    of_host: dict[str | None, list[SessionTasks]] = {}
    for each in made:
        of_host.setdefault(each.session.cycles[0].host, []).append(each)
    for lane in of_host.values():
        for place, following in enumerate(lane[lanes:]):
            precede_whatever_comes(lane[place].stop, following.start, ENDED_TASK_ID)
    if study.execution.canary:
        _gate(study, made, task_of)
    return made


def _tasks_of(
    study: Study, session: Session, shared: Mapping[str, Any], own: Sequence[LLEMExperimentOperator]
) -> SessionTasks:
    first = own[0]
    around: dict[str, Any] = {
        "study": study,
        "session": session.id,
        "cycles": session.cycles,
        "task_group": first.task_group,
        "weight_rule": "absolute",
        "llem_conn_id": first.llem_conn_id,
        "queue": first.queue,
    }
    start = LLEMStartSessionOperator(
        **{**shared, "image": first.image, "pool": first.pool, "pool_slots": first.pool_slots, **around},
        task_id=START_TASK_ID,
        priority_weight=first.priority_weight,
    )
    # It gives GPUs back: it waits for no slot of a pool, and goes before whatever is queued.
    without_pool = {name: value for name, value in shared.items() if name not in ("pool", "pool_slots")}
    stop = LLEMStopSessionOperator(
        **{**without_pool, "image": first.image, **around},
        task_id=STOP_TASK_ID,
        priority_weight=first.priority_weight + len(study.plan.planned_cycles),
    )
    stop.as_teardown(setups=start, on_failure_fail_dagrun=True)
    return SessionTasks(session, start, stop)


def _gate(
    study: Study, made: Sequence[SessionTasks], task_of: Mapping[tuple[str, int], LLEMExperimentOperator]
) -> None:
    """No session starts before the canary of its cycles, unless the canary is one of them, nor when it has failed.

    Within the canary's own session the gate of each cycle looks at what became of it.
    """
    canary_of = canaries(study.experiments)
    for tasks in made:
        own = {(run.experiment_id, run.cycle) for run in tasks.session.cycles}
        gates = {(canary_of[run.experiment_id], CANARY_CYCLE) for run in tasks.session.cycles} - own
        for key in sorted(gates & task_of.keys()):
            tasks.start.trigger_rule = TriggerRule.NONE_FAILED
            precede([task_of[key]], [tasks.start])
