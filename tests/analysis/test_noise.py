"""What the experiments of a study say of each other's noise, and that nobody looks ahead."""

from __future__ import annotations

import numpy as np
import pytest

from llem_airflow.analysis.alarm import Series, _patterns, watch_study
from llem_airflow.analysis.noise import (
    ASSUMED_SD_RATIO,
    PHI_WEIGHT,
    SD_WEIGHT,
    Floats,
    Noise,
    Pattern,
    Prior,
    RunningSums,
    without_spikes,
)

NIGHTS = 40


def _noise(rng: np.random.Generator, experiments: int, sd: float = 0.01, phi: float = 0.3) -> Floats:
    """AR(1) around 0, by experiment and night."""
    rest = rng.normal(0, sd, (experiments, NIGHTS))
    for night in range(1, NIGHTS):
        rest[:, night] = phi * rest[:, night - 1] + (1 - phi**2) ** 0.5 * rest[:, night]
    centred: Floats = rest - rest.mean(axis=1, keepdims=True)
    return centred


def _pooled(rest: Floats) -> Prior:
    return Prior.pooled(rest, np.ones(len(rest)))


def test_experiments_that_are_alike_tell_each_other_their_noise() -> None:
    prior = _pooled(_noise(np.random.default_rng(1), 40))
    assert np.median(prior.variance_weight) > 80
    assert np.median(prior.phi_weight) > 50
    assert np.median(np.sqrt(prior.variance / (1 - prior.phi**2))) == pytest.approx(0.01, rel=0.1)
    assert np.median(prior.phi) == pytest.approx(0.3, abs=0.05)


def test_copies_of_one_experiment_tell_no_more_than_it_does_itself() -> None:
    prior = _pooled(np.repeat(_noise(np.random.default_rng(2), 1), 40, axis=0))
    assert prior.variance_weight.max() < SD_WEIGHT + 2
    assert prior.phi_weight.max() < PHI_WEIGHT + 2


@pytest.mark.parametrize("alone", [_noise(np.random.default_rng(3), 1), np.full((3, NIGHTS), np.nan)])
def test_without_others_stands_what_is_assumed(alone: Floats) -> None:
    prior, assumed = _pooled(alone), Prior.assumed(len(alone))
    assert np.array_equal(prior.variance, assumed.variance)
    assert np.array_equal(prior.phi_weight, assumed.phi_weight)


@pytest.mark.parametrize("times", [0.1, 5])
def test_an_experiment_unlike_the_others_keeps_its_own_and_tells_them_nothing(times: float) -> None:
    rest = _noise(np.random.default_rng(4), 20)
    without = _pooled(rest[1:])
    rest[0] *= times
    prior = _pooled(rest)
    assert (prior.variance_weight[0], prior.phi_weight[0]) == (SD_WEIGHT, PHI_WEIGHT)
    assert prior.variance[1:] == pytest.approx(without.variance, rel=0.02)


def test_the_more_experiments_differ_the_less_they_tell() -> None:
    rest = _noise(np.random.default_rng(5), 40)
    differing = rest * np.exp(np.random.default_rng(6).normal(0, 0.5, (40, 1)))
    assert np.median(_pooled(differing).variance_weight) < 10
    assert np.median(_pooled(rest).variance_weight) > 80


def test_a_new_experiment_hears_the_others() -> None:
    rest = _noise(np.random.default_rng(7), 20)
    rest[0, :-3] = np.nan
    prior = _pooled(rest)
    assert prior.variance_weight[0] > 50
    assert prior.variance[0] == pytest.approx(np.median(prior.variance[1:]), rel=0.05)


def test_no_night_is_judged_with_later_ones() -> None:
    rng = np.random.default_rng(8)
    values = 10 * np.exp(_noise(rng, 6, sd=0.02))
    values[0, 20:] *= 1.15
    values[1, 25:] *= 0.85
    runs = [np.sort(rng.choice(NIGHTS, size, replace=False)) for size in (40, 40, 40, 30, 25, 12)]

    def alarms(until: int) -> list[tuple[int, int]]:
        seen = [each[each < until] for each in runs]
        series = [
            Series(row[each].tolist(), each.tolist(), each.tolist())
            for row, each in zip(values, seen, strict=True)
        ]
        return [
            (row, int(seen[row][alarm.told]))
            for row, found in enumerate(watch_study(series))
            for alarm in found.alarms
        ]

    told = alarms(NIGHTS)
    assert {row for row, _ in told} >= {0, 1}
    for until in range(15, NIGHTS, 3):
        assert alarms(until) == [each for each in told if each[1] < until]


