"""What the trigger form asks for is what is measured, and what cannot be is refused before anything runs."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.airflow.server import AirflowServer, new_run

pytestmark = [pytest.mark.airflow, pytest.mark.engine, pytest.mark.timeout(900)]


def stored(airflow: AirflowServer, study: str, run: dict[str, Any]) -> Path:
    (folder,) = (
        path.parent
        for path in (airflow.results / study).glob("*/run.json")
        if json.loads(path.read_text())["run_id"] == run["dag_run_id"]
    )
    return folder


def test_a_dry_run_shows_the_plan_and_measures_nothing(process_airflow: AirflowServer) -> None:
    run = process_airflow.run("my-study", conf={"dry_run": True})  # what `llem-airflow init` writes
    states = process_airflow.states("my-study", run["dag_run_id"])
    assert run["state"] == "success"
    assert states.pop("plan") == "success"
    assert set(states.values()) == {"skipped"}
    log = process_airflow.task_log("my-study", run["dag_run_id"], "plan")
    assert "4 experiments, 12 cycles to measure" in log


def test_a_run_measures_the_chosen_experiments_cycles_and_prompts_only(
    process_airflow: AirflowServer,
) -> None:
    conf = {"experiments": "*batch_size-2*", "cycles": 1, "n_prompts": 3}
    run = process_airflow.run("choice", conf=conf, note="only the large batch")
    states = process_airflow.states("choice", run["dag_run_id"])
    assert run["state"] == "success", states
    assert sorted(states.values()) == ["skipped"] * 3 + ["success"] * 3
    folder = stored(process_airflow, "choice", run)
    (config,) = folder.glob("experiments/*/cycle-1/config.json")
    assert json.loads(config.read_text())["config"]["task"]["dataset"]["n_prompts"] == 3
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["planned"] == 1


def test_a_name_that_no_experiment_has_fails_in_the_plan_with_the_names_there_are(
    process_airflow: AirflowServer,
) -> None:
    run = process_airflow.run("choice", conf={"experiments": "bs99*"})
    states = process_airflow.states("choice", run["dag_run_id"])
    assert run["state"] == "failed"
    assert states.pop("plan") == "failed"
    assert states.pop("aggregate") == "failed"
    assert set(states.values()) == {"upstream_failed"}
    log = process_airflow.task_log("choice", run["dag_run_id"], "plan")
    assert "no experiment of the study 'choice' is called bs99*" in log
    assert "batch_size-1" in log


@pytest.mark.parametrize(
    ("conf", "field"),
    [({"cycles": 3}, "cycles"), ({"cycles": 0}, "cycles"), ({"engines": ["vllm"]}, "engines")],
)
def test_a_value_out_of_range_is_refused_before_there_is_a_run(
    process_airflow: AirflowServer, conf: dict[str, Any], field: str
) -> None:
    answer = process_airflow.trigger("choice", conf=conf)
    assert answer.status_code == 400
    assert field in answer.text


def test_a_nightly_schedule_fires_by_itself_and_a_late_run_is_told(process_airflow: AirflowServer) -> None:
    process_airflow.unpause("nightly")
    run = process_airflow.first_run("nightly", run_type="scheduled")
    process_airflow.send("PATCH", "/api/v2/dags/nightly", {"is_paused": True})
    assert run["state"] == "success"
    told = Path(process_airflow.environment["LLEM_MODELS_DIR"]) / "told"
    deadline = time.monotonic() + 120
    while not (told.exists() and run["dag_run_id"] in told.read_text()) and time.monotonic() < deadline:
        time.sleep(1)
    assert f"late: nightly is late: its run {run['dag_run_id']}" in told.read_text()


@pytest.fixture(scope="module")
def example(process_airflow: AirflowServer) -> dict[str, Any]:
    """A run of the shipped example: one experiment, one cycle."""
    process_airflow.unpause("example_llem_after")
    return process_airflow.run("example_llem", conf={"experiments": "*batch_size-1*", "cycles": 1})


def test_each_run_is_an_asset_event_with_the_key_numbers(
    process_airflow: AirflowServer, example: dict[str, Any]
) -> None:
    events = process_airflow.get("/api/v2/assets/events", source_dag_id="example_llem").json()
    (event,) = events["asset_events"]
    assert event["source_run_id"] == example["dag_run_id"]
    assert event["uri"] == "llem://study/example-llem"
    assert (event["extra"]["planned"], event["extra"]["valid"]) == (1, 1)
    assert event["extra"]["energy_kind"] == "estimate"
    (numbers,) = event["extra"]["experiments"].values()
    assert numbers["energy_per_output_token_j"]["mean"] > 0
    assert numbers["energy_per_output_token_j"]["n"] == 1
    assert numbers["energy_per_output_token_j"]["low"] is None
    path = f"/api/v2/dags/example_llem/dagRuns/{example['dag_run_id']}/taskInstances/aggregate/links"
    link = process_airflow.get(path).json()["extra_links"]["Energy report"]
    assert link == "/llem/run?" + urlencode({"dag_id": "example_llem", "run_id": example["dag_run_id"]})


def test_a_dag_scheduled_on_the_study_s_asset_runs_after_it_and_sees_its_numbers(
    process_airflow: AirflowServer, example: dict[str, Any]
) -> None:
    after = process_airflow.first_run("example_llem_after", run_type="asset_triggered")
    path = f"/api/v2/dags/example_llem_after/dagRuns/{after['dag_run_id']}/taskInstances/joules_per_token"
    value = process_airflow.get(f"{path}/xcomEntries/return_value").json()["value"]
    assert re.search(r"batch_size-1-\w+\W+\d", str(value))


@pytest.mark.browser
def test_the_trigger_form_is_shown_and_a_dry_run_starts_from_it(process_airflow: AirflowServer) -> None:
    from tests.browser import chromium_page  # noqa: PLC0415 - Playwright, for this test alone

    process_airflow.unpause("choice")
    known = {run["dag_run_id"] for run in process_airflow.runs("choice")}
    shots = Path("build") / "screenshots"
    shots.mkdir(parents=True, exist_ok=True)
    with chromium_page() as page:
        page.context.add_cookies(
            [{"name": "_token", "value": process_airflow.token(), "url": process_airflow.url}]
        )
        page.goto(f"{process_airflow.url}/dags/choice")
        page.get_by_role("button", name="Trigger").first.click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_text("What to measure").first.wait_for(timeout=60_000)
        page.wait_for_timeout(1000)
        page.screenshot(path=shots / "trigger-form.png", full_page=True)
        dialog.get_by_text("What to measure").first.click()
        page.wait_for_timeout(500)
        page.screenshot(path=shots / "trigger-form-open.png", full_page=True)
        dialog.get_by_text("How", exact=True).first.click()
        dialog.locator("[data-scope='switch'][data-part='control']").last.click()
        page.screenshot(path=shots / "trigger-form-dry-run.png", full_page=True)
        dialog.get_by_role("button", name="Trigger").last.click()
        started = new_run(process_airflow, "choice", known, "manual")
    assert started["conf"]["dry_run"] is True
    assert process_airflow.finished("choice", started["dag_run_id"])["state"] == "success"
