"""Energy between two instants by a device's energy counter, and how far off it may be.

Each value of the counter is a point of the energy curve at the instant at which its register was written
(``register``), and the curve's slope is power. So the values around an edge bound the energy there from both sides:
by how well their writes are known, and by what power can do between them. What a register period hides is bounded
by the readings of power where these explain the counter, and else by all that the board can do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llem_airflow.analysis.power_series import Curve, GpuSeries
from llem_airflow.analysis.register import Writes, find_writes

REACH_S = 0.5
"""Readings so near to an edge tell the power there: a few register periods, and a stalled sampler."""
LAGS_S = (0.0, 0.0125, 0.025, 0.0375, 0.05)
"""Times from an instant to the appearance of its energy in the register that are allowed for.

The lag moves both edges alike, and the power readings of a board may have the same: the series cannot tell it.
"""
SLOWEST_S = 1.1
"""Longest period of a register whose uncertainty is characterised."""
USUAL_S = 0.12
"""Registers of boards whose power sensor is known to look at a quarter of the period are written at least so often."""
VIEW_S = 0.1
"""On other boards, the longest time that one reading of power may be the mean of: it hides what is shorter."""
MAX_W = 5_000.0
"""The most that a device can draw where its limit is not known: above the largest module sold."""
FLOWING_S = 0.001
"""How old a counter without visible steps may be: RAPL's is written about every millisecond (Intel SDM, 15.10)."""
EXPLAINED_RATIO = 0.01
"""Readings of power whose integral agrees with the counter so well have seen what the load does."""
_MILLIJOULE_J = 0.001
_NO_POWER = Curve(np.empty(0), np.empty(0))


@dataclass(frozen=True)
class CounterEnergy:
    """Energy by the counter.

    Attributes:
        energy_j: Energy of the window in joules; None when the counter cannot tell.
        uncertainty_j: How far it may be off, in joules, with a coverage of 95 % or more; None when not known.
        resets: Times the counter went back, inside the window or around its edges.
    """

    energy_j: float | None
    uncertainty_j: float | None = None
    resets: int = 0


def counter_energy(
    series: GpuSeries, begin_s: float, end_s: float, *, steps: bool, limit_w: float = MAX_W
) -> CounterEnergy:
    """Energy of a window by the counter.

    Formula: C(end) - C(begin), C interpolated between the register's values, each at the instant of its write.
    Uncertainty: the largest distance from there to the bounds of that difference, over all lags.

    Args:
        series: What was read.
        begin_s: Begin of the window, in seconds on the series' clock.
        end_s: Its end.
        steps: Whether the counter moves in visible steps.
        limit_w: The most that the device can draw, in watts.
    """
    counter = series.counter
    if not counter.covers(begin_s, end_s):
        return CounterEnergy(None)
    first = max(int(np.searchsorted(counter.t_s, begin_s - REACH_S, side="right")) - 1, 0)
    last = int(np.searchsorted(counter.t_s, end_s + REACH_S, side="left"))
    resets = int((np.diff(counter.y[first : last + 1]) < 0).sum())
    if resets:  # what was used between the last reading and the reset is lost
        return CounterEnergy(None, resets=resets)
    call_s = series.call_s[~np.isnan(series.counter_j)]
    if not steps:  # its power is its own difference and tells nothing more
        off_s = call_s / 2 + FLOWING_S
        flowing = Writes(counter.t_s - off_s, counter.t_s + off_s, counter.y)
        return _between(flowing, _NO_POWER, (begin_s, end_s), (0.0,), limit_w)
    clocked = find_writes(counter.t_s, call_s, counter.y)
    if len(clocked.y) < 2:  # it hardly moves
        energy_j = counter.at(end_s) - counter.at(begin_s)
        return CounterEnergy(energy_j if energy_j > 0 else None)
    found = _between(clocked, series.power, (begin_s, end_s), LAGS_S, limit_w)
    if found.uncertainty_j is None:  # the clock or the power contradicts the readings: these count alone
        alone = find_writes(counter.t_s, call_s, counter.y, clocked=False)
        found = _between(alone, _NO_POWER, (begin_s, end_s), LAGS_S, limit_w)
    return found


def _between(
    writes: Writes, power: Curve, window: tuple[float, float], lags_s: Sequence[float], limit_w: float
) -> CounterEnergy:
    """The energy of a window and its uncertainty; that is None where the bounds contradict each other."""
    explained = _explained(writes, power, *window)
    begin, end = (_Edge.of(writes, power, edge_s, explained, limit_w) for edge_s in window)
    energy_j = end.expected_j - begin.expected_j
    if energy_j <= 0:
        return CounterEnergy(None)
    bounds = [(*begin.bounds(lag_s), *end.bounds(lag_s)) for lag_s in lags_s]
    begin_low_j, begin_high_j, end_low_j, end_high_j = np.array(bounds).T
    agree = (begin_low_j <= begin_high_j + _MILLIJOULE_J) & (end_low_j <= end_high_j + _MILLIJOULE_J)
    if not agree.all() or writes.period_s > SLOWEST_S:
        return CounterEnergy(energy_j)
    least_j, most_j = (end_low_j - begin_high_j).min(), (end_high_j - begin_low_j).max()
    return CounterEnergy(energy_j, float(max(most_j - energy_j, energy_j - least_j)) + _MILLIJOULE_J)


