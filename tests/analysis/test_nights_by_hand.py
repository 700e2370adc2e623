"""The nightly alarm's parts against the textbook: covariance matrices, analysis of variance, sums in plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from llem_airflow.analysis.alarm import Nights, around_levels, lasting, watch
from llem_airflow.analysis.history import Point, change_points, cycle_correlation, points_of
from llem_airflow.analysis.nights import Measured, Night
from llem_airflow.analysis.noise import (
    Floats,
    Noise,
    Pattern,
    Prior,
    correlation,
    squares,
    whitened,
    without_spikes,
)
from tests.analysis.one_history import trend

RNG = np.random.default_rng(11)
NIGHTS = [RNG.normal(0, 0.01, (3, n)) for n in (5, 12, 30)]


def covariance(n: int, phi: float) -> Floats:
    """Of AR(1) noise whose new part of a night has the variance 1: phi^|i - j| / (1 - phi^2)."""
    apart = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    found: Floats = phi**apart / (1 - phi**2)
    return found


@pytest.mark.parametrize("phi", [0.0, 0.3, 0.9])
def test_whitened_nights_are_independent_with_one_variance(phi: float) -> None:
    n = 6
    white = whitened(np.eye(n), np.full(n, phi)).T
    assert white @ covariance(n, phi) @ white.T == pytest.approx(np.eye(n), abs=1e-12)


@pytest.mark.parametrize("rest", NIGHTS, ids=len)
def test_squares_are_those_of_the_inverse_covariance(rest: Floats) -> None:
    phi = np.array([0.0, 0.4, 0.8])
    expected = [
        row @ np.linalg.inv(covariance(len(row), each)) @ row for row, each in zip(rest, phi, strict=True)
    ]
    assert squares(rest, phi) == pytest.approx(expected)


def test_the_correlation_is_corrected_for_its_bias_and_bounded() -> None:
    found = correlation(np.array([[1.0, 2.0, -1.0, -2.0], [0.0] * 4, [1.0] * 4]))
    raw = (1 * 2 - 2 * 1 + 1 * 2) / 10
    assert found == pytest.approx([raw + (1 + 3 * raw) / 4, 0.25, 0.95])


def test_noise_is_what_the_nights_tell_beside_what_is_known() -> None:
    rest = NIGHTS[1]
    prior = Prior(np.array([0.5, 0.2, 0.9]), np.full(3, 10.0), np.full(3, 4e-4), np.array([4.0, 4.0, 90.0]))
    found = Noise.of(rest, np.array([1.0, 2.0, 20.0]), np.array([0.0, 0.5, 0.0]), prior)
    for row in range(3):
        phi = (10 * prior.phi[row] + 12 * correlation(rest)[row]) / 22
        phi = min(max(phi, 0.0), 0.9)
        phi = min(phi + 0.5 * math.sqrt((1 - phi**2) / 22), 0.9)
        df = max(12 - [1, 2, 20][row], 0)
        weight = prior.variance_weight[row]
        variance = (squares(rest, np.full(3, phi))[row] + weight * 4e-4) / (weight + df)
        assert found.phi[row] == pytest.approx(phi)
        assert found.df[row] == pytest.approx(weight + df)
        assert found.sd[row] == pytest.approx(math.sqrt(variance * [1, 1.5, 1][row]))


def test_what_is_assumed_is_two_percent_from_night_to_night() -> None:
    prior = Prior.assumed(2)
    assert np.sqrt(prior.variance / (1 - prior.phi**2)) == pytest.approx([0.02] * 2)
    assert (prior.phi.tolist(), prior.phi_weight.tolist(), prior.variance_weight.tolist()) == (
        [0.5] * 2,
        [10.0] * 2,
        [4.0] * 2,
    )
    assert prior.of([1]).variance.shape == (1,)


@pytest.mark.parametrize("spread", [0.02, 0.2, 2.0])
def test_a_weekday_adds_as_much_as_the_analysis_of_variance_leaves(spread: float) -> None:
    """James and Stein: 1 - 5 / (6 F) of each mean, nothing where that is negative."""
    rng = np.random.default_rng(3)
    weekdays = np.arange(40) % 7
    rest = rng.normal(0, 1, 40) + spread * weekdays
    f = stats.f_oneway(*[rest[weekdays == day] for day in range(7)]).statistic
    kept = max(0.0, 1 - 5 / (6 * f))
    found = Pattern.of(rest, weekdays)
    means = [rest[weekdays == day].mean() - rest.mean() for day in range(7)]
    assert found.adds == pytest.approx(kept * np.array(means))
    assert (found.df, found.variance) == pytest.approx((6 * kept, 7 * kept / 40))


def test_a_weekday_adds_nothing_before_three_weeks_and_all_of_it_without_noise() -> None:
    days = np.arange(21)
    exact = Pattern.of(np.where(days % 7 == 2, 0.7, 0.0), days % 7)
    assert exact.adds == pytest.approx([-0.1, -0.1, 0.6, -0.1, -0.1, -0.1, -0.1])
    assert (exact.df, exact.variance) == (6.0, 7 / 21)
    early = Pattern.of(np.where(days[:20] % 7 == 2, 0.7, 0.0), days[:20] % 7)
    assert (early.adds.tolist(), early.df, early.variance) == ([0.0] * 7, 0.0, 0.0)


def test_a_pattern_of_its_own_and_that_of_the_study_add_up() -> None:
    both = Pattern(np.arange(7.0), 3.0, 0.2).beside(Pattern(np.ones(7), 6.0, 0.4), 0.5)
    assert both.adds.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert (both.df, both.variance) == pytest.approx((6.0, 0.4))


@pytest.mark.parametrize(
    ("night", "seen"),
    [
        (0.30, 0.005),  # far above both neighbours: their mean
        (-0.30, 0.005),
        (0.02, 0.02),  # not by more than the least
        (0.0301, 0.005),
        (0.0299, 0.0299),
    ],
)
def test_a_night_far_off_both_neighbours_is_taken_for_their_mean(night: float, seen: float) -> None:
    """Steps of a hundredth: the limit is the least of two hundredths, or 3 x 1.4826 of the median step."""
    values = np.array([0.0, 0.0, 0.0, 0.0, night, 0.01, 0.01, 0.01])
    assert without_spikes(values)[4] == pytest.approx(seen)
    assert np.delete(without_spikes(values), 4).tolist() == np.delete(values, 4).tolist()


def test_a_spike_is_three_robust_deviations_and_a_step_is_none() -> None:
    def zigzag(size: float) -> Floats:
        return np.array([0.0, 0.1, 0.0, 0.1, 0.0, 0.1, 0.1 + size, 0.1, 0.0, 0.1])

    limit = 3 * 1.4826 * 0.1
    assert without_spikes(zigzag(limit * 0.99))[6] == pytest.approx(0.1 + limit * 0.99)
    assert without_spikes(zigzag(limit * 1.01))[6] == pytest.approx(0.1)
    step = np.array([0.0] * 5 + [1.0] * 5)
    assert without_spikes(step).tolist() == step.tolist()
    assert without_spikes(np.array([0.0, 9.0])).tolist() == [0.0, 9.0]
    assert without_spikes(np.array([[0.0, 9.0, 0.0], [0.0, 1.0, 2.0]])).tolist() == [[0, 9, 0], [0, 1, 2]]


def pooled_by_hand(rest: Floats, taken: Floats) -> list[tuple[float, float, float, float]]:
    """``Prior.pooled`` of experiments that were all measured in all nights, experiment by experiment."""
    every, n = rest.shape
    phi = correlation(rest)
    middle = min(max(float(np.median(phi)), 0.0), 0.9)
    df = n - taken
    variance = squares(rest, np.full(every, middle)) / df
    phi_error, log_error = np.full(every, (1 - middle**2) / n), 2 / df

    def is_like(values: Floats, error: Floats, row: int) -> bool:
        off = np.abs(values - np.median(values))
        return bool(off[row] <= 3 * max(1.4826 * float(np.median(off)), math.sqrt(error[row])))

    like = [
        row
        for row in range(every)
        if is_like(phi, phi_error, row) and is_like(np.log(variance), log_error, row)
    ]
    k = len(like)
    new = rest[:, 1:] - middle * rest[:, :-1]
    new /= np.sqrt((new**2).sum(axis=1, keepdims=True))
    pairs = [float(new[i] @ new[j]) ** 2 for i in like for j in like if i != j]
    together = min(max(sum(pairs) / len(pairs) - 1 / (n - 1), 0.0), 1.0)
    others = k / (1 + (k - 1) * together) - 1

    def of_others(
        own: Floats, weight: Floats, assumed: float, worth_of: float, row: int
    ) -> tuple[float, float]:
        rest_of = [one for one in like if one != row]
        theirs = sum(weight[one] for one in rest_of)
        mean = sum(weight[one] * own[one] for one in rest_of) / theirs
        worth = theirs * others / (k - 1)
        return float((worth_of * assumed + worth * mean) / (worth_of + worth)), float(worth_of + worth)

    def apart(values: Floats, error: Floats, assumed: float) -> float:
        between = float(np.var(values[like], ddof=1)) - (1 - together) * float(np.mean(error[like]))
        return float(max(0.0, (4 * assumed + others * between) / (4 + others)))

    phi_apart, log_apart = apart(phi, phi_error, 0.02), apart(np.log(variance), log_error, 0.1)
    found = []
    for row in range(every):
        mean, most = of_others(phi, np.full(every, float(n)), 0.5, 10.0, row)
        usual, worth = of_others(variance, df, 0.02**2 * 0.75, 4.0, row)
        pooled = mean, 1 / (phi_apart / (1 - mean**2) + 1 / most), usual, 1 / (log_apart / 2 + 1 / worth)
        found.append(pooled if row in like else (0.5, 10.0, 0.02**2 * 0.75, 4.0))
    return found


@pytest.mark.parametrize(("experiments", "nights"), [(6, 40), (30, 12), (2, 20)])
def test_what_experiments_tell_each_other_is_worth_what_they_differ_and_move_together(
    experiments: int, nights: int
) -> None:
    rng = np.random.default_rng(experiments)
    rest = rng.normal(0, 0.01, (experiments, nights)) + rng.normal(0, 0.005, nights)
    rest[:, 1:] += 0.3 * rest[:, :-1]
    taken = rng.integers(1, 4, experiments).astype(float)
    found = Prior.pooled(rest, taken)
    told = np.stack([found.phi, found.phi_weight, found.variance, found.variance_weight], axis=1)
    assert told == pytest.approx(np.array(pooled_by_hand(rest, taken)))


def fitted(y: Floats, columns: Sequence[Floats], phi: float) -> tuple[float, float]:
    """Generalised least squares: the last column's coefficient, and its standard error with a unit variance."""
    x, inverse = np.stack(columns, axis=1), np.linalg.inv(covariance(len(y), phi))
    normal = np.linalg.inv(x.T @ inverse @ x)
    return float((normal @ x.T @ inverse @ y)[-1]), math.sqrt(normal[-1, -1])


