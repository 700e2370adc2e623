"""Energy between two instants by a device's energy counter, and how far off it may be.

The counter of a GPU is exact, but only at the instants at which its register is written: every 20 ms to 1 s, about
100 ms on most boards (arXiv 2312.02741). Each new value was written after the last reading that did not show it yet
and before the first that did. Two readings a millisecond apart therefore pin a write down: a *sharp move*. Where the
sharp moves keep one steady time, that clock narrows all other bounds; where they do not, only the readings count.

Each value is a point of the energy curve at the instant of its write, and the curve's slope is power. So the values
around an edge bound the energy there from both sides: by how well their writes are known, and by what power can do
between them. What a register period hides is bounded by the readings of power where these explain the counter, and else
by all that the board can do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llem_airflow.analysis.series import UNCHARACTERISED, Curve, Floats, GpuSeries
from llem_airflow.protocol.gpu_profile import Sensor

Ints = NDArray[np.int64]
REGISTER_S = 0.1
"""Period of the power registers: 100-101 ms on A100, H100 and GeForce, 20 ms on V100 (arXiv 2312.02741)."""
PERIOD_OFF_RATIO = 0.015
"""How far the period may be from that before the moves themselves tell it."""
MOVED_RATIO = 0.002
"""How far a board's period may be from what gpu-check found, by the clocks' temperature, say."""
_FASTEST_S = 0.005
_SHARP_S = 0.02
"""Two readings that are at most so far apart can show a move sharply."""
_STEADY_S = 0.0005
"""Two sharp moves that are by so much no whole number of periods apart have no steady time."""
_FEWEST = 3
"""Sharp moves that tell whether there is a steady time."""
_WHOLE = 0.15
"""How far a rise may be from a whole number of units."""
_WANDERS_S = 0.02
"""How far from due a write may be where too few sharp moves tell, or there is no clock."""


@dataclass(frozen=True)
class Writes:
    """The values that a register was seen to hold, each once.

    Attributes:
        after_s: Earliest instant at which each was written, in seconds.
        before_s: Latest instant.
        y: The values, in joules, ascending.
        period_s: Time between two writes, seen or not.
    """

    after_s: Floats
    before_s: Floats
    y: Floats
    period_s: float = REGISTER_S

    @property
    def uncertainty_s(self) -> Floats:
        """How wide the bounds of each are."""
        return self.before_s - self.after_s

    @property
    def middle_s(self) -> Floats:
        """Where each is to be expected: in the middle of its bounds, or half a period before its first reading."""
        return self.before_s - np.minimum(self.uncertainty_s, self.period_s) / 2

    def near(self, begin_s: float, end_s: float) -> Writes:
        """Those that may lie in a span, and one to each side."""
        first = max(int(np.searchsorted(self.before_s, begin_s)) - 1, 0)
        rows = slice(first, int(np.searchsorted(self.after_s, end_s)) + 1)
        return Writes(self.after_s[rows], self.before_s[rows], self.y[rows], self.period_s)


@dataclass(frozen=True)
class Register:
    """The sharp moves of one device's counter, and the time that they keep.

    Attributes:
        moves_s: Instant of each sharp move: the middle of the two readings around it.
        off_s: How far the true instant may be from that.
        period_s: Time between two moves, seen or not.
        period_off_s: How far the true period may be from that.
        wander_s: How far a move may be from the steady time of all; infinite where they keep none.
    """

    moves_s: Floats
    off_s: Floats
    period_s: float
    period_off_s: float
    wander_s: float

    def last_write(self, t_s: Floats) -> tuple[Floats, Floats]:
        """The last write before each instant, by the sharp move that tells it best, and how far it may be off."""
        best = self._best_move(t_s)
        since_s = t_s - self.moves_s[best]
        written_s = self.moves_s[best] + np.floor(since_s / self.period_s) * self.period_s
        return written_s, self._uncertainty_s(t_s, best) + self.wander_s

    def tells(self, window: tuple[float, float]) -> bool:
        """Whether the clock tells the writes around both edges of a window from those before and after them."""
        return bool((self.last_write(np.array(window))[1] < self.period_s / 2).all())

    def _uncertainty_s(self, t_s: Floats, move: Ints) -> Floats:
        """How far a write at an instant may be off, by a move."""
        return self.off_s[move] + np.abs(t_s - self.moves_s[move]) / self.period_s * self.period_off_s

    def _best_move(self, t_s: Floats) -> Ints:
        """The move with the least uncertainty at each instant.

        It grows evenly with the distance from the move. So the best of all moves before an instant is the same for
        all later ones until a better one comes, and likewise backwards: no instant is compared with every move.
        """
        grows = self.moves_s * (self.period_off_s / self.period_s)
        before = _least_so_far(self.off_s - grows)
        after = (len(grows) - 1 - _least_so_far((self.off_s + grows)[::-1]))[::-1]
        at = np.searchsorted(self.moves_s, t_s, side="right")
        one, other = before[np.maximum(at - 1, 0)], after[np.minimum(at, len(grows) - 1)]
        nearer = self._uncertainty_s(t_s, one) <= self._uncertainty_s(t_s, other)
        found: Ints = np.where(nearer, one, other)
        return found


def _least_so_far(values: Floats) -> Ints:
    """The place of the least of all values up to each."""
    least = np.minimum.accumulate(values)
    is_new = np.concatenate([[True], least[1:] < least[:-1]])
    return np.maximum.accumulate(np.where(is_new, np.arange(len(values)), 0))


def find_writes(
    t_s: Floats, call_s: Floats, counter_j: Floats, *, clocked: bool = True, sensor: Sensor = UNCHARACTERISED
) -> Writes:
    """The register's writes, bounded by the readings and, where it keeps one, by its clock.

    Args:
        t_s: Middle of each reading, ascending.
        call_s: Duration of each reading.
        counter_j: Value of each, not descending.
        clocked: Whether to narrow the bounds by the register's clock and period.
        sensor: What gpu-check found out about the register.
    """
    writes = seen_writes(t_s, call_s, counter_j)
    return _bounded(writes, find_register(writes, t_s, sensor), t_s, sensor, clocked=clocked)


def _bounded(
    writes: Writes, register: Register | None, t_s: Floats, sensor: Sensor, *, clocked: bool
) -> Writes:
    """The writes as the readings bound them, with the register's period and, if ``clocked``, narrowed by its clock."""
    if register is None:
        return replace(writes, period_s=_rough_period(writes, t_s, sensor)[0]) if len(writes.y) else writes
    writes = replace(writes, period_s=register.period_s)
    if clocked and np.isfinite(register.wander_s):
        return _narrowed(writes, register)
    if clocked:
        oldest_s = writes.before_s - 2 * register.period_s - _WANDERS_S
        return replace(writes, after_s=np.maximum(writes.after_s, oldest_s))
    return writes


