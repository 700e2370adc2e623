from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import theilslopes

from llem_airflow.analysis.formatting import interval
from llem_airflow.analysis.statistics import (
    Description,
    bca_interval,
    degrees_of_freedom,
    describe,
    mean_of,
    outliers,
    slope_ratio,
    t_interval,
    tells_interval,
)
from llem_airflow.protocol.typed_json import from_json, to_json

# R: x <- c(9.8, 10.1, 10.0, 10.4, 9.7); mean 10, sd 0.2738613, t.test: 9.659956 to 10.340044;
# mad(x, constant = 1) 0.2.
VALUES = (9.8, 10.1, 10.0, 10.4, 9.7)


def test_describe_agrees_with_r() -> None:
    found = describe(VALUES)
    assert found is not None
    assert found.interval is not None
    assert found.n == 5
    assert found.mean == pytest.approx(10.0)
    assert found.sd == pytest.approx(0.2738613, rel=1e-6)
    assert found.cv_ratio == pytest.approx(0.02738613, rel=1e-6)
    assert [found.median, found.mad] == pytest.approx([10.0, 0.2])
    # 10 x exp(-+ 0.0340044), which is R's half width.
    assert [found.interval.low, found.interval.high] == pytest.approx([9.665673, 10.345892])
    assert found.half_width_ratio == pytest.approx(0.0340110, rel=1e-5)


def test_a_quantity_that_can_be_negative_has_the_interval_of_r() -> None:
    found = describe(VALUES, signed=True)
    assert found is not None
    assert found.interval is not None
    assert [found.interval.low, found.interval.high] == pytest.approx([9.659956, 10.340044])


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=8))
def test_the_interval_of_a_quantity_that_cannot_be_negative_is_not_either_and_holds_the_mean(
    values: list[float],
) -> None:
    found = describe(values)
    assert found is not None
    assert (found.interval is None) == (len(values) == 1)
    if found.interval is not None:
        assert 0.0 <= found.interval.low <= found.mean <= found.interval.high
        assert math.isfinite(found.interval.high)


def test_a_negative_value_of_a_quantity_that_has_none_gives_no_interval() -> None:
    found = describe([1.0, -1.0, 2.0])
    assert found is not None
    assert found.interval is None


def test_the_fifth_and_ninety_fifth_percentile_need_twenty_values() -> None:
    few, many = describe(range(1, 20)), describe(range(21))
    assert few is not None
    assert many is not None
    assert (few.p5, few.p95) == (None, None)
    assert (many.p5, many.p95) == (1.0, 19.0)


def test_two_values_have_no_interval_that_is_shown() -> None:
    two, three = describe([50.0, 69.0]), describe([50.0, 69.0, 60.0])
    assert two is not None
    assert three is not None
    assert two.shown_interval is None
    assert interval(two) == "no interval (n = 2)"
    assert three.shown_interval == three.interval


def test_one_value_has_no_interval_and_no_spread() -> None:
    found = describe([3.0])
    assert found is not None
    assert found.mean == found.median == 3.0
    assert (found.sd, found.cv_ratio, found.mad, found.interval, found.bootstrap) == (None,) * 5


def test_no_value_is_no_description() -> None:
    assert describe([]) is None


def test_bca_stands_beside_t_from_twenty_values_on() -> None:
    values = np.random.default_rng(7).normal(100, 2, 20).tolist()
    assert bca_interval(values[:19]) is None
    boot, t = bca_interval(values), t_interval(values)
    assert boot is not None
    assert t is not None
    assert [boot.low, boot.high] == pytest.approx([t.low, t.high], abs=0.3)


def test_bca_gives_the_same_bytes_every_time() -> None:
    values = np.random.default_rng(7).normal(100, 2, 25).tolist()
    assert bca_interval(values) == bca_interval(values)


def test_values_without_spread_have_an_interval_of_no_width() -> None:
    found = describe([2.0] * 25)
    assert found is not None
    assert found.interval is not None
    assert found.interval.low == found.interval.high == 2.0
    assert found.bootstrap is None


def test_an_outlier_is_flagged_and_kept() -> None:
    found = describe([10.0, 10.1, 9.9, 10.05, 12.0])
    assert found is not None
    assert found.outliers == (4,)
    assert found.n == 5
    assert found.mean == pytest.approx(10.41)


def test_three_values_have_no_outlier() -> None:
    assert outliers([1.0, 1.0, 9.0]) == ()


def test_the_t_interval_covers_as_it_says() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(2000):
        found = t_interval(rng.normal(50, 1, 3).tolist())
        assert found is not None
        hits += found.low <= 50 <= found.high
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