def alone(values: Floats, experiments: int = 1, start: int = 0) -> Nights:
    starts = [[0] if start == 0 else [0, start]]
    return Nights(values[None, :], starts, [Pattern(np.zeros(7))], Prior.assumed(1), experiments)


def noise_of(values: Floats, levels: int = 1) -> Noise:
    return Noise.of(
        (values - values.mean())[None, :], np.array([float(levels)]), np.zeros(1), Prior.assumed(1)
    )


def step_by_hand(values: Floats, experiments: int) -> tuple[int, float] | None:
    """The most improbable of the steps 2, 3, 5 or 7 nights ago."""
    best, found = 0.0, None
    for m in (2, 3, 5, 7):
        edge = len(values) - m
        before, after = values[:edge][-91:], values[edge:].copy()
        noise = noise_of(values[:edge])
        up = after.mean() > before.mean()
        order = np.argsort(after) if up else np.argsort(-after)
        furthest, second = after[order[-1]], after[order[-2]]
        after[order[-1]] = before.mean() if abs(furthest - second) > 3 * noise.sd[0] else second
        y = np.concatenate([before, after])
        step, error = fitted(
            y, [np.ones(len(y)), (np.arange(len(y)) >= len(before)).astype(float)], float(noise.phi[0])
        )
        t = abs(step) / (error * noise.sd[0])
        limit = -stats.t.ppf(0.5 / (max(experiments, 40) * 91 * 4), noise.df[0])
        least = 0.10 if edge < 10 else 0.02
        if t > max(limit, best) and abs(math.expm1(step)) >= least:
            best, found = t, (edge, float(values[edge:].mean() - before.mean()))
    return found


