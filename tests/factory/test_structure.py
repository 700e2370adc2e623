"""The DAGs of the shipped studies and of ten generated ones are what they were: tasks, edges, settings, pages.

Written anew by ``python -m tests.factory.test_structure``; read the difference before it is committed.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from llem_airflow.factory import adhoc_dag, study_dag, study_dags

ROOT = Path(__file__).parents[2]
STUDIES: dict[str, str] = json.loads((Path(__file__).parent / "structure-studies.json").read_text())
GOLDEN = Path(__file__).parent / "structure.json"
SHIPPED = {
    path.stem: path.read_text()
    for folder in (ROOT / "dags/studies", ROOT / "llem_airflow/example_dags")
    for path in sorted(folder.glob("*.yaml"))
}


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def task_line(task: Any) -> str:
    """One task as the scheduler and the UI see it."""
    kind = type(task).__name__ if task.task_type is None else task.task_type
    retry = f"retries={task.retries} delay={task.retry_delay.total_seconds():g}s"
    pool = f"pool={task.pool}:{task.pool_slots} priority={task.priority_weight} {task.weight_rule}"
    edges = f"after={','.join(sorted(task.upstream_task_ids))}"
    shown = f"{task.task_display_name!r} doc={digest(task.doc_md)} owner={task.owner}"
    return f"{task.task_id}: {kind} {shown} {task.trigger_rule} {retry} {pool} {edges}"


def structure(dag: DAG) -> dict[str, Any]:
    return {
        "display": dag.dag_display_name,
        "description": dag.description,
        "schedule": type(dag.timetable).__name__,
        "active": [dag.max_active_runs, dag.max_active_tasks, str(dag.dagrun_timeout), dag.catchup],
        "tags": sorted(dag.tags),
        "doc": (dag.doc_md or "").splitlines(),
        "params": {name: digest(dag.params.get_param(name).schema) for name in sorted(dag.params)},
        "tasks": [task_line(task) for task in dag.tasks],
    }


def structures() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, text in (SHIPPED | STUDIES).items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{name}.yaml")
            path.write_text(text)
            found |= {f"{name}/{key}": structure(dag) for key, dag in study_dags(folder).items()}
            if name == "quickstart":
                found[f"{name}, chained"] = structure(study_dag(path, chain=True))
                found[f"{name}, mapped"] = structure(study_dag(path, render="mapped", pool="gpus"))
    return {**found, "adhoc": structure(adhoc_dag())}


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return structures()


@pytest.mark.parametrize("name", json.loads(GOLDEN.read_text()) if GOLDEN.exists() else [])
def test_the_dag_is_what_it_was(name: str, made: dict[str, Any]) -> None:
    assert made[name] == json.loads(GOLDEN.read_text())[name]


def test_no_dag_was_added(made: dict[str, Any]) -> None:
    assert list(made) == list(json.loads(GOLDEN.read_text()))


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(structures(), indent=1, ensure_ascii=False) + "\n")
