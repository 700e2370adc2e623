"""Many cycles that want one GPU which somebody else has: a real scheduler, triggerer and engine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import docker
import pytest
from docker.types import DeviceRequest

from llem_airflow.results import ResultsRoot
from tests.airflow.server import AirflowServer
from tests.chaos.world import REPOSITORY, install_plugin, wait_for

pytestmark = [pytest.mark.airflow, pytest.mark.docker, pytest.mark.alone, pytest.mark.timeout(900)]

CYCLES = 5
STUDY = """\
study_name: queue
serving_mode: offline
study_execution: {n_cycles: 5}
engine: echo
task: {model: none, max_output_tokens: 8, dataset: {source: builtin, n_prompts: 2}}
measurement: {meter: none, min_window_seconds: 1, baseline: {enabled: false}}
offline: {warmup: {enabled: false}}
echo: {engine_params: {step_s: 0.01}}
gpus: {ids: ["1"]}
runners: {echo: container}
images: {echo: "IMAGE"}
"""
DAG = """\
from pathlib import Path
from airflow.sdk import DAG
from llem_airflow.operators import LLEMExperimentOperator
from llem_airflow.study import load_study

study = load_study(Path(__file__).with_name("queue.yaml"))
with DAG("queue", schedule=None, is_paused_upon_creation=False):
    for cycle in range(1, 6):
        LLEMExperimentOperator(
            task_id=f"cycle_{cycle}", study=study, experiment=study.experiments[0], cycle=cycle, gpu_wait_s=600
        )
"""


@pytest.fixture
def server(tmp_path: Path, docker_api: docker.APIClient, python_image: str) -> Iterator[AirflowServer]:
    site = tmp_path / "site"
    install_plugin(site, tmp_path / "plugin")
    made = AirflowServer(tmp_path / "airflow", {}, {"PYTHONPATH": f"{site}{os.pathsep}{REPOSITORY}"})
    dags = made.home / "dags"
    for shipped in dags.glob("*.py"):
        shipped.unlink()
    (dags / "queue.py").write_text(DAG)
    (dags / "queue.yaml").write_text(STUDY.replace("IMAGE", python_image))
    try:
        made.start()
        wait_for(lambda: made.get("/api/v2/dags/queue").status_code == 200, 120)
        yield made
    finally:
        made.stop()


def test_cycles_that_wait_for_one_gpu_hold_no_worker_and_run_one_after_another(
    server: AirflowServer, docker_api: docker.APIClient, python_image: str
) -> None:
    holds = docker_api.create_host_config(
        device_requests=[DeviceRequest(device_ids=["1"], capabilities=[["gpu"]])], init=True
    )
    foreign = docker_api.create_container(python_image, ["sleep", "600"], host_config=holds)["Id"]
    docker_api.start(foreign)
    try:
        answer = server.trigger("queue")
        answer.raise_for_status()
        run_id = answer.json()["dag_run_id"]

        def all_wait() -> bool:
            return [ti["state"] for ti in server.instances("queue", run_id)] == ["deferred"] * CYCLES

        wait_for(all_wait, 240)  # more than there are workers: none of them is held
        label = {"label": f"llem.installation={server.installation}"}
        assert docker_api.containers(all=True, filters=label) == []
    finally:
        docker_api.remove_container(foreign, force=True)
    assert server.finished("queue", run_id)["state"] == "success"
    run = ResultsRoot(server.results).run("queue", run_id)
    cycles = run.cycles(repeats=True)
    assert sorted(ref.cycle for ref in cycles) == list(range(1, CYCLES + 1))
    ran = sorted(_window_ns(Path(ref.folder.url)) for ref in cycles)
    assert all(ended <= begun for (_, ended), (begun, _) in pairwise(ran))
    gpus = {tuple(ref.provenance()["gpus"]) for ref in cycles}
    assert len(gpus) == 1
    assert docker_api.containers(all=True, filters=label) == []
    assert not docker_api.volumes(filters=label)["Volumes"]


def _window_ns(cycle: Path) -> tuple[int, int]:
    window = json.loads((cycle / "result.json").read_text())["window"]
    return window["t_begin_mono_ns"], window["t_end_mono_ns"]
