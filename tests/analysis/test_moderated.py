"""What the experiments of two runs say together of how much cycles differ."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.error_rates import shipped
from llem_airflow.analysis.verdict import Usual, Verdict, compare, usual_error

ALARMS = {Verdict.REGRESSION, Verdict.IMPROVEMENT}


def test_one_change_of_eight_is_found_from_three_cycles() -> None:
    """By its own variance alone it is in less than half."""
    false, _, found = shipped(np.random.default_rng(1), 8, 1, 16, n=3, cv=0.01, change=0.05)
    assert found >= 0.85
    assert false <= 0.1


@pytest.mark.parametrize("apart", [0.0, 0.6])
def test_flat_experiments_make_few_false_alarms_also_where_they_differ(apart: float) -> None:
    _, runs_with_one, _ = shipped(np.random.default_rng(2), 8, 0, 40, n=3, cv=0.01, change=0.0, apart=apart)
    assert runs_with_one <= 0.1


def test_the_more_experiments_differ_the_less_they_say() -> None:
    rng = np.random.default_rng(3)

    def df(apart: float) -> float:
        drawn = np.exp(rng.normal(0, apart, 30)) * 1e-4 * rng.chisquare(4, 30) / 4
        usual = Usual.of([(float(v), 4.0) for v in drawn])
        assert usual is not None
        return usual.df

    assert df(2.0) < 2
    assert df(0.0) > 4


def test_few_experiments_and_those_without_spread_stay_as_they_are() -> None:
    noisy, exact = ([1.0, 1.01, 1.02], [1.05, 1.06, 1.08]), ([1.0] * 3, [1.1] * 3)
    assert usual_error([noisy] * 3) is None
    assert usual_error([*[noisy] * 3, exact, ([0.0] * 3, [0.0] * 3), ([1.0], [2.0])]) is None
    usual = usual_error([noisy] * 4)
    assert usual is not None
    assert compare(*exact, "lower", usual=usual) == compare(*exact, "lower")


def test_what_the_others_say_stands_in_every_number_of_a_comparison() -> None:
    sides = ([1.0, 1.01, 1.02], [1.05, 1.06, 1.08])
    usual = Usual(variance=0.005**2, df=8.0, most_df=30.0)
    alone, beside = compare(*sides, "lower"), compare(*sides, "lower", usual=usual)
    assert (alone.method, beside.method) == ("welch", "moderated welch")
    assert beside.difference_ratio == alone.difference_ratio
    for smaller, larger in ((beside.p, alone.p), (beside.detectable_ratio, alone.detectable_ratio)):
        assert smaller is not None
        assert larger is not None
        assert smaller < larger
    assert alone.low_ratio is not None
    assert beside.low_ratio is not None
    assert beside.low_ratio > alone.low_ratio
