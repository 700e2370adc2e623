"""What is estimated from readings of a board is the board's own, or is said to be unknown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llem_airflow.gpu_check import steady
from llem_airflow.gpu_check.register import Readings, Writes, find_clock, writes
from llem_airflow.gpu_check.window import find_window
from llem_airflow.measurement.board.plan import LONGEST_S, REPEATS, SHORTEST_S, plan, square_edges
from tests.gpu_check.boards import Board, read

PERIODS_S = st.floats(0.02, 1.0)
WINDOWS_S = st.floats(0.025, 1.0)


@settings(deadline=None, max_examples=25)
@given(
    period_s=PERIODS_S,
    jitter=st.sampled_from([0.0, 0.01, 0.05]),
    noise_w=st.sampled_from([0.0, 1.0, 20.0]),
    seed=st.integers(0, 99),
)
def test_a_period_is_found_within_two_percent(
    period_s: float, jitter: float, noise_w: float, seed: int
) -> None:
    board = Board(period_s, 0.025, jitter_s=jitter * period_s, noise_w=noise_w)
    power, counter, _ = read(board, max(20.0, 40 * period_s), seed)
    for readings in (counter, power):
        clock = find_clock(readings)
        assert clock is not None
        assert clock.period_s == pytest.approx(period_s, rel=0.02)
        # Of three standard errors one case in hundreds is outside, and this looks for it: five.
        assert abs(clock.period_s - period_s) <= 5 / 3 * clock.uncertainty_s + 1e-5
        # 100 seeds of 45 writes: mean 0.99, standard deviation 0.15; four of these, and less of more writes
        ratio = max(0.3, 4 / (max(20.0, 40 * period_s) / period_s) ** 0.5)
        assert clock.jitter_s == pytest.approx(jitter * period_s, abs=ratio * jitter * period_s + 0.0005)


@pytest.mark.parametrize("period_s", [0.1, 0.4375, 1.0])
def test_the_uncertainty_of_a_period_covers_it(period_s: float) -> None:
    clocks = [
        find_clock(readings)
        for seed in range(25)
        for readings in read(Board(period_s, 0.025, jitter_s=0.05 * period_s), 40 * period_s, seed)[:2]
    ]
    within = [one is not None and abs(one.period_s - period_s) <= one.uncertainty_s + 1e-5 for one in clocks]
    assert sum(within) >= 0.98 * len(within)


@settings(deadline=None, max_examples=30)
@given(
    period_s=PERIODS_S,
    window_s=WINDOWS_S,
    lag_s=st.sampled_from([0.0, 0.025]),
    noise_w=st.sampled_from([0.0, 0.5, 3.0, 40.0]),
    seed=st.integers(0, 99),
)
def test_a_window_is_found_within_two_percent_or_said_to_be_unknown(
    period_s: float, window_s: float, lag_s: float, noise_w: float, seed: int
) -> None:
    power, _, load = read(Board(period_s, window_s, lag_s, noise_w=noise_w), max(30.0, 40 * period_s), seed)
    found = find_window(writes(power, find_clock(power)), load)
    if found.window_s is None:
        assert found.why
    else:
        assert found.window_s == pytest.approx(window_s, rel=0.025)
        assert found.lag_s == pytest.approx(lag_s, abs=0.005 + 0.02 * window_s)


@pytest.mark.parametrize(
    ("period_s", "window_s"), [(0.02, 0.01), (0.1, 0.025), (0.1, 0.1), (0.1, 1.0), (0.05, 0.2)]
)
def test_windows_of_known_boards_are_known_on_quiet_ones(period_s: float, window_s: float) -> None:
    power, _, load = read(Board(period_s, window_s, noise_w=0.3), 48.0, 7)
    assert find_window(writes(power, find_clock(power)), load).window_s == pytest.approx(window_s, rel=0.02)


def test_noise_as_large_as_the_load_leaves_the_window_unknown() -> None:
    power, _, load = read(Board(noise_w=300.0), 30.0, 1)
    found = find_window(writes(power, find_clock(power)), load)
    assert (found.window_s, "noise" in found.why) == (None, True)


def test_a_register_that_hardly_changes_or_is_faster_than_its_readings_has_no_period() -> None:
    power, _, _ = read(Board(noise_w=0.0, high_w=60.0), 10.0, 1)
    assert find_clock(power) is None
    _, counter, _ = read(Board(period_s=0.003), 10.0, 1)
    assert find_clock(counter) is None


def test_writes_at_random_have_no_period() -> None:
    rng = np.random.default_rng(3)
    t_s = np.arange(0, 20, 0.002)
    values = np.searchsorted(np.sort(rng.uniform(0, 20, 200)), t_s).astype(float)
    assert find_clock(Readings(t_s, t_s + 1e-4, values)) is None


@settings(max_examples=30, deadline=None)
@given(step=st.integers(1, 1000), rises=st.lists(st.integers(1, 10**6), min_size=50, max_size=60))
def test_a_counter_s_step_is_its_unit(step: int, rises: list[int]) -> None:
    counter = np.cumsum([0, *rises]) * float(step)
    found = steady.counter_step(counter)
    assert found is not None
    assert found % step == 0
    assert found == step * float(np.gcd.reduce(rises))
    assert steady.counter_step(counter[:5]) is None


@settings(max_examples=15, deadline=None)
@given(tau_s=st.floats(4.0, 30.0), seed=st.integers(0, 99))
def test_a_thermal_time_constant_is_found(tau_s: float, seed: int) -> None:
    t_s = np.arange(0, 90, 0.5)
    temperature_c = np.round(
        70 - 30 * np.exp(-t_s / tau_s) + np.random.default_rng(seed).normal(0, 0.2, len(t_s))
    )
    assert steady.thermal_time_constant(t_s, temperature_c) == pytest.approx(tau_s, rel=0.12)


def test_a_straight_or_a_small_warming_tells_no_time_constant() -> None:
    t_s = np.arange(0, 90, 0.5)
    assert steady.thermal_time_constant(t_s, np.round(40 + 0.2 * t_s)) is None
    assert steady.thermal_time_constant(t_s, np.round(40 + 2 * (1 - np.exp(-t_s / 10)))) is None


def test_noise_is_that_around_a_drift() -> None:
    values = 100 + np.linspace(0, 20, 500) + np.random.default_rng(1).normal(0, 2.0, 500)
    assert steady.noise(values) == pytest.approx(2.0, rel=0.1)
    assert steady.noise(values[:7]) is None


def test_counter_over_integral_is_the_gain_between_them() -> None:
    t_s = np.arange(0, 10, 0.1)
    assert steady.counter_to_integral(
        Writes(t_s, 210.0 * t_s), Writes(t_s, np.full(100, 200.0))
    ) == pytest.approx(1.05)
    assert steady.counter_to_integral(Writes(t_s[:1], t_s[:1]), Writes(t_s, t_s)) is None


def test_equal_loads_vary_by_nothing_and_unequal_ones_by_their_spread() -> None:
    t_s = np.linspace(0, 50, 5001)
    begin_s = np.array([1.0, 11.0, 21.0, 31.0, 41.0])
    end_s = np.array([6.0, 16.0, 26.0, 36.0, 46.0])
    even = Writes(t_s, 300.0 * t_s)
    assert steady.repeat_cv(even, begin_s, end_s) == pytest.approx(0, abs=1e-9)
    assert steady.repeat_cv(even, begin_s[:2], end_s[:2]) is None
    rising = Writes(t_s, 0.5 * t_s**2)
    powers_w = (begin_s + end_s) / 2
    assert steady.repeat_cv(rising, begin_s, end_s) == pytest.approx(
        powers_w.std(ddof=1) / powers_w.mean(), rel=1e-3
    )


@given(total_s=st.floats(6, 3600))
def test_a_plan_fills_its_time_and_no_load_leaves_its_phase(total_s: float) -> None:
    phases = plan(total_s)
    assert phases[0].begin_s == 0
    assert phases[-1].end_s == pytest.approx(total_s)
    assert len(phases[-1].edges) == REPEATS
    for phase in phases:
        times = [phase.begin_s, *(at for edge in phase.edges for at in edge), phase.end_s]
        assert times == sorted(times)


def test_halves_of_the_square_load_are_within_their_limits() -> None:
    edges = np.array(square_edges(0.0, 300.0))
    halves = np.concatenate([edges[:, 1] - edges[:, 0], edges[1:, 0] - edges[:-1, 1]])
    assert len(edges) > 100
    assert halves.min() >= SHORTEST_S - 1e-9
    assert halves.max() <= LONGEST_S + 1e-9
