"""How nights differ by chance: AR(1) noise and a pattern of the weekday, of each experiment and of a whole study.

Thirty nights tell little of an experiment's own noise. The experiments of a study share a host, so what the others
say is worth some nights of its own: as many as follow from how much the experiments differ in their noise and how far
they move together (empirical Bayes, as Smyth 2004 has it for the variances of genes). An experiment unlike the others
keeps its own (limited translation, Efron and Morris 1972).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

ASSUMED_SD_RATIO = 0.02
"""How much nights differ as long as nothing else is known."""

ASSUMED_PHI = 0.5
"""Correlation of one night with the next, likewise."""

ASSUMED_VARIANCE = ASSUMED_SD_RATIO**2 * (1 - ASSUMED_PHI**2)
"""Of what is new in a night, by both."""

SD_WEIGHT, PHI_WEIGHT = 4.0, 10.0
"""What the assumptions weigh, in nights."""

MEMORY = 91
"""Nights that a level is known from, and over which experiments are seen to move together."""

POOLED_FROM = 10
"""Nights from which on an experiment tells the others how nights differ."""

FAR = 3.0
"""Standard deviations by which an outlier goes beyond the others: a night, or the noise of an experiment."""

_PHI_APART, _LOG_VARIANCE_APART, _APART_WEIGHT = 0.02, 0.1, 4.0
"""How much experiments differ in their noise as long as few of them tell it: variance of phi, variance of the logarithm
of the variance, and what both weigh, in experiments."""

_CAUTION = 0.5
"""Standard errors by which the correlation is taken to be higher than estimated: too low a one makes false alarms."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """What each weekday adds, the degrees of freedom it took, and what its error adds to the variance of a night."""

    adds: Floats
    df: float = 0.0
    variance: float = 0.0

    @classmethod
    def of(cls, rest: Floats, weekdays: Integers) -> Pattern:
        """From three weeks on, as far as it shows against the noise (positive-part James-Stein)."""
        return cls.of_rows(rest[None, :], weekdays)[0]

    @classmethod
    def of_rows(cls, rest: Floats, weekdays: Integers) -> list[Pattern]:
        """The same for several experiments that were measured in the same nights; rows are experiments."""
        counts: Integers = np.bincount(weekdays, minlength=7)
        k, n = rest.shape
        if counts.min() < 3:
            return [cls(np.zeros(7))] * k
        rest = np.ascontiguousarray(rest)
        centred = rest - rest.mean(axis=1, keepdims=True)
        at = (weekdays + 7 * np.arange(k)[:, None]).ravel()
        means = np.bincount(at, centred.ravel(), minlength=7 * k).reshape(k, 7) / counts
        around = centred - means.take(weekdays, axis=1)  # row after row in memory, as sums of one row have it
        error = np.array([row @ row for row in around])[:, None] / max(n - 7, 1) / counts
        exact = error.min(axis=1) <= 0
        spread = np.sum(means**2 / np.where(error > 0, error, 1.0), axis=1)
        kept = np.where(spread > 0, np.maximum(0.0, 1 - 5 / np.where(spread > 0, spread, 1.0)), 0.0)
        kept[exact] = 1.0
        return [
            cls(each * row, 6 * each, 7 * each / n) for each, row in zip(kept.tolist(), means, strict=True)
        ]

    def beside(self, common: Pattern, share: float) -> Pattern:
        """Its own and that of the study, whose error is ``share`` of what an experiment's would be."""
        return Pattern(
            self.adds + common.adds, self.df + share * common.df, self.variance + share * common.variance
        )


