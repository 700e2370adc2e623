"""The thermal gap holds no worker: cycles wait in the triggerer and come back one at a time, in the plan's order."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from llem_airflow.operators import waits
from llem_airflow.operators.evidence import open_run
from llem_airflow.operators.waits import GapTrigger, GpuFreeTrigger, GpuWait, now_epoch_s, thermal_gap
from llem_airflow.results import StoredRun
from llem_airflow.runners.engine import EngineAddress
from tests.operators.test_experiment import context, operator, study_at
from tests.runners.programs import attempt


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StoredRun:
    monkeypatch.setenv("LLEM_RESULTS_ROOT", str(tmp_path / "results"))
    monkeypatch.setattr(waits, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(waits, "SETTLE_S", 0.0)
    return open_run(study_at(tmp_path, "process"), context())


def ended(run: StoredRun, *, ago_s: float = 0.0, attempt: int = 1, **told: str) -> None:
    """An attempt of the run has ended."""
    record = {"finished_epoch_ns": time.time_ns() - int(ago_s * 1e9), **told}
    run.commit_failed("other-12345678", 1, attempt, Path("nowhere"), record)


def trigger(run: StoredRun, rank: int, *, gap_s: float = 0.3, until_in_s: float = 0.0) -> GapTrigger:
    return GapTrigger(until_epoch_s=now_epoch_s() + until_in_s, run_url=run.url, gap_s=gap_s, rank=[rank, -1])


def test_a_cycle_defers_for_the_gap_and_looks_again_when_it_comes_back(
    run: StoredRun, tmp_path: Path
) -> None:
    ended(run, ago_s=5)
    task = operator(study_at(tmp_path, "process"), gap_before_s=60, priority_weight=7)
    with pytest.raises(TaskDeferred) as caught:
        task.execute(context())
    assert caught.value.method_name == "execute_after_pause"
    assert timedelta(seconds=55 + 300) < caught.value.timeout < timedelta(seconds=55 + 300 + 61)
    path, arguments = caught.value.trigger.serialize()
    assert path == "llem_airflow.operators.waits.GapTrigger"
    assert (arguments["gap_s"], arguments["rank"]) == (60, [-7, -1])
    ended(run, attempt=2)  # another cycle was first
    with pytest.raises(TaskDeferred):
        task.execute_after_pause(context(), {})


@pytest.mark.parametrize("arguments", [{"gap_before_s": 2.0}, {"gap_before_s": 2.0, "deferrable": False}])
def test_a_gap_shorter_than_the_way_to_the_triggerer_is_waited_for_here(
    run: StoredRun, tmp_path: Path, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "SETTLE_S", 0.0 if "deferrable" in arguments else 10.0)
    ended(run)
    task = operator(study_at(tmp_path, "process"), **arguments)
    task.look_at_host()
    began_s = time.monotonic()
    task._pause(run, context())
    assert 0.1 < time.monotonic() - began_s < 60


def test_without_a_cycle_before_it_or_after_the_gap_nothing_waits(run: StoredRun) -> None:
    assert thermal_gap(run, 60, [0, -1]) is None
    ended(run, ago_s=61)
    assert thermal_gap(run, 60, [0, -1]) is None
    assert thermal_gap(run, 0, [0, -1]) is None


def fired(
    run: StoredRun,
    *triggers: GapTrigger,
    at_least: int = 1,
    for_s: float = 1.0,
    ends_after_s: float | None = None,
) -> list[int]:
    """Ranks of the triggers that fire, in order, until so many have and a time after it.

    A cycle of the run may end meanwhile: after a time, or, where two are to fire, when the first has.
    """
    order: list[int] = []

    async def one(waiting: GapTrigger) -> None:
        async for _ in waiting.run():
            order.append(waiting.rank[0])  # noqa: PERF401  # when it fires is what counts

    async def all_of_them() -> None:
        tasks = [asyncio.create_task(one(each)) for each in triggers]
        if ends_after_s is not None:
            await asyncio.sleep(ends_after_s)
            ended(run, attempt=9)
        for number in range(at_least):
            until_s = time.monotonic() + 60
            while len(order) <= number and time.monotonic() < until_s:
                await asyncio.sleep(0.02)
            if number + 1 < at_least:
                ended(run, attempt=9)
        await asyncio.wait(tasks, timeout=for_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(all_of_them())
    return order


def test_when_the_gap_is_over_only_the_first_by_plan_comes_back(run: StoredRun) -> None:
    ended(run)
    assert fired(run, trigger(run, 3), trigger(run, 1), trigger(run, 2)) == [1]


def test_the_next_comes_back_when_the_run_has_got_on(run: StoredRun) -> None:
    ended(run)
    waiting = [trigger(run, rank) for rank in (3, 1, 2)]
    assert fired(run, *waiting, at_least=2) == [1, 2]


def test_a_turn_is_not_lost_on_a_scheduler_that_cannot_know_yet_that_the_task_was_deferred(
    run: StoredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "SETTLE_S", 3.0)
    ended(run, ago_s=1)
    assert fired(run, trigger(run, 1), at_least=0, for_s=0.4) == []
    assert fired(run, trigger(run, 1)) == [1]


def test_a_cycle_that_ends_meanwhile_begins_the_gap_anew(run: StoredRun) -> None:
    ended(run, ago_s=7)
    assert fired(run, trigger(run, 1, gap_s=10.0), at_least=0, for_s=3.2, ends_after_s=0.2) == []


def test_nobody_waits_for_ever_for_a_cycle_that_died_unnoticed(run: StoredRun) -> None:
    ended(run)
    long_over = trigger(run, 2, until_in_s=-waits.AT_MOST_S - 1)
    assert sorted(fired(run, trigger(run, 1), long_over, for_s=60)) == [1, 2]


def test_a_triggerer_that_cannot_see_the_results_goes_by_what_the_task_knew(run: StoredRun) -> None:
    blind = GapTrigger(until_epoch_s=now_epoch_s() + 0.3, run_url="/nowhere/r", gap_s=9, rank=[0, -1])
    assert fired(run, blind) == [0]


def test_a_trigger_that_nobody_ran_is_waited_for_in_the_worker(
    run: StoredRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended(run)
    task = operator(study_at(tmp_path, "process"), gap_before_s=0.4)
    monkeypatch.setattr(
        task, "_stored_by_an_earlier_try", lambda *_: "there"
    )  # the wait is what is looked at
    task.resume_execution("__fail__", {"error": "Trigger timeout"}, context())
    assert "The trigger that waits did not answer" in capsys.readouterr().out
    assert task.gpu_wait.here


def test_each_host_of_a_spread_study_cools_down_by_itself(run: StoredRun) -> None:
    ended(run, host_connection="gpu1")
    assert thermal_gap(run, 60, [0, -1], "gpu2") is None
    pause = thermal_gap(run, 60, [0, -1], "gpu1")
    assert pause is not None
    assert isinstance(pause.trigger, GapTrigger)
    assert pause.trigger.serialize()[1]["host"] == "gpu1"
    on_both = [
        GapTrigger(until_epoch_s=0, run_url=run.url, gap_s=0, rank=[0, -1], host=h) for h in ("gpu1", "gpu2")
    ]
    assert all(each.is_over() for each in on_both), "one on each comes back at the same time"


@pytest.mark.parametrize(
    ("url", "comes_back"), [("unix:///nowhere/docker.sock", True), ("tcp://127.0.0.1:1", False)]
)
def test_a_triggerer_without_the_worker_s_socket_sends_the_task_back_to_wait_itself(
    run: StoredRun, monkeypatch: pytest.MonkeyPatch, url: str, comes_back: bool
) -> None:
    monkeypatch.setattr(waits, "_LOOK_AT_GPUS_EVERY_S", 0.05)
    later = {
        "runner": "container",
        "engine": EngineAddress((url,)).to_json(),
        "engine_id": "the worker's",
        "attempt": asdict(attempt()),
        "ticket": {"llem.ticket": "1"},
        "image": "",
    }
    waiting = GpuFreeTrigger(later=later, begin_epoch_s=now_epoch_s(), limit_s=3600 if comes_back else 1)

    async def first_event() -> Any:
        async for event in waiting.run():
            return event.payload
        return None

    event = asyncio.run(first_event())
    assert GpuWait(**{"here": False, **event}).here is comes_back
