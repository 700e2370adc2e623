from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from llem_airflow.analysis.verdict import (
    Verdict,
    adjusted,
    compare,
    compare_pairs,
    detectable_difference,
    hedges_g,
)

BASE = (10.0, 10.1, 9.9, 10.05, 9.95)


def test_welch_agrees_with_scipy() -> None:
    other = (10.4, 10.9, 10.2, 10.6)
    found = compare(BASE, other, "lower")
    expected = stats.ttest_ind(other, BASE, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert [found.low_ratio, found.high_ratio] == pytest.approx([interval.low / 10, interval.high / 10])


def test_hedges_g_agrees_with_the_textbook() -> None:
    # Means 2 and 4, pooled sd 1, n = 3 + 3: d = 2, correction 1 - 3 / 15 = 0.8.
    assert hedges_g([1.0, 2.0, 3.0], [3.0, 4.0, 5.0]) == pytest.approx(1.6)


@pytest.mark.parametrize(
    ("cv", "n", "percent"),
    [(0.005, 3, 1.54), (0.005, 5, 1.01), (0.01, 3, 3.07), (0.01, 5, 2.02), (0.01, 10, 1.32), (0.02, 5, 4.05)],
)
def test_detectable_difference_agrees_with_published_values(cv: float, n: int, percent: float) -> None:
    se = cv * (2 / n) ** 0.5
    assert detectable_difference(se, 2 * n - 2) * 100 == pytest.approx(percent, abs=0.02)


@pytest.mark.parametrize(
    ("factor", "better", "verdict"),
    [
        (1.10, "lower", Verdict.REGRESSION),
        (0.90, "lower", Verdict.IMPROVEMENT),
        (1.10, "higher", Verdict.IMPROVEMENT),
        (0.90, "higher", Verdict.REGRESSION),
        (1.001, "lower", Verdict.UNCHANGED),
        (1.015, "lower", Verdict.NOT_ENOUGH_EVIDENCE),
    ],
)
def test_verdicts(factor: float, better: str, verdict: Verdict) -> None:
    assert compare(BASE, [value * factor for value in BASE], better).verdict is verdict


def test_a_significant_difference_below_the_threshold_is_no_regression() -> None:
    tight = [10 + 0.001 * k for k in range(8)]
    found = compare(tight, [value * 1.01 for value in tight], "lower")
    assert found.p is not None
    assert found.p < 0.001
    assert found.verdict is Verdict.UNCHANGED


def test_noise_is_not_enough_evidence_and_says_what_could_have_been_found() -> None:
    found = compare((10.0, 12.0, 8.0), (10.5, 12.5, 8.5), "lower")
    assert found.verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert found.detectable_ratio is not None
    assert found.detectable_ratio > 0.4


def test_one_cycle_is_not_enough_evidence() -> None:
    found = compare((10.0,), (20.0, 20.0), "lower")
    assert found.verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert found.p is None


def test_pairs_see_through_a_drift_that_hides_the_difference() -> None:
    drift = [100.0, 105.0, 110.0, 115.0, 120.0]
    noise = [0.1, -0.1, 0.05, -0.05, 0.0]
    candidate = [value * 1.03 + jitter for value, jitter in zip(drift, noise, strict=True)]
    assert compare(drift, candidate, "lower").verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert compare_pairs(drift, candidate, "lower").verdict is Verdict.REGRESSION


def test_pairs_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="found 2 and 3"):
        compare_pairs((1.0, 2.0), (1.0, 2.0, 3.0), "lower")


def test_many_comparisons_are_corrected_together() -> None:
    rng = np.random.default_rng(5)
    family = [
        compare(rng.normal(10, 0.3, 4).tolist(), rng.normal(10, 0.3, 4).tolist(), "lower") for _ in range(200)
    ]
    alarms = (Verdict.REGRESSION, Verdict.IMPROVEMENT)
    assert sum(one.verdict in alarms for one in family) > 2
    assert sum(one.verdict in alarms for one in adjusted(family)) == 0


def test_cycles_without_any_spread_are_still_judged() -> None:
    assert compare((2.0, 2.0), (2.0, 2.0), "lower").verdict is Verdict.UNCHANGED
    assert compare((2.0, 2.0), (3.0, 3.0), "lower").verdict is Verdict.REGRESSION
