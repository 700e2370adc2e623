"""The sampling process tells what it read, seldom and briefly, and never waits for whoever listens."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from llem_airflow.measurement.meters.contract import MeterFacts, Reading
from llem_airflow.measurement.sampling import LiveTeller
from llem_airflow.protocol.live import ENV_LIVE, DevicePower, LivePhase, LivePower, parse
from llem_airflow.runners.output import LiveRecords
from tests.measurement.running import run_on_gpu

FACTS = MeterFacts("nvml", "measured", "board", ("GPU-0",), "")


def sweep(t_ms: int, *milliwatts: int | None) -> list[Reading]:
    return [
        Reading(t_ms * 10**6, t_ms * 10**6, f"GPU-{n}", power_instant_mw=mw)
        for n, mw in enumerate(milliwatts)
    ]


def told(descriptor: int) -> list[LivePower | LivePhase | None]:
    return [parse(line.removeprefix(b"\x1e")) for line in os.read(descriptor, 1 << 20).splitlines()]


def test_it_tells_least_mean_and_largest_of_every_two_seconds() -> None:
    heard, mouth = os.pipe()
    teller = LiveTeller(FACTS, mouth)
    for t_ms in range(0, 4100, 100):
        teller.add(sweep(t_ms, 100_000 + 2 * t_ms, None if t_ms % 200 else 50_000))
    rows = [(100.0, 100.0, 100.0, 1), (100.2, 102.1, 104.0, 20), (104.2, 106.1, 108.0, 20)]
    assert told(heard) == [
        LivePower(
            index * 2 * 10**9,
            "measured",
            {"GPU-0": DevicePower(*row), "GPU-1": DevicePower(50.0, 50.0, 50.0, (row[3] + 1) // 2)},
        )
        for index, row in enumerate(rows)
    ]
    os.close(heard)
    os.close(mouth)


def test_many_devices_are_told_in_parts_that_each_fit_a_pipe() -> None:
    heard, mouth = os.pipe()
    LiveTeller(FACTS, mouth).add(sweep(0, *[700_000] * 40))
    found = told(heard)
    assert [len(one.devices) for one in found if isinstance(one, LivePower)] == [16, 16, 8]
    os.close(heard)
    os.close(mouth)


def test_a_full_pipe_holds_up_no_sample_and_a_closed_one_ends_it() -> None:
    heard, mouth = os.pipe()
    teller = LiveTeller(FACTS, mouth, every_ns=1)
    begin_s = time.monotonic()
    for t_ms in range(5000):
        teller.add(sweep(t_ms, 1000))
    assert time.monotonic() - begin_s < 10
    assert len(os.read(heard, 1 << 20)) <= 1 << 16
    os.close(heard)
    for t_ms in range(3):
        teller.add(sweep(10_000 + t_ms, 1000))
    os.close(mouth)


def test_an_attempt_tells_its_phases_and_its_power_where_its_runner_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV_LIVE, "1")
    ran = run_on_gpu(tmp_path, "const 250", baselines=False)
    assert ran.code == 0
    found: list[LivePower | LivePhase] = []
    rest = LiveRecords(found.append).taken_out_of(ran.stdout.encode())
    assert b"\x1e" not in rest
    phases = [one.phase for one in found if isinstance(one, LivePhase)]
    assert phases == ["import", None, "load", None, "warmup", None, "measure", None, "cooldown", None]
    power = [one for one in found if isinstance(one, LivePower)]
    assert len(power) >= 2
    assert {one.energy_kind for one in power} == {"measured"}
    assert {round(device.mean_w) for one in power for device in one.devices.values()} == {250}