def test_a_step_is_the_most_improbable_of_generalised_least_squares() -> None:
    told = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        n, m = int(rng.integers(12, 130)), int(rng.integers(1, 8))
        values = rng.normal(0, 0.005, n)
        values[-m:] += rng.choice([-1, 1]) * rng.uniform(0.02, 0.16)
        values[-1] += rng.choice([0.0, 0.0, 0.1])
        experiments = int(rng.choice([1, 40, 200]))
        found = alone(values, experiments).steps(0.02).get(0)
        expected = step_by_hand(values, experiments)
        told += expected is not None
        assert (found is None) == (expected is None), seed
        if found is not None and expected is not None:
            assert found.began == expected[0], seed
            assert found.ratio == pytest.approx(math.expm1(expected[1])), seed
    assert 15 < told < 40


def test_a_drift_is_a_line_of_generalised_least_squares_over_its_level() -> None:
    told = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        n, start = int(rng.integers(60, 200)), int(rng.choice([0, 5]))
        values = rng.normal(0, 0.004, n) + np.linspace(0, rng.uniform(0, 0.03), n)
        level = values[start:]
        found = alone(values, start=start).drifts(0.02).get(0)
        if len(level) < 60:
            assert found is None
            continue
        nights = np.arange(len(level), dtype=float)
        flat = values.copy()
        flat[start:] = level - np.polyval(np.polyfit(nights, level, 1), nights)
        rest = flat.copy()
        rest[start:] -= flat[start:].mean()
        rest[:start] -= flat[:start].sum() / max(start, 1)
        noise = Noise.of(rest[None, :], np.array([2.0 if start else 1.0]), np.zeros(1), Prior.assumed(1))
        slope, error = fitted(level, [np.ones(len(level)), nights], float(noise.phi[0]))
        limit = -stats.t.ppf(0.5 / (40 * 52), noise.df[0])
        size = slope * nights[-1]
        expected = abs(slope) > limit * error * noise.sd[0] and abs(math.expm1(size)) >= 0.01
        told += expected
        assert (found is not None) == expected, seed
        if found is not None:
            assert found == pytest.approx((start, math.expm1(size))), seed
    assert 5 < told < 35


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(("times", "is_told"), [(0.999, False), (1.001, True)])
def test_a_drift_is_told_from_the_limit_of_a_year_s_looks_on(sign: int, times: float, is_told: bool) -> None:
    """One look a week, 52 a year, for 40 experiments; the noise around a line does not depend on its slope."""
    nights = np.arange(80.0)
    flat = np.random.default_rng(1).normal(0, 0.01, 80)
    flat -= np.polyval(np.polyfit(nights, flat, 1), nights)
    noise = noise_of(flat)
    slope, error = fitted(flat, [np.ones(80), nights], float(noise.phi[0]))
    limit = float(-stats.t.ppf(0.5 / (40 * 52), noise.df[0]))
    at_limit = sign * times * limit * error * float(noise.sd[0])
    assert (0 in alone(flat + (at_limit - slope) * nights).drifts(0.0001)) == is_told