def find_register(writes: Writes, t_s: Floats, sensor: Sensor = UNCHARACTERISED) -> Register | None:
    """The register's sharp moves and their clock; None when no two readings show a move sharply.

    A period that gpu-check found begins the count; where the moves contradict it, they count alone.

    Formula: period = time between two sharp moves / number of periods between them, from near pairs to far ones: each
    narrows the period enough to count the periods of the next. A pair that could be one of two numbers tells nothing;
    one that is no whole number of periods says that there is no steady time.

    Args:
        writes: The register's writes, as the readings alone bound them.
        t_s: Middle of each reading, ascending.
        sensor: What gpu-check found out about the register.
    """
    if sensor.counter_period_s is not None:
        found = _register(writes, t_s, sensor)
        if found is None or np.isfinite(found.wander_s):
            return found
    return _register(writes, t_s, UNCHARACTERISED)


def _register(writes: Writes, t_s: Floats, sensor: Sensor) -> Register | None:
    sharp = writes.uncertainty_s <= _SHARP_S
    if not sharp.any():
        return None
    moves_s, off_s = (writes.after_s + writes.before_s)[sharp] / 2, writes.uncertainty_s[sharp] / 2
    period_s, period_off_s = _rough_period(writes, t_s, sensor)
    apart_s, uncertainty_s = np.diff(moves_s), off_s[:-1] + off_s[1:]
    steady = True
    for i in np.argsort(apart_s):
        periods = round(float(apart_s[i]) / period_s)
        if periods < 1 or periods * period_off_s + uncertainty_s[i] > period_s / 3:
            continue
        if abs(apart_s[i] - periods * period_s) > periods * period_off_s + uncertainty_s[i] + _STEADY_S:
            steady = False
        elif uncertainty_s[i] / periods < period_off_s:
            period_s, period_off_s = float(apart_s[i]) / periods, float(uncertainty_s[i]) / periods
    wander_s = _wander_s(moves_s, off_s, period_s, period_off_s) if steady else np.inf
    return Register(moves_s, off_s, period_s, period_off_s, wander_s)


