"""Editing the study folder of a running Airflow leaves what its database knows of everything else as it was."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.airflow.server import AirflowServer, parsed

pytestmark = [pytest.mark.airflow, pytest.mark.engine, pytest.mark.timeout(900)]


def history(airflow: AirflowServer, dag_id: str) -> dict[str, dict[str, str]]:
    """State of every task of every run, by run."""
    return {run["dag_run_id"]: airflow.states(dag_id, run["dag_run_id"]) for run in airflow.runs(dag_id)}


def slugs(task_ids: Iterable[str]) -> set[str]:
    """The experiments of tasks, without their hashes."""
    return {task_id.partition(".")[0][:-9] for task_id in task_ids if ".cycle_" in task_id}


def test_experiments_come_and_go_a_file_is_renamed_and_one_is_broken_and_every_other_history_stays(
    process_airflow: AirflowServer,
) -> None:
    airflow = process_airflow
    studies = airflow.home / "dags" / "studies"
    files = [studies / name for name in ("edited.yaml", "renamed.yaml", "spoiled.yaml")]
    dags = {dag["dag_id"] for dag in airflow.get("/api/v2/dags").json()["dags"]}
    text = (studies / "choice.yaml").read_text().replace("study_name: choice", "study_name: edited")

    def tasks() -> set[str]:
        return {task["task_id"] for task in airflow.get("/api/v2/dags/edited/tasks").json()["tasks"]}

    try:
        files[0].write_text(text)
        parsed(airflow, lambda: airflow.get("/api/v2/dags/edited").status_code == 200)
        first = airflow.run("edited", conf={"dry_run": True})["dag_run_id"]
        before = {dag_id: history(airflow, dag_id) for dag_id in ("choice", "edited")}
        one, two = sorted(slugs(tasks()))

        files[0].write_text(text.replace("batch_size: [1, 2]", "batch_size: [2, 4]"))
        files[0].rename(files[1])
        files[2].write_text(text.replace("engine:", "engnie:"))
        parsed(airflow, lambda: one not in slugs(tasks()))

        assert {dag_id: history(airflow, dag_id) for dag_id in before} == before
        second = airflow.run("edited", conf={"dry_run": True})["dag_run_id"]
        after = history(airflow, "edited")
        assert slugs(after[first]) == {one, two}
        assert slugs(after[second]) == {two, two.replace("-2", "-4")}
        assert {name for name in after[first] if two in name} < set(after[second])
        shown = {dag["dag_id"] for dag in airflow.get("/api/v2/dags").json()["dags"]}
        assert shown == dags | {"edited", "invalid.spoiled"}
        assert airflow.get("/api/v2/importErrors").json()["total_entries"] == 0
    finally:
        for path in files:
            path.unlink(missing_ok=True)