@pytest.mark.parametrize(("size", "is_told"), [(0.0099, False), (0.0101, True)])
def test_a_drift_matters_from_half_of_the_threshold_on(size: float, is_told: bool) -> None:
    values = math.log1p(size) * np.arange(100.0) / 99
    assert (0 in alone(values).drifts(0.02)) == is_told


def test_the_newest_night_is_held_against_the_nights_of_its_level() -> None:
    values = np.random.default_rng(2).normal(0, 0.01, 120)
    values[-1] = 0.05
    found = alone(values, experiments=100).newest()
    noise = noise_of(values[:-1])
    sd = float(noise.sd[0]) / math.sqrt(1 - float(noise.phi[0]) ** 2) * math.sqrt(1 + 1 / 119)
    assert found == pytest.approx(
        tuple(
            math.expm1(size)
            for size in (
                0.05 - float(np.median(values[-92:-1])),  # of the last 91 nights before it
                stats.t.ppf(0.95, noise.df[0]) * sd,
                -stats.t.ppf(0.5 / (100 * 91), noise.df[0]) * sd,
            )
        )
    )
    assert alone(values[:1]).newest() is None


def test_a_drift_is_looked_for_once_a_week_and_its_level_goes_on_from_two_weeks_before() -> None:
    rng = np.random.default_rng(5)
    values = np.exp(rng.normal(0, 0.002, 120) + 0.0003 * np.arange(120)).tolist()
    alarm = watch(values, range(120)).alarms[0]
    assert (alarm.drift, alarm.began, (alarm.told + 1) % 7) == (True, 0, 0)
    at = watch(values[: alarm.told + 1], range(alarm.told + 1))
    assert at.alarms == (alarm,)
    assert at.began == alarm.told + 1 - 14
    assert watch(values[: alarm.told], range(alarm.told)).alarms == ()
    assert alarm.ratio == pytest.approx(math.expm1(0.0003 * alarm.told), abs=0.004)


