"""A task that waits for a GPU holds no worker: it defers, keeps its place, and says who holds what."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from airflow.sdk.exceptions import TaskDeferred
from docker.types import DeviceRequest

from llem_airflow.operators import waits
from llem_airflow.operators.retries import AttemptRetryableError
from llem_airflow.operators.waits import GpuFreeTrigger, GpuWait, now_epoch_s
from llem_airflow.runners.base import Sight, Wait
from llem_airflow.runners.engine import EngineAddress
from tests.operators.test_experiment import STUDY, context, operator, study_at
from tests.parts import left_by

WAITS = STUDY.replace("study_name: one", "study_name: waits") + 'gpus: {ids: ["1"]}\n'
ATTEMPT = {
    "dag_id": "d", "run_id": "r", "task_id": "t", "map_index": -1, "experiment_id": "e",
    "experiment_hash": "0" * 16, "cycle": 1, "try_number": 1,
}  # fmt: skip
AWAY = {
    "runner": "container",
    "engine": EngineAddress(("unix:///nowhere/docker.sock",)).to_json(),
    "attempt": ATTEMPT,
    "ticket": {},
    "image": "x",
}
INSTALLATION = f"tests-gpu-wait-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def foreign(docker_api: docker.APIClient, python_image: str) -> Iterator[str]:
    """Somebody else's container that holds GPU 1."""
    name = f"foreign-{uuid.uuid4()}"
    identity = docker_api.create_container(
        python_image,
        ["python3", "-c", "import time; time.sleep(300)"],
        name=name,
        host_config=docker_api.create_host_config(
            device_requests=[DeviceRequest(device_ids=["1"], capabilities=[["gpu"]])], init=True
        ),
    )["Id"]
    docker_api.start(identity)
    yield name
    with contextlib.suppress(docker.errors.NotFound):
        docker_api.remove_container(identity, force=True)


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path) -> None:
    monkeypatch.setenv("LLEM_RESULTS_ROOT", str(tmp_path / "results"))
    monkeypatch.setenv("LLEM_MODELS_DIR", str(tiny_model.parent))
    monkeypatch.setenv("LLEM_INSTALLATION", INSTALLATION)
    monkeypatch.setattr(waits, "SETTLE_S", 0.0)


def deferred(tmp_path: Path, python_image: str, **kwargs: Any) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as caught:
        operator(study_at(tmp_path, "container", WAITS), image=python_image, **kwargs).execute(context())
    return caught.value


async def first_event(trigger: GpuFreeTrigger) -> Any:
    try:
        async for event in trigger.run():
            return event.payload
    finally:
        await trigger.cleanup()


