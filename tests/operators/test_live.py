"""What is shown of a cycle at work: bounded, true to what was told, and gone when the cycle has ended."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llem_airflow.operators import live as module
from llem_airflow.operators.live import STRETCHES, LiveSeries, live_power
from llem_airflow.protocol.live import DevicePower, LivePhase, LivePower
from llem_airflow.results import ResultReadError, ResultsRoot, StoredRun, layout
from llem_airflow.results.records import LiveGpu, end_all, is_live, read_live

SECOND_NS = 1_000_000_000


def record(t_s: float, *watts: float, kind: str = "measured") -> LivePower:
    devices = {f"GPU-{n}": DevicePower(w - 1, w, w + 1, 20) for n, w in enumerate(watts)}
    return LivePower(round(t_s * SECOND_NS), kind, devices)


@pytest.fixture
def run(tmp_path: Path) -> StoredRun:
    return ResultsRoot(tmp_path).run("nightly", "manual__2026")


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3000), st.sampled_from([1, 2, 8, 70]), st.integers(0, 2**32))
def test_a_series_of_any_length_is_bounded_and_keeps_mean_and_extremes(
    records: int, gpus: int, seed: int
) -> None:
    watts = np.random.default_rng(seed).uniform(50, 700, (records, 1)).round(1)
    series = LiveSeries()
    for index, (value,) in enumerate(watts):
        series.add(record(2.0 * index, *[float(value)] * gpus))
    told = series.told(1)
    assert told is not None
    assert sum(len(gpu.t_s) for gpu in told.gpus) <= 4 * STRETCHES + 64
    for gpu in told.gpus:
        assert len(gpu.t_s) == len(set(gpu.t_s)) == len(gpu.mean_w)
        assert list(gpu.t_s) == sorted(gpu.t_s)
        assert gpu.t_s[-1] == told.last_s == 2.0 * (records - 1)
        assert min(gpu.low_w) == pytest.approx(watts.min() - 1, abs=0.06)
        assert max(gpu.high_w) == pytest.approx(watts.max() + 1, abs=0.06)
        assert gpu.now_w == watts[-1, 0]


def test_what_was_merged_has_the_mean_of_its_samples() -> None:
    series = LiveSeries()
    for index in range(STRETCHES + 1):
        series.add(record(index, 100.0 if index % 2 else 200.0))
    told = series.told(1)
    assert told is not None
    assert set(told.gpus[0].mean_w[:-1]) == {150.0}
    assert set(told.gpus[0].low_w[:-1]) == {99.0}


def test_parts_of_one_sweep_are_one_stretch_and_what_comes_late_is_left_out() -> None:
    series = LiveSeries()
    first, second = record(1, 10.0), LivePower(SECOND_NS, "measured", {"GPU-9": DevicePower(1, 2, 3, 4)})
    for each in (first, second, record(0.5, 99.0), record(2, 20.0)):
        series.add(each)
    told = series.told(1)
    assert told is not None
    assert told.gpus[0] == LiveGpu("GPU-0", (0.0, 1.0), (9.0, 19.0), (10.0, 20.0), (11.0, 21.0), 20.0)
    assert told.gpus[1].t_s == (0.0,)


def test_phases_have_ends_and_are_bounded() -> None:
    series = LiveSeries()
    for index in range(1000):
        series.add(LivePhase(2 * index * SECOND_NS, "measure"))
        series.add(LivePhase((2 * index + 1) * SECOND_NS, None))
    series.add(LivePhase(3000 * SECOND_NS, "cooldown"))
    told = series.told(1)
    assert told is not None
    assert len(told.phases) == module.LONGEST_PHASES
    assert (told.phases[-1].name, told.phases[-1].end_s) == ("cooldown", None)
    assert told.phases[-2].end_s == 1999.0


def test_it_is_there_while_the_cycle_is_at_work_and_gone_afterwards(
    run: StoredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVERY_S", 0.05)
    with live_power(run, "tiny-0123abcd", 2, 3) as writer:
        writer.take(LivePhase(0, "load"))
        writer.take(record(2, 250.0, kind="estimate"))
        until_s = time.monotonic() + 10
        while not is_live(run, "tiny-0123abcd", 2) and time.monotonic() < until_s:
            time.sleep(0.02)
        told = read_live(run, "tiny-0123abcd", 2)
    assert told is not None
    assert (told.try_number, told.energy_kind, told.last_s) == (3, "estimate", 2.0)
    assert told.gpus[0].now_w == 250.0
    assert read_live(run, "tiny-0123abcd", 2) is None
    assert not any("live" in thread.name for thread in threading.enumerate())


def test_a_root_that_cannot_be_written_ends_no_cycle(run: StoredRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY_S", 0.01)
    assert run.path is not None
    run.path.parent.mkdir(parents=True)
    run.path.write_text("a file where the folder should be")
    with live_power(run, "tiny", 1, 1) as writer:
        for index in range(5):
            writer.take(record(index, 1.0))
            time.sleep(0.03)


def test_what_a_killed_worker_left_goes_with_the_aggregate(run: StoredRun) -> None:
    folder = run.folder.child(layout.LIVE_DIR, "tiny")
    folder.write("cycle-1.json", b"{}")
    end_all(run)
    assert not is_live(run, "tiny", 1)


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"try_number": "<script>"})])
def test_a_damaged_file_is_named(run: StoredRun, text: str) -> None:
    run.folder.child(layout.LIVE_DIR, "tiny").write("cycle-1.json", text.encode())
    with pytest.raises(ResultReadError, match=r"live/tiny/cycle-1\.json"):
        read_live(run, "tiny", 1)
