"""A study across model releases, by Airflow's own backfill on its own scheduler."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.airflow.server import AirflowServer

pytestmark = [pytest.mark.airflow, pytest.mark.engine, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def airflow(process_airflow: AirflowServer) -> AirflowServer:
    return process_airflow


@pytest.fixture(scope="module")
def backfilled(airflow: AirflowServer) -> dict[str, dict[str, Any]]:
    """A backfill of all releases by our own command; the newest run of each release."""
    for follower in ("released.compare", "released.compare_all"):
        airflow.unpause(follower)
    command = "from llem_airflow.cli import main; main()"
    study = airflow.home / "dags" / "studies" / "released.yaml"
    done = subprocess.run(
        [sys.executable, "-c", command, "backfill", str(study), "--unpause", "--url", airflow.url],
        env={**airflow.environment, "AIRFLOW_TOKEN": airflow.token()},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr  # one release fails
    assert "r2-damaged: failed" in done.stdout
    assert "3 runs: lab/tiny@r1 success, r2-damaged failed, r3 success" in done.stdout
    return {run["partition_key"]: run for run in airflow.runs("released")}


def stored(airflow: AirflowServer, run: dict[str, Any]) -> Path:
    (folder,) = (
        path.parent
        for path in (airflow.results / "released").glob("*/run.json")
        if json.loads(path.read_text())["run_id"] == run["dag_run_id"]
    )
    return folder


def test_a_backfill_makes_one_run_per_release_and_a_failing_one_does_not_stop_the_others(
    airflow: AirflowServer, backfilled: dict[str, dict[str, Any]]
) -> None:
    assert {key: run["state"] for key, run in backfilled.items()} == {
        "lab/tiny@r1": "success",
        "r2-damaged": "failed",
        "r3": "success",
    }, airflow.log.read_text(errors="replace")[-3000:]
    starts = sorted((run["start_date"], run["end_date"]) for run in backfilled.values())
    assert all(end <= start for (_, end), (start, _) in pairwise(starts))


def test_each_run_measured_its_own_release(
    airflow: AirflowServer, backfilled: dict[str, dict[str, Any]]
) -> None:
    models = {}
    for key in ("lab/tiny@r1", "r3"):
        (config,) = stored(airflow, backfilled[key]).glob("experiments/*/cycle-1/config.json")
        models[key] = json.loads(config.read_text())
    assert models["r3"]["model"]["revision"] == "0123abc"
    assert models["lab/tiny@r1"]["model"]["revision"] is None
    assert models["r3"]["experiment_hash"] != models["lab/tiny@r1"]["experiment_hash"]
    plan = json.loads((stored(airflow, backfilled["r3"]) / "plan.json").read_text())
    assert plan["experiments"][0]["hash"] == models["r3"]["experiment_hash"]


def test_each_measured_release_is_compared_with_the_baseline_by_a_run_of_its_own(
    airflow: AirflowServer, backfilled: dict[str, dict[str, Any]]
) -> None:
    runs = airflow.runs_of_partitions("released.compare", {"lab/tiny@r1", "r3"})
    states = {key: airflow.states("released.compare", run["dag_run_id"]) for key, run in runs.items()}
    assert states == {"lab/tiny@r1": {"compare": "skipped"}, "r3": {"compare": "success"}}
    assert airflow.runs("released.compare_all") == [], "one release has no result yet"


def test_reprocessing_the_failed_makes_a_second_run_of_that_release_only_and_keeps_the_first(
    airflow: AirflowServer, backfilled: dict[str, dict[str, Any]]
) -> None:
    again = airflow.backfill(
        "released", "2026-01-01T00:00:00Z", "2026-12-31T00:00:00Z", reprocess_behavior="failed"
    )
    assert set(again) == {"r2-damaged"}
    assert len([run for run in airflow.runs("released") if run["partition_key"] == "r2-damaged"]) == 2


def test_a_manual_run_without_a_release_fails_with_the_list_of_releases(
    airflow: AirflowServer, backfilled: dict[str, dict[str, Any]]
) -> None:
    run = airflow.run("released")
    assert run["state"] == "failed"
    log = airflow.task_log("released", run["dag_run_id"], "plan")
    assert "this run names none" in log
    assert "lab/tiny@r1 (2026-01-01), r2-damaged (2026-02-01), r3 (2026-03-01)" in log
    assert airflow.states("released", run["dag_run_id"])["plan"] == "failed"


def test_an_unknown_release_is_refused_before_there_is_a_run(airflow: AirflowServer) -> None:
    answer = airflow.trigger("released", partition_key="nope")
    assert answer.status_code == 400
    assert "unknown model release 'nope'; the study has: lab/tiny@r1, r2-damaged, r3" in answer.text


def test_a_manual_run_measures_the_release_that_its_form_names(
    airflow: AirflowServer, backfilled: dict[str, dict[str, Any]]
) -> None:
    run = airflow.run("released", conf={"version": "r3"})
    assert run["state"] == "success"
    (config,) = stored(airflow, run).glob("experiments/*/cycle-1/config.json")
    assert json.loads(config.read_text())["model"]["revision"] == "0123abc"


def test_an_experiment_in_quarantine_runs_and_is_shown_and_cannot_fail_the_run(
    airflow: AirflowServer,
) -> None:
    airflow.send("POST", "/api/v2/variables", {"key": "llem_quarantine", "value": "other*, scripted-*"})
    try:
        run = airflow.run("held")
    finally:
        airflow.send("DELETE", "/api/v2/variables/llem_quarantine", {})
    states = airflow.states("held", run["dag_run_id"])
    assert run["state"] == "success"
    assert "failed" in states.values()
    log = airflow.task_log("held", run["dag_run_id"], "aggregate")
    assert "in quarantine, does not fail the run" in log


def test_clearing_the_failed_after_the_cause_is_gone_measures_just_these_and_keeps_the_evidence(
    airflow: AirflowServer,
) -> None:
    run = airflow.run("released", partition_key="r2-damaged")
    assert run["state"] == "failed"
    models = Path(airflow.environment["LLEM_MODELS_DIR"])
    shutil.copytree(models / "tiny-llama-random", models / "damaged", dirs_exist_ok=True)
    request = {"dry_run": False, "dag_run_id": run["dag_run_id"], "only_failed": True, "reset_dag_runs": True}
    airflow.send("POST", "/api/v2/dags/released/clearTaskInstances", request).raise_for_status()
    again = airflow.finished("released", run["dag_run_id"])
    tries = {each["task_id"]: each["try_number"] for each in airflow.instances("released", run["dag_run_id"])}
    assert again["state"] == "success", tries
    assert tries["plan"] == 1
    assert sorted(tries.values()) == [1, 2, 2]
    folder = stored(airflow, run)
    (config,) = folder.glob("experiments/*/cycle-1/config.json")  # of the release of the run's partition key
    assert json.loads(config.read_text())["model"]["name"] == "damaged"
    assert config.with_name("result.json").exists()
    assert len(list(folder.glob("failed/*/cycle-1-attempt-1/provenance.json"))) == 1
    (earlier,) = folder.glob("superseded/summary-*.json")
    assert json.loads(earlier.read_text())["valid"] == 0
    assert json.loads((folder / "summary.json").read_text())["valid"] == 1
    every = airflow.runs_of_partitions("released.compare_all", {"all"})["all"]
    log = airflow.task_log("released.compare_all", every["dag_run_id"], "compare")
    assert every["state"] == "success", log
