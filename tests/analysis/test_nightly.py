"""What the nightly verdict promises, by the short form of ``benchmarks/nightly.py``."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.nightly import CALM, HARD, delays, drifts_found, false_a_quarter, nightly_verdict, welch
from llem_airflow.analysis.level_tests import QUARTER


def test_forty_experiments_have_at_most_one_false_alarm_a_quarter() -> None:
    rng = np.random.default_rng(1)
    assert false_a_quarter(nightly_verdict, rng, HARD, 120, QUARTER) <= 1
    assert false_a_quarter(welch, rng, HARD, 160, QUARTER) > 100


@pytest.mark.parametrize(("step", "nights"), [(0.05, 3), (0.03, 7), (-0.05, 3)])
def test_a_step_is_told_in_time(step: float, nights: int) -> None:
    assert np.median(delays(nightly_verdict, np.random.default_rng(2), CALM, step, 20)) <= nights


@pytest.mark.parametrize("before", [1, 2, 4])
def test_an_outlier_before_a_step_does_not_delay_it(before: int) -> None:
    found = delays(nightly_verdict, np.random.default_rng(3), CALM, 0.05, 20, outlier=before)
    assert np.median(found) <= 3
    assert np.mean(np.isfinite(found)) >= 0.95


def test_a_drift_of_three_percent_a_year_is_told() -> None:
    assert drifts_found(np.random.default_rng(4), CALM, 0.03, 4) == 1.0
    assert drifts_found(np.random.default_rng(5), CALM, 0.0, 4) == 0.0
