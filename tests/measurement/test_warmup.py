from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from llem_airflow.measurement.recent_power import Recent
from llem_airflow.measurement.warmup import (
    Verdict,
    WarmupRules,
    coefficient_of_variation,
    judge,
    theil_sen_slope,
    warmup_rules,
)


def nothing() -> Recent | None:
    return None


RULES = WarmupRules(max_duration_s=100.0)
FLAT = [0.100, 0.101, 0.099, 0.100, 0.102, 0.098, 0.100, 0.101, 0.099, 0.100]


def test_the_coefficient_of_variation_is_sample_deviation_over_mean() -> None:
    assert coefficient_of_variation([9.0, 10.0, 11.0]) == pytest.approx(0.1)


def test_the_slope_ignores_one_outlier() -> None:
    values = [float(i) for i in range(10)]
    values[4] = 500.0
    assert theil_sen_slope(values) == pytest.approx(1.0)


def test_flat_latency_converges_at_the_tenth_iteration_and_not_before() -> None:
    assert judge(FLAT[:9], 1.0, nothing, RULES).outcome is None
    assert judge(FLAT, 1.0, nothing, RULES).outcome == "converged"


def test_scatter_over_five_per_cent_does_not_converge() -> None:
    noisy = [0.10, 0.12, 0.09, 0.11, 0.13, 0.08, 0.10, 0.12, 0.09, 0.11]
    verdict = judge(noisy, 1.0, nothing, RULES)
    assert verdict.outcome is None
    assert "CV" in verdict.reason


def test_slow_drift_passes_the_cv_gate_and_is_held_by_the_slope_gate() -> None:
    drifting = [0.100 * (1 - 0.008 * i) for i in range(10)]
    verdict = judge(drifting, 1.0, nothing, RULES)
    assert verdict.cv is not None
    assert verdict.cv < 0.05
    assert verdict.outcome is None
    assert "drifts" in verdict.reason


def test_rising_power_holds_the_warm_up_although_latency_is_flat() -> None:
    assert judge(FLAT, 1.0, lambda: Recent(200.0, 230.0), RULES).outcome is None
    assert judge(FLAT, 1.0, lambda: Recent(229.0, 230.0), RULES).outcome == "converged"


def test_a_temperature_that_still_rises_holds_the_warm_up_and_is_named_at_the_cap() -> None:
    def rising() -> Recent | None:
        return Recent(230.0, 230.0, temperature_moved_c=3.0)

    assert judge(FLAT, 1.0, rising, RULES).outcome is None
    ended = judge(FLAT, 100.0, rising, RULES)
    assert (ended.outcome, ended.reason) == (
        "cap_time",
        "not steady when the time ran out: the temperature moved by 3 degrees Celsius in the last 30 s",
    )
    one_step = Recent(230.0, 230.0, temperature_moved_c=1.0)  # the sensor's resolution
    assert judge(FLAT, 1.0, lambda: one_step, RULES).outcome == "converged"


def test_the_cap_on_iterations_does_not_end_a_warm_up_whose_device_still_heats() -> None:
    verdict = judge(FLAT * 4, 50.0, lambda: Recent(230.0, 230.0, temperature_moved_c=3.0), RULES)
    assert verdict.outcome is None


def test_the_device_is_not_looked_at_before_the_bounds_allow_an_end() -> None:
    def never() -> Recent | None:
        raise AssertionError

    assert judge(FLAT[:9], 1.0, never, RULES).outcome is None


def test_the_cap_on_iterations_is_labelled_and_says_which_gate_was_closed() -> None:
    drifting = [0.1 * math.exp(-i / 10) + 0.1 for i in range(40)][::-1]
    verdict = judge(drifting, 1.0, nothing, RULES)
    assert verdict.outcome == "cap_iterations"
    assert "drifts" in verdict.reason


def test_the_cap_on_time_ends_a_warm_up_that_has_not_enough_iterations() -> None:
    assert judge(FLAT[:4], 101.0, nothing, RULES).outcome == "cap_time"


