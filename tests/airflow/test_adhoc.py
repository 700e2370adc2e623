"""What becomes of a pasted study before anything is measured; test_browser.py pastes others into the form itself."""

from __future__ import annotations

import pytest

from tests.airflow.conftest import CHOICE
from tests.airflow.server import AirflowServer

pytestmark = [pytest.mark.airflow, pytest.mark.engine, pytest.mark.timeout(900)]

ADHOC = "llem_adhoc"


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
