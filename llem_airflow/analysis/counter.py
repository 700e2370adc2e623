"""Energy between two instants by a device's energy counter, resolved finer than its register.

NVML's counter moves about every 100 ms. Read anywhere, each edge is therefore up to one such quantum off.
The sampler writes pairs of readings a millisecond apart around the move nearest to each edge. The window
opens at a move, where the counter is exact. It closes between two moves; the step of the later one is what
was used since the earlier one, and the edge takes its share of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llem_airflow.analysis.power_series import Curve, GpuSeries

REGISTER_S = 0.1
"""Update period of the power registers: 100-101 ms on A100, H100 and GeForce (arXiv 2312.02741)."""
SHARP_S = 0.02
"""A move between two readings that are at most so far apart is a known instant."""
AT_ONCE_S = 0.005
"""A move so near to an edge is the edge: the window was opened at it."""
REACH_S = 0.25
"""How far from an edge a sharp move may lie to be used: two register periods and a slow call."""


@dataclass(frozen=True)
class CounterEnergy:
    """Energy by the counter.

    Attributes:
        energy_j: Energy of the window in joules; None when the counter cannot tell.
        uncertainty_j: Bound of what the edges may hide, in joules.
        resets: Times the counter went back, inside the window or around its edges.
    """

    energy_j: float | None
    uncertainty_j: float
    resets: int


def counter_energy(series: GpuSeries, begin_s: float, end_s: float, *, steps: bool) -> CounterEnergy:
    """Energy of a window by the counter.

    Formula: C(end) - C(begin). For a counter that flows, C is interpolated between its readings. For one
    that moves in steps, C(t) is on the straight line between the register's values before and after the
    sharp move that follows t; at a sharp move itself it is the value after the move.

    Args:
        series: What was read.
        begin_s: Begin of the window, in seconds on the series' clock.
        end_s: Its end.
        steps: Whether the counter moves in visible steps.
    """
    counter = series.counter
    if not counter.covers(begin_s, end_s):
        return CounterEnergy(None, 0.0, 0)
    first = max(int(np.searchsorted(counter.t_s, begin_s - REACH_S, side="right")) - 1, 0)
    last = int(np.searchsorted(counter.t_s, end_s + REACH_S, side="left"))
    resets = int((np.diff(counter.y[first : last + 1]) < 0).sum())
    if resets:  # what was used between the last reading and the reset is lost
        return CounterEnergy(None, 0.0, resets)
    begin_j, begin_off_j = _at_edge(counter, series.power, begin_s, steps)
    end_j, end_off_j = _at_edge(counter, series.power, end_s, steps)
    energy_j = end_j - begin_j
    return CounterEnergy(energy_j if energy_j > 0 else None, begin_off_j + end_off_j, 0)


@dataclass(frozen=True)
class _Move:
    """A move of the register at a known instant.

    Attributes:
        t_s: Middle of the two readings around it.
        blur_s: Time between them.
        before_j: Value before.
        after_j: Value after.
    """

    t_s: float
    blur_s: float
    before_j: float
    after_j: float


def _at_edge(counter: Curve, power: Curve, edge_s: float, steps: bool) -> tuple[float, float]:
    """Counter at an edge and how far off it may be, in joules."""
    if not steps:
        return counter.at(edge_s), 0.0
    power_w = _mean_w(counter, edge_s)
    spread_w = _spread_w(power, edge_s, power_w)
    move = _nearest_move(counter, edge_s)
    if move is None:
        # A reading is on average half a period old, so both edges get the same correction.
        half_j = power_w * REGISTER_S / 2
        return counter.at(edge_s) + half_j, half_j
    ahead_s = move.t_s - edge_s
    off_j = power_w * move.blur_s / 2 + spread_w * min(abs(ahead_s), abs(REGISTER_S - abs(ahead_s)))
    if ahead_s > AT_ONCE_S:
        return move.after_j - (move.after_j - move.before_j) * ahead_s / REGISTER_S, off_j
    return move.after_j - power_w * ahead_s, off_j


def _nearest_move(counter: Curve, edge_s: float) -> _Move | None:
    """The sharp move at an edge, else the one after it, else the one before it; None when none is near."""
    steps_s, steps_j = np.diff(counter.t_s), np.diff(counter.y)
    middles_s = (counter.t_s[:-1] + counter.t_s[1:]) / 2
    sharp = np.flatnonzero((steps_j > 0) & (steps_s <= SHARP_S) & (np.abs(middles_s - edge_s) <= REACH_S))
    if not len(sharp):
        return None
    ahead_s = middles_s[sharp] - edge_s
    at_once = np.abs(ahead_s) <= AT_ONCE_S
    chosen = sharp[at_once] if at_once.any() else sharp[ahead_s > 0] if (ahead_s > 0).any() else sharp
    i = int(chosen[np.argmin(np.abs(middles_s[chosen] - edge_s))])
    return _Move(float(middles_s[i]), float(steps_s[i]), float(counter.y[i]), float(counter.y[i + 1]))


def _mean_w(counter: Curve, edge_s: float) -> float:
    """Power around an edge by the counter alone, over a second to each side, in watts."""
    begin_s, end_s = max(edge_s - 1, counter.t_s[0]), min(edge_s + 1, counter.t_s[-1])
    return (counter.at(end_s) - counter.at(begin_s)) / (end_s - begin_s) if end_s > begin_s else 0.0


def _spread_w(power: Curve, edge_s: float, otherwise_w: float) -> float:
    """How much power varies around an edge: what a part of a register period may hide, in watts."""
    near = power.inside(edge_s - 2 * REACH_S, edge_s + 2 * REACH_S)
    return float(near.max() - near.min()) if len(near) else otherwise_w
