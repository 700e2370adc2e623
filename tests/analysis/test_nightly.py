"""What the nightly verdict promises, by the short form of ``benchmarks/nightly.py``."""

from __future__ import annotations

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
from llem_airflow.analysis.alarm import QUARTER, Nights, Series, watch_study
from llem_airflow.analysis.noise import Pattern, Prior


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
    assert found[1] == pytest.approx(margin, rel=1e-3)