@dataclass(frozen=True, slots=True)
class Prior:
    """What is known of the noise of experiments before their own nights.

    Attributes:
        phi: Correlation of a night with the next.
        phi_weight: What it weighs, in nights.
        variance: Variance of what is new in a night.
        variance_weight: What it weighs, in nights.
    """

    phi: Floats
    phi_weight: Floats
    variance: Floats
    variance_weight: Floats

    @classmethod
    def assumed(cls, experiments: int) -> Prior:
        """As long as nothing is known."""
        told = (ASSUMED_PHI, PHI_WEIGHT, ASSUMED_VARIANCE, SD_WEIGHT)
        return cls(*(np.full(experiments, one) for one in told))

    @classmethod
    def pooled(cls, rest: Floats, taken: Floats) -> Prior:
        """What the other experiments of the study say to each.

        A weight is the one whose sampling variance is that between experiments plus that of their mean.

        Args:
            rest: Nights of each experiment around its level; NaN where it was not measured.
            taken: Degrees of freedom that level and pattern took of each.
        """
        assumed, seen = cls.assumed(len(rest)), ~np.isnan(rest)
        nights = seen.sum(axis=1).astype(float)
        known = nights >= POOLED_FROM
        if known.sum() < 2:
            return assumed
        phi, variance, df = np.zeros(len(rest)), np.zeros(len(rest)), np.maximum(nights - taken, 1.0)
        counts = np.unique(nights[nights > 0])
        packed = [(nights == n, rest[nights == n][seen[nights == n]].reshape(-1, int(n))) for n in counts]
        for rows, own in packed:  # those with equally many nights at once
            phi[rows] = correlation(own)
        middle = np.clip(np.median(phi[known], keepdims=True), 0.0, 0.9)
        for rows, own in packed:
            variance[rows] = squares(own, np.repeat(middle, len(own))) / df[rows]
        log = np.log(np.maximum(variance, np.finfo(float).tiny))
        errors = (1 - middle**2) / np.maximum(nights, 1.0), 2 / df
        like = _alike(phi, errors[0], known) & _alike(log, errors[1], known)
        together = _together(rest[like], middle.item())
        phi_mean, phi_most = _mean_of_others(phi, nights * like, ASSUMED_PHI, PHI_WEIGHT, together)
        mean, most = _mean_of_others(variance, df * like, ASSUMED_VARIANCE, SD_WEIGHT, together)
        phi_apart = _apart(phi[like], errors[0][like], _PHI_APART, together)
        apart = _apart(log[like], errors[1][like], _LOG_VARIANCE_APART, together)
        own = known & ~like
        return cls(
            np.where(own, assumed.phi, phi_mean),
            np.where(own, assumed.phi_weight, 1 / (phi_apart / (1 - phi_mean**2) + 1 / phi_most)),
            np.where(own, assumed.variance, mean),
            np.where(own, assumed.variance_weight, 1 / (apart / 2 + 1 / most)),
        )

    def of(self, rows: list[int] | Integers) -> Prior:
        """That of some experiments."""
        return Prior(self.phi[rows], self.phi_weight[rows], self.variance[rows], self.variance_weight[rows])


@dataclass(frozen=True, slots=True)
class Noise:
    """AR(1) noise, one value an experiment: correlation with the night before, and what is new in a night."""

    phi: Floats
    sd: Floats
    df: Floats

    @classmethod
    def of(cls, rest: Floats, taken: Floats, inflation: Floats, prior: Prior) -> Noise:
        """From the nights around their level and from what is known before them.

        Args:
            rest: One row an experiment.
            taken: Degrees of freedom that level and pattern took.
            inflation: What the error of the pattern adds to the variance of a night, as its share.
            prior: One value an experiment.
        """
        n = rest.shape[1]
        phi = _beside(correlation(rest), n, prior)
        return cls._from(phi, squares(rest, phi), np.maximum(n - taken, 0.0), inflation, prior)

    @classmethod
    def of_sums(cls, sums: Sums, taken: Floats, inflation: Floats, prior: Prior) -> Noise:
        """The same but for rounding, from sums over the nights; arguments as for ``of``."""
        raw = sums.products / np.where(sums.squares > 0, sums.squares, 1.0)
        phi = _beside(_corrected(raw, sums.n), sums.n, prior)
        new = sums.squares - 2 * phi * sums.products + phi**2 * (sums.squares - sums.ends)
        return cls._from(phi, new, np.maximum(sums.n - taken, 0.0), inflation, prior)

    @classmethod
    def _from(cls, phi: Floats, new: Floats, df: Floats, inflation: Floats, prior: Prior) -> Noise:
        weight = prior.variance_weight + df
        variance = (new + prior.variance_weight * prior.variance) / weight
        return cls(phi, (variance * (1 + inflation)) ** 0.5, weight)


