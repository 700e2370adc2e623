"""What the nightly verdict promises, by the short form of ``benchmarks/nightly.py``."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

from benchmarks.nightly import (
    CALM,
    HARD,
    LINKED,
    World,
    delays,
    drifts_found,
    false_a_quarter,
    nightly_verdict,
    welch,
)
from llem_airflow.analysis import alarm
from llem_airflow.analysis.alarm import QUARTER, Alarm, Nights, Series, watch_study
from llem_airflow.analysis.noise import Integers, Pattern, Prior


def test_forty_experiments_have_at_most_one_false_alarm_a_quarter() -> None:
    rng = np.random.default_rng(1)
    assert false_a_quarter(nightly_verdict, rng, HARD, 80, QUARTER) <= 1
    assert false_a_quarter(partial(nightly_verdict, experiments=40), rng, HARD, 120, QUARTER) <= 1
    assert false_a_quarter(welch, rng, HARD, 160, QUARTER) > 100


@pytest.mark.parametrize(("step", "nights"), [(0.05, 3), (0.03, 7), (-0.05, 3)])
def test_a_step_is_told_in_time(step: float, nights: int) -> None:
    assert np.median(delays(nightly_verdict, np.random.default_rng(2), CALM, step, 20)) <= nights


def test_thirty_nights_of_forty_experiments_tell_what_those_of_one_cannot() -> None:
    """Nights remember, and have a weekly pattern; who knows the noise finds 98 % and 80 % (benchmarks/nightly.py)."""
    study = partial(nightly_verdict, experiments=40)
    for step, nights, at_least in ((0.05, 3, 0.7), (0.03, 7, 0.4)):
        found = delays(study, np.random.default_rng(6), LINKED, step, 120, flat=30)
        alone = delays(nightly_verdict, np.random.default_rng(6), LINKED, step, 20, flat=30)
        assert np.mean(found <= nights) >= at_least > np.mean(alone <= nights)


def test_a_noisy_experiment_among_calm_ones_makes_no_more_false_alarms() -> None:
    rng, nights = np.random.default_rng(7), range(QUARTER)
    told = 0
    for _ in range(6):
        means = CALM.nights(rng, 12, QUARTER).mean(axis=2)
        means[0] = World("noisy", 0.05, 0.5).nights(rng, 1, QUARTER).mean(axis=2)[0]
        told += sum(
            len(one.alarms) for one in watch_study([Series(each, nights, nights) for each in means.tolist()])
        )
    assert told <= 1


@pytest.mark.parametrize("before", [1, 2, 4])
def test_an_outlier_before_a_step_does_not_delay_it(before: int) -> None:
    found = delays(nightly_verdict, np.random.default_rng(3), CALM, 0.05, 20, outlier=before)
    assert np.median(found) <= 3
    assert np.mean(np.isfinite(found)) >= 0.95


def test_a_drift_of_three_percent_a_year_is_told() -> None:
    assert drifts_found(np.random.default_rng(4), CALM, 0.03, 4) == 1.0
    assert drifts_found(np.random.default_rng(5), CALM, 0.0, 4) == 0.0


@pytest.mark.parametrize(("before", "margin"), [(1, 0.023262), (4, 0.018390), (100, 0.016531)])
def test_the_margin_of_the_newest_night_is_that_of_a_prediction(before: int, margin: float) -> None:
    """Of one more night beside the mean of those before: 1.64485 sd sqrt(1 + 1 / n), with the noise known to be 1 %."""
    sure = Prior(np.zeros(1), np.full(1, 1e15), np.full(1, 0.01**2), np.full(1, 1e15))
    nights = Nights(np.zeros((1, before + 1)), [[0]], [Pattern(np.zeros(7))], sure, experiments=1)
    found = nights.newest()
    assert found is not None
    assert math.log1p(found[1]) == pytest.approx(margin, rel=1e-3)


class NightByNight(alarm._Study):
    """The walk as it is written down: one night of one experiment after the other."""

    def _judge(self, rows: Integers, nights: Integers) -> None:
        for n in sorted(set(nights.tolist())):
            super()._judge(rows[nights == n], nights[nights == n])

    def _changes(self, rows: Integers, nights: Integers) -> dict[int, tuple[Alarm, int]]:
        found = {}
        for at, (row, n) in enumerate(zip(rows.tolist(), nights.tolist(), strict=True)):
            now = self._nights([row], n)
            if step := now.steps(self._threshold_ratio).get(0):
                found[at] = Alarm(n - 1, step.began, step.ratio), step.began
            elif n % 7 == 0 and (drift := now.drifts(self._threshold_ratio).get(0)):
                told = Alarm(n - 1, drift.began, drift.ratio, drift=True)
                found[at] = told, n - 2 * alarm.WINDOWS[-1]
        return found


@pytest.mark.parametrize("seed", range(3))
def test_a_week_judged_at_once_says_what_night_after_night_says(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps, drifts, spikes, restless and equal values, and experiments that were not measured in every night."""
    rng, nights = np.random.default_rng(seed), 110
    values = np.exp(0.015 * rng.standard_normal((9, nights)))
    values[0, 30:] *= 1.1
    values[1, 40:] *= 0.8
    values[1, 43:] *= 1.3
    values[2] *= np.exp(np.linspace(0, 0.12, nights))
    values[3, rng.choice(nights, 12, replace=False)] *= 1.4
    values[4] = 1.0
    values[5, :] *= np.repeat(np.exp(0.2 * rng.standard_normal(nights // 5)), 5)
    values[6, 50], values[6, 60:] = 3.0, 1.5
    there = [np.sort(rng.choice(nights, n, replace=False)) for n in (110, 110, 110, 110, 90, 110, 100, 40, 2)]
    series = [
        Series(row[each].tolist(), each.tolist(), each.tolist())
        for row, each in zip(values, there, strict=True)
    ]
    found = watch_study(series, experiments=9)
    monkeypatch.setattr(alarm, "_Study", NightByNight)
    plain = watch_study(series, experiments=9)
    assert sum(len(one.alarms) for one in found) >= 5
    assert any(each.drift for one in found for each in one.alarms) or seed
    for one, other in zip(found, plain, strict=True):
        assert (one.began, one.outlier) == (other.began, other.outlier)
        assert [(a.told, a.began, a.drift) for a in one.alarms] == [
            (a.told, a.began, a.drift) for a in other.alarms
        ]
        assert [a.ratio for a in one.alarms] == pytest.approx([a.ratio for a in other.alarms], rel=1e-9)
        for name in ("newest_ratio", "margin_ratio", "detectable_ratio"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9)


@pytest.mark.timeout(60)
def test_more_nights_than_runs_are_judged_to_the_end() -> None:
    """Runs that began at the same moment count as one."""
    values = [2.0 + 0.01 * (night % 3) if night < 16 else 2.6 for night in range(28)]
    nights = [night // 2 for night in range(28)]
    (found,) = watch_study([Series(values, nights, nights)])
    assert [alarm.began for alarm in found.alarms] == [16]