def _explained(writes: Writes, power: Curve, begin_s: float, end_s: float) -> float | None:
    """Counter over integral of the power readings, between the best known writes around a window's edges.

    None where they disagree: the load then does what the readings of power do not show.
    """
    half_s = min((end_s - begin_s) / 2, 1.0)
    first = _best_known(writes, begin_s - 1.0, begin_s + half_s)
    last = _best_known(writes, end_s - half_s, end_s + 1.0)
    if first is None or last is None or last <= first:
        return None
    from_s, to_s = float(writes.middle_s[first]), float(writes.middle_s[last])
    if not power.covers(from_s, to_s):
        return None
    integral_j = power.integral(from_s, to_s)
    if integral_j <= 0:
        return None
    ratio = float(writes.y[last] - writes.y[first]) / integral_j
    doubt = float(writes.doubt_s[first] + writes.doubt_s[last]) / 2 / (to_s - from_s)
    return ratio if abs(ratio - 1) <= EXPLAINED_RATIO and doubt <= EXPLAINED_RATIO else None


def _best_known(writes: Writes, begin_s: float, end_s: float) -> int | None:
    """The write in a span that is known best."""
    inside = (writes.middle_s >= begin_s) & (writes.middle_s <= end_s)
    return int(np.argmin(np.where(inside, writes.doubt_s, np.inf))) if inside.any() else None


@dataclass(frozen=True)
class _Edge:
    """The energy curve around one edge of the window, and what power can be there."""

    t_s: float
    writes: Writes
    low_w: float
    high_w: float
    hidden_j: float
    limit_w: float

    @classmethod
    def of(cls, writes: Writes, power: Curve, t_s: float, explained: float | None, limit_w: float) -> _Edge:
        reach_s = max(REACH_S, 2 * writes.period_s + 0.2)
        near = writes.near(t_s - reach_s, t_s + reach_s)
        powers_w = power.inside(t_s - reach_s, t_s + reach_s)
        if explained is None or not len(powers_w):
            return cls(t_s, near, 0.0, limit_w, 0.0, limit_w)
        low_w, high_w = (
            float(powers_w.min()) * min(explained, 1.0),
            float(powers_w.max()) * max(explained, 1.0),
        )
        margin_w = (high_w - low_w) / 4 + 0.003 * high_w
        low_w, high_w = max(low_w - margin_w, 0.0), min(high_w + margin_w, limit_w)
        if _surprising(near, low_w - 2 * EXPLAINED_RATIO * high_w, high_w + 2 * EXPLAINED_RATIO * high_w):
            return cls(t_s, near, 0.0, limit_w, 0.0, limit_w)
        hidden_j = high_w * (1 - high_w / limit_w) * VIEW_S if writes.period_s > USUAL_S else 0.0
        return cls(t_s, near, low_w, high_w, hidden_j, limit_w)

    @property
    def expected_j(self) -> float:
        """The counter's curve at the edge, in joules.

        Formula: straight between the values whose writes are known well, where there are such near it, and beyond the
        last of them with their own slope; never outside of the bounds.
        """
        t_s, y = self.writes.middle_s, self.writes.y
        known = self.writes.doubt_s <= self.writes.period_s / 4
        beyond_s = self.t_s - np.clip(self.t_s, *t_s[known][[0, -1]]) if known.sum() > 1 else np.inf
        if abs(beyond_s) > 2 * self.writes.period_s:
            known[:], beyond_s = True, 0.0
        t_s, y = t_s[known], y[known]
        beyond_j = beyond_s * (y[-1] - y[0]) / (t_s[-1] - t_s[0]) if beyond_s else 0.0
        return float(np.clip(np.interp(self.t_s, t_s, y) + beyond_j, *self.bounds(0.0)))

    def bounds(self, lag_s: float) -> tuple[float, float]:
        """Least and most that the curve can be at the edge, in joules, if the register lags so much.

        Formula: from each value on, at most the highest power since its earliest write, at least the lowest since its
        latest; before it, the other way round. The tightest of all values counts.
        """
        low_j, high_j = self._reach(lag_s, 0.0, self.limit_w)
        near_low_j, near_high_j = self._reach(lag_s, self.low_w, self.high_w)
        return max(low_j, near_low_j - self.hidden_j), min(high_j, near_high_j + self.hidden_j)

    def _reach(self, lag_s: float, low_w: float, high_w: float) -> tuple[float, float]:
        most_s = self.t_s + lag_s - self.writes.after_s
        least_s = self.t_s + lag_s - self.writes.before_s
        high_j = self.writes.y + most_s * np.where(most_s >= 0, high_w, low_w)
        low_j = self.writes.y + least_s * np.where(least_s >= 0, low_w, high_w)
        return float(low_j.max()), float(high_j.min())


def _surprising(writes: Writes, low_w: float, high_w: float) -> bool:
    """Whether the counter rose faster or slower between two writes than the readings of power allow."""
    rises_j = np.diff(writes.y)
    longest_s = writes.before_s[1:] - writes.after_s[:-1]
    shortest_s = writes.after_s[1:] - writes.before_s[:-1]
    return bool(((rises_j > high_w * longest_s) | (rises_j < low_w * shortest_s)).any())