class Sums(NamedTuple):
    """Sums over the first n nights of each row around their mean.

    Attributes:
        n: How many nights; one number, or one a row.
        squares: Of each night, squared.
        products: Of each night with the next.
        ends: Squares of the first and of the last night.
    """

    n: Any
    squares: Floats
    products: Floats
    ends: Floats


class RunningSums:
    """Sums over the first nights of each row, for any number of them: each costs no pass over the nights.

    Args:
        values: One row an experiment.
    """

    def __init__(self, values: Floats) -> None:
        off = values - values.mean(axis=1, keepdims=True)  # of numbers near 0, squares lose no digits
        self._off = off
        self._sum = np.cumsum(off, axis=1)
        self._squares = np.cumsum(off**2, axis=1)
        self._products = np.cumsum(off[:, 1:] * off[:, :-1], axis=1)
        self._least = (1e-10 * np.abs(values).max(axis=1)) ** 2

    def first(self, n: Any, rows: Any = slice(None)) -> tuple[Sums, NDArray[np.bool_]]:
        """The sums over the first n nights, two at least, and which rows differ enough for them to be exact.

        Args:
            n: One number, or one for each of ``rows``.
            rows: Which rows; else all.
        """
        total, squares = self._sum[rows, n - 1], self._squares[rows, n - 1]
        first, last, mean = self._off[rows, 0], self._off[rows, n - 1], total / n
        around = squares - n * mean**2
        products = self._products[rows, n - 2] - mean * (2 * total - first - last) + (n - 1) * mean**2
        sums = Sums(n, around, products, (first - mean) ** 2 + (last - mean) ** 2)
        return sums, (around > 1e-6 * squares) & (around > n * self._least[rows])


def _beside(phi: Floats, n: Any, prior: Prior) -> Floats:
    """The correlation of n nights beside what is known before them, taken with caution."""
    weight = prior.phi_weight + n
    phi = np.maximum((prior.phi_weight * prior.phi + n * phi) / weight, 0.0)
    taken: Floats = np.minimum(phi + _CAUTION * ((1 - phi**2) / weight) ** 0.5, 0.9)
    return taken


def correlation(rest: Floats) -> Floats:
    """Correlation of successive nights by row, corrected for its bias of -(1 + 3 phi) / n (Marriott and Pope 1954)."""
    own = np.sum(rest**2, axis=1)
    raw = np.sum(rest[:, 1:] * rest[:, :-1], axis=1) / np.where(own > 0, own, 1.0)
    return _corrected(raw, rest.shape[1])


def _corrected(raw: Floats, n: Any) -> Floats:
    corrected: Floats = np.minimum(raw + (1 + 3 * raw) / n, 0.95)
    return corrected


def squares(rest: Floats, phi: Floats) -> Floats:
    """Sum of squares of what is new in each night, by row."""
    found: Floats = np.sum(whitened(rest, phi) ** 2, axis=1)
    return found


def whitened(rest: Floats, phi: Floats) -> Floats:
    """What is new in each night: y_t - phi y_(t-1), the first one scaled to the same variance (Prais and Winsten)."""
    white = rest.copy()
    white[:, 1:] -= phi[:, None] * rest[:, :-1]
    white[:, 0] *= (1 - phi**2) ** 0.5
    return white


