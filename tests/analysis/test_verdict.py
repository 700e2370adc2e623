from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from llem_airflow.analysis.verdict import (
    GRAVEST_FIRST,
    Comparison,
    Usual,
    Verdict,
    _Effect,
    adjusted,
    compare,
    compare_pairs,
    detectable_difference,
    hedges_g,
)

BASE = (10.0, 10.1, 9.9, 10.05, 9.95)


def test_welch_agrees_with_scipy_on_values_divided_by_their_means() -> None:
    other = (10.4, 10.9, 10.2, 10.6)
    found = compare(BASE, other, "lower")
    # ln(mean 10.525 / mean 10), and the spread that each side has around its own mean.
    log_ratio = math.log(1.0525)
    expected = stats.ttest_ind(
        np.array(other) / 10.525 + log_ratio - 1, np.array(BASE) / 10 - 1, equal_var=False
    )
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert [found.low_ratio, found.high_ratio] == pytest.approx(
        [math.expm1(interval.low), math.expm1(interval.high)]
    )
    plain = stats.ttest_ind(other, BASE, equal_var=False)
    assert found.p == pytest.approx(plain.pvalue, rel=0.1)


def test_values_that_can_be_negative_are_compared_by_their_difference() -> None:
    one, other = (-1.0, -1.1, -0.9, -1.05, -0.95), (-0.4, -0.9, -0.2, 0.6)
    found = compare(one, other, "lower")
    expected = stats.ttest_ind(other, one, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert [found.low_ratio, found.high_ratio] == pytest.approx([interval.low, interval.high])
    assert found.difference_ratio == pytest.approx((-0.225 - -1.0) / 1.0)


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


CYCLES = st.lists(st.floats(allow_nan=True, allow_infinity=True) | st.none(), max_size=6)
FEW = st.lists(
    st.sampled_from([0.0, 5e-324, 1e-9, 1.0, 1.02, 1e308, -1.0, math.nan, math.inf, None]), max_size=4
)
SAME_N = st.integers(0, 5).flatmap(
    lambda n: st.tuples(*[st.lists(st.floats() | st.none(), min_size=n, max_size=n)] * 2)
)


def _sound(found: Comparison, values: list[float | None]) -> None:
    numbers = {k: v for k, v in asdict(found).items() if isinstance(v, float)}
    assert all(math.isfinite(value) for value in numbers.values()), numbers
    json.dumps(asdict(found), allow_nan=False)
    if found.p is None:
        assert found.verdict is Verdict.NOT_ENOUGH_EVIDENCE
        assert found.reason
        return
    assert found.low_ratio is not None
    assert found.high_ratio is not None
    assert found.low_ratio <= found.high_ratio
    assert 0.0 <= found.p <= 1.0
    if all(value is None or not value < 0 for value in values):
        assert found.low_ratio >= -1.0


@given(CYCLES | FEW, CYCLES | FEW, st.sampled_from(["lower", "higher"]), st.floats(1e-6, 10))
def test_whatever_the_values_there_is_a_verdict_or_a_reason(
    one: list[float | None], other: list[float | None], better: str, threshold: float
) -> None:
    _sound(compare(one, other, better, threshold_ratio=threshold), [*one, *other])


@given(SAME_N)
def test_whatever_the_pairs_there_is_a_verdict_or_a_reason(
    sides: tuple[list[float | None], list[float | None]],
) -> None:
    _sound(compare_pairs(*sides, "lower"), [*sides[0], *sides[1]])


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=6), st.floats(1e-100, 1e100))
def test_a_verdict_does_not_depend_on_the_unit(values: list[float], unit: float) -> None:
    other = [1.1 * value for value in values[::-1]]
    one = compare(values, other, "lower")
    scaled = compare([value * unit for value in values], [value * unit for value in other], "lower")
    assert scaled.p == pytest.approx(one.p, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("one", "other", "verdict", "reason"),
    [
        ((0.0, 0.0), (0.0, 0.0), Verdict.UNCHANGED, "no spread on either side: exact"),
        ((0.0, 0.0), (1.0, 1.1), Verdict.NOT_ENOUGH_EVIDENCE, "the reference is 0"),
        ((-1.0, 1.0), (-2.0, 2.0), Verdict.NOT_ENOUGH_EVIDENCE, "the reference is 0"),
        ((1.0, 1.01, 0.99), (0.0, 0.0, 0.0), Verdict.IMPROVEMENT, ""),
        ((), (1.0, 1.1), Verdict.NOT_ENOUGH_EVIDENCE, "the reference has no value"),
        (
            (1.0, 1.1),
            (math.nan, None),
            Verdict.NOT_ENOUGH_EVIDENCE,
            "the candidate has no value; 2 values are",
        ),
        ((1.0,), (2.0,), Verdict.NOT_ENOUGH_EVIDENCE, "one cycle tells no spread"),
        ((1.0, 1.0, math.inf), (2.0, 2.0), Verdict.REGRESSION, "1 value is not known and left out"),
        ((0.1, 0.1, 0.1), (0.1, 0.1), Verdict.UNCHANGED, "no spread on either side: exact"),
    ],
)
def test_what_has_no_ratio_or_no_spread_says_so(
    one: tuple[float, ...], other: tuple[float, ...], verdict: Verdict, reason: str
) -> None:
    found = compare(one, other, "lower")
    assert found.verdict is verdict
    assert reason in found.reason


