from __future__ import annotations

from llem_airflow.analysis.pareto import pareto


def test_only_points_that_nothing_beats_remain() -> None:
    points = {"frugal": (1.0, 10.0), "fast": (2.0, 20.0), "worse": (2.0, 15.0), "bad": (3.0, 5.0)}
    assert pareto(points, ("lower", "higher")) == {"frugal", "fast"}


def test_equal_points_do_not_beat_each_other() -> None:
    assert pareto({"a": (1.0, 1.0), "b": (1.0, 1.0)}, ("lower", "higher")) == {"a", "b"}