def _alike(values: Floats, error: Floats, known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of those that are known are like the others: within three robust standard deviations."""
    off = np.abs(values - np.median(values[known]))
    usual = 1.4826 * np.median(off[known])
    alike: NDArray[np.bool_] = known & (off <= FAR * np.maximum(usual, error**0.5))
    return alike


def _together(rest: Floats, phi: float) -> float:
    """Mean squared correlation between the noise of two experiments, over the newest nights."""
    newest = rest[:, -MEMORY:]
    new = np.nan_to_num(newest[:, 1:] - phi * newest[:, :-1])
    k, n = new.shape
    size = np.sqrt(np.sum(new**2, axis=1, keepdims=True))
    unit = new / np.where(size > 0, size, 1.0)
    both = unit @ unit.T if k <= n else unit.T @ unit
    return float(np.clip((np.sum(both**2) - k) / max(k * (k - 1), 1) - 1 / n, 0.0, 1.0))


def _independent(k: int, together: float) -> float:
    """How many independent experiments tell as much of a variance as all others do."""
    return max(k, 1) / (1 + (max(k, 1) - 1) * together) - 1


def _mean_of_others(
    own: Floats, weight: Floats, assumed: float, assumed_weight: float, together: float
) -> tuple[Floats, Floats]:
    """Mean of the other experiments and of what is assumed, and what it weighs."""
    k, theirs = int(np.count_nonzero(weight)), weight.sum() - weight
    mean = (weight @ own - weight * own) / np.where(theirs > 0, theirs, 1.0)
    worth = theirs * _independent(k, together) / max(k - 1, 1)
    return (assumed_weight * assumed + worth * mean) / (assumed_weight + worth), assumed_weight + worth


def _apart(values: Floats, error: Floats, assumed: float, together: float) -> float:
    """Variance between experiments: what they show beyond chance, and what is assumed while they are few."""
    others = _independent(len(values), together)
    between = float(values.var(ddof=1)) - (1 - together) * float(error.mean()) if len(values) > 1 else 0.0
    return max(0.0, (_APART_WEIGHT * assumed + others * between) / (_APART_WEIGHT + others))


def without_spikes(values: Floats, least: float = ASSUMED_SD_RATIO) -> Floats:
    """A night far off both neighbours to the same side is an outlier; their mean stands for it.

    Far is 3 robust standard deviations of the step from night to night, and ``least``. Rows are series.
    """
    if values.ndim == 1:
        alone: Floats = without_spikes(values[None, :], least)[0]
        return alone
    seen, steps = values.copy(), np.diff(values, axis=1)
    if steps.shape[1] < 2:
        return seen
    off = _off_both(steps)
    rows = np.flatnonzero(_may_be_far(off.max(axis=1), np.abs(steps), least))
    usual = 1.4826 * np.median(np.abs(steps[rows]), axis=1, keepdims=True)
    spikes = off[rows] > np.maximum(FAR * usual, least)
    seen[rows, 1:-1] = np.where(spikes, (values[rows, :-2] + values[rows, 2:]) / 2, values[rows, 1:-1])
    return seen


def may_have_spikes(values: Floats, rows: Integers, nights: Integers) -> NDArray[np.bool_]:
    """Which rows may have a spike among their first nights: from the same row no night is looked at twice.

    Args:
        values: One row a series.
        rows: Rows that are asked about, each as often as it is.
        nights: How many of its nights, three at least.
    """
    steps = np.diff(values, axis=1)
    sizes, furthest = np.abs(steps), np.maximum.accumulate(_off_both(steps), axis=1)[rows, nights - 3]
    may = np.zeros(len(rows), dtype=bool)
    for n in np.unique(nights).tolist():
        at = np.flatnonzero((nights == n) & (furthest > ASSUMED_SD_RATIO))
        may[at] = _may_be_far(furthest[at], sizes[rows[at], : n - 1], ASSUMED_SD_RATIO)
    return may


def _off_both(steps: Floats) -> Floats:
    """How far each night but the first and the last lies off both neighbours to the same side, from its steps."""
    up, down = steps[:, :-1], -steps[:, 1:]
    off: Floats = np.maximum(np.minimum(up, down), -np.maximum(up, down))
    return off


def _may_be_far(furthest: Floats, sizes: Floats, least: float) -> NDArray[np.bool_]:
    """Rows that may have a spike: counting is cheaper than the median, and most rows have none."""
    below = furthest / (FAR * 1.4826) * (1 + 1e-9)
    enough = (sizes <= below[:, None]).sum(axis=1) > (sizes.shape[1] - 1) // 2
    may: NDArray[np.bool_] = (furthest > least) & enough
    return may