def seen_writes(t_s: Floats, call_s: Floats, counter_j: Floats) -> Writes:
    """The register's writes, as the readings alone bound them; the arguments are those of ``find_writes``."""
    first = np.flatnonzero(np.diff(counter_j) > 0) + 1
    after_s, before_s = t_s[first - 1] - call_s[first - 1] / 2, t_s[first] + call_s[first] / 2
    return Writes(after_s, before_s, counter_j[first])


def _rough_period(writes: Writes, t_s: Floats, sensor: Sensor) -> tuple[float, float]:
    """The period and how far it may be off, before it is refined.

    Formula: where many readings equal the one before, every write was seen: time / number of writes. Else what
    gpu-check found; it may have moved a little since. Else the nearest two sharp moves, where they are closer than
    a register of the usual kind can write. Else the usual period.
    """
    seen, middle_s, uncertainty_s = len(writes.y), writes.middle_s, writes.uncertainty_s
    steps_s = np.diff(t_s)
    steps_s = steps_s[steps_s > _SHARP_S]
    if seen > _FEWEST and len(steps_s):
        counted_s = float(middle_s[-1] - middle_s[0]) / (seen - 1)
        if counted_s > 1.25 * float(np.median(steps_s)) and not _beside_readings(writes):
            return counted_s, float(uncertainty_s[0] + uncertainty_s[-1]) / (seen - 1)
    if sensor.counter_period_s is not None:
        moved_s = MOVED_RATIO * sensor.counter_period_s
        return sensor.counter_period_s, moved_s + (sensor.counter_period_uncertainty_s or 0.0)
    sharp = uncertainty_s <= _SHARP_S
    gaps_s, off_s = np.diff(middle_s[sharp]), (uncertainty_s[sharp][1:] + uncertainty_s[sharp][:-1]) / 2
    near = (gaps_s > np.maximum(4 * off_s, _FASTEST_S)) & (gaps_s < 0.75 * REGISTER_S)
    if near.any():
        nearest = int(np.argmin(np.where(near, gaps_s, np.inf)))
        return float(gaps_s[nearest]), float(off_s[nearest])
    return REGISTER_S, REGISTER_S * PERIOD_OFF_RATIO


def _beside_readings(writes: Writes) -> bool:
    """Whether equal readings come from writes at the very instants of the readings, and not from a slow register.

    A reading that just missed a write equals the one before, and a later one shows two writes at once: rises are one or
    two of the same unit, where a slow register shows each of its writes alone.
    """
    rises_j = np.diff(writes.y)
    units = rises_j / max(float(np.percentile(rises_j, 5)), 1e-9)
    whole = np.round(units)
    return bool((np.abs(units - whole) < _WHOLE).mean() > 0.95 and (whole == 2).mean() > 0.1)


def _wander_s(moves_s: Floats, off_s: Floats, period_s: float, period_off_s: float) -> float:
    """How far moves may be from their steady time.

    Formula: twice the largest residual of a straight line through the sharp moves over their numbers; five residuals
    of a uniform jitter have one that is half of its reach in more than 95 % of cases.
    """
    since_s = moves_s - moves_s[int(np.argmin(off_s))]
    since_s = since_s[np.abs(since_s) / period_s * period_off_s < period_s / 3]
    numbers = np.round(since_s / period_s)
    if len(np.unique(numbers)) < _FEWEST:
        return _WANDERS_S
    since_s, numbers = since_s - since_s.mean(), numbers - numbers.mean()
    return 2 * float(np.abs(since_s - numbers * (numbers @ since_s) / (numbers @ numbers)).max())


