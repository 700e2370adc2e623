"""Tasks that follow one another whatever comes, on Airflow's own scheduler."""

from __future__ import annotations

import pytest

from tests.airflow.server import AirflowServer

pytestmark = [pytest.mark.airflow, pytest.mark.timeout(900)]


def test_a_skipped_and_a_failed_task_hold_up_no_other(process_airflow: AirflowServer) -> None:
    run = process_airflow.run("in_turn")
    states = process_airflow.states("in_turn", run["dag_run_id"])
    own = {name: state for name, state in states.items() if not name.endswith("_ended")}
    assert own == {
        "plan": "success",
        "skipped": "skipped",
        "failed": "failed",
        "skipped_too": "skipped",
        "last": "success",
    }


def test_without_what_all_need_none_of_them_runs(process_airflow: AirflowServer) -> None:
    run = process_airflow.run("in_turn_without_plan")
    states = process_airflow.states("in_turn_without_plan", run["dag_run_id"])
    assert states.pop("plan") == "failed"
    own = {name: state for name, state in states.items() if not name.endswith("_ended")}
    assert set(own.values()) == {"upstream_failed"}
