from __future__ import annotations

import pytest

from llem_airflow.analysis.statistics import pareto


def test_only_points_that_nothing_beats_remain() -> None:
    points = {"frugal": (1.0, 10.0), "fast": (2.0, 20.0), "worse": (2.0, 15.0), "bad": (3.0, 5.0)}
    assert pareto(points, ("lower", "higher")) == {"frugal", "fast"}


def test_equal_points_do_not_beat_each_other() -> None:
    assert pareto({"a": (1.0, 1.0), "b": (1.0, 1.0)}, ("lower", "higher")) == {"a", "b"}


def test_a_point_is_told_only_where_its_interval_separates_from_every_other() -> None:
    points = {"sure": ((1.0, 1.1), (10.0, 11.0)), "fast": ((2.0, 2.1), (20.0, 21.0))}
    assert pareto(points, ("lower", "higher")) == {"sure", "fast"}
    overlapping = points | {"vague": ((0.5, 8.5), (9.0, 30.0))}
    assert pareto(overlapping, ("lower", "higher")) == set()
    assert pareto(points | {"unknown": (None, 5.0)}, ("lower", "higher")) == {"sure", "fast"}
    assert pareto(points | {"unknown": (None, None)}, ("lower", "higher")) == set()


def test_a_point_that_is_as_good_and_better_in_one_coordinate_beats_another() -> None:
    assert pareto({"a": (1.0, 10.0), "b": (1.0, 11.0)}, ("lower", "higher")) == {"b"}
    assert pareto({"a": (2.0, 11.0), "b": (1.0, 11.0)}, ("lower", "higher")) == {"b"}


def test_a_point_without_one_of_the_coordinates_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        pareto({"a": (1.0,)}, ("lower", "lower"))