def _narrowed(writes: Writes, register: Register) -> Writes:
    """The bounds of each write, narrowed by the clock.

    A first reading so near to a write that it may be from before or after it may show either of two writes. Bounds
    that contradict each other stay as they were read.
    """
    last_s, off_s = register.last_write(writes.before_s)
    since_s = writes.before_s - last_s
    early_s = last_s - np.where(since_s < off_s, register.period_s, 0.0)
    late_s = last_s + np.where(since_s > register.period_s - off_s, register.period_s, 0.0)
    after_s, before_s = (
        np.maximum(writes.after_s, early_s - off_s),
        np.minimum(writes.before_s, late_s + off_s),
    )
    agree = after_s <= before_s
    return replace(
        writes,
        after_s=np.where(agree, after_s, writes.after_s),
        before_s=np.where(agree, before_s, writes.before_s),
    )


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
"""The most that a device can draw where its limit is not known. The largest module sold so far is rated at 2,700 W."""
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

    The register's clock tells the writes at both edges, or the estimate takes those at both edges as they were read,
    within the bounds that the clock leaves: readings that keep step with the register are as late at one edge as at the
    other, and this cancels only where both are treated alike.

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
    first = int(np.searchsorted(counter.t_s, begin_s - REACH_S, side="right")) - 1
    last = int(np.searchsorted(counter.t_s, end_s + REACH_S, side="left"))
    falls = np.flatnonzero(np.diff(counter.y) < 0) + 1
    resets = int(((falls > first) & (falls <= last)).sum())
    if resets:  # what was used between the last reading and the reset is lost
        return CounterEnergy(None, resets=resets)
    rows = slice(falls[falls <= first].max(initial=0), falls[falls > last].min(initial=len(counter.y)))
    counter = Curve(counter.t_s[rows], counter.y[rows])  # what another reset cuts off tells nothing here
    call_s = series.call_s[~np.isnan(series.counter_j)][rows]
    if not steps:  # its power is its own difference and tells nothing more
        off_s = call_s / 2 + FLOWING_S
        flowing = Writes(counter.t_s - off_s, counter.t_s + off_s, counter.y)
        return _between(flowing, _NO_POWER, (begin_s, end_s), (0.0,), limit_w)
    seen = seen_writes(counter.t_s, call_s, counter.y)
    if len(seen.y) < 2:  # it hardly moves
        energy_j = counter.at(end_s) - counter.at(begin_s)
        return CounterEnergy(energy_j if energy_j > 0 else None)
    register = find_register(seen, counter.t_s, series.sensor)
    clocked = _bounded(seen, register, counter.t_s, series.sensor, clocked=True)
    as_read = None
    if register is not None and not register.tells((begin_s, end_s)):
        as_read = _bounded(seen, register, counter.t_s, series.sensor, clocked=False)
    found = _between(clocked, series.power, (begin_s, end_s), LAGS_S, limit_w, as_read)
    if found.uncertainty_j is None:  # the clock or the power contradicts the readings: these count alone
        alone = find_writes(counter.t_s, call_s, counter.y, clocked=False)
        found = _between(alone, _NO_POWER, (begin_s, end_s), LAGS_S, limit_w)
    return found


def _between(
    writes: Writes,
    power: Curve,
    window: tuple[float, float],
    lags_s: Sequence[float],
    limit_w: float,
    expected: Writes | None = None,
) -> CounterEnergy:
    """The energy of a window and its uncertainty; that is None where the bounds contradict each other.

    The bounds are those of ``writes``; the energy is to be expected from ``expected``, where that is given.
    """
    explained = _explained(writes, power, *window)
    begin, end = edges = [_Edge.of(writes, power, edge_s, explained, limit_w) for edge_s in window]
    if expected is not None:
        edges = [_Edge.of(expected, power, edge_s, explained, limit_w) for edge_s in window]
    energy_j = edges[1].expected_j - edges[0].expected_j
    if energy_j <= 0:
        return CounterEnergy(None)
    bounds = [(*begin.bounds(lag_s), *end.bounds(lag_s)) for lag_s in lags_s]
    begin_low_j, begin_high_j, end_low_j, end_high_j = np.array(bounds).T
    agree = (begin_low_j <= begin_high_j + _MILLIJOULE_J) & (end_low_j <= end_high_j + _MILLIJOULE_J)
    if not agree.all() or writes.period_s > SLOWEST_S:
        return CounterEnergy(energy_j)
    least_j, most_j = (end_low_j - begin_high_j).min(), (end_high_j - begin_low_j).max()
    energy_j = float(np.clip(energy_j, least_j, most_j))
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
    uncertainty = float(writes.uncertainty_s[first] + writes.uncertainty_s[last]) / 2 / (to_s - from_s)
    return ratio if abs(ratio - 1) <= EXPLAINED_RATIO and uncertainty <= EXPLAINED_RATIO else None


def _best_known(writes: Writes, begin_s: float, end_s: float) -> int | None:
    """The write in a span that is known best."""
    inside = (writes.middle_s >= begin_s) & (writes.middle_s <= end_s)
    return int(np.argmin(np.where(inside, writes.uncertainty_s, np.inf))) if inside.any() else None


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
        known = self.writes.uncertainty_s <= self.writes.period_s / 4
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
