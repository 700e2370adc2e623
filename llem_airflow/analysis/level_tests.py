"""The tests behind the nightly alarm: has the level of a series stepped, does it drift, is the newest night far off.

Student's t of generalised least squares under AR(1); the critical value shares a budget of false alarms over
experiments, nights and windows by the union bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from llem_airflow.analysis.noise import FAR, MEMORY, Floats, Integers, Noise, Pattern, Prior, whitened

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

LASTING = 5
"""Nights from which on a level is one."""

DRIFT_FROM = 60
"""Nights on one level from which on a drift is looked for."""


class Change(NamedTuple):
    """Position of the first night of a new level, or of the level that drifted, and the size as a logarithm."""

    began: int
    size: float


class Nights:
    """The nights so far of experiments with equally many, without spikes and without what the weekday adds."""

    def __init__(
        self,
        values: Floats,
        starts: Sequence[Sequence[int]],
        patterns: Sequence[Pattern],
        prior: Prior,
        experiments: int,
    ) -> None:
        """Take the nights.

        Args:
            values: One row an experiment, in logarithms.
            starts: Where the levels of each began.
            patterns: What was taken off each for its weekdays.
            prior: What is known of the noise of each.
            experiments: Experiments that share the budget.
        """
        self._values, self._starts, self._prior, self._experiments = values, starts, prior, experiments
        self._taken = np.array([pattern.df for pattern in patterns])
        self._inflation = np.array([pattern.variance for pattern in patterns])
        self._last = np.array([each[-1] for each in starts])

    def steps(self, threshold_ratio: float) -> dict[int, Change]:
        """By row, the most improbable step of the last nights, where it is improbable and large enough."""
        values, n = self._values, self._values.shape[1]
        sums = np.concatenate((np.zeros((len(values), 1)), np.cumsum(values, axis=1)), axis=1)
        rows, best, found = np.arange(len(values)), np.zeros(len(values)), dict[int, Change]()
        for m in WINDOWS:
            edge = n - m
            on_level = self._last < edge
            if edge < 1 or not on_level.any():
                break
            begin = np.minimum(np.maximum(self._last, edge - MEMORY), edge - 1)
            before = _Before(
                sums[:, edge] - sums[rows, begin], edge - begin, values[rows, begin], values[:, edge - 1]
            )
            noise = self._noise_of(values[:, :edge])
            step, error = _step(before, _confirmed(before.mean, values[:, edge:], noise.sd), noise)
            t, least = np.abs(step) / error, max(threshold_ratio, GROSS_RATIO if edge < LEARNING else 0.0)
            limit = _limit(self._experiments, QUARTER * len(WINDOWS), noise.df)
            told = on_level & (np.abs(np.expm1(step)) >= least) & (t > np.maximum(limit, best))
            best = np.where(told, t, best)
            sizes = values[:, edge:].mean(axis=1) - before.mean
            found |= {int(row): Change(edge, float(sizes[row])) for row in np.flatnonzero(told)}
        return found

    def drift(self, row: int, threshold_ratio: float) -> Change | None:
        """Of one experiment: a slope over all nights of its present level."""
        n, start = self._values.shape[1], int(self._last[row])
        if n - start < DRIFT_FROM:
            return None
        values, nights = self._values[row, start:], np.arange(n - start, dtype=float)
        level = self._values[[row]]
        level[0, start:] -= np.polyval(np.polyfit(nights, values, 1), nights)
        noise = self._noise_of(level, slice(row, row + 1))
        slope, error = _second(values, np.ones(n - start), nights, noise)
        size = slope * float(nights[-1])
        limit = float(_limit(self._experiments, YEAR // 7, noise.df)[0])
        if abs(math.expm1(size)) < threshold_ratio / 2 or abs(slope) <= limit * error:
            return None
        return Change(start, size)

    def newest(self) -> tuple[float, float, float] | None:
        """Of one experiment alone, as logarithms; None where its level has no night before the newest.

        Returns:
            The newest night off the level before it, its margin at 5 % to each side, and the limit of an outlier.
        """
        before = self._values[0, self._last[0] : -1]
        if not len(before):
            return None
        noise = self._noise_of(self._values[:, :-1])
        phi, df = float(noise.phi[0]), float(noise.df[0])
        sd = float(noise.sd[0]) / math.sqrt(1 - phi**2) * math.sqrt(1 + 1 / len(before))
        off = float(self._values[0, -1] - np.median(before[-MEMORY:]))
        limit = float(_limit(self._experiments, QUARTER, noise.df)[0])
        return off, float(special.stdtrit(df, 0.95)) * sd, limit * sd

    def detectable(self) -> float | None:
        """Of one experiment alone: the step of a week that would be told with 80 % power; None with one night."""
        n = min(self._values.shape[1] - int(self._last[0]), MEMORY)
        if n < 2:
            return None
        noise, zero = self._noise_of(self._values), np.zeros(1)
        _, error = _step(_Before(zero, np.array([n]), zero, zero), np.zeros((1, WINDOWS[-1])), noise)
        limit = _limit(self._experiments, QUARTER * len(WINDOWS), noise.df)
        return float(np.expm1((limit + special.ndtri(0.8)) * error)[0])

    def _noise_of(self, values: Floats, rows: slice = slice(None)) -> Noise:
        n, starts = values.shape[1], self._starts[rows]
        taken = np.array([len(lasting(each, n)) for each in starts]) + self._taken[rows]
        rest = around_levels(values, starts, np.mean)
        return Noise.of(rest, taken, self._inflation[rows], self._prior.of(rows))


class _Before(NamedTuple):
    """The nights before a step, one value an experiment: their sum and number, the first and the last."""

    sum: Floats
    n: Integers
    first: Floats
    last: Floats

    @property
    def mean(self) -> Floats:
        """Their mean."""
        return self.sum / self.n


def lasting(starts: Sequence[int], n: int) -> list[int]:
    """Levels that lasted; a restless series, which left each level soon, must not be taken for a calm one."""
    ends = [*starts[1:], n + LASTING]
    return [a for a, end in zip(starts, ends, strict=True) if a < n and (a == 0 or end - a >= LASTING)]


def around_levels(values: Floats, starts: Sequence[Sequence[int]], centre: Callable[..., Any]) -> Floats:
    """Each row around the centre (mean or median) of each of its levels."""
    rest: Floats = values - centre(values, axis=1, keepdims=True)
    for row, each in enumerate(starts):
        if len(each) > 1:
            for begin, end in pairwise([*lasting(each, values.shape[1]), values.shape[1]]):
                rest[row, begin:end] = values[row, begin:end] - centre(values[row, begin:end])
    return rest


def _confirmed(level: Floats, nights: Floats, sd: Floats) -> Floats:
    """The night that went furthest counts only as far as the second: no night makes a step alone.

    One that goes far beyond all others is an outlier, and counts as the level before.
    """
    found, rows = nights.copy(), np.arange(len(nights))
    up = nights.mean(axis=1) > level
    ranked = np.sort(nights, axis=1)
    furthest = np.where(up, ranked[:, -1], ranked[:, 0])
    second = np.where(up, ranked[:, -2], ranked[:, 1])
    at = np.where(up, nights.argmax(axis=1), nights.argmin(axis=1))
    found[rows, at] = np.where(np.abs(furthest - second) > FAR * sd, level, second)
    return found


def _step(before: _Before, after: Floats, noise: Noise) -> tuple[Floats, Floats]:
    """Step between two stretches by generalised least squares under AR(1), and its standard error, by row.

    The sums below are products of the whitened regressors (level: sqrt(1 - phi^2), then 1 - phi; step: 1, then
    1 - phi) and of them with the whitened nights.
    """
    phi, new, last = noise.phi, 1 - noise.phi, after[:, -1]
    since, m = after.sum(axis=1), after.shape[1]
    total, n = before.sum + since, before.n + m
    level_level = new * (1 + phi) + (n - 1) * new**2
    level_step = new + (m - 1) * new**2
    left = 1 + (m - 1) * new**2 - level_step**2 / level_level
    level_y = new * (1 + phi) * before.first + new * (total - before.first - phi * (total - last))
    step_y = after[:, 0] - phi * before.last + new * (since - after[:, 0] - phi * (since - last))
    return (step_y - level_step / level_level * level_y) / left, noise.sd / left**0.5


def _second(values: Floats, one: Floats, two: Floats, noise: Noise) -> tuple[float, float]:
    """Generalised least squares under AR(1): coefficient of the second regressor, and its standard error."""
    y, a, b = (whitened(each[None], noise.phi)[0] for each in (values, one, two))
    ratio = float(a @ b) / float(a @ a)
    left = float(b @ b) - ratio * float(a @ b)
    return (float(b @ y) - ratio * float(a @ y)) / left, float(noise.sd[0]) / left**0.5


def _limit(experiments: int, tests: int, df: Floats) -> Floats:
    """Critical value of a two-sided t test when all tests of all experiments share one false alarm."""
    limit: Floats = -special.stdtrit(df, 0.5 / (max(experiments, FAMILY) * tests))
    return limit