def test_drift_over_the_study_is_found() -> None:
    assert slope_ratio([0, 1, 2, 3], [100.0, 101.0, 102.0, 103.0]) == pytest.approx(1 / 101.5)
    assert slope_ratio([0, 1, 2], [1.0, 2.0, 3.0]) is None


@pytest.mark.parametrize(("far", "told"), [(5.18, ()), (3.5 * 1.4826, ()), (5.20, (6, 7))])
def test_an_outlier_lies_beyond_three_and_a_half_scaled_deviations(far: float, told: tuple[int, ...]) -> None:
    """The median is 0 and its absolute deviation 1, so that the limit is 3.5 x 1.4826 = 5.1891."""
    assert outliers([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0, far, -far]) == told


def test_four_values_can_have_an_outlier() -> None:
    """Median 2.5, deviation 1."""
    assert outliers([1.0, 2.0, 3.0, 100.0]) == (3,)


@pytest.mark.parametrize("n", [20, 22, 33])
def test_percentiles_and_spread_are_those_of_numpy_and_python(n: int) -> None:
    values = np.random.default_rng(n).normal(0.0, 1e3, n).tolist()
    found = describe(values, signed=True)
    assert found is not None
    assert [found.p5, found.p95] == pytest.approx(np.quantile(values, [0.05, 0.95]).tolist(), abs=1e-6)
    assert found.sd == pytest.approx(statistics.stdev(values), rel=1e-9, abs=1e-6)
    assert found.mean == pytest.approx(statistics.fmean(values), abs=1e-6)


def test_an_interval_of_another_confidence_is_that_of_r() -> None:
    """R: t.test(x, conf.level = 0.9): 9.738901 to 10.261099."""
    found = t_interval(VALUES, 0.9, signed=True)
    assert found is not None
    assert [found.low, found.high] == pytest.approx([9.738901, 10.261099])
    assert (found.confidence, found.method) == (0.9, "t")


def test_the_interval_of_what_cannot_be_negative_is_above_nothing_however_far_values_scatter() -> None:
    found = t_interval([1.0, 9.0, 2.0])
    assert found is not None
    assert found.low > 0
    assert t_interval([-1.0, 9.0, 2.0]) is None


def test_values_of_nothing_have_an_interval_of_nothing() -> None:
    found = describe([0.0, 0.0])
    assert found is not None
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == (0.0, 0.0)
    assert (found.cv_ratio, found.half_width_ratio) == (None, None)


def test_the_mean_is_right_up_to_the_largest_float() -> None:
    assert mean_of([1.7e308, 1.5e308]) == pytest.approx(1.6e308)
    assert mean_of([-1.7e308, -1.5e308]) == pytest.approx(-1.6e308)
    assert mean_of([0.1] * 3) == 0.1


@given(st.lists(st.integers(-50, 50).filter(bool), min_size=4, max_size=9), st.permutations(range(9)))
def test_the_drift_is_the_slope_of_theil_and_sen(values: list[int], order: list[int]) -> None:
    middle = statistics.median(values)
    positions = [float(position) for position in order[: len(values)]]
    expected = theilslopes(values, positions).slope / abs(middle) if middle else None
    assert slope_ratio(positions, [float(value) for value in values]) == (
        None if expected is None else pytest.approx(expected)
    )


def test_values_at_one_position_have_no_drift() -> None:
    assert slope_ratio([1.0] * 4, [1.0, 2.0, 3.0, 4.0]) is None


@pytest.mark.parametrize(
    ("n", "hosts", "df"), [(1, 1, 0), (4, 1, 3), (5, 2, 3), (3, 2, 1), (2, 2, 1), (3, 3, 2)]
)
def test_each_host_takes_a_degree_of_freedom_and_hosts_of_one_value_each_leave_all_but_one(
    n: int, hosts: int, df: int
) -> None:
    assert degrees_of_freedom(n, hosts) == df
    assert tells_interval(n, hosts) == (df >= 2)


def test_two_values_have_a_spread_of_every_kind() -> None:
    found = describe([1.0, 3.0])
    assert found is not None
    assert (found.mad, found.median) == (1.0, 2.0)
    assert found.sd == pytest.approx(2**0.5)


def test_a_description_of_one_host_says_nothing_of_hosts_and_reads_back() -> None:
    found = describe([1.0, 2.0, 3.0])
    written = to_json(found)
    assert "hosts" not in written
    assert from_json(Description, written, "summary.json") == found
