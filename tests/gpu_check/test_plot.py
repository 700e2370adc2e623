"""A plot has round ticks around all of its points, whatever these are."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from llem_airflow.gpu_check.page import plot

VALUES = st.lists(st.floats(-1e15, 1e15, allow_subnormal=False), min_size=1, max_size=20)


@given(VALUES)
@example([0.0, 5.7])  # between five and six steps of one
@example([60.0, 60.0])
@example([1e15, 1e15 + 0.25])
@example([40.0, 40.0001])
def test_every_point_lies_between_the_first_and_the_last_of_a_few_ticks(values: list[float]) -> None:
    y = np.array(values)
    figure = plot("Power", "s", "W", np.arange(len(y), dtype=float), y)
    ticks = re.findall(r"text-anchor=end>([^<]+)<", figure)
    assert 2 <= len(ticks) <= 8
    assert len({*ticks}) == len(ticks)
    points = [tuple(map(float, point)) for point in re.findall(r"M([-\d.]+) ([-\d.]+)h0", figure)]
    assert len(points) == len(values)
    assert all(52 <= x <= 630 and 10 <= y <= 206 for x, y in points)
