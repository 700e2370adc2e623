from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.measurement import idle_power
from llem_airflow.measurement.idle_power import IdlePhases, IdleRules, idle, idle_rules, power_of
from llem_airflow.measurement.output import EventLog
from llem_airflow.measurement.recent_power import DeviceRow
from llem_airflow.protocol.files import POWER_COLUMNS
from llem_airflow.protocol.spec import IdlePower, KnownIdlePower


def said(**baseline: object) -> dict[str, object]:
    return {"measurement": {"baseline": baseline}}


def test_measured_power_has_baselines_of_half_a_minute_unless_the_study_says_otherwise() -> None:
    assert idle_rules({}, "nvml") == IdleRules(enabled=True, duration_s=30.0, settle_s=5.0)
    assert not idle_rules(said(enabled=False), "nvml").enabled
    assert idle_rules(said(duration_seconds=12), "nvml").duration_s == 12.0


def test_an_estimate_has_none_unless_asked_and_then_short_ones() -> None:
    assert not idle_rules({}, "cpu-estimate").enabled
    assert idle_rules(said(enabled=True), "cpu-estimate").duration_s == 5.0


@pytest.mark.parametrize("enabled", [True, None])
def test_without_a_meter_there_is_nothing_to_take_a_baseline_of(enabled: bool | None) -> None:
    assert not idle_rules(said(enabled=enabled), "none").enabled


@pytest.mark.parametrize(
    ("config", "meter", "rules"),
    [
        ({}, "rapl", IdleRules(True, 30.0, 5.0, True, 0.1)),
        ({}, "cpu-estimate", IdleRules(False, 5.0, 1.0, True, 0.1)),
        (said(strategy="fresh"), "nvml", IdleRules(True, 30.0, 5.0, False, 0.1)),
        (said(strategy="cached", drift_threshold=0.2), "nvml", IdleRules(True, 30.0, 5.0, True, 0.2)),
        (said(enabled=True, duration_seconds=2), "cpu-estimate", IdleRules(True, 2.0, 1.0, True, 0.1)),
    ],
)
def test_the_rules_of_the_idle_phases(config: dict[str, object], meter: str, rules: IdleRules) -> None:
    assert idle_rules(config, meter) == rules


def test_power_of_a_phase_is_the_sum_over_devices_of_their_medians() -> None:
    rows = [DeviceRow(n, "a", 1000.0 * value, None) for n, value in enumerate((10, 11, 12, 13, 90))]
    rows += [DeviceRow(n, "b", 2000.0, None) for n in range(6)]
    # variance of 10, 11, 12, 13, 90: mean 27.2, sum of squared deviations 4934.8, over 4
    seen = power_of("baseline_bare", rows, 2)
    assert seen is not None
    assert (seen.name, seen.power_w, seen.samples) == ("baseline_bare", 14.0, 5)
    assert seen.sd_w == pytest.approx(1233.7**0.5)
    assert power_of("baseline_bare", rows[1:], 2) is None, "four samples of a device are too few"
    assert power_of("baseline_bare", [], 0) is None
    assert power_of("baseline_bare", rows, 3) is None, "the third device told nothing"


def test_an_engine_that_lives_on_has_the_idle_power_of_before_it_was_loaded(tmp_path: Path) -> None:
    before = (IdlePower("baseline_bare", 50.0, 1.0, 300), IdlePower("baseline_context", 60.0, 1.0, 100))
    for enabled in (True, False):
        log = EventLog(tmp_path / f"events-{enabled}.jsonl")
        phases = IdlePhases(log, IdleRules(enabled, 0.0, 0.0), tmp_path / "power.csv", 1)
        phases.keep(before, "the session's start")
        phases.measure("baseline_loaded")
        log.close()
        events = [
            json.loads(line) for line in (tmp_path / f"events-{enabled}.jsonl").read_text().splitlines()
        ]
        told = [one["baselines"] for one in events if one["event"] == "baselines_reused"]
        measured = [one["phase"] for one in events if one["event"] == "phase_end"]
        assert [[one["name"] for one in each] for each in told] == enabled * [
            ["baseline_bare", "baseline_context"]
        ]
        assert measured == enabled * ["baseline_loaded"]


BARE = IdlePower("baseline_bare", 100.0, 1.0, 300)
KNOWN = KnownIdlePower(
    "cycle 1", ("boot 1", "GPU-a"), (IdlePower("baseline_loaded", 9.0, 1.0, 300), BARE), False
)


@dataclass(frozen=True)
class Phases:
    """Idle phases of 50 ms beside a power.csv of two devices, read each millisecond."""

    phases: IdlePhases
    folder: Path

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "events.jsonl").read_text().splitlines()]

    def texts(self) -> list[str]:
        return [one["text"] for one in self.events() if one["event"] == "note"]

    def measured(self) -> list[str]:
        return [one["phase"] for one in self.events() if one["event"] == "phase_end"]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    made = EventLog(tmp_path / "events.jsonl")
    yield made
    made.close()