def test_three_nights_tell_a_step_that_is_gross() -> None:
    (alarm,) = watch([10.0, 20.0, 20.0], [6, 13, 20]).alarms
    assert (alarm.told, alarm.began, alarm.drift) == (2, 1, False)
    assert alarm.ratio == pytest.approx(1.0)
    assert watch([10.0, 10.9, 10.9], [0, 1, 2]).alarms == ()


def test_a_metric_that_is_not_positive_is_taken_over_its_median() -> None:
    found = watch([0.0, 10.0, 10.0, 10.0, 10.0, 11.0], range(6))
    assert found.newest_ratio == pytest.approx(0.1)
    assert watch([0.0] * 6, range(6)).newest_ratio == 0.0


def test_what_a_weekday_adds_is_learnt_by_the_day_of_the_week() -> None:
    days = range(70)  # the newest is the second day of a weekend
    rng = np.random.default_rng(6)
    values = np.exp(0.05 * (np.array(days) % 7 > 4) + rng.normal(0, 0.001, 70)).tolist()
    found = watch(values, days)
    assert found.newest_ratio == pytest.approx(0.0, abs=0.01)
    assert found.alarms == ()


def test_an_experiment_without_a_night_hears_the_others() -> None:
    rest = np.random.default_rng(9).normal(0, 0.01, (8, 30))
    rest[3] = np.nan
    found = Prior.pooled(rest, np.ones(8))
    assert 0.005 < math.sqrt(found.variance[3]) < 0.015
    assert np.isfinite([found.phi, found.phi_weight, found.variance, found.variance_weight]).all()


def test_of_several_changes_the_newest_counts() -> None:
    rng = np.random.default_rng(7)
    means = np.concatenate([rng.normal(10, 0.03, 20), rng.normal(11, 0.03, 20), rng.normal(10, 0.03, 2)])
    points = [Point(f"run-{k}", k * 86_400 * 10**9, (mean, mean)) for k, mean in enumerate(means.tolist())]
    found = trend(points, "lower")
    assert [alarm.began for alarm in found.alarms] == [20, 40]
    assert (found.verdict, found.told, found.began) == ("improvement", found.alarms[-1], "run-40")
    assert found.state == f"improvement: step of {found.alarms[-1].ratio:+.1%} since run-40"


def test_a_newest_run_within_the_margin_is_unchanged_after_the_nights_of_learning() -> None:
    means = np.random.default_rng(8).normal(10, 0.005, 40).tolist()
    points = [Point(f"run-{k}", k * 86_400 * 10**9, (mean, mean)) for k, mean in enumerate(means)]
    assert trend(points, "lower").verdict == "unchanged"
    assert trend(points[:10], "lower").verdict == "not enough evidence"
    assert trend(points, "lower", threshold_ratio=1e-5).verdict == "not enough evidence"


def test_days_are_counted_by_the_clock() -> None:
    """A pattern of the weekday, in runs that began at the same hour."""
    rng = np.random.default_rng(6)
    values = np.exp(0.05 * (np.arange(70) % 7 > 4) + rng.normal(0, 0.001, 70)).tolist()
    points = [Point(f"run-{k}", k * 86_400_000_000_000, (v, v)) for k, v in enumerate(values)]
    assert trend(points, "lower").newest_ratio == pytest.approx(0.0, abs=0.01)


