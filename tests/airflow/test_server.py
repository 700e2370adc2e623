"""A study through Airflow's own scheduler, in real containers, seen in the real UI."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.types import DeviceRequest

from llem_airflow.runners.attempt import Attempt
from tests.airflow.conftest import small
from tests.airflow.server import AirflowServer, more_studies
from tests.browser import chromium_page
from tests.parts import left_by

pytestmark = [pytest.mark.airflow, pytest.mark.docker, pytest.mark.timeout(900)]

STOPS = """\
study_execution: {n_cycles: 2, max_consecutive_failures: 1, circuit_breaker_cooldown_seconds: 1}
gpus: {ids: ["99"]}
"""
NO_SUCH_IMAGE = "llem-airflow/does-not-exist:1"


def in_container(name: str, engine: str, image: str, more: str = "") -> str:
    """Two experiments of one cycle."""
    text = small(name, engine).replace(f"{engine}: process", f"{engine}: container")
    return f"{text}images: {{{engine}: '{image}'}}\nsweep: {{task.max_output_tokens: [4, 8]}}\n{more}"


@pytest.fixture(scope="module")
def airflow(
    process_airflow: AirflowServer, docker_api: docker.APIClient, cpu_image: str, python_image: str
) -> Iterator[AirflowServer]:
    """With studies that run in containers."""
    stops = in_container("stops", "scripted", python_image, STOPS)
    studies = {
        "tiny": in_container("tiny", "transformers", cpu_image),
        "noimage": in_container("noimage", "scripted", NO_SUCH_IMAGE),
        "waits": in_container("waits", "scripted", python_image, 'gpus: {ids: ["1"]}\n'),
        "stops": stops.replace("study_execution: {n_cycles: 1}\n", ""),
    }
    with more_studies(process_airflow, studies):
        yield process_airflow


@pytest.fixture(scope="module")
def tiny_run(airflow: AirflowServer) -> dict[str, Any]:
    return airflow.run("tiny")


def test_a_study_runs_through_the_scheduler_and_leaves_no_container_and_no_volume(
    airflow: AirflowServer, tiny_run: dict[str, Any], docker_api: docker.APIClient
) -> None:
    states = airflow.states("tiny", tiny_run["dag_run_id"])
    assert tiny_run["state"] == "success", states
    assert len(states) == 5
    assert left_by(docker_api, airflow.installation) == []
    (run,) = (airflow.results / "tiny").iterdir()
    kept = {p.name for p in run.iterdir()}
    assert {
        "study.yaml", "plan.json", "summary.json", "experiments.parquet", "cycles.parquet", "power.parquet",
        "report.html",
    } <= kept  # fmt: skip
    cycles = sorted(run.glob("experiments/*/cycle-*"))
    assert len(cycles) == 2
    for cycle in cycles:
        assert {
            "config.json", "result.json", "environment.json", "events.jsonl", "requests.parquet", "power.parquet",
            "container.log", "provenance.json",
        } <= {p.name for p in cycle.iterdir()}  # fmt: skip


def test_the_maintenance_dag_finds_nothing_to_do_after_it(
    airflow: AirflowServer, tiny_run: dict[str, Any]
) -> None:
    assert airflow.run("llem_maintenance")["state"] == "success"


def test_the_engine_s_output_is_in_the_task_log(airflow: AirflowServer, tiny_run: dict[str, Any]) -> None:
    states = airflow.states("tiny", tiny_run["dag_run_id"])
    task_id = next(name for name in states if name.endswith("cycle_1"))
    assert "measure" in airflow.task_log("tiny", tiny_run["dag_run_id"], task_id)


def test_a_broken_study_shows_file_and_line_in_the_ui_and_fails_with_them(airflow: AirflowServer) -> None:
    dags = {dag["dag_id"]: dag for dag in airflow.get("/api/v2/dags", limit="100").json()["dags"]}
    assert {"tiny", "noimage", "invalid.broken"} <= set(dags)
    assert {"name": "llem:invalid", "dag_id": "invalid.broken"}.items() <= next(
        tag for tag in dags["invalid.broken"]["tags"] if tag["name"] == "llem:invalid"
    ).items()
    doc = airflow.get("/api/v2/dags/invalid.broken/details").json()["doc_md"]
    assert "broken.yaml:4:1" in doc
    assert "engnie" in doc
    run = airflow.run("invalid.broken")
    assert run["state"] == "failed"
    assert "broken.yaml:4:1" in airflow.task_log("invalid.broken", run["dag_run_id"], "problems")


def test_an_image_that_does_not_exist_is_a_failed_task_that_says_what_to_do(
    airflow: AirflowServer, docker_api: docker.APIClient
) -> None:
    run = airflow.run("noimage")
    assert run["state"] == "failed"
    states = airflow.states("noimage", run["dag_run_id"])
    assert {state for name, state in states.items() if "cycle" in name} == {"upstream_failed"}
    log = airflow.task_log("noimage", run["dag_run_id"], "prefetch_1")
    assert f"image {NO_SUCH_IMAGE} cannot be pulled" in log
    assert "What to do:" in log
    aggregate = airflow.task_log("noimage", run["dag_run_id"], "aggregate")
    assert "2 of 2 planned cycles without a result" in aggregate
    assert f"skipped: image {NO_SUCH_IMAGE} cannot be pulled" in aggregate
    assert left_by(docker_api, airflow.installation) == []


def test_a_cycle_waits_for_a_gpu_in_the_triggerer_and_runs_when_it_is_free(
    airflow: AirflowServer, docker_api: docker.APIClient, python_image: str
) -> None:
    gpu = DeviceRequest(device_ids=["1"], capabilities=[["gpu"]])
    host = docker_api.create_host_config(device_requests=[gpu], init=True)
    foreign = docker_api.create_container(
        python_image, entrypoint=["python3", "-c", "import time; time.sleep(600)"], host_config=host
    )["Id"]
    docker_api.start(foreign)
    try:
        airflow.unpause("waits")
        run_id = airflow.trigger("waits", conf={"experiments": "*max_output_tokens-4*"}).json()["dag_run_id"]
        deadline = time.monotonic() + 180
        while "deferred" not in airflow.states("waits", run_id).values():
            assert time.monotonic() < deadline, airflow.states("waits", run_id)
            time.sleep(1)
    finally:
        docker_api.remove_container(foreign, force=True)
    assert airflow.finished("waits", run_id)["state"] == "success"
    states = airflow.states("waits", run_id)
    (cycle,) = [name for name, state in states.items() if "cycle" in name and state == "success"]
    log = airflow.task_log("waits", run_id, cycle)
    assert "held by: 1: container " in log
    assert "Waiting in the triggerer" in log
    assert left_by(docker_api, airflow.installation) == []


def test_cycles_that_fail_one_after_the_other_stop_the_run_after_a_probe(
    airflow: AirflowServer, docker_api: docker.APIClient
) -> None:
    run = airflow.run("stops")
    assert run["state"] == "failed"
    states = airflow.states("stops", run["dag_run_id"])
    ended = sorted(state for name, state in states.items() if "cycle" in name)
    assert ended == ["failed", "failed", "skipped", "skipped"]
    aggregate = airflow.task_log("stops", run["dag_run_id"], "aggregate")
    assert "skipped: 2 cycles in a row failed, the last one" in aggregate
    assert "A probe after a pause of 1 s failed too" in aggregate
    assert left_by(docker_api, airflow.installation) == []


def test_the_maintenance_dag_removes_what_a_killed_task_left_and_nothing_else(
    airflow: AirflowServer, tiny_run: dict[str, Any], docker_api: docker.APIClient
) -> None:
    run_id = tiny_run["dag_run_id"]
    over = next(name for name in airflow.states("tiny", run_id) if name.endswith("cycle_1"))

    def volume(installation: str) -> str:
        attempt = Attempt("tiny", run_id, over, -1, "e", "0" * 16, 1, 1, installation)
        docker_api.create_volume(attempt.volume_name, labels=attempt.labels)
        return attempt.volume_name

    left, foreign = volume(airflow.installation), volume(f"other-{airflow.installation}")
    try:
        run = airflow.run("llem_maintenance")
        assert run["state"] == "success"
        assert left in airflow.task_log("llem_maintenance", run["dag_run_id"], "gc")
        assert left_by(docker_api, airflow.installation) == []
        assert docker_api.inspect_volume(foreign)["Name"] == foreign
    finally:
        docker_api.remove_volume(foreign)


def test_the_report_is_for_logged_in_users_only(airflow: AirflowServer, tiny_run: dict[str, Any]) -> None:
    params = {"dag_id": "tiny", "run_id": tiny_run["dag_run_id"]}
    assert airflow.get("/llem/run", user=None, **params).status_code == 401
    for user in ("admin", "bob"):
        answer = airflow.get("/llem/run", user=user, **params)
        assert answer.status_code == 200
        assert "estimate" in answer.text


def test_a_run_without_results_gets_a_page_that_says_so(airflow: AirflowServer) -> None:
    answer = airflow.get("/llem/run", dag_id="tiny", run_id="../../etc/passwd")
    assert answer.status_code == 404
    assert "No results yet" in answer.text


@pytest.mark.browser
def test_the_energy_tab_shows_the_results_in_a_real_browser(
    airflow: AirflowServer, tiny_run: dict[str, Any]
) -> None:
    with chromium_page() as page:
        page.context.add_cookies([{"name": "_token", "value": airflow.token(), "url": airflow.url}])
        page.goto(f"{airflow.url}/dags/tiny/runs/{tiny_run['dag_run_id']}")
        page.locator("a[href$='/plugin/llem-energy']").click()  # the menu has an Energy too
        shown = page.get_by_test_id("llem-page")
        shown.get_by_test_id("llem-answer").wait_for(timeout=60_000)
        target = Path("build") / "screenshots"
        target.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=target / "energy-tab.png", full_page=True)
        assert shown.locator("svg").count() >= 1
        assert "estimate" in shown.inner_text()
