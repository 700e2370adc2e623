"""An attempt that prints but computes nothing is ended, by the driver's word; where that cannot be had, it is said."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import docker
import pytest

from llem_airflow.runners.failures import AttemptFailedError
from llem_airflow.runners.output import GPU_IDLE, SILENCE, Watchdog, watched
from llem_airflow.study import GpuRequest
from tests.runners.conftest import RunContainer
from tests.runners.test_process_gpus import Start, said, start

__all__ = ["start"]

IDLE = "t0 = 0\ngpus = 2\ngpu.0.power = const 60\ngpu.1.power = const 60\n"
BUSY = "t0 = 0\ngpus = 2\ngpu.0.power = const 60\ngpu.1.power = const 300\n"
SPLIT = "t0 = 0\ngpus = 1\ngpu.0.mig.0.uuid = MIG-one\n"


def test_an_attempt_whose_gpu_computes_nothing_ends_although_it_prints(start: Start) -> None:
    (ended,) = said(start(IDLE, hold_s=60, gpu_idle_s=2, silence_s=30))
    assert ended["error"] == "its GPUs computed nothing for its limit of 2 s and was ended"
    assert (ended["category"], ended["again"]) == ("timeout_gpu_idle", True)
    assert ended["hint"] == "look in the log for what it waited for, or raise max_gpu_idle_s"


@pytest.mark.parametrize(
    ("script", "asked"),
    [
        (BUSY, {"request": {"count": 2}, "gpu_idle_s": 1}),  # one of its GPUs computes
        (BUSY, {"request": {"ids": ["1"]}, "gpu_idle_s": 1}),
        (IDLE, {"request": {"count": 0}, "gpu_idle_s": 1}),  # it has no GPU
        (IDLE, {}),  # no limit
    ],
)
def test_whose_gpu_computes_who_has_none_or_no_limit_goes_on(
    start: Start, script: str, asked: dict[str, Any]
) -> None:
    (ended,) = said(start(script, hold_s=3, **asked))
    assert "error" not in ended
    assert ended["told"] == []


def test_a_slice_tells_no_utilisation_and_the_log_says_that_it_is_not_watched(start: Start) -> None:
    (ended,) = said(start(SPLIT, hold_s=2, gpu_idle_s=0.5))
    assert "error" not in ended
    (told,) = ended["told"]
    assert told.startswith("max_gpu_idle_s is not watched: the driver tells no utilisation of MIG-one: ")


def test_another_machine_s_gpus_are_not_watched_and_that_is_said() -> None:
    lines: list[str] = []
    with watched(["GPU-x"], 5, lines.append, elsewhere=True) as computes:
        assert computes is None
    assert lines == [
        "max_gpu_idle_s is not watched: the engine is on another machine, whose NVIDIA driver does not answer here"
    ]


@pytest.mark.docker
@pytest.mark.alone
def test_a_container_is_told_when_this_process_sees_no_driver(
    run_container: RunContainer, docker_api: docker.APIClient
) -> None:
    lines: list[str] = []
    run_container("result()", lines=lines, gpu_request=GpuRequest(1), gpu_idle_s=5.0)
    assert lines[0].startswith(
        "max_gpu_idle_s is not watched: this machine's NVIDIA driver cannot be asked: "
    )


def fires(computes: Callable[[], bool], **limits: Any) -> str | None:
    with Watchdog(lambda: None, wall_clock_s=None, silence_s=None, computes=computes, **limits) as dog:
        deadline_s = time.monotonic() + 2
        while dog.fired is None and time.monotonic() < deadline_s:
            time.sleep(0.01)
    return dog.fired


def test_the_time_counts_from_the_last_look_at_which_it_computed() -> None:
    looks = iter([True, *[False] * 1000])
    began_s = time.monotonic()
    assert fires(lambda: next(looks), gpu_idle_s=0.3) == GPU_IDLE
    assert time.monotonic() - began_s >= 0.3
    assert fires(lambda: True, gpu_idle_s=0.3) is None
    assert fires(lambda: False) is None
    with Watchdog(
        lambda: None, wall_clock_s=None, silence_s=0.1, gpu_idle_s=9.0, computes=lambda: True
    ) as dog:
        until_s = time.monotonic() + 30
        while dog.fired is None and time.monotonic() < until_s:
            time.sleep(0.01)
    assert dog.fired == SILENCE


@pytest.mark.docker
def test_a_failure_of_it_has_its_place_in_the_headline(run_container: RunContainer) -> None:
    with pytest.raises(AttemptFailedError, match=r"silence limit of 1\.5 s and was ended"):
        run_container("time.sleep(60)", silence_s=1.5, stop_grace_s=1.0)
