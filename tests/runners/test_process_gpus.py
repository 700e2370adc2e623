"""A process holds its GPUs as a container does: nobody else gets them, and it sees and measures no others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.types import DeviceRequest

from llem_airflow.runners.gpus import Gpu, Inventory
from llem_airflow.runners.leases import ENV_FOLDER, everyone
from tests.standins.build import Standins

ROOT = Path(__file__).parents[2]
GPU_0, GPU_1 = (f"GPU-5741d000-0000-0000-0000-{number:012d}" for number in (0, 1))
TWO = "t0 = 0\ngpus = 2\ngpu.0.power = const 100\ngpu.1.power = const 100\n"

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(standin: Standins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    monkeypatch.setenv(ENV_FOLDER, str(tmp_path / "leases"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def run(script: str | Path | None = TWO, environment: dict[str, str] | None = None, **asked: Any) -> Any:
        env = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
        if script is not None:
            path = script if isinstance(script, Path) else tmp_path / "gpus.conf"
            if isinstance(script, str):
                path.write_text(script)
            env |= standin.environment(path)
        command = [sys.executable, "-m", "tests.runners.process_claimant", json.dumps(asked)]
        return subprocess.Popen(command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True)

    return run


def said(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    out, _ = process.communicate(timeout=120)
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize(
    ("request_", "gpus"),
    [({}, [GPU_0]), ({"count": 1}, [GPU_0]), ({"count": 2}, [GPU_0, GPU_1]), ({"ids": ["1"]}, [GPU_1])],
)
def test_engine_and_meter_see_what_was_leased_and_nothing_else(
    start: Start, request_: dict[str, Any], gpus: list[str]
) -> None:
    (ran,) = said(start(request=request_))
    assert ran["gpus"] == ran["meter"] == gpus
    assert ran["CUDA_VISIBLE_DEVICES"] == ",".join(gpus)
    assert ran["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_without_a_gpu_none_is_seen(start: Start) -> None:
    (ran,) = said(start(request={"count": 0}))
    assert (ran["gpus"], ran["meter"], ran["CUDA_VISIBLE_DEVICES"]) == ([], [], "")


def test_where_there_is_no_driver_nothing_is_hidden(start: Start) -> None:
    (ran,) = said(start(script=None))
    assert (ran["gpus"], ran["CUDA_VISIBLE_DEVICES"]) == ([], None)


def test_a_gpu_that_must_be_there_is_an_error_where_there_is_none(start: Start) -> None:
    (failed,) = said(start(script=None, request={"count": 1}))
    assert failed["category"] == "gpu_access"
    assert "shows no NVIDIA driver" in failed["error"]
    (failed,) = said(start(script=None, meter="nvml"))
    assert "meter `nvml` reads the power of GPUs" in failed["error"]


def test_what_the_worker_hides_is_not_given(start: Start) -> None:
    (ran,) = said(start(environment={"CUDA_VISIBLE_DEVICES": "1"}))
    assert ran["gpus"] == ran["meter"] == [GPU_1]
    (failed,) = said(start(environment={"CUDA_VISIBLE_DEVICES": "1"}, request={"ids": ["0"]}))
    assert "the host has no GPU 0" in failed["error"]
    (none,) = said(start(environment={"CUDA_VISIBLE_DEVICES": ""}))
    assert (none["gpus"], none["CUDA_VISIBLE_DEVICES"]) == ([], "")
    assert "hides every GPU" in none["host"]["on_cpu"]


def test_a_driver_that_does_not_answer_is_not_a_machine_without_gpus(start: Start) -> None:
    (failed,) = said(start(script=TWO + "fault = mismatch call=nvmlInit\n"))
    assert failed["again"] is True
    assert "cannot be found out" in failed["error"]


def test_several_workers_never_share_a_gpu_and_all_finish(start: Start) -> None:
    workers = [start(request={"count": count}, times=4) for count in (1, 1, 2)]
    ran = [one for worker in workers for one in said(worker)]
    assert [one for one in ran if "error" in one] == []
    assert len(ran) == 12
    for one, other in combinations(ran, 2):
        if set(one["gpus"]) & set(other["gpus"]):
            assert one["end"] <= other["begin"] or other["end"] <= one["begin"]


def test_who_waits_in_vain_is_told_who_holds_the_gpus(start: Start) -> None:
    holder = start(request={"count": 2}, hold_s=200)
    wait_for_leases(1)
    (failed,) = said(start(wait_s=1))
    assert (failed["category"], failed["again"]) == ("gpu_unavailable", True)
    assert (
        f"1 GPU(s) not free after 1 s; held by: {GPU_0}, {GPU_1}: process {holder.pid} (claim of DAG claims)"
        in failed["error"]
    )
    holder.kill()
    holder.communicate()


def test_a_quota_holds_for_processes(start: Start) -> None:
    holder = start(quota=1, hold_s=200)
    wait_for_leases(1)
    (failed,) = said(start(quota=1, wait_s=1))
    assert failed["category"] == "gpu_unavailable"
    (ran,) = said(start(quota=2))
    assert ran["gpus"] == [GPU_1]
    holder.kill()
    holder.communicate()


def test_the_host_for_one_alone_excludes_every_other_process(start: Start) -> None:
    holder = start(request={"exclusive": "host", "count": 0}, hold_s=200)
    wait_for_leases(1)
    (failed,) = said(start(wait_s=1))
    assert "held by: the host: process" in failed["error"]
    holder.kill()
    holder.communicate()


def test_a_killed_worker_leaves_no_lease(start: Start, tmp_path: Path) -> None:
    worker = start(request={"count": 2}, hold_s=200)
    wait_for_leases(1)
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    (ran,) = said(start(request={"count": 2}, wait_s=10))
    assert ran["gpus"] == [GPU_0, GPU_1]
    assert list((tmp_path / "leases").iterdir()) == []


def wait_for_leases(count: int) -> None:
    known = Inventory(tuple(Gpu(gpu) for gpu in (GPU_0, GPU_1)))
    deadline_s = time.monotonic() + 120
    while len(everyone(None, known)) < count:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.mark.docker
@pytest.mark.alone
def test_containers_and_processes_respect_each_other(
    start: Start, standin: Standins, docker_api: docker.APIClient, python_image: str
) -> None:
    """The process waits for a container's GPU, and a container's choice passes over a process's."""
    every = docker_api.create_host_config(
        device_requests=[DeviceRequest(device_ids=[GPU_0], capabilities=[["gpu"]])]
    )
    identity = docker_api.create_container(
        python_image, entrypoint=["sleep"], command=["300"], host_config=every, name="llem-test-holds-gpu-0"
    )["Id"]
    docker_api.start(identity)
    try:
        (ran,) = said(start(standin.script, docker=True, request={"kind": "full"}))
        assert ran["gpus"] == [GPU_1]
        (failed,) = said(start(standin.script, docker=True, request={"ids": [GPU_0]}, wait_s=1))
        assert "container llem-test-holds-gpu-0" in failed["error"]
    finally:
        docker_api.remove_container(identity, force=True)
    worker = start(standin.script, docker=True, request={"ids": [GPU_0]}, hold_s=200)
    wait_for_leases(1)
    known = Inventory(tuple(Gpu(gpu) for gpu in (GPU_0, GPU_1)))
    assert [holder.gpus for holder in everyone(docker_api, known)] == [(GPU_0,)]
    worker.kill()
    worker.communicate()
