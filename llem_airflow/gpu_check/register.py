"""The clock of a register: how often it is written, and how steadily, from readings that are much faster.

Each new value was written between the last reading that did not show it and the first that did. Where the writes keep
a steady time, their instants are points of a lattice; a value that happens to stay the same hides a write, so that not
every point of it is seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FEWEST = 8
"""Changes that tell a period."""
LONGEST_S = 5.0
_POLLS = 2.5
"""Readings that a period must hold."""
_SUBMULTIPLES = 5
_PEAK_CHANGES = 120
"""Changes that find the period; all of them refine it."""
_STEADY = 0.6
"""Length of the mean of exp(2 pi i t / period) from which writes keep a steady time: a jitter of 16 % of it."""


@dataclass(frozen=True)
class Readings:
    """A quantity that was read again and again.

    Attributes:
        before_s: When each question was asked, ascending, in seconds.
        after_s: When it was answered.
        values: The answers, none of them missing.
    """

    before_s: Floats
    after_s: Floats
    values: Floats

    def between(self, begin_s: float, end_s: float) -> Readings:
        """Those of a span of time."""
        rows = slice(*np.searchsorted(self.before_s, (begin_s, end_s)))
        return Readings(self.before_s[rows], self.after_s[rows], self.values[rows])


@dataclass(frozen=True)
class Clock:
    """The steady time of a register's writes.

    Attributes:
        period_s: Time between two writes, in seconds.
        uncertainty_s: How far that may be off: three standard errors.
        jitter_s: Standard deviation of a write around its steady time.
        phase_s: Instant of one write.
    """

    period_s: float
    uncertainty_s: float
    jitter_s: float
    phase_s: float


@dataclass(frozen=True)
class Writes:
    """What a register held, write after write.

    Attributes:
        t_s: Instant of each write, in seconds.
        values: What it wrote.
        off_s: How far the instants may be off, each by itself.
    """

    t_s: Floats
    values: Floats
    off_s: float = 0.0


def changes(readings: Readings) -> tuple[Floats, Floats]:
    """Middle of the bounds of each change, and half of their width, without those seen late by a stalled reader."""
    first = np.flatnonzero(np.diff(readings.values) != 0) + 1
    lower_s, upper_s = readings.before_s[first - 1], readings.after_s[first]
    half_s = (upper_s - lower_s) / 2
    sharp = half_s <= 2 * np.median(half_s) if len(half_s) else np.empty(0, dtype=bool)
    return ((lower_s + upper_s) / 2)[sharp], half_s[sharp]


def find_clock(readings: Readings) -> Clock | None:
    """The register's clock; None when the readings cannot tell it.

    Formula: of the shortest usual time between changes and its 2nd to 5th parts, the longest at which the changes have
    one phase (the mean of exp(2 pi i t / period) is long); then a straight line through the changes over their numbers.
    The jitter is what its residuals have beyond the width of the bounds.
    """
    t_s, half_s = changes(readings)
    if len(t_s) < FEWEST:
        return None
    gaps_s = np.diff(t_s)
    shortest_s = float(np.percentile(gaps_s, 5))
    rough_s = float(np.median(gaps_s[gaps_s <= 1.5 * shortest_s]))
    found = [_peak(t_s[:_PEAK_CHANGES], rough_s / part) for part in range(1, _SUBMULTIPLES + 1)]
    best = max(score for _, score in found)
    if best < _STEADY:
        return None
    period_s = next(period for period, score in found if score >= 0.9 * best)
    clock = _fitted(t_s[:_PEAK_CHANGES], half_s[:_PEAK_CHANGES], period_s)
    used = 2 * _PEAK_CHANGES
    while used < 2 * len(t_s):  # each fit is exact enough to number twice as many
        clock = _fitted(t_s[:used], half_s[:used], clock.period_s)
        used *= 2
    spacing_s = float(np.median(np.diff(readings.before_s)))
    known = _POLLS * spacing_s < clock.period_s < LONGEST_S and clock.uncertainty_s < 0.02 * clock.period_s
    return clock if known else None


def _peak(t_s: Floats, around_s: float) -> tuple[float, float]:
    """The period within a fifth of a guess at which the changes agree best, and how well they do, from 0 to 1."""
    low, high = 1 / (1.2 * around_s), 1 / (0.8 * around_s)
    steps = min(int((high - low) * 3 * (t_s[-1] - t_s[0])) + 3, 20_000)
    frequencies = np.linspace(low, high, steps)
    since_s = t_s - t_s[0]
    parts = [
        np.abs(np.exp(2j * np.pi * np.outer(some, since_s)).mean(axis=1))
        for some in np.array_split(frequencies, max(steps * len(t_s) // 500_000, 1))
    ]
    scores = np.concatenate(parts)
    at = int(scores.argmax())
    return 1 / float(frequencies[at]), float(scores[at])


def _fitted(t_s: Floats, half_s: Floats, period_s: float) -> Clock:
    phase = np.angle(np.exp(2j * np.pi * (t_s - t_s[0]) / period_s).mean()) / (2 * np.pi) * period_s
    numbers = np.round((t_s - t_s[0] - phase) / period_s)
    centred = numbers - numbers.mean()
    spread = float(centred @ centred)
    slope_s = float(centred @ (t_s - t_s.mean())) / spread
    residual_s = t_s - t_s.mean() - centred * slope_s
    residual_s2 = float(residual_s @ residual_s) / max(len(t_s) - 2, 1)
    jitter_s = float(np.sqrt(max(residual_s2 - float((half_s**2).mean()) / 3, 0.0)))
    return Clock(
        slope_s,
        3 * float(np.sqrt(residual_s2 / spread)),
        jitter_s,
        float(t_s.mean() - numbers.mean() * slope_s),
    )


def writes(readings: Readings, clock: Clock | None) -> Writes:
    """What the register held, write after write, on its clock; each reading where it has none.

    A write that was seen to be off its steady time by more than the readings are apart counts where it was seen.
    """
    if clock is None:
        return Writes((readings.before_s + readings.after_s) / 2, readings.values)
    first, last = ((edge - clock.phase_s) / clock.period_s for edge in readings.before_s[[0, -1]])
    t_s = clock.phase_s + np.arange(np.ceil(first), np.floor(last)) * clock.period_s
    seen = np.minimum(np.searchsorted(readings.before_s, t_s + clock.period_s / 2), len(readings.values) - 1)
    in_time = readings.after_s[seen] < t_s + clock.period_s - 3 * clock.jitter_s
    t_s, values = t_s[in_time], readings.values[seen[in_time]]
    moved_s, half_s = changes(readings)
    if len(moved_s) > 1 and clock.jitter_s > 0.5 * float(np.median(half_s)):
        nearest = np.clip(np.searchsorted(moved_s, t_s), 1, len(moved_s) - 1)
        nearest -= t_s - moved_s[nearest - 1] < moved_s[nearest] - t_s
        near = np.abs(moved_s[nearest] - t_s) < clock.period_s / 2
        return Writes(np.where(near, moved_s[nearest], t_s), values, float(np.median(half_s)))
    return Writes(t_s, values)
