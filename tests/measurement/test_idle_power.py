from __future__ import annotations

import json
from pathlib import Path

import pytest

from llem_airflow.measurement.idle_power import IdlePhases, IdleRules, idle_rules, power_of
from llem_airflow.measurement.output import EventLog
from llem_airflow.measurement.recent_power import DeviceRow
from llem_airflow.protocol.spec import IdlePower


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
    seen = power_of("baseline_bare", rows)
    assert seen is not None
    assert (seen.name, seen.power_w, seen.samples) == ("baseline_bare", 14.0, 5)
    assert seen.sd_w == pytest.approx(1233.7**0.5)
    assert power_of("baseline_bare", rows[1:]) is None, "four samples of a device are too few"
    assert power_of("baseline_bare", []) is None


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