def test_two_levels_without_spread_differ_for_certain() -> None:
    points = [Point(f"run-{k}", k, (value, value)) for k, value in enumerate([10.0] * 4 + [11.0] * 4)]
    (change,) = change_points(points, "lower")
    assert (change.index, change.p, change.before, change.after) == (4, 0.0, 10.0, 11.0)
    level = [Point(f"run-{k}", k, (value, value)) for k, value in enumerate([10.0] * 4 + [10.19] * 4)]
    assert change_points(level, "lower") == []


@pytest.mark.parametrize("n", [2, 8, 60, 200])
def test_the_step_that_would_be_told_follows_from_a_week_after_the_known_nights(n: int) -> None:
    values = np.random.default_rng(n).normal(0, 0.002, n)
    noise = noise_of(values)
    known = min(n, 91)
    x = [np.ones(known + 7), (np.arange(known + 7) >= known).astype(float)]
    _, error = fitted(np.zeros(known + 7), x, float(noise.phi[0]))
    limit = -stats.t.ppf(0.5 / (40 * 91 * 4), noise.df[0])
    expected = math.expm1((limit + stats.norm.ppf(0.8)) * error * noise.sd[0])
    assert alone(values).detectable() == pytest.approx(expected)
    if n < 10:  # nothing is known of weekdays
        assert watch(np.exp(values).tolist(), range(n)).detectable_ratio == pytest.approx(expected)


def test_levels_that_lasted_five_nights_count_and_the_first_always() -> None:
    assert lasting([0], 3) == [0]
    assert lasting([0, 2, 6, 11], 12) == [0, 6, 11]  # 4 nights are too few; the present one may go on
    assert lasting([0, 2, 7, 13], 13) == [0, 2, 7]


def test_nights_lie_around_the_centre_of_their_own_level() -> None:
    values = np.array([[1.0, 2.0, 3.0, 4.0, 5.0, 60.0, 61.0, 62.0], [1.0] * 8])
    found = around_levels(values, [[0, 5], [0]], np.mean)
    assert found.tolist() == [[-2, -1, 0, 1, 2, -1, 0, 1], [0] * 8]


def split_by_hand(values: Floats, begin: int, end: int) -> list[int]:
    part = values[begin:end]
    scores = {}
    for k in range(2, len(part) - 1):
        one, other = part[:k], part[k:]
        n, m = len(one), len(other)
        between = sum(abs(a - b) for a in one for b in other)
        within = [
            sum(abs(side[i] - side[j]) for i in range(len(side)) for j in range(i)) for side in (one, other)
        ]
        distance = 2 * between / (n * m) - within[0] / math.comb(n, 2) - within[1] / math.comb(m, 2)
        scores[k] = n * m / (n + m) * distance
    if not scores:
        return []
    at = max(scores, key=lambda k: scores[k])
    if scores[at] <= 0 or differ_p(part[:at], part[at:]) > 0.05:
        return []
    return [*split_by_hand(values, begin, begin + at), begin + at, *split_by_hand(values, begin + at, end)]


def differ_p(one: Floats, other: Floats) -> float:
    if abs(other.mean() / one.mean() - 1) < 0.02:
        return 1.0
    return float(stats.ttest_ind(one, other).pvalue)


def changes_by_hand(values: Floats, max_p: float) -> list[tuple[int, float]]:
    splits = split_by_hand(values, 0, len(values))
    while splits:
        edges = [0, *splits, len(values)]
        stretches = [values[a:b] for a, b in pairwise(edges)]
        tests = [differ_p(a, b) for a, b in pairwise(stretches)]
        weakest = tests.index(max(tests))
        if tests[weakest] < max_p:
            return list(zip(splits, tests, strict=True))
        del splits[weakest]
    return []


