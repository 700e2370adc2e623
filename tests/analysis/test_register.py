"""When the counter moved: found from a few sharp moves, told only as far as the readings tell it."""

from __future__ import annotations

import math
import random
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llem_airflow.analysis.counter import Register, counter_energy, find_register, find_writes, seen_writes
from llem_airflow.analysis.series import GpuSeries, series_by_gpu
from tests.analysis.sampled import GPU, at_ns, columns, row

WATTS = 300.0


def series(
    period_s: float, phase_s: float, watched_s: Sequence[float], *, end_s: float = 40.0, seed: int = 0
) -> GpuSeries:
    """Regular readings with some jitter, and pairs a millisecond apart around the moves that follow some times."""
    chance = random.Random(seed)
    t_s = [-1.5 + i / 10 + chance.uniform(0, 0.004) for i in range(round((end_s + 3) * 10))]
    for at_s in watched_s:
        move_s = phase_s + math.ceil((at_s - phase_s) / period_s) * period_s
        first_s = move_s - chance.uniform(0.0001, 0.0009)
        t_s += [first_s, first_s + 0.001]
    rows = [
        row(
            t, power_instant_mw=300_000, energy_mj=round(WATTS * 1e3 * (100 + _moved_s(t, period_s, phase_s)))
        )
        for t in sorted(t_s)
    ]
    return series_by_gpu(columns(rows), at_ns(0))[GPU]


def _moved_s(t_s: float, period_s: float, phase_s: float) -> float:
    """When the register was last written."""
    return phase_s + math.floor((t_s - phase_s) / period_s) * period_s


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.sampled_from([0.1, 0.1003, 0.1009, 0.0992]),
    st.floats(0, 0.1),
    st.floats(5, 35),
    st.integers(0, 1000),
)
@example(0.1, 0.001953125, 5.0, 0)  # readings beside the writes: some just miss one
@example(0.1, 0.001953125, 5.0, 1)
@example(
    0.1003, 0.0, 5.0, 549
)  # readings after the edge lie on moves and are left out: the curve is continued
@example(0.1003, 0.0, 8.0, 135)  # one end less certain than usual
def test_edges_without_a_sharp_move_beside_them_are_known_from_those_elsewhere(
    period_s: float, phase_s: float, end_s: float, seed: int
) -> None:
    watched = (-1.4, -1.4 + period_s, -0.4, 1.6, 5.6, 15.6, 25.6, 35.6)
    seen = series(period_s, phase_s, watched, seed=seed)
    found = counter_energy(seen, 0.37, end_s, steps=True)
    assert found.uncertainty_j is not None
    assert found.energy_j == pytest.approx(WATTS * (end_s - 0.37), abs=found.uncertainty_j)
    assert found.uncertainty_j < WATTS * 0.006  # one of 500 draws has more than 0.004


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([0.1, 0.1007, 0.0986, 0.1014]), st.floats(0, 0.1), st.integers(0, 1000))
@example(0.0988, 0.04209186792090759, 197173)  # no sharp move near the end: the period's doubt counts, too
def test_the_energy_is_never_further_off_than_it_says(period_s: float, phase_s: float, seed: int) -> None:
    for watched in ((), (0.0,), (3.0,), (-1.0, 10.0), (-1.0, 0.0, 20.1)):
        found = counter_energy(series(period_s, phase_s, watched, seed=seed), 0.0, 20.0, steps=True)
        assert found.energy_j is not None
        assert found.uncertainty_j is not None
        millijoules_j = 0.002  # the counter tells whole ones
        assert abs(found.energy_j - WATTS * 20) <= found.uncertainty_j + millijoules_j


def test_the_period_is_counted_from_near_moves_to_far_ones() -> None:
    seen = series(0.1007, 0.03, (-1.4, -1.3, -0.4, 1.6, 5.6, 15.6, 25.6))
    register = find_register(seen_writes(seen.t_s, seen.call_s, seen.counter_j), seen.t_s)
    assert register is not None
    assert register.period_s == pytest.approx(0.1007, abs=2e-5)
    assert (
        0.0 < register.wander_s < 0.001
    )  # no move is further from the middle of its readings than half of that