def test_running_sums_tell_the_noise_that_the_nights_themselves_tell() -> None:
    values = 5 + _noise(np.random.default_rng(8), 20)
    running, prior, taken = RunningSums(values), Prior.assumed(20), np.ones(20)
    for n in (2, 3, 11, NIGHTS):
        sums, exact = running.first(n)
        first = values[:, :n]
        slow = Noise.of(first - first.mean(axis=1, keepdims=True), taken, np.zeros(20), prior)
        fast = Noise.of_sums(sums, taken, np.zeros(20), prior)
        assert exact.all()
        for one, other in ((fast.phi, slow.phi), (fast.sd, slow.sd), (fast.df, slow.df)):
            np.testing.assert_allclose(one, other, rtol=1e-9)
    _, exact = RunningSums(np.full((1, NIGHTS), 0.1)).first(NIGHTS)
    assert not exact.any()  # equal values leave nothing but rounding


def test_spikes_are_those_of_the_median_of_every_series() -> None:
    random = np.random.default_rng(9)
    for n in (1, 2, 3, 4, 5, 40):
        for sd in (0.005, 0.02, 0.3):
            values = random.normal(0, sd, (30, n))
            values[::3, n // 2] += 5 * sd
            expected = values.copy()
            if n > 2:
                steps = np.diff(values, axis=1)
                usual = 1.4826 * np.median(np.abs(steps), axis=1, keepdims=True)
                limit = np.maximum(3 * usual, ASSUMED_SD_RATIO)
                up, down = steps[:, :-1], -steps[:, 1:]
                spikes = ((up > limit) & (down > limit)) | ((up < -limit) & (down < -limit))
                expected[:, 1:-1] = np.where(spikes, (values[:, :-2] + values[:, 2:]) / 2, values[:, 1:-1])
            assert (without_spikes(values) == expected).all()
            assert (without_spikes(values[0]) == expected[0]).all()


def test_patterns_of_many_are_those_of_each_to_the_last_digit() -> None:
    rest, weekdays = _noise(np.random.default_rng(10), 12), np.arange(NIGHTS) % 7
    rest[:, weekdays == 2] += 0.02
    rest[3] = 0.0
    for many, row in zip(Pattern.of_rows(rest, weekdays), rest, strict=True):
        alone = Pattern.of(row, weekdays)
        assert (many.adds == alone.adds).all()
        assert (many.df, many.variance) == (alone.df, alone.variance)
    assert Pattern.of_rows(rest, weekdays)[0].df > 5


def test_what_the_study_shares_is_known_as_well_as_its_nights_agree() -> None:
    """The error of a common pattern is that of the nights' medians: small where experiments differ by chance alone."""
    weekdays = np.arange(NIGHTS) % 7
    rest = _noise(np.random.default_rng(11), 4)
    rest[:, weekdays >= 5] += 0.03
    common = Pattern.of(np.median(rest, axis=0), weekdays)
    share = np.mean(np.median(rest, axis=0) ** 2) / np.mean(rest**2)
    assert 0.3 < share < 0.9
    for found, row in zip(_patterns(rest, weekdays), rest, strict=True):
        own = Pattern.of(row - common.adds[weekdays], weekdays)
        assert found.adds == pytest.approx(common.adds + own.adds)
        assert found.df == pytest.approx(own.df + share * common.df)
        assert found.variance == pytest.approx(own.variance + share * common.variance)


def test_a_common_pattern_is_known_no_worse_than_one_experiment_alone_would_tell_it() -> None:
    weekdays = np.arange(NIGHTS) % 7
    rest = np.zeros((3, NIGHTS))
    rest[:2] = _noise(np.random.default_rng(12), 1) + np.where(weekdays >= 5, 0.03, 0.0)
    common = Pattern.of(rest[0], weekdays)
    found = _patterns(rest, weekdays)[0]
    assert common.df > 5
    assert found.df == pytest.approx(common.df)


def test_experiments_without_any_noise_have_no_pattern() -> None:
    for found in _patterns(np.zeros((2, NIGHTS)), np.arange(NIGHTS) % 7):
        assert (found.adds == 0).all()


def test_a_step_below_two_percent_is_not_told_however_certain_unless_smaller_ones_are_asked_for() -> None:
    logs = np.random.default_rng(13).normal(0, 0.0005, NIGHTS) + np.where(np.arange(NIGHTS) >= 30, 0.015, 0.0)
    one = Series(np.exp(logs).tolist(), range(NIGHTS), range(NIGHTS))
    assert watch_study([one])[0].alarms == ()
    (alarm,) = watch_study([one], threshold_ratio=0.005)[0].alarms
    assert alarm.began == 30
