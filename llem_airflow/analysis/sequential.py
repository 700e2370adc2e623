"""The nightly alarm: one sequential test with a false-alarm budget for a whole study.

The values of one experiment, night after night, are a level, a pattern of the weekday, and noise in which one night
remembers the last (AR(1)). After every night two questions are asked of the nights so far: has the level moved (a
step), does it move slowly (a drift). What is told becomes the new level, so that a change is told once.

A test is Student's t of generalised least squares under AR(1) (the noise and its memory from the nights before the
step); its critical value shares the budget over experiments, nights and windows by the union bound.
benchmarks/nightly.py measures what that comes to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

QUARTER = 91
"""Nights over which a study may tell one false step."""

YEAR = 365
"""Nights over which a study may tell one false drift."""

FAMILY = 40
"""Experiments that share a budget; a study of more than these shares it among all of its own."""

LEARNING = 10
"""Nights that must be known before the noise of an experiment is taken from them; until then only gross changes are
told."""

GROSS_RATIO = 0.10
"""Smallest gross change."""

WINDOWS = (2, 3, 5, 7)
"""How many nights ago a step may have begun. Never one: a night alone is an outlier until another confirms it."""

MEMORY = 91
"""Nights that a level is known from."""

LASTING = 5
"""Nights from which on a level is one."""

DRIFT_FROM = 60
"""Nights on one level from which on a drift is looked for."""

ASSUMED_SD_RATIO = 0.02
"""How much nights differ as long as nothing else is known."""

ASSUMED_PHI = 0.5
"""Correlation of one night with the next, likewise."""

_SD_WEIGHT, _PHI_WEIGHT = 4, 10
"""What the assumptions weigh, in nights."""

_FAR = 3.0
"""Standard deviations of a night by which an outlier goes beyond the others."""

_CAUTION = 0.5
"""Standard errors by which the correlation is taken to be higher than estimated: too low a one makes false alarms."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """A change that is told.

    Attributes:
        told: Position of the night that told it.
        began: Position of the first night of the new level; for a drift, of the level that drifted.
        ratio: Size of the step, or of the drift so far.
        drift: Whether it is a drift.
    """

    told: int
    began: int
    ratio: float
    drift: bool = False


@dataclass(frozen=True, slots=True)
class Watch:
    """What the nights so far say.

    Attributes:
        alarms: What was told, oldest first.
        began: Position of the first night of the present level.
        newest_ratio: The newest night over the level of the nights before it, minus 1; None with one night.
        margin_ratio: How far a night may lie off by chance, at 5 % to each side; None with one night.
        outlier: Whether the newest night alone lies further off than the budget's tests allow.
        detectable_ratio: Step that would be told within 7 nights with 80 % power; None with one night.
    """

    alarms: tuple[Alarm, ...]
    began: int
    newest_ratio: float | None
    margin_ratio: float | None
    outlier: bool
    detectable_ratio: float | None


def watch(
    values: Sequence[float],
    days: Sequence[int],
    *,
    experiments: int = 1,
    threshold_ratio: float = 0.02,
) -> Watch:
    """Walk over the nights as they came; each is judged with those before it alone.

    Args:
        values: One value a night, oldest first.
        days: Day of each night, as a count: days that are 7 apart are the same weekday.
        experiments: Experiments of the study, which share the budget.
        threshold_ratio: Smallest step that matters. A drift matters from half of it on, because it goes on.
    """
    series, weekdays = _relative(values), np.asarray(days) % 7
    alarms: list[Alarm] = []
    starts = [0]
    pattern, noises = _Pattern.of(series[:0], weekdays[:0], starts), dict[int, _Noise]()
    for n in range(3, len(series) + 1):
        if n % 7 == 0:
            pattern = _Pattern.of(series[: n - WINDOWS[-1]], weekdays[: n - WINDOWS[-1]], starts)
        nights = _Nights(series[:n], weekdays[:n], tuple(starts), experiments, pattern, noises)
        found = nights.step(threshold_ratio) or nights.drift(threshold_ratio)
        if found is not None:
            alarms.append(found)
            starts.append(n - 2 * WINDOWS[-1] if found.drift else found.began)
            noises.clear()
    now = _Nights(series, weekdays, tuple(starts), experiments, pattern, noises)
    told = bool(alarms) and alarms[-1].told == len(series) - 1
    off, margin, limit = now.newest()
    return Watch(
        alarms=tuple(alarms),
        began=starts[-1],
        newest_ratio=off,
        margin_ratio=margin,
        outlier=not told and off is not None and abs(off) > max(limit, threshold_ratio),
        detectable_ratio=now.detectable(),
    )


def _relative(values: Sequence[float]) -> Floats:
    """Logarithms, in which a change is a ratio; a metric that is not positive is taken over its median."""
    given = np.asarray(values, dtype=float)
    if np.all(given > 0):
        logs: Floats = np.log(given)
        return logs
    middle = float(np.median(np.abs(given)))
    return given / middle if middle > 0 else np.zeros(len(given))


@dataclass(frozen=True, slots=True)
class _Noise:
    """AR(1) noise: correlation with the night before, and the standard deviation of what is new in a night."""

    phi: float
    sd: float
    df: float


@dataclass(frozen=True, slots=True)
class _Pattern:
    """What each weekday adds, the degrees of freedom it took, and what its error adds to the variance of a night."""

    adds: Floats
    df: float = 0.0
    variance: float = 0.0

    @classmethod
    def of(cls, series: Floats, weekdays: NDArray[np.int64], starts: Sequence[int]) -> _Pattern:
        """From three weeks on, as far as it shows against the noise (positive-part James-Stein)."""
        counts = np.bincount(weekdays, minlength=7)
        if counts.min() < 3:
            return cls(np.zeros(7))
        rest = _around_levels(without_spikes(series), starts, np.median)
        rest -= rest.mean()
        means = np.bincount(weekdays, rest, minlength=7) / counts
        around = rest - means[weekdays]
        error = float(around @ around) / max(len(rest) - 7, 1) / counts
        spread = float(np.sum(means**2 / error)) if error.min() > 0 else np.inf
        kept = max(0.0, 1 - 5 / spread) if spread > 0 else 0.0
        return cls(kept * means, 6 * kept, 7 * kept / len(rest))


class _Nights:
    """The nights so far, without spikes and without what the weekday adds."""

    def __init__(
        self,
        series: Floats,
        weekdays: NDArray[np.int64],
        starts: tuple[int, ...],
        experiments: int,
        pattern: _Pattern,
        noises: dict[int, _Noise],
    ) -> None:
        self.values = without_spikes(series - pattern.adds[weekdays])
        self.starts, self.experiments = starts, experiments
        self._pattern, self._noises = pattern, noises

    def step(self, threshold_ratio: float) -> Alarm | None:
        """The most improbable step of the last nights, if it is improbable and large enough."""
        n = len(self.values)
        best, found = 0.0, None
        for m in WINDOWS:
            if n - m <= self.starts[-1]:
                break
            noise = self._noise(n - m)
            before = self.values[max(self.starts[-1], n - m - MEMORY) : n - m]
            step, error = _step(before, _confirmed(before, self.values[n - m :], noise), noise)
            t, ratio = abs(step) / error, math.expm1(step)
            limit = _limit(self.experiments, QUARTER * len(WINDOWS), noise.df)
            least = max(threshold_ratio, GROSS_RATIO if n - m < LEARNING else 0.0)
            if abs(ratio) >= least and t > max(limit, best):
                size = float(self.values[n - m :].mean() - before.mean())
                best, found = t, Alarm(n - 1, n - m, math.expm1(size))
        return found

    def drift(self, threshold_ratio: float) -> Alarm | None:
        """A slope over all nights of the present level."""
        n, start = len(self.values), self.starts[-1]
        if n - start < DRIFT_FROM or n % 7:
            return None
        values, nights = self.values[start:], np.arange(n - start, dtype=float)
        line = np.polyval(np.polyfit(nights, values, 1), nights)
        noise = self._noise_of(np.concatenate((self.values[:start], values - line)))
        slope, error = _second(values, np.ones(n - start), nights, noise)
        ratio = float(np.expm1(slope * nights[-1]))
        if (
            abs(ratio) < threshold_ratio / 2
            or abs(slope) <= _limit(self.experiments, YEAR // 7, noise.df) * error
        ):
            return None
        return Alarm(n - 1, start, ratio, drift=True)

    def newest(self) -> tuple[float | None, float | None, float]:
        """The newest night off the level before it, its margin at 5 % to each side, and the limit of an outlier."""
        before = self.values[self.starts[-1] : -1]
        if not len(before):
            return None, None, 0.0
        noise = self._noise(len(self.values) - 1)
        sd = noise.sd / np.sqrt(1 - noise.phi**2) * np.sqrt(1 + 1 / len(before))
        off = float(self.values[-1] - np.median(before[-MEMORY:]))
        limit = _limit(self.experiments, QUARTER, noise.df) * sd
        margin = float(stats.t.ppf(0.95, noise.df)) * sd
        return float(np.expm1(off)), float(np.expm1(margin)), float(np.expm1(limit))

    def detectable(self) -> float | None:
        """The step of a week that would be told with 80 % power."""
        n = min(len(self.values) - self.starts[-1], MEMORY)
        if n < 2:
            return None
        noise = self._noise(len(self.values))
        _, error = _step(np.zeros(n), [0.0] * WINDOWS[-1], noise)
        power = float(stats.norm.ppf(0.8))
        return float(np.expm1((_limit(self.experiments, QUARTER * len(WINDOWS), noise.df) + power) * error))

    def _noise(self, until: int) -> _Noise:
        """Of the nights before ``until``; known from the first night that asked."""
        if until not in self._noises:
            self._noises[until] = self._noise_of(self.values[:until])
        return self._noises[until]

    def _noise_of(self, values: Floats) -> _Noise:
        """Around the mean of each level; what is assumed weighs some nights.

        Correlation: of successive nights, corrected for its bias of -(1 + 3 phi) / n (Marriott and Pope 1954).
        """
        rest = _around_levels(values, self.starts, np.mean)
        n, squares = len(rest), float(rest @ rest)
        raw = float(rest[1:] @ rest[:-1]) / squares if squares > 0 else 0.0
        phi = (_PHI_WEIGHT * ASSUMED_PHI + n * min(raw + (1 + 3 * raw) / n, 0.95)) / (_PHI_WEIGHT + n)
        phi = min(max(phi, 0.0), 0.9)
        phi = min(phi + _CAUTION * ((1 - phi**2) / (_PHI_WEIGHT + n)) ** 0.5, 0.9)
        white = _whitened(rest, phi)
        assumed = _SD_WEIGHT * ASSUMED_SD_RATIO**2 * (1 - ASSUMED_PHI**2)
        levels = len(_lasting(self.starts, n))
        df = _SD_WEIGHT + max(n - levels - self._pattern.df, 0.0)
        variance = (float(white @ white) + assumed) / df * (1 + self._pattern.variance)
        return _Noise(phi, variance**0.5, df)


def _lasting(starts: Sequence[int], n: int) -> list[int]:
    """Levels that lasted; a restless series, which left each level soon, must not be taken for a calm one."""
    ends = [*starts[1:], n + LASTING]
    return [a for a, end in zip(starts, ends, strict=True) if a < n and (a == 0 or end - a >= LASTING)]


def _around_levels(values: Floats, starts: Sequence[int], centre: Callable[[Floats], Any]) -> Floats:
    edges = [*_lasting(starts, len(values)), len(values)]
    rest = values.copy()
    for begin, end in pairwise(edges):
        rest[begin:end] -= centre(rest[begin:end])
    return rest


def _confirmed(before: Floats, nights: Floats, noise: _Noise) -> list[float]:
    """The night that went furthest counts only as far as the second: no night makes a step alone.

    One that goes far beyond all others is an outlier, and counts as the level before.
    """
    found: list[float] = nights.tolist()
    level = float(before.sum()) / len(before)
    ranked = sorted(found, reverse=sum(found) / len(found) > level)
    furthest, second = ranked[0], ranked[1]
    found[found.index(furthest)] = level if abs(furthest - second) > _FAR * noise.sd else second
    return found


def _step(before: Floats, after: list[float], noise: _Noise) -> tuple[float, float]:
    """Step between two stretches by generalised least squares under AR(1), and its standard error.

    The sums below are products of the whitened regressors (level: sqrt(1 - phi^2), then 1 - phi; step: 1, then
    1 - phi) and of them with the whitened nights.
    """
    phi, new, first, last = noise.phi, 1 - noise.phi, float(before[0]), after[-1]
    total, since = float(before.sum()) + sum(after), sum(after)
    n, m = len(before) + len(after), len(after)
    level_level = new * (1 + phi) + (n - 1) * new**2
    level_step = new + (m - 1) * new**2
    left = 1 + (m - 1) * new**2 - level_step**2 / level_level
    level_y = new * (1 + phi) * first + new * (total - first - phi * (total - last))
    step_y = after[0] - phi * float(before[-1]) + new * (since - after[0] - phi * (since - last))
    return (step_y - level_step / level_level * level_y) / left, noise.sd / left**0.5


def _second(values: Floats, one: Floats, two: Floats, noise: _Noise) -> tuple[float, float]:
    """Generalised least squares under AR(1): coefficient of the second regressor, and its standard error."""
    y, a, b = (_whitened(each, noise.phi) for each in (values, one, two))
    ratio = float(a @ b) / float(a @ a)
    left = float(b @ b) - ratio * float(a @ b)
    return (float(b @ y) - ratio * float(a @ y)) / left, noise.sd / left**0.5


def _whitened(values: Floats, phi: float) -> Floats:
    """What is new in each night: y_t - phi y_(t-1), the first one scaled to the same variance (Prais and Winsten)."""
    white = values.copy()
    white[1:] -= phi * values[:-1]
    white[0] *= (1 - phi**2) ** 0.5
    return white


@lru_cache(maxsize=4096)
def _limit(experiments: int, tests: int, df: float) -> float:
    """Critical value of a two-sided t test when all tests of all experiments share one false alarm."""
    return float(stats.t.isf(0.5 / (max(experiments, FAMILY) * tests), df))


def without_spikes(values: Floats, least: float = ASSUMED_SD_RATIO) -> Floats:
    """A night far off both neighbours to the same side is an outlier; their mean stands for it.

    Far is 3 robust standard deviations of the step from night to night, and ``least``.
    """
    steps = np.diff(values)
    usual = 1.4826 * float(np.median(np.abs(steps))) if len(steps) else 0.0
    limit = max(_FAR * usual, least)
    up, down = steps[:-1], -steps[1:]
    spikes = (np.minimum(up, down) > limit) | (np.maximum(up, down) < -limit)
    seen = values.copy()
    seen[1:-1][spikes] = ((values[:-2] + values[2:]) / 2)[spikes]
    return seen
