"""Energy between two instants by a device's energy counter, resolved finer than its register.

NVML's counter moves about every 100 ms. Read anywhere, each edge is therefore up to one such quantum off.
Where it is known when the register moved (``register``), each reading is a point of the exact energy curve, and
an edge lies on the straight line between the points around it. What power did inside that one register period
is what nobody can know; it is told as the number's uncertainty.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llem_airflow.analysis.power_series import Curve, Floats, GpuSeries
from llem_airflow.analysis.register import PERIOD_OFF_RATIO, REGISTER_S, Register, find_register

REACH_S = 0.5
"""Readings so near to an edge make the curve there: a few register periods, and a stalled sampler."""

_NO_CURVE = Curve(np.empty(0), np.empty(0))


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
    that moves in steps, C is interpolated between the register's values, each at the instant of the move that
    wrote it.

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
    if not steps:
        energy_j = counter.at(end_s) - counter.at(begin_s)
        return CounterEnergy(energy_j if energy_j > 0 else None, 0.0, 0)
    call_s = series.call_s[~np.isnan(series.counter_j)]
    register = find_register(counter.t_s, call_s, counter.y)
    begin_j, begin_off_j = _at_edge(counter, call_s, series.power, register, begin_s)
    end_j, end_off_j = _at_edge(counter, call_s, series.power, register, end_s)
    energy_j = end_j - begin_j
    return CounterEnergy(energy_j if energy_j > 0 else None, begin_off_j + end_off_j, 0)


def _at_edge(
    counter: Curve, call_s: Floats, power: Curve, register: Register | None, edge_s: float
) -> tuple[float, float]:
    """Counter at an edge and how far off it may be, in joules.

    Without a sharp move near enough, a reading is of some instant of the register period before it: the middle of
    what power may have used since then is added, and either end of it is possible.
    """
    period_s, period_off_s = REGISTER_S, REGISTER_S * PERIOD_OFF_RATIO
    if register:
        period_s, period_off_s = register.period_s, register.period_off_s
    power_w, most_w = _mean_w(counter, edge_s, period_s + period_off_s)
    near = power.inside(edge_s - REACH_S, edge_s + REACH_S)
    move_s, off_s = register.anchor(edge_s) if register else (0.0, np.inf)
    curve = _NO_CURVE
    if register and off_s <= period_s / 4:
        curve = _exact(counter, call_s, register, move_s, off_s, edge_s)
    if not len(curve.t_s):
        half_j = power_w * period_s / 2  # the same at both edges when power is
        highest_w = max(most_w, float(near.max(initial=0.0)))
        return counter.at(edge_s) + half_j, highest_w * (period_s + period_off_s) - half_j
    if len(curve.t_s) > 1:
        # The curve's own slope: the mean of raw readings is off by the part of a period that the outer ones are old.
        power_w = float((curve.y[-1] - curve.y[0]) / (curve.t_s[-1] - curve.t_s[0]))
        most_w = power_w * period_s / (period_s - period_off_s)
    beyond_s = edge_s - min(max(edge_s, curve.t_s[0]), curve.t_s[-1])
    nearest_s = float(np.min(np.abs(curve.t_s - edge_s)))
    spread_w = float(near.max() - near.min()) if len(near) else power_w
    return curve.at(edge_s) + power_w * beyond_s, most_w * off_s + spread_w * nearest_s


def _exact(
    counter: Curve, call_s: Floats, register: Register, move_s: float, off_s: float, edge_s: float
) -> Curve:
    """Points of the energy curve around an edge: each reading's value, at the move that wrote it.

    A reading so near to a move that it may be from before or after it is left out, except for the two that
    show the move itself. The further from the known move, the more the period's own doubt counts.
    """
    near = np.flatnonzero(np.abs(counter.t_s - edge_s) <= REACH_S)
    t_s, y, half_s = counter.t_s[near], counter.y[near], call_s[near] / 2
    periods = np.floor((t_s - move_s) / register.period_s)
    since_s = t_s - move_s - periods * register.period_s
    further_s = np.abs(t_s - move_s) - abs(edge_s - move_s)
    doubt_s = off_s + further_s / register.period_s * register.period_off_s + half_s
    told = (since_s > doubt_s) & (since_s < register.period_s - doubt_s)
    shown = np.flatnonzero((t_s[:-1] <= move_s) & (move_s <= t_s[1:]) & (np.diff(y) > 0))
    if len(shown):
        before, after = int(shown[0]), int(shown[0]) + 1
        periods[[before, after]] = -1.0, 0.0
        told[[before, after]] = True
    moves, first = np.unique(periods[told], return_index=True)
    return Curve(move_s + moves * register.period_s, y[told][first])


def _mean_w(counter: Curve, edge_s: float, period_s: float) -> tuple[float, float]:
    """Power around an edge by the counter alone, over a second to each side, and the most that it can be, in watts.

    The counter's values there are of some instant of the register period before.
    """
    begin_s, end_s = max(edge_s - 1, counter.t_s[0]), min(edge_s + 1, counter.t_s[-1])
    if end_s <= begin_s:
        return 0.0, 0.0
    used_j = counter.at(end_s) - counter.at(begin_s)
    return used_j / (end_s - begin_s), used_j / max(end_s - begin_s - period_s, period_s)
