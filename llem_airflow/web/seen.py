"""What Airflow knows of a DAG run: its state, that of its tasks, and what they left for the pages."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from llem_airflow.operators.ui import FAILURE_KEY

COMPARISON_KEYS = {"verdict", "outcomes", "changes", "said"}
"""What the result of a comparison has."""


@dataclass(frozen=True)
class SeenTask:
    """A task of the run.

    Attributes:
        name: What the UI calls it.
        state: As Airflow says it; ``waiting`` where it has none yet.
        failure: What it failed with, where it told.
    """

    name: str
    state: str
    failure: str


@dataclass(frozen=True)
class SeenRun:
    """A run as Airflow sees it.

    Attributes:
        state: queued, running, success or failed.
        tasks: Its tasks.
        comparisons: Results of tasks that compared something.
    """

    state: str
    tasks: tuple[SeenTask, ...]
    comparisons: tuple[dict[str, Any], ...]

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self.state in {"success", "failed"}

    def counts(self) -> dict[str, int]:
        """How many tasks are in each state."""
        return dict(Counter(task.state for task in self.tasks).most_common())


def seen_run(session: Session, dag_id: str, run_id: str) -> SeenRun | None:
    """The run, or None when Airflow has no such run."""
    run = session.scalar(select(DagRun).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
    if run is None:
        return None
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
    where = TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id
    tasks = [
        SeenTask(ti.task_display_name, str(ti.state or "waiting"), told.get((ti.task_id, ti.map_index), ""))
        for ti in session.scalars(select(TaskInstance).where(*where).order_by(TaskInstance.start_date))
    ]
    return SeenRun(str(run.state), tuple(tasks), tuple(comparisons))
