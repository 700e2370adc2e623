from __future__ import annotations

import pytest

from llem_airflow.measurement.idle_power import IdleRules, idle_rules


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
