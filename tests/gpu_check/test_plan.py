"""The plan of a board's check: when its load is switched on and off, by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest

from llem_airflow.measurement.board.plan import SAMPLER_S, plan, square_edges


def test_a_plan_shares_its_time_as_it_says() -> None:
    phases = plan(100.0)
    assert [one.name for one in phases] == ["bare", "context", "square", "full", "repeat"]
    assert [one.begin_s for one in phases] == pytest.approx([0.0, 10.0, 20.0, 70.0, 85.0])
    assert [one.end_s for one in phases] == pytest.approx([10.0, 20.0, 70.0, 85.0, 100.0])
    assert [one.edges for one in phases[:2]] == [(), ()]
    assert SAMPLER_S == 0.5


def test_full_load_leaves_half_a_second_or_a_fifth_at_each_end() -> None:
    (full,) = plan(100.0)[3].edges
    assert full == pytest.approx((70.5, 84.5))
    (short,) = plan(10.0)[3].edges  # from 7.0 to 8.5 s
    assert short == pytest.approx((7.3, 8.2))


def test_a_load_is_repeated_five_times_for_six_tenths_of_the_turn() -> None:
    edges = plan(100.0)[4].edges
    assert [on_s for on_s, _ in edges] == pytest.approx([85.9, 88.9, 91.9, 94.9, 97.9])
    assert [off_s for _, off_s in edges] == pytest.approx([87.7, 90.7, 93.7, 96.7, 99.7])


def test_halves_of_the_square_are_spread_by_the_golden_ratio_over_their_logarithm() -> None:
    """0.09 s x (0.7 / 0.09)^x for x = 0, 0.618, 0.236, 0.854, 0.472: the golden ratio from the root of 5."""
    halves_s = [0.09, 0.319758, 0.146065, 0.518948, 0.237054]
    edges = square_edges(10.0, 12.0)
    assert edges[0] == pytest.approx((10.3, 10.39), abs=1e-5)
    assert edges[1] == pytest.approx((10.3 + sum(halves_s[:2]), 10.3 + sum(halves_s[:3])), abs=1e-5)
    whole_s = 10.3 + sum(halves_s[:4])
    assert square_edges(10.0, whole_s - 1e-4) == edges[:1]  # the second on and off do not fit any more
    assert square_edges(10.0, whole_s + 1e-4) == edges[:2]
    assert square_edges(10.0, 10.7) == ()
    assert edges[2][0] == pytest.approx(whole_s, abs=1e-5)
    assert plan(100.0)[2].edges[0] == pytest.approx((20.3, 20.39))
    assert plan(100.0)[2].edges[-1][1] < 69.5 <= square_edges(20.0, 70.5)[-1][1]


def test_halves_last_between_the_shortest_and_the_longest() -> None:
    edges = square_edges(0.0, 1000.0)
    on_s = [off - on for on, off in edges]
    off_s = [following[0] - before[1] for before, following in pairwise(edges)]
    for halves in (on_s, off_s):
        assert min(halves) == pytest.approx(0.09, rel=0.02)
        assert max(halves) == pytest.approx(0.7, rel=0.02)
        assert min(halves) >= 0.09 - 1e-9
        assert max(halves) <= 0.7 + 1e-9