def phases_at(power_w: float, log: EventLog, folder: Path, *, keeps: bool = False, **rules: Any) -> Phases:
    lines = [",".join(POWER_COLUMNS)]
    for t_ms in range(200):
        for gpu in ("a", "b"):
            milliwatts = power_w * 500 if t_ms >= 150 else 1e6  # earlier it took more
            told = {"t_before_mono_ns": t_ms * 10**6, "gpu": gpu, "power_instant_mw": milliwatts}
            lines.append(",".join(str(told.get(name, "")) for name in POWER_COLUMNS))
    (folder / "power.csv").write_text("\n".join(lines) + "\n")
    said = IdleRules(**{"enabled": True, "duration_s": 0.05, "settle_s": 0.0} | rules)
    return Phases(IdlePhases(log, said, folder / "power.csv", 2, keeps=keeps), folder)


@pytest.mark.parametrize(
    ("now_w", "holds"), [(100.0, True), (125.0, True), (75.0, True), (125.1, False), (74.9, False)]
)
def test_idle_power_holds_while_the_bare_device_takes_nearly_as_much(
    log: EventLog, tmp_path: Path, now_w: float, holds: bool
) -> None:
    made = phases_at(now_w, log, tmp_path, drift_threshold=0.25)
    made.phases.take_over(replace(KNOWN, check=True), KNOWN.conditions)
    assert (made.phases.wanted, made.measured()) == (not holds, ["baseline_check"])
    verdict = "still holds" if holds else "no longer holds: it is measured again"
    drift = f"{now_w - 100:+.1f}%"
    assert made.texts() == [
        f"idle power of cycle 1 {verdict}; {now_w:.1f} W now, 100.0 W then ({drift}, limit 25%)"
    ]
    made.phases.measure("baseline_bare")
    assert len(made.measured()) == 1 + (not holds)
    assert made.phases.unloaded == (((BARE,), "cycle 1") if holds else ((), "the session's start"))


def test_idle_power_is_taken_over_on_the_same_device_without_a_look(log: EventLog, tmp_path: Path) -> None:
    made = phases_at(999.0, log, tmp_path)
    made.phases.take_over(KNOWN, KNOWN.conditions)
    (told,) = made.events()
    assert (told["event"], told["measured_in"]) == ("baselines_reused", "cycle 1")
    assert [(one["name"], one["power_w"]) for one in told["baselines"]] == [
        ("baseline_loaded", 9.0),
        ("baseline_bare", 100.0),
    ]
    assert not made.phases.wanted


@pytest.mark.parametrize(
    ("rules", "known", "conditions", "said"),
    [
        ({}, KNOWN, ("boot 2", "GPU-a"), ["is not used: device, driver, limits or boot differ"]),
        ({}, replace(KNOWN, phases=KNOWN.phases[:1], check=True), KNOWN.conditions, ["cannot be checked"]),
        ({"reuse": False}, KNOWN, KNOWN.conditions, []),
        ({}, None, (), []),
    ],
)
def test_idle_power_that_may_not_hold_is_measured_again(
    log: EventLog,
    tmp_path: Path,
    rules: dict[str, Any],
    known: KnownIdlePower | None,
    conditions: Any,
    said: list[str],
) -> None:
    made = phases_at(100.0, log, tmp_path, **rules)
    made.phases.take_over(known, conditions)
    assert made.phases.wanted
    assert len(made.texts()) == len(said)
    assert all(text in told for text, told in zip(said, made.texts(), strict=True))


def test_without_idle_phases_nothing_is_taken_over(log: EventLog, tmp_path: Path) -> None:
    made = phases_at(100.0, log, tmp_path, enabled=False)
    made.phases.take_over(KNOWN, KNOWN.conditions)
    made.phases.measure("baseline_bare")
    assert (made.events(), made.phases.wanted) == ([], False)


def test_what_is_measured_before_an_engine_that_lives_on_is_kept(log: EventLog, tmp_path: Path) -> None:
    made = phases_at(80.0, log, tmp_path, keeps=True, settle_s=0.2)
    begun_s = time.monotonic()
    made.phases.measure("baseline_bare", settle=False)
    made.phases.measure("baseline_context", longest_s=0.01)
    made.phases.measure("baseline_loaded", settle=False)
    assert time.monotonic() - begun_s >= 0.2 + 0.05 + 0.01 + 0.05  # the quiet before the second
    marks = [one["t_mono_ns"] / 1e9 for one in made.events() if one["event"].startswith("phase_")]
    assert [end_s - begin_s >= least_s for begin_s, end_s, least_s in zip(
        marks[::2], marks[1::2], (0.05, 0.01, 0.05), strict=True
    )] == [True] * 3  # fmt: skip
    assert made.phases.unloaded == (
        (IdlePower("baseline_bare", 80.0, 0.0, 50), IdlePower("baseline_context", 80.0, 0.0, 10)),
        "the session's start",
    )


def test_an_idle_phase_says_how_long_it_takes_still(log: EventLog, tmp_path: Path) -> None:
    idle(log, "baseline_bare", 0.02)
    begin, told, *_, end = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert (begin["event"], end["event"]) == ("phase_begin", "phase_end")
    assert (told["total"], told["text"]) == (0.02, "idle, 0 s left")
    assert 0 <= told["done"] <= 0.02
    assert (idle_power._LINE_EVERY_S, idle_power.CHECK_S, idle_power.CONTEXT_S) == (10.0, 5.0, 10.0)