@pytest.mark.parametrize(("experiments", "max_p"), [(1, 0.001), (5, 0.001), (50, 0.0001)])
def test_change_points_are_those_of_the_energy_statistic_where_student_agrees(
    experiments: int, max_p: float
) -> None:
    kept = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        lengths = rng.integers(2, 12, int(rng.integers(1, 4)))
        values = np.concatenate([rng.normal(10 * (1 + rng.uniform(-0.06, 0.06)), 0.1, n) for n in lengths])
        values = np.concatenate([without_spikes(values, 0.02 * abs(float(np.median(values))))])
        points = [Point(f"run-{k}", k, (value, value)) for k, value in enumerate(values.tolist())]
        found = change_points(points, "lower", experiments=experiments)
        seen = without_spikes(values, 0.02 * abs(float(np.median(values))))
        expected = changes_by_hand(seen, max_p)
        kept += len(expected)
        assert [one.index for one in found] == [at for at, _ in expected], seed
        assert [one.p for one in found] == pytest.approx([p for _, p in expected])
        edges = [0, *[at for at, _ in expected], len(seen)]
        for one, begin, end in zip(found, edges, edges[2:], strict=False):
            before, after = seen[begin : one.index].mean(), seen[one.index : end].mean()
            assert (one.before, one.after, one.ratio) == pytest.approx((before, after, after / before - 1))
            assert one.run_id == f"run-{one.index}"
            assert one.verdict == ("regression" if after > before else "improvement")
    assert kept > 5


def test_cycles_follow_each_other_as_the_products_of_neighbours_say() -> None:
    runs = [(1.0, 2.0, 4.0, 3.0), (5.0, 5.0, 8.0), (1.0, 9.0), (7.0,)]
    products = squares_ = 0.0
    for values in runs[:2]:  # two cycles tell nothing around their own mean
        rest = [value - sum(values) / len(values) for value in values]
        products += sum(a * b for a, b in pairwise(rest)) + sum(x * x for x in rest) / len(rest)
        squares_ += sum(x * x for x in rest)
    found = cycle_correlation([Point("r", k, values) for k, values in enumerate(runs)])
    assert found == pytest.approx((products / squares_, 7**-0.5))
    assert cycle_correlation([Point("r", 0, (1.0, 1.0, 1.0))]) == (0.0, 0.0)


def test_histories_are_told_apart_by_release_only_where_one_experiment_has_several() -> None:
    def night(run: str, t: int, release: str, *measured: tuple[str, str, float]) -> Night:
        told = tuple(
            Measured(name, identity, (value,), "measured x", {}) for name, identity, value in measured
        )
        return Night(run, t, release, told)

    nights = [
        night("one", 1, "2024-01", ("old-name", "a" * 16, 1.0), ("moved", "b" * 16, 2.0)),
        night("two", 2, "", ("new-name", "a" * 16, 3.0)),
        night(
            "three", 3, "2024-02", ("moved", "c" * 16, 4.0), ("moved", "d" * 16, 5.0), ("x", "e" * 16, 6.0)
        ),
        night("four", 4, ""),
    ]
    points, newest = points_of(nights)
    assert newest == 3  # of the newest run that measured any
    assert [(str(name), [point.values[0] for point in found]) for name, found in points.items()] == [
        ("new-name", [1.0, 3.0]),
        ("moved of 2024-01", [2.0]),
        ("moved of 2024-02", [5.0]),
        ("x", [6.0]),
    ]
    unnamed = [night("one", 1, "", ("m", "0123456789abcdef", 1.0), ("m", "f" * 16, 2.0))]
    assert [str(name) for name in points_of(unnamed)[0]] == ["m of 01234567", "m of ffffffff"]


@pytest.mark.parametrize(("last", "told", "outlier"), [((0.5,), False, True), ((0.1, 0.5), True, False)])
def test_the_night_that_tells_a_change_is_no_outlier_however_far_it_lies(
    last: tuple[float, ...], told: bool, outlier: bool
) -> None:
    calm = np.random.default_rng(0).normal(0, 0.01, 25)
    found = watch(np.exp([*calm, *last]).tolist(), range(25 + len(last)))
    assert [alarm.told for alarm in found.alarms] == [26] * told
    assert found.outlier == outlier


def test_runs_of_too_few_cycles_and_of_several_hosts_hide_no_others() -> None:
    longer = [Point("r", k, (1.0, 1.1, 1.3, 0.9, 1.0 + k)) for k in range(3)]
    short, spread = Point("r", 7, (1.0, 2.0)), Point("r", 8, (1.0, 2.0, 3.0), hosts=("a", "b", "a"))
    assert cycle_correlation([short, spread, *longer]) == cycle_correlation(longer)
