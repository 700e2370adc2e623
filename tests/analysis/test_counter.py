"""The counter's energy, its writes and its clock, against closed forms: every number here can be had with a pencil."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from llem_airflow.analysis.counter import (
    Register,
    Writes,
    counter_energy,
    find_register,
    find_writes,
    seen_writes,
)
from llem_airflow.analysis.series import Floats, GpuSeries, series_by_gpu
from llem_airflow.protocol.gpu_profile import Sensor
from tests.analysis.sampled import GPU, T0_NS, at_ns, columns

HALF_S = 0.0005
"""A sharp move lies between two readings, so much before and after it."""


def held(t_s: Floats, period_s: float = 0.1) -> Floats:
    """When a register that is written at whole periods was last written."""
    return np.floor(t_s / period_s + 1e-6) * period_s


def watched(
    moves_s: Sequence[float], begin_s: float = -1.05, end_s: float = 15.0, every_s: float = 0.1
) -> Floats:
    """Times of regular readings, and of two around each of some moves."""
    regular = np.arange(round((end_s - begin_s) / every_s)) * every_s + begin_s
    return np.sort(np.concatenate([regular, *([move - HALF_S, move + HALF_S] for move in moves_s)]))


def register_of(moves_s: Sequence[float], *, sensor: Sensor | None = None) -> Register:
    t_s = watched(moves_s)
    found = find_register(seen_writes(t_s, np.zeros_like(t_s), 300.0 * held(t_s)), t_s, sensor or Sensor())
    assert found is not None
    return found


def series(
    t_s: Floats, counter_j: Floats, *, call_s: float = 0.0, power_w: Floats | None = None
) -> GpuSeries:
    """What was read of a device: whole millijoules, and power where there is one."""
    rows = [
        {
            "t_before_mono_ns": at_ns(t - call_s / 2),
            "t_after_mono_ns": at_ns(t + call_s / 2),
            "gpu": GPU,
            "energy_mj": round(joules * 1e3),
            "power_instant_mw": None if power_w is None else round(float(power_w[i]) * 1e3),
        }
        for i, (t, joules) in enumerate(zip(t_s.tolist(), counter_j.tolist(), strict=True))
    ]
    return series_by_gpu(columns(rows), T0_NS)[GPU]


@pytest.mark.parametrize(
    ("call_s", "limit_w", "uncertainty_j"),
    [
        (0.0, 400.0, 2 * 0.001 * 400),  # a millisecond old at most, and as much power as there can be
        (0.02, 400.0, 2 * 0.011 * 400),  # and half of the call
        (0.02, 4000.0, 2 * 100 * 0.1),  # no more than what was used from one reading to the next
    ],
)
def test_a_flowing_counter_is_off_by_its_age_at_each_edge(
    call_s: float, limit_w: float, uncertainty_j: float
) -> None:
    t_s = np.arange(-20, 121) / 10
    found = counter_energy(
        series(t_s, 100.0 * (t_s + 50), call_s=call_s), 0.0, 10.0, steps=False, limit_w=limit_w
    )
    assert found.energy_j == pytest.approx(1000.0)
    assert found.uncertainty_j == pytest.approx(uncertainty_j + 0.001, rel=1e-6)


def test_a_flowing_counter_is_straight_between_two_readings() -> None:
    t_s = np.array([-1.0, 0.0, 1.0, 2.0, 3.0, 4.0])
    used_j = np.array([0.0, 10.0, 30.0, 60.0, 100.0, 150.0])
    found = counter_energy(series(t_s, used_j + 7), 0.5, 2.25, steps=False)
    assert found.energy_j == pytest.approx((60 + 0.25 * 40) - (10 + 0.5 * 20))


@pytest.mark.parametrize(
    ("swing_w", "margin_w"), [(0.0, 0.003 * 300), (10.0, 20 / 4 + 0.003 * 310)], ids=["steady", "swinging"]
)
def test_what_the_readings_of_power_leave_open_is_a_quarter_of_their_range_and_three_permille(
    swing_w: float, margin_w: float
) -> None:
    """Edges on sharp moves: half a millisecond to each side, and a lag of 50 ms at two powers."""
    t_s = watched((0.0, 0.1, 1.1, 5.0, 10.0))
    power_w = 300.0 + swing_w * np.where(np.arange(len(t_s)) % 2, 1, -1)
    found = counter_energy(
        series(t_s, 300.0 * (held(t_s) + 20), power_w=power_w), 0.0, 10.0, steps=True, limit_w=1000.0
    )
    highest_w, lowest_w = 300 + swing_w + margin_w, 300 - swing_w - margin_w
    assert found.energy_j == pytest.approx(3000.0, abs=0.01)
    lag_s = 0.05
    expected_j = (lag_s + HALF_S) * highest_w - (lag_s - HALF_S) * lowest_w
    assert found.uncertainty_j == pytest.approx(expected_j + 0.001, rel=0.01)


def test_a_slow_register_hides_what_power_does_between_two_looks() -> None:
    """High power x the share that the limit leaves x 100 ms, at the edge that the lag moves into the unknown."""
    t_s = watched((0.0, 0.15, 1.5, 6.0, 12.0))
    found = counter_energy(
        series(t_s, 300.0 * (held(t_s, 0.15) + 20), power_w=np.full(len(t_s), 300.0)),
        0.0,
        12.0,
        steps=True,
        limit_w=1000.0,
    )
    hidden_j = 300.9 * (1 - 0.3009) * 0.1
    assert found.energy_j == pytest.approx(3600.0, abs=0.05)
    assert found.uncertainty_j == pytest.approx(hidden_j + (0.05 + HALF_S) * 300.9, rel=0.01)


def test_power_that_disagrees_with_the_counter_bounds_nothing() -> None:
    """Readings that tell 2 % too little: up to the limit is possible, as without any."""
    t_s = watched((0.0, 0.1, 1.1, 5.0, 10.0))
    counter_j = 300.0 * (held(t_s) + 20)

    def uncertainty_j(power_w: float | None) -> float:
        read = series(t_s, counter_j, power_w=None if power_w is None else np.full(len(t_s), power_w))
        found = counter_energy(read, 0.0, 10.0, steps=True, limit_w=600.0).uncertainty_j
        assert found is not None
        return found

    assert uncertainty_j(300 / 1.02) == uncertainty_j(None)
    assert uncertainty_j(300 * 1.02) == uncertainty_j(None)
    assert uncertainty_j(300 / 1.008) < 0.1 * uncertainty_j(None)
    assert uncertainty_j(300 * 1.008) < 0.1 * uncertainty_j(None)


@pytest.mark.parametrize("more_j", [30.0, -30.0], ids=["a burst", "a pause"])
def test_power_that_does_not_explain_a_rise_beside_an_edge_bounds_nothing_there(more_j: float) -> None:
    """Of 9000 J the readings miss a third of a percent, but all of it between two writes at the end.

    There up to the limit is possible, and so all that a period holds; at the begin the readings bound the power.
    """
    t_s = watched((0.0, 0.1, 1.1, 5.0, 30.0), end_s=35.0)
    counter_j = 300.0 * (held(t_s) + 20) + more_j * (t_s > 29.6)
    read = series(t_s, counter_j, power_w=np.full(len(t_s), 300.0))
    found = counter_energy(read, 0.0, 30.0, steps=True, limit_w=600.0)
    assert found.energy_j == pytest.approx(9000 + more_j)
    assert found.uncertainty_j == pytest.approx(300 * 0.1 - (0.05 - HALF_S) * 299.1 + 0.001, rel=0.002)


def test_a_small_device_is_told_as_well_as_a_large_one() -> None:
    """80 mW: the joules of ten seconds are less than one."""
    t_s = watched((0.0, 0.1, 1.1, 5.0, 10.0))
    read = series(t_s, 0.08 * (held(t_s) + 20), power_w=np.full(len(t_s), 0.08))
    found = counter_energy(read, 0.0, 10.0, steps=True, limit_w=0.3)
    margin_w = 0.003 * 0.08
    assert found.energy_j == pytest.approx(0.8)
    assert found.uncertainty_j == pytest.approx(0.001 + 2 * HALF_S * 0.08 + 2 * 0.05 * margin_w, rel=0.01)


@pytest.mark.parametrize(
    ("at_s", "resets"), [(-2.0, 0), (-0.6, 0), (-0.5, 1), (5.0, 1), (10.5, 1), (10.6, 0), (12.0, 0)]
)
def test_a_reset_counts_from_half_a_second_before_the_window_to_half_a_second_after(
    at_s: float, resets: int
) -> None:
    t_s = np.arange(260) / 10 - 5.05
    used_j = 300.0 * (held(t_s) + 20)
    used_j[t_s > at_s] -= used_j[t_s > at_s][0]
    found = counter_energy(series(t_s, used_j), 0.0, 10.0, steps=True)
    assert found.resets == resets
    assert found.energy_j == (None if resets else pytest.approx(3000.0, abs=1.0))
    assert (found.uncertainty_j is None) == bool(resets)


def test_a_counter_that_moves_once_is_taken_between_the_readings_and_how_far_it_is_off_is_not_known() -> None:
    t_s = np.arange(130) / 10 - 1
    found = counter_energy(series(t_s, np.where(t_s > 5, 40.0, 0.0)), 0.0, 10.0, steps=True)
    assert (found.energy_j, found.uncertainty_j) == (40.0, None)
    still = counter_energy(series(t_s, np.where(t_s > 10.5, 40.0, 0.0)), 0.0, 10.0, steps=True)
    assert (still.energy_j, still.uncertainty_j, still.resets) == (None, None, 0)


@pytest.mark.parametrize(
    ("moves_s", "period_off_s"),
    [
        ((0.0,), 0.0015),  # 1.5 % of the usual period
        ((0.0, 11.1), 0.0015),  # could be 110 or 112 periods
        ((0.0, 0.1), 0.001),  # each end is known to half a millisecond
        ((0.0, 0.1, 1.1), 0.001 / 10),
        ((0.0, 0.1, 1.1, 11.1), 0.001 / 100),
        ((0.0, 1.0, 11.0, 11.1), 0.001 / 100),
    ],
)
def test_the_period_is_as_uncertain_as_its_longest_countable_pair(
    moves_s: tuple[float, ...], period_off_s: float
) -> None:
    found = register_of(moves_s)
    assert found.moves_s == pytest.approx(moves_s, abs=1e-12)
    assert found.off_s == pytest.approx([HALF_S] * len(moves_s))
    assert found.period_s == pytest.approx(0.1)
    assert found.period_off_s == pytest.approx(period_off_s)
    assert found.wander_s == pytest.approx(0.0 if len(moves_s) > 2 else 0.02, abs=1e-9)


def test_a_profile_begins_the_count_with_its_period_and_its_own_uncertainty() -> None:
    found = register_of((0.0,), sensor=Sensor(counter_period_s=0.1, counter_period_uncertainty_s=0.0003))
    assert found.period_off_s == pytest.approx(0.002 * 0.1 + 0.0003)
    assert register_of((0.0,), sensor=Sensor(counter_period_s=0.1)).period_off_s == pytest.approx(0.0002)


def test_moves_are_off_by_twice_their_largest_distance_from_a_straight_line() -> None:
    moves_s = np.array([0.0, 1.0004, 2.0, 3.0004, 4.0])
    t_s = watched([])
    t_s = np.sort(np.concatenate([t_s, *([move - HALF_S, move + HALF_S] for move in moves_s)]))
    written_s = np.concatenate([moves_s, np.arange(-12, 200) / 10])
    written_s = np.sort([one for one in written_s if one in moves_s or np.abs(one - moves_s).min() > 0.01])
    counter_j = 300.0 * written_s[np.searchsorted(written_s, t_s, side="right") - 1]
    found = find_register(seen_writes(t_s, np.zeros_like(t_s), counter_j), t_s)
    assert found is not None
    line = np.polyval(np.polyfit(range(5), moves_s, 1), range(5))
    assert found.wander_s == pytest.approx(2 * np.abs(moves_s - line).max())


def test_a_write_is_known_by_the_nearest_move_and_grows_uncertain_with_the_periods_between() -> None:
    register = Register(np.array([10.0, 20.0]), np.array([0.001, 0.002]), 0.1, 1e-5, 0.003)
    written_s, off_s = register.last_write(np.array([9.95, 10.0, 10.05, 12.34, 19.97, 20.31]))
    assert written_s == pytest.approx([9.9, 10.0, 10.0, 12.3, 19.9, 20.3])
    # 1 or 2 ms of the move, 0.01 ms for each period from it, and the 3 ms by which every move may wander
    assert off_s * 1e3 == pytest.approx([4.005, 4.0, 4.005, 4.234, 4.997, 5.031])


def test_writes_near_a_span_are_those_that_may_lie_in_it_and_one_to_each_side() -> None:
    before_s = np.arange(1.0, 11.0)
    writes = Writes(before_s - 0.5, before_s, before_s * 100, 0.7)
    near = writes.near(4.2, 6.2)  # [4.5, 5] and [5.5, 6] lie in it
    assert near.before_s.tolist() == [4.0, 5.0, 6.0, 7.0]
    assert near.after_s.tolist() == [3.5, 4.5, 5.5, 6.5]
    assert near.y.tolist() == [400.0, 500.0, 600.0, 700.0]
    assert near.period_s == 0.7
    assert writes.near(-5.0, 0.2).y.tolist() == [100.0]
    assert writes.near(99.0, 100.0).y.tolist() == [1000.0]


def test_a_write_is_expected_in_the_middle_of_its_bounds_or_half_a_period_before_its_first_reading() -> None:
    writes = Writes(np.array([0.0, 1.0]), np.array([0.04, 3.0]), np.array([1.0, 2.0]), 0.1)
    assert writes.uncertainty_s == pytest.approx([0.04, 2.0])
    assert writes.middle_s == pytest.approx([0.02, 2.95])


def test_a_clock_narrows_the_bounds_of_every_write_around_where_it_was() -> None:
    moves_s = (0.0, 0.1, 1.1, 11.1)
    t_s = watched(moves_s)
    found = find_writes(t_s, np.zeros_like(t_s), 300.0 * held(t_s))
    true_s = found.y / 300.0
    off_s = HALF_S + np.abs(true_s[:, None] - moves_s).min(axis=1) / 0.1 * 1e-5
    slack_s = 1e-5  # a reading lies up to a period behind the write that it shows first
    assert ((found.after_s <= true_s + 1e-9) & (true_s <= found.before_s + 1e-9)).all()
    assert (found.uncertainty_s <= 2 * (off_s + slack_s)).all()
    assert found.period_s == pytest.approx(0.1)


def test_without_a_steady_time_a_write_is_at_most_two_periods_older_than_its_first_reading() -> None:
    t_s = np.array([-0.0005, 0.0005, 0.0995, 0.1005, 0.2495, 0.2505, 0.35, 0.45, 0.55, 2.0, 2.1, 2.2])
    counter_j = np.array([0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 4.0, 5.0, 6.0, 20.0, 21.0, 22.0])
    register = find_register(seen_writes(t_s, np.zeros_like(t_s), counter_j), t_s)
    assert register is not None
    assert register.wander_s == np.inf
    found = find_writes(t_s, np.zeros_like(t_s), counter_j)
    readings_s = t_s[1:][np.diff(counter_j) > 0]
    before_s = t_s[:-1][np.diff(counter_j) > 0]
    assert found.before_s == pytest.approx(readings_s)
    assert found.after_s == pytest.approx(np.maximum(before_s, readings_s - 2 * register.period_s - 0.02))
    plain = find_writes(t_s, np.zeros_like(t_s), counter_j, clocked=False)
    assert plain.after_s == pytest.approx(before_s)


def test_a_reading_bounds_a_write_by_the_ends_of_its_call() -> None:
    t_s, call_s = np.array([0.0, 1.0, 2.0]), np.array([0.2, 0.4, 0.6])
    found = find_writes(t_s, call_s, np.array([0.0, 5.0, 9.0]), clocked=False)
    assert found.after_s == pytest.approx([-0.1, 0.8])
    assert found.before_s == pytest.approx([1.2, 2.3])
    assert found.y.tolist() == [5.0, 9.0]


@pytest.mark.parametrize("period_s", [0.3, 0.5, 1.0])
def test_the_period_of_a_slow_register_is_its_time_over_its_writes(period_s: float) -> None:
    t_s = np.arange(200) / 10 + 0.03
    found = find_writes(t_s, np.zeros_like(t_s), held(t_s, period_s))
    middle_s = (found.after_s + found.before_s) / 2
    assert found.period_s == pytest.approx((middle_s[-1] - middle_s[0]) / (len(middle_s) - 1))
    assert found.period_s == pytest.approx(period_s, rel=0.02)


def test_the_period_of_a_fast_register_is_the_nearest_two_sharp_moves() -> None:
    t_s = np.sort(np.concatenate([np.arange(-10, 50) / 10 + 0.013, [-0.0005, 0.0005, 0.0295, 0.0305]]))
    found = find_register(seen_writes(t_s, np.zeros_like(t_s), held(t_s, 0.03)), t_s)
    assert found is not None
    assert found.period_s == pytest.approx(0.03)
    assert found.period_off_s == pytest.approx(2 * HALF_S)


def test_a_short_window_is_explained_by_the_writes_at_its_own_ends() -> None:
    t_s = watched((0.0, 0.1, 1.1, 7.0, 8.0))
    read = series(t_s, 300.0 * (held(t_s) + 20), power_w=np.full(len(t_s), 300.0))
    found = counter_energy(read, 7.0, 8.0, steps=True, limit_w=1000.0)
    assert found.energy_j == pytest.approx(300.0, abs=0.01)
    assert found.uncertainty_j == pytest.approx(2 * HALF_S * 300 + 2 * 0.05 * 0.9 + 0.001, rel=0.01)


def test_the_period_of_a_slow_register_is_as_uncertain_as_its_first_and_last_write() -> None:
    t_s = np.sort(np.concatenate([np.arange(1, 120) / 10 + 0.03, [0.4995, 0.5005]]))
    found = find_register(seen_writes(t_s, np.zeros_like(t_s), held(t_s, 0.5)), t_s)
    assert found is not None
    writes = round((11.5 - 0.5) / 0.5) + 1
    assert found.period_off_s == pytest.approx((0.001 + 0.1) / (writes - 1))


@pytest.mark.parametrize(
    ("gap_s", "half_s", "period_s"),
    [
        (0.07, 0.0005, 0.07),
        (0.0745, 0.0005, 0.0745),
        (0.08, 0.0005, 0.1),  # not closer than a usual register can write
        (0.0165, 0.002, 0.0165),  # four times as far apart as either move is known
        (0.0155, 0.002, 0.1),
        (0.0055, 0.0001, 0.0055),
        (0.0045, 0.0001, 0.1),  # faster than any register
    ],
)
def test_two_moves_in_a_row_tell_the_period_where_they_are_told_apart(
    gap_s: float, half_s: float, period_s: float
) -> None:
    t_s = np.array([-5.0, -half_s, half_s, gap_s - half_s, gap_s + half_s, 5.0])
    found = find_register(seen_writes(t_s, np.zeros_like(t_s), np.array([0.0, 1.0, 2.0, 2.0, 3.0, 4.0])), t_s)
    assert found is not None
    assert found.period_s == pytest.approx(period_s)
