"""What Airflow knows of a DAG run: its state, that of its tasks, and what they left for the pages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from llem_airflow.operators.ui import FAILURE_KEY

COMPARISON_KEYS = {"verdict", "outcomes", "changes", "said"}
"""What the result of a comparison has."""
PAST_RUNS = 10
"""Earlier runs of a DAG whose durations tell how long its cycles take."""
ENDED = {"success", "failed"}
_MAPPED_NAME = TaskInstance.__table__.c.rendered_map_index


@dataclass(frozen=True)
class SeenTask:
    """A task of the run.

    Attributes:
        name: What the UI calls it.
        state: As Airflow says it; ``waiting`` where it has none yet.
        failure: What it failed with, where it told.
        task_id: Its id.
        map_index: Index of a mapped task, or -1.
        try_number: Which try it is at; 0 before the first.
        started_epoch_ns: When that try began.
        duration_s: How long it took; None until it has ended.
        mapped_name: What the operator calls this index of a mapped task; empty for none.
    """

    name: str
    state: str
    failure: str = ""
    task_id: str = ""
    map_index: int = -1
    try_number: int = 0
    started_epoch_ns: int | None = None
    duration_s: float | None = None
    mapped_name: str = ""

    @property
    def cycle(self) -> tuple[str, int] | None:
        """(id of the experiment, cycle) of a task that measures one; None of the others.

        A task of its own is called ``<experiment>.cycle_<n>``, inside of groups of somebody's own DAG with their names
        before it; an index of a mapped one is named ``<experiment> cycle <n>`` once it has begun.
        """
        for text, mark in ((self.task_id, ".cycle_"), (self.mapped_name, " cycle ")):
            before, found, number = text.rpartition(mark)
            if found and number.isdecimal():
                return (before.rpartition(".")[2] if mark[0] == "." else before), int(number)
        return None


@dataclass(frozen=True)
class SeenRun:
    """A run as Airflow sees it.

    Attributes:
        state: queued, running, success or failed.
        tasks: Its tasks.
        comparisons: Results of tasks that compared something.
        study_text: The study that was given in the trigger form; empty for none.
        started_epoch_ns: When it began; None before that.
        at_a_time: Tasks of the DAG that may run at a time.
        ours: Whether a task of the run is of this package: the tab stands on the runs of every DAG.
    """

    state: str
    tasks: tuple[SeenTask, ...] = ()
    comparisons: tuple[dict[str, Any], ...] = ()
    study_text: str = ""
    started_epoch_ns: int | None = None
    at_a_time: int = 1
    ours: bool = True

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self.state in ENDED


def seen_run(session: Session, dag_id: str, run_id: str) -> SeenRun | None:
    """The run, or None when Airflow has no such run."""
    run = session.scalar(select(DagRun).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
    if run is None:
        return None
    told, comparisons = _left(session, dag_id, run_id)
    where = TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id
    instances = session.scalars(select(TaskInstance).where(*where).order_by(TaskInstance.start_date)).all()
    tasks = [
        SeenTask(
            name=ti.task_display_name,
            state=str(ti.state or "waiting"),
            failure=told.get((ti.task_id, ti.map_index), ""),
            task_id=ti.task_id,
            map_index=ti.map_index,
            try_number=ti.try_number or 0,
            started_epoch_ns=_epoch_ns(ti.start_date),
            duration_s=ti.duration,
            mapped_name=ti.rendered_map_index or "",
        )
        for ti in instances
    ]
    dag = session.get(DagModel, dag_id)
    text = run.conf.get("study") if isinstance(run.conf, dict) else None
    return SeenRun(
        state=str(run.state),
        tasks=tuple(tasks),
        comparisons=tuple(comparisons),
        study_text=text if isinstance(text, str) else "",
        started_epoch_ns=_epoch_ns(run.start_date),
        at_a_time=max(1, dag.max_active_tasks) if dag else 1,
        ours=bool(told or comparisons) or any((ti.operator or "").startswith("LLEM") for ti in instances),
    )


def past_durations(session: Session, dag_id: str, run_id: str) -> dict[tuple[str, int], list[float]]:
    """How long each cycle took in the newest earlier runs of the DAG, in seconds, container and all."""
    runs = session.scalars(
        select(DagRun.run_id)
        .where(DagRun.dag_id == dag_id, DagRun.run_id != run_id)
        .order_by(DagRun.id.desc())
        .limit(PAST_RUNS)
    ).all()
    rows = session.execute(
        select(TaskInstance.task_id, _MAPPED_NAME, TaskInstance.duration).where(
            TaskInstance.dag_id == dag_id, TaskInstance.run_id.in_(runs), TaskInstance.state == "success"
        )
    )
    found: dict[tuple[str, int], list[float]] = {}
    for task_id, mapped_name, duration_s in rows:
        cycle = SeenTask("", "", task_id=task_id, mapped_name=mapped_name or "").cycle
        if cycle and duration_s:
            found.setdefault(cycle, []).append(float(duration_s))
    return found


@dataclass(frozen=True)
class SeenDag:
    """A DAG as Airflow sees it.

    Attributes:
        state: Of its newest run; empty without one.
        run_id: Of its newest run.
        run_started_epoch_ns: When that began.
        next_epoch_ns: When the next one is due; None for not scheduled.
        paused: Whether nothing starts by itself.
    """

    state: str = ""
    run_id: str = ""
    run_started_epoch_ns: int | None = None
    next_epoch_ns: int | None = None
    paused: bool = False


def seen_dags(session: Session, dag_ids: Iterable[str]) -> dict[str, SeenDag]:
    """The DAGs by id, with their newest runs."""
    wanted = sorted(dag_ids)
    newest: dict[str, DagRun] = {}
    for dag_id in wanted:
        last = select(DagRun).where(DagRun.dag_id == dag_id).order_by(DagRun.id.desc()).limit(1)
        if run := session.scalar(last):
            newest[dag_id] = run
    found = {}
    for dag in session.scalars(select(DagModel).where(DagModel.dag_id.in_(wanted))):
        run = newest.get(dag.dag_id)
        found[dag.dag_id] = SeenDag(
            state=str(run.state) if run else "",
            run_id=run.run_id if run else "",
            run_started_epoch_ns=_epoch_ns(run.start_date) if run else None,
            next_epoch_ns=_epoch_ns(dag.next_dagrun_create_after),
            paused=bool(dag.is_paused),
        )
    return found


def _left(
    session: Session, dag_id: str, run_id: str
) -> tuple[dict[tuple[str, int], str], list[dict[str, Any]]]:
    """What tasks failed with, by task and map index; and results of comparisons."""
    told: dict[tuple[str, int], str] = {}
    comparisons = []
    for entry in session.scalars(
        select(XComModel).where(
            XComModel.dag_id == dag_id,
            XComModel.run_id == run_id,
            XComModel.key.in_([FAILURE_KEY, "return_value"]),
        )
    ):
        value = XComModel.deserialize_value(entry)
        if entry.key == FAILURE_KEY:
            told[entry.task_id, entry.map_index] = str(value)
        elif isinstance(value, dict) and value.keys() >= COMPARISON_KEYS:
            comparisons.append(value)
    return told, comparisons


def _epoch_ns(at: datetime | None) -> int | None:
    return None if at is None else round(at.timestamp() * 1000) * 1_000_000