@pytest.mark.docker
@pytest.mark.alone
def test_a_task_defers_while_others_hold_its_gpu_and_goes_on_with_its_place_when_it_is_free(
    tmp_path: Path,
    docker_api: docker.APIClient,
    python_image: str,
    foreign: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    waiting = deferred(tmp_path, python_image)
    assert left_by(docker_api, INSTALLATION) == []  # neither a container nor a ticket of the worker stays
    assert waiting.method_name == "execute_after_wait"
    path, kwargs = waiting.trigger.serialize()
    assert path == "llem_airflow.operators.waits.GpuFreeTrigger"

    async def until_released() -> Any:
        firing = asyncio.create_task(first_event(GpuFreeTrigger(**kwargs)))
        while not left_by(docker_api, INSTALLATION):  # its place in the queue, which others see
            await asyncio.sleep(0.1)
        assert not firing.done()
        docker_api.remove_container(foreign, force=True)
        return await firing

    event = asyncio.run(until_released())
    assert event["later"] == kwargs["later"]
    shown = capsys.readouterr().out  # Airflow's own logging
    assert f"s left, 0 claims ahead; held by: 1: container {foreign}" in shown
    asyncio.run(GpuFreeTrigger(**kwargs).on_kill())


@pytest.mark.docker
@pytest.mark.alone
def test_when_the_time_is_over_the_error_names_the_holder_and_another_try_can_help(
    tmp_path: Path, docker_api: docker.APIClient, python_image: str, foreign: str
) -> None:
    waiting = deferred(tmp_path, python_image, gpu_wait_s=60)
    _, kwargs = waiting.trigger.serialize()
    long_ago = {**kwargs, "begin_epoch_s": kwargs["begin_epoch_s"] - 100}
    event = asyncio.run(first_event(GpuFreeTrigger(**long_ago)))
    task = operator(study_at(tmp_path, "container", WAITS), image=python_image, gpu_wait_s=60)
    with pytest.raises(AttemptRetryableError, match=f"not free after 60 s; held by: 1: container {foreign}"):
        task.execute_after_wait(context(), event)
    assert left_by(docker_api, INSTALLATION) == []


@pytest.mark.docker
@pytest.mark.alone
def test_the_time_of_a_cycle_begins_when_it_is_the_first_of_its_run(
    tmp_path: Path, docker_api: docker.APIClient, python_image: str, foreign: str
) -> None:
    first = deferred(tmp_path, python_image).trigger.serialize()[1]
    later = first["later"]
    number = {"llem.ticket": later["ticket"]["llem.ticket"] + "-later"}
    second = {
        **first,
        "later": {
            **later,
            "attempt": {**later["attempt"], "task_id": "another"},
            "ticket": {**later["ticket"], **number},
        },
    }
    long_ago = {"begin_epoch_s": first["begin_epoch_s"] - 1000}

    async def both() -> tuple[Any, Any]:
        holding = asyncio.create_task(first_event(GpuFreeTrigger(**first)))
        while not left_by(docker_api, INSTALLATION):
            await asyncio.sleep(0.1)
        behind = await first_event(trigger := GpuFreeTrigger(**second | long_ago))
        await trigger.on_kill()
        holding.cancel()
        head = await first_event(trigger := GpuFreeTrigger(**first | long_ago))
        await trigger.on_kill()
        return behind, head

    behind, head = asyncio.run(both())
    assert behind["begin_epoch_s"] > first["begin_epoch_s"]
    assert head["begin_epoch_s"] == long_ago["begin_epoch_s"]
    for name in left_by(docker_api, INSTALLATION):
        docker_api.remove_volume(name)


@pytest.mark.docker
@pytest.mark.alone
def test_without_a_triggerer_the_task_waits_in_the_worker(
    tmp_path: Path, python_image: str, foreign: str, capsys: pytest.CaptureFixture[str]
) -> None:
    task = operator(study_at(tmp_path, "container", WAITS), image=python_image, gpu_wait_s=1.5)
    with pytest.raises(AttemptRetryableError, match=r"not free after 1\.5 s"):
        task.resume_execution("__fail__", {"error": "Trigger timeout"}, context())
    assert "Is an `airflow triggerer` running?" in capsys.readouterr().out


@pytest.mark.docker
@pytest.mark.alone
def test_a_person_who_ends_the_task_gives_its_place_up(
    tmp_path: Path, docker_api: docker.APIClient, python_image: str, foreign: str
) -> None:
    _, kwargs = deferred(tmp_path, python_image).trigger.serialize()
    trigger = GpuFreeTrigger(**kwargs)

    async def ended() -> None:
        firing = asyncio.create_task(first_event(trigger))
        while not left_by(docker_api, INSTALLATION):
            await asyncio.sleep(0.1)
        await trigger.on_kill()
        firing.cancel()

    asyncio.run(ended())
    assert left_by(docker_api, INSTALLATION) == []


def test_an_engine_that_is_away_is_waited_for_until_the_time_is_over() -> None:
    trigger = GpuFreeTrigger(later=AWAY, begin_epoch_s=now_epoch_s() - 9, limit_s=10)
    assert asyncio.run(first_event(trigger)) == {
        "later": AWAY,
        "begin_epoch_s": trigger.begin_epoch_s,
        "since_epoch_s": None,
    }


def test_it_does_not_fire_before_the_scheduler_can_know_that_the_task_was_deferred(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waits, "SETTLE_S", 0.4)
    trigger = GpuFreeTrigger(later=AWAY, begin_epoch_s=now_epoch_s(), limit_s=60)
    monkeypatch.setattr(trigger._waiting, "look", lambda: Sight(free=True))
    began_s = time.monotonic()
    assert asyncio.run(first_event(trigger))["later"] == AWAY
    assert time.monotonic() - began_s >= 0.4


def test_time_that_was_waited_counts() -> None:
    assert GpuWait(here=False).of(60) == Wait(60, here=False)
    assert 10 <= GpuWait(here=False, begin_epoch_s=now_epoch_s() - 10).of(600).waited_s < 310
