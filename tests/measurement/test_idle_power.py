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