def test_a_floor_in_time_holds_a_converged_warm_up() -> None:
    rules = WarmupRules(min_duration_s=60.0)
    assert judge(FLAT, 59.0, nothing, rules).outcome is None
    assert judge(FLAT * 10, 61.0, nothing, rules).outcome == "converged"


def test_without_convergence_detection_the_study_s_number_of_iterations_is_run() -> None:
    rules = warmup_rules(
        {"offline": {"warmup": {"convergence_detection": False, "n_prompts": 4}}}, "cpu-estimate", None
    )
    assert judge([0.1, 0.3, 0.1], 1.0, nothing, rules).outcome is None
    assert judge([0.1, 0.3, 0.1, 0.4], 1.0, nothing, rules).outcome == "fixed"


def test_a_fixed_warm_up_that_the_time_ended_says_how_many_iterations_are_missing() -> None:
    found = judge(
        [30.0, 31.0], 61.0, nothing, WarmupRules(gated=False, min_iterations=3, max_duration_s=60.0)
    )
    assert found.outcome == "cap_time"
    assert found.reason == "2 of the 3 iterations that the study asks for in 61 s; it may take 60 s"


def test_the_default_gate_is_ten_iterations_at_five_per_cent() -> None:
    rules = warmup_rules({}, "nvml", None)
    assert (rules.gated, rules.window, rules.cv_threshold, rules.min_iterations) == (True, 10, 0.05, 10)
    assert rules.min_duration_s == 60.0


def test_the_study_s_own_window_threshold_and_bounds_are_honoured() -> None:
    said = {
        "window_size": 3,
        "cv_threshold": 0.2,
        "min_prompts": 5,
        "max_prompts": 7,
        "thermal_floor_seconds": 30,
    }
    rules = warmup_rules({"offline": {"warmup": said}}, "nvml", None)
    assert (rules.window, rules.cv_threshold, rules.min_iterations, rules.max_iterations) == (3, 0.2, 5, 7)
    assert rules.min_duration_s == 30.0


def test_an_estimate_has_no_thermal_floor() -> None:
    assert warmup_rules({}, "cpu-estimate", None).min_duration_s == 0.0


def test_warm_up_takes_at_most_a_third_of_the_attempt_s_life() -> None:
    rules = warmup_rules({}, "nvml", 90.0)
    assert (rules.min_duration_s, rules.max_duration_s) == (30.0, 30.0)


def test_the_rules_unless_the_study_says_otherwise() -> None:
    measured = WarmupRules(
        enabled=True,
        gated=True,
        window=10,
        cv_threshold=0.05,
        slope_threshold=0.02,
        power_threshold=0.02,
        temperature_threshold_c=1.0,
        min_iterations=10,
        max_iterations=40,
        min_duration_s=60.0,
        max_duration_s=300.0,
    )
    assert warmup_rules({}, "nvml", None) == warmup_rules({}, "rapl", None) == measured
    assert warmup_rules({}, "nvml", 900.0) == measured
    assert warmup_rules({}, "none", None) == replace(measured, min_duration_s=0.0, max_duration_s=60.0)
    assert WarmupRules() == replace(measured, min_duration_s=0.0)


@pytest.mark.parametrize(
    ("said", "rules"),
    [
        ({"enabled": False}, {"enabled": False}),
        ({"thermal_floor_seconds": 200}, {"min_duration_s": 200.0, "max_duration_s": 400.0}),
        ({"window_size": 60}, {"window": 60, "min_iterations": 60, "max_iterations": 60}),
        ({"convergence_detection": False}, {"gated": False, "min_iterations": 5}),
        (
            {"convergence_detection": False, "n_prompts": 3, "min_prompts": 9},
            {"gated": False, "min_iterations": 3},
        ),
        ({"cv_threshold": None, "max_prompts": None}, {}),
    ],
)
def test_what_the_study_says_changes_just_that(said: dict[str, Any], rules: dict[str, Any]) -> None:
    assert warmup_rules({"offline": {"warmup": said}}, "nvml", None) == replace(
        warmup_rules({}, "nvml", None), **rules
    )