def test_a_side_without_spread_and_one_with_much_are_judged_by_the_one_that_has_it() -> None:
    flat, wide = [10.0] * 20, [9.0, 13.0]  # the mean of the wide side is 10 % higher, of two cycles
    found = compare(flat, wide, "lower")
    assert found.verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert found.p == pytest.approx(stats.ttest_1samp(np.array(wide) / 11 + math.log(1.1) - 1, 0).pvalue)


def test_no_false_alarms_where_the_smaller_side_has_the_larger_spread() -> None:
    # The case in which Student's test with a pooled spread alarms four times too often.
    rng = np.random.default_rng(2)
    pairs = [(rng.normal(100, 1, 20).tolist(), rng.normal(100, 6, 4).tolist()) for _ in range(400)]
    alarms = sum((one.p or 0.0) < 0.05 for one in (compare(a, b, "lower") for a, b in pairs))
    assert alarms / 400 < 0.05 + 3 * 0.011


@pytest.mark.parametrize("threshold", [0.0, -0.02, math.nan, math.inf])
def test_a_threshold_is_above_zero(threshold: float) -> None:
    with pytest.raises(ValueError, match="a number above 0"):
        compare(BASE, BASE, "lower", threshold_ratio=threshold)


def test_verdicts_are_read_the_gravest_first() -> None:
    assert GRAVEST_FIRST[0] is Verdict.REGRESSION
    assert GRAVEST_FIRST[-1] is Verdict.UNCHANGED
    assert sorted(GRAVEST_FIRST) == sorted(Verdict)


def test_a_change_of_exactly_the_threshold_matters() -> None:
    """4 to 5 is a quarter exactly."""
    at, below = (compare([4.0] * 2, [5.0] * 2, "lower", threshold_ratio=ratio) for ratio in (0.25, 0.26))
    assert (at.verdict, at.equivalence_p, at.p) == (Verdict.REGRESSION, 1.0, 0.0)
    assert (below.verdict, below.equivalence_p, below.p) == (Verdict.UNCHANGED, 0.0, 0.0)
    assert (at.low_ratio, at.high_ratio, at.detectable_ratio) == (0.25, 0.25, 0.0)


def test_a_candidate_of_nothing_is_a_change_of_all() -> None:
    found = compare([1.0, 1.1, 0.9], [0.0] * 3, "lower")
    assert found.difference_ratio == -1.0
    assert found.low_ratio == -1.0
    assert found.verdict is Verdict.IMPROVEMENT


def test_hedges_g_of_unequal_sides_agrees_with_the_textbook() -> None:
    """Means 2 and 6, variances 1 of 3 and 20/3 of 4: pooled (2 + 20) / 5, correction 1 - 3 / 19."""
    expected = 4.0 / math.sqrt(22 / 5) * (1 - 3 / 19)
    assert hedges_g([1.0, 2.0, 3.0], [3.0, 5.0, 7.0, 9.0]) == pytest.approx(expected)
    assert hedges_g([0.0, 0.0], [0.0, 0.0]) is None