def test_a_faster_register_is_recognised_by_two_moves_in_a_row() -> None:
    found = counter_energy(series(0.02, 0.013, (-1.4, -1.38, 0.0, 20.0)), 0.0, 20.0, steps=True)
    assert found.energy_j == pytest.approx(WATTS * 20, abs=WATTS * 0.002)


def test_a_far_move_alone_does_not_pretend_to_know_the_period() -> None:
    seen = series(0.1007, 0.03, (-1.0, 30.0))
    register = find_register(seen_writes(seen.t_s, seen.call_s, seen.counter_j), seen.t_s)
    assert register is not None
    assert register.period_off_s == pytest.approx(0.0015)


def test_without_a_sharp_move_there_is_no_register() -> None:
    seen = series(0.1, 0.0, ())
    assert find_register(seen_writes(seen.t_s, seen.call_s, seen.counter_j), seen.t_s) is None


@pytest.mark.parametrize("period_s", [0.02, 0.05, 0.15, 0.2, 0.5, 1.0])
def test_other_periods_are_recognised(period_s: float) -> None:
    seen = series(period_s, 0.013, (-1.4, -1.4 + 1.01 * period_s, 0.0, 5.0, 20.0))
    register = find_register(seen_writes(seen.t_s, seen.call_s, seen.counter_j), seen.t_s)
    assert register is not None
    assert register.period_s == pytest.approx(period_s, abs=0.0015)


def test_writes_that_keep_no_steady_time_are_bounded_by_the_readings_alone() -> None:
    chance = random.Random(3)
    moves_s = [-2 + 0.1 * i + chance.uniform(0, 0.02) for i in range(250)]
    t_s = sorted(
        [-1.5 + i / 10 for i in range(230)] + [m + d for m in moves_s[20::23] for d in (-0.0005, 0.0005)]
    )
    held = [max((m for m in moves_s if m <= t), default=moves_s[0]) for t in t_s]
    rows = [
        row(t, power_instant_mw=300_000, energy_mj=round(WATTS * 1e3 * (100 + at_s)))
        for t, at_s in zip(t_s, held, strict=True)
    ]
    seen = series_by_gpu(columns(rows), at_ns(0))[GPU]
    writes = find_writes(seen.t_s, seen.call_s, seen.counter_j)
    true_s = (writes.y / WATTS) - 100
    assert ((writes.after_s <= true_s + 1e-5) & (true_s <= writes.before_s + 1e-5)).all()


def test_a_register_that_is_written_less_than_once_a_second_has_no_uncertainty_to_state() -> None:
    found = counter_energy(series(2.0, 0.3, ()), 0.0, 20.0, steps=True)
    assert found.energy_j == pytest.approx(WATTS * 20, rel=0.05)
    assert found.uncertainty_j is None


@given(
    st.integers(1, 12),
    st.integers(0, 30),
    st.sampled_from([0.0, 1e-6, 1e-3]),
    st.randoms(use_true_random=False),
)
def test_the_best_move_is_that_of_all_moves(
    moves: int, instants: int, period_off_s: float, chance: random.Random
) -> None:
    moves_s = np.sort([chance.uniform(0, 100) for _ in range(moves)])
    off_s = np.array([chance.choice([1e-4, 2e-4, chance.uniform(1e-5, 1e-3)]) for _ in range(moves)])
    t_s = np.array([chance.uniform(-5, 105) for _ in range(instants)] + list(moves_s))
    _, doubt_s = Register(moves_s, off_s, 0.1, period_off_s, 0.0).last_write(t_s)
    every_s = off_s + np.abs(t_s[:, None] - moves_s) / 0.1 * period_off_s
    assert doubt_s == pytest.approx(every_s.min(axis=1), rel=1e-9)


def test_a_counter_that_moves_at_every_reading_of_a_long_window_costs_little_memory() -> None:
    moves_s = np.arange(30_000) / 100.0
    tracemalloc.start()
    try:
        Register(moves_s, np.full(30_000, 1e-4), 0.01, 1e-7, 0.0).last_write(moves_s + 0.001)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50e6
