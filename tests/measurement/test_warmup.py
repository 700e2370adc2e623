from __future__ import annotations

import math

import pytest

from llem_airflow.measurement.recent_power import Recent
from llem_airflow.measurement.warmup import (
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
        "not flat when the time ran out: the temperature moved by 3 degrees Celsius in the last 30 s",
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
