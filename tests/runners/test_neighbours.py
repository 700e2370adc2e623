"""Other experiments and foreign containers are told apart, by what they are and by what they take."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import docker
import pytest

from llem_airflow.runners.failures import AttemptFailedError
from llem_airflow.runners.gpus import Gpu, Inventory
from llem_airflow.runners.neighbours import Neighbours
from llem_airflow.study import GpuRequest
from tests.runners.conftest import RunContainer
from tests.runners.programs import SPEC
from tests.runners.test_look import ScriptedEngine, refusal

Start = Callable[..., str]


@pytest.fixture
def start(docker_api: docker.APIClient, python_image: str) -> Iterator[Start]:
    """Starts a container that runs a program: ``start("pass", labels={…})``."""
    made: list[str] = []

    def run(program: str, **arguments: Any) -> str:
        name = f"beside-{uuid.uuid4()}"
        made.append(name)
        docker_api.create_container(
            python_image, ["python3", "-c", f"import time\n{program}"], name=name, **arguments
        )
        docker_api.start(name)
        return name

    yield run
    for name in made:
        docker_api.remove_container(name, force=True)


@pytest.mark.docker
def test_experiments_are_told_by_our_label_and_others_by_their_cpu_time(
    docker_api: docker.APIClient, start: Start
) -> None:
    experiment = start("time.sleep(300)", labels={"llem.key": "other"})
    idle = start("print('up', flush=True); time.sleep(300)")
    probe = start("time.sleep(300)", labels={"llem.probe": "1"})
    while not docker_api.logs(idle):  # what a start takes is no idleness
        time.sleep(0.1)
    beside = Neighbours(docker_api, "mine", (), Inventory)
    busy = start("while True: pass")  # began meanwhile
    until_s = time.monotonic() + 60
    seen = beside.facts()
    while _cpus(seen).get(busy, 0) <= 0.02 and time.monotonic() < until_s:  # where it gets a core at last
        time.sleep(0.5)
        seen = beside.facts()
    assert experiment in seen["neighbours"]
    assert not {idle, probe, busy} & set(seen["neighbours"])
    cpus = _cpus(seen)
    assert cpus[idle] < 0.02 < cpus[busy]
    assert probe not in cpus
    assert "neighbours_unknown" not in seen


@pytest.mark.docker
def test_a_foreign_container_that_can_reach_our_gpu_is_told(
    docker_api: docker.APIClient, start: Start
) -> None:
    name = start(
        "time.sleep(300)", host_config=docker_api.create_host_config(device_cgroup_rules=["c 195:* rwm"])
    )
    mine, other = Gpu("GPU-mine", "0"), Gpu("GPU-other", "1")
    seen = Neighbours(docker_api, "x", (mine.id,), lambda: Inventory((mine, other))).facts()
    assert {one["name"]: one["gpus"] for one in seen["foreign_containers"]}[name] == [mine.id]


def test_an_engine_that_does_not_say_leaves_it_unknown() -> None:
    class Refusing(ScriptedEngine):
        def containers(self, *_: object, **__: object) -> None:
            raise refusal("403 Forbidden by the proxy")

    seen = Neighbours(Refusing(), "x", (), Inventory).facts()
    assert (seen["neighbours"], seen["foreign_containers"]) == (None, None)
    assert "403 Forbidden by the proxy" in seen["neighbours_unknown"]


@pytest.mark.docker
def test_a_box_without_gpus_hides_them_and_has_no_neighbours_of_foreigners(
    run_container: RunContainer, start: Start
) -> None:
    foreign = start("time.sleep(300)")
    lines: list[str] = []
    collected = run_container(
        "print(os.environ['NVIDIA_VISIBLE_DEVICES'])\nresult()",
        lines=lines,
        gpu_request=GpuRequest(0),
        environment={"NVIDIA_VISIBLE_DEVICES": "all"},  # not without a lease
    )
    assert lines == ["void"]
    assert foreign not in collected.host["neighbours"]
    assert foreign in [one["name"] for one in collected.host["foreign_containers"]]


@pytest.mark.docker
def test_a_meter_of_gpus_without_a_gpu_fails_before_anything_runs(run_container: RunContainer) -> None:
    with pytest.raises(AttemptFailedError, match=r"meter `nvml` reads the power of GPUs.*count: 0") as caught:
        run_container("result()", gpu_request=GpuRequest(0), spec=_metered("nvml"))
    assert caught.value.failure.category == "gpu_access"


def _cpus(seen: dict[str, Any]) -> dict[str, float]:
    return {one["name"]: one["cpus"] for one in seen["foreign_containers"]}


def _metered(kind: str) -> object:
    return replace(SPEC, meter=replace(SPEC.meter, kind=kind))