def test_pairs_agree_with_scipy_on_values_divided_by_their_means() -> None:
    other = (10.4, 10.9, 10.2, 10.6, 10.3)
    found = compare_pairs(BASE, other, "lower")
    mean_ratio = sum(other) / sum(BASE)
    differences = np.array(other) / np.mean(other) - np.array(BASE) / np.mean(BASE)
    expected = stats.ttest_1samp(differences + math.log(mean_ratio), 0.0)
    low, high = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert [found.low_ratio, found.high_ratio] == pytest.approx([math.expm1(low), math.expm1(high)])
    assert (found.n_baseline, found.n_candidate, found.method) == (5, 5, "paired")


def test_pairs_with_an_unknown_value_are_left_out_and_counted() -> None:
    found = compare_pairs([1.0, None, 1.2], [1.1, 1.0, 1.3], "lower")
    assert (found.n_baseline, found.n_candidate) == (2, 2)
    assert found.reason == "2 values are not known and left out"
    one = compare([1.0, 1.1, None], [1.0, 1.2], "lower")
    assert one.reason == "1 value is not known and left out"


def test_two_one_sided_tests_give_the_p_of_equivalence() -> None:
    """On the logarithm of the ratio, whose limits are those of 2 % below and above."""
    other = (10.05, 10.1, 9.95, 10.0)
    found = compare(BASE, other, "lower")
    one, two = np.array(other) / np.mean(other), np.array(BASE) / np.mean(BASE)
    size = math.log(np.mean(other) / np.mean(BASE))
    errors = one.var(ddof=1) / 4, two.var(ddof=1) / 5
    welch, equal = ((a + b) ** 2 / (a**2 / 3 + b**2 / 4) for a, b in (errors, (1 / 4, 1 / 5)))
    away = min(size - math.log(0.98), math.log(1.02) - size)
    p = stats.t.sf(away / sum(errors) ** 0.5, min(welch, equal))
    assert found.equivalence_p == pytest.approx(p)
    assert found.verdict is Verdict.UNCHANGED


@pytest.mark.parametrize(("n", "weight"), [(4, 16), (40, 39)])
def test_experiments_that_agree_say_how_much_cycles_differ(n: int, weight: int) -> None:
    """Equal errors of four degrees of freedom each: their logarithms vary by nothing, and trigamma(2) = pi^2/6 - 1."""
    found = Usual.of([(0.04, 4.0)] * n)
    assert found is not None
    between = -(math.pi**2 / 6 - 1)
    df = 2 / ((weight + (n - 1) * between) / (weight + n - 1))
    assert found.df == pytest.approx(df)
    assert found.most_df == 4 * n
    euler = 0.5772156649015329
    assert math.log(found.variance / 0.04) == pytest.approx(
        math.log(2) - (1 - euler) + special.psi(df / 2) - math.log(df / 2)
    )
    assert Usual.of([(0.04, 4.0)] * 3) is None


def test_what_experiments_say_stands_beside_the_comparison_s_own_by_degrees_of_freedom() -> None:
    usual = Usual(variance=2.0, df=3.0, most_df=10.0)
    assert usual.beside(5.0, 6.0) == pytest.approx((4.0, 9.0))
    assert usual.beside(2.0, 60.0) == pytest.approx((2.0, 10.0))


@pytest.mark.parametrize("threshold_ratio", [1.0, 1.5])
def test_a_threshold_of_all_bounds_a_loss_by_nothing(threshold_ratio: float) -> None:
    found = compare(BASE, [value / 10 for value in BASE], "lower", threshold_ratio=threshold_ratio)
    assert found.verdict is Verdict.UNCHANGED
    assert found.difference_ratio == pytest.approx(-0.9)


@pytest.mark.parametrize(("n", "m"), [(2, 3), (2, 10), (2, 22), (3, 10), (10, 2)])
def test_a_small_side_beside_a_large_one_makes_no_more_false_alarms_than_stated(n: int, m: int) -> None:
    rng, repeats = np.random.default_rng(n * 100 + m), 2_000
    alarms = 0
    for a, b in zip(rng.normal(100, 3, (repeats, n)), rng.normal(100, 3, (repeats, m)), strict=True):
        (error, df), size = (effect := _Effect.of([*a], [*b])).error(), abs(effect.size)
        alarms += size > special.stdtrit(df, 0.975) * error**0.5
    assert alarms / repeats <= 0.05 + 3 * (0.05 * 0.95 / repeats) ** 0.5
