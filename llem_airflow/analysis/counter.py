"""Energy between two instants by a device's energy counter, resolved finer than its register.

NVML's counter moves about every 100 ms. Read anywhere, each edge is therefore up to one such quantum off.
The sampler writes pairs of readings a millisecond apart around the move nearest to each edge; from there to
the edge is at most one register period, and the instant power fills it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llem_airflow.analysis.power_series import Curve, GpuSeries

REGISTER_S = 0.1
"""Update period of the power registers: 100-101 ms on A100, H100 and GeForce (arXiv 2312.02741)."""
SHARP_S = 0.02
"""A move between two readings that are at most so far apart is a known instant."""
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
    that moves in steps, C(t) is the value after the nearest sharp move plus the integral of instant power
    from the move to t.

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


def _at_edge(counter: Curve, power: Curve, edge_s: float, steps: bool) -> tuple[float, float]:
    """Counter at an edge and how far off it may be, in joules."""
    if not steps or not len(power.t_s):
        return counter.at(edge_s), _spread_w(counter, power, edge_s) * REGISTER_S if steps else 0.0
    moves = np.flatnonzero((np.diff(counter.y) > 0) & (np.diff(counter.t_s) <= SHARP_S))
    if len(moves):
        nearest = int(moves[np.argmin(np.abs(counter.t_s[moves + 1] - edge_s))])
        moved_s = float(counter.t_s[nearest + 1])
        if abs(moved_s - edge_s) <= REACH_S and power.covers(min(moved_s, edge_s), max(moved_s, edge_s)):
            fill_j = power.integral(moved_s, edge_s)
            blur_s = float(counter.t_s[nearest + 1] - counter.t_s[nearest])
            off_j = power.at(edge_s) * blur_s + _spread_w(counter, power, edge_s) * abs(moved_s - edge_s)
            return float(counter.y[nearest + 1]) + fill_j, off_j
    # A reading is on average half a period old, so both edges get the same correction.
    half_j = power.at(edge_s) * REGISTER_S / 2
    return counter.at(edge_s) + half_j, half_j


def _spread_w(counter: Curve, power: Curve, edge_s: float) -> float:
    """How much power varies around an edge: what a register period may hide, in watts."""
    near = power.inside(edge_s - 2 * REACH_S, edge_s + 2 * REACH_S)
    if not len(near):
        span_s = counter.t_s[-1] - counter.t_s[0]
        return float((counter.y[-1] - counter.y[0]) / span_s)
    return float(near.max() - near.min())
