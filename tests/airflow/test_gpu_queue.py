"""More cycles than workers that want one GPU which somebody else has: a real scheduler, triggerer and engine."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import docker
import pytest
from docker.types import DeviceRequest

from llem_airflow.results import ResultsRoot
from tests.airflow.server import AirflowServer
from tests.chaos.world import wait_for

pytestmark = [pytest.mark.airflow, pytest.mark.docker, pytest.mark.timeout(900)]

CYCLES = 3
"""More than `process_airflow` has workers."""


def test_cycles_that_wait_for_one_gpu_hold_no_worker_and_run_one_after_another(
    process_airflow: AirflowServer, docker_api: docker.APIClient, python_image: str
) -> None:
    server = process_airflow
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