def test_a_coefficient_of_variation_needs_two_values_and_a_mean() -> None:
    for values in ([1.0], [-1.0, 1.0]):
        with pytest.raises(ValueError, match="two values and a mean"):
            coefficient_of_variation(values)
    assert coefficient_of_variation([1.0, 1.0]) == 0.0


def test_the_slope_is_the_median_over_all_pairs() -> None:
    assert theil_sen_slope([0.0, 1.0, 4.0]) == 2.0
    assert theil_sen_slope([4.0, 1.0, 0.0]) == -2.0


JUST = WarmupRules(
    window=3, min_iterations=3, max_iterations=6, cv_threshold=0.1, min_duration_s=5.0, max_duration_s=60.0
)


@pytest.mark.parametrize(
    ("latencies", "elapsed_s", "recent", "outcome"),
    [
        ([10.0, 11.0, 9.0], 5.0, None, "converged"),  # CV 10 %, slope 5 % a step
        ([10.0, 11.01, 8.99], 5.0, None, None),
        ([10.0, 10.0, 10.0], 4.9, None, None),
        ([10.0, 10.0], 5.0, None, None),
        ([10.0, 10.0], 60.0, None, "cap_time"),
        ([10.0, 10.0], 59.9, None, None),
        ([10.0, 9.0, 13.0] * 2, 5.0, None, "cap_iterations"),
        ([10.0, 9.0, 13.0] * 2, 60.0, None, "cap_time"),
        ([9.0, 13.0, 10.0, 9.0, 13.0], 5.0, None, None),
        ([10.0] * 3, 5.0, Recent(200.0, 204.0), "converged"),
        ([10.0] * 3, 5.0, Recent(200.0, 196.0), "converged"),
        ([10.0] * 3, 5.0, Recent(200.0, 204.1), None),
        ([10.0] * 3, 5.0, Recent(200.0, 195.9), None),
        ([10.0] * 3, 5.0, Recent(0.0, 5.0), "converged"),
        ([10.0] * 3, 5.0, Recent(200.0, 200.0, 1.0), "converged"),
        ([10.0] * 3, 5.0, Recent(200.0, 200.0, 1.1), None),
    ],
)
def test_the_limits_of_a_steady_state(
    latencies: list[float], elapsed_s: float, recent: Recent | None, outcome: str | None
) -> None:
    rules = replace(JUST, slope_threshold=0.5)
    assert judge(latencies, elapsed_s, lambda: recent, rules).outcome == outcome


@pytest.mark.parametrize(
    ("step", "outcome"), [(0.066, "converged"), (0.067, None), (-0.066, "converged"), (-0.067, None)]
)
def test_the_latency_may_drift_by_two_per_cent_over_the_window(step: float, outcome: str | None) -> None:
    """Three iterations: the slope times three, over the median of 10."""
    assert judge([10.0 - step, 10.0, 10.0 + step], 5.0, nothing, JUST).outcome == outcome


def test_what_is_said_of_a_warm_up() -> None:
    fixed = WarmupRules(gated=False, min_iterations=1)
    assert (
        judge([1.0], 2.0, nothing, fixed).reason
        == "1 iteration in 2 s, as the study asks, not checked for steadiness"
    )
    assert judge([1.0, 1.0], 2.0, nothing, fixed).reason.startswith("2 iterations in 2 s")
    assert judge([1.0], 2.0, nothing, RULES).reason == "1 of at least 10 iterations"
    assert judge(FLAT, 2.0, nothing, RULES).reason == "the last 10 iterations are steady"
    rough = [10.0, 9.0, 13.0]
    assert judge(rough, 5.0, nothing, JUST).reason.startswith(
        "not steady yet: CV 19.5% over 10.0%; latency drifts by "
    )
    assert judge(rough * 2, 5.0, nothing, JUST).reason.startswith("not steady when the iterations ran out: ")
    assert judge(rough[:1], 60.0, nothing, JUST) == Verdict(
        "cap_time", None, "not steady when the time ran out: fewer than 3 iterations"
    )
    held = judge([10.0] * 3, 5.0, lambda: Recent(200.0, 230.0), JUST)
    assert held.reason == "not steady yet: power still changes by 15.0%"
