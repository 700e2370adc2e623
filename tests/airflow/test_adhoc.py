"""A study pasted into the trigger form is measured, or its mistakes are shown with their lines."""

from __future__ import annotations

import pytest

from tests.airflow.conftest import CHOICE
from tests.airflow.server import AirflowServer

pytestmark = [pytest.mark.airflow, pytest.mark.engine, pytest.mark.timeout(900)]

ADHOC = "llem_adhoc"


def test_a_pasted_study_is_planned_measured_and_aggregated(process_airflow: AirflowServer) -> None:
    run = process_airflow.run(ADHOC, conf={"study": CHOICE.replace("choice", "pasted"), "cycles": 1})
    instances = process_airflow.instances(ADHOC, run["dag_run_id"])
    assert run["state"] == "success", instances
    cycles = sorted(each["rendered_map_index"] for each in instances if each["task_id"] == "cycle")
    assert [name.split("-")[-2:] for name in cycles] != []
    assert all(name.endswith(" cycle 1") for name in cycles)
    assert len(cycles) == 2
    (report,) = (process_airflow.results / "pasted").glob("*/report.html")
    answer = process_airflow.get("/llem/run", dag_id=ADHOC, run_id=run["dag_run_id"])
    assert answer.status_code == 200
    assert answer.text == report.read_text()


def test_mistakes_of_a_pasted_study_are_shown_with_line_and_column(process_airflow: AirflowServer) -> None:
    bad = CHOICE.replace("max_output_tokens: 8", "max_output_tokens: lots").replace("engine:", "engnie:")
    run = process_airflow.run(ADHOC, conf={"study": bad})
    assert run["state"] == "failed"
    log = process_airflow.task_log(ADHOC, run["dag_run_id"], "plan")
    assert "study:3:1: engnie" in log
    assert "study:7:22: task.max_output_tokens" in log
    states = process_airflow.states(ADHOC, run["dag_run_id"])
    assert states["cycle"] == "upstream_failed"


def test_a_run_without_a_study_is_refused(process_airflow: AirflowServer) -> None:
    answer = process_airflow.trigger(ADHOC, conf={})
    assert answer.status_code == 400
    assert "study" in answer.text


def test_a_dry_run_of_a_pasted_study_shows_the_plan_and_measures_nothing(
    process_airflow: AirflowServer,
) -> None:
    run = process_airflow.run(ADHOC, conf={"study": CHOICE.replace("choice", "dry"), "dry_run": True})
    assert run["state"] == "success"
    states = process_airflow.states(ADHOC, run["dag_run_id"])
    assert states == {"plan": "success", "prefetch": "success", "cycle": "skipped", "aggregate": "skipped"}
    assert "4 cycles to measure" in process_airflow.task_log(ADHOC, run["dag_run_id"], "plan")
    assert not (process_airflow.results / "dry").exists()
