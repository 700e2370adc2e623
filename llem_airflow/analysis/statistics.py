"""Statistics over the cycles of one experiment. n is cycles, never requests.

Plain Python where n is small: a study of 1,000 experiments has 33,000 descriptions of a handful of values each,
for which one call of numpy costs more than the whole description.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
BOOTSTRAP_FROM_N = 20
_BOOTSTRAP_RESAMPLES = 9_999
_BOOTSTRAP_SEED = 0
"""Fixed, so that the same evidence gives the same bytes."""

FEW_CYCLES = 5
_OUTLIER_MADS = 3.5
_MAD_TO_SD = 1.4826


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval for the mean.

    Attributes:
        low: Lower end.
        high: Upper end.
        method: ``t`` or ``BCa``.
        confidence: Nominal coverage.
    """

    low: float
    high: float
    method: str
    confidence: float = CONFIDENCE


@dataclass(frozen=True, slots=True)
class Description:
    """What the values of n cycles say. In the unit of the values unless named a ratio.

    Attributes:
        n: Number of values.
        mean: Mean.
        sd: Standard deviation (n - 1); None for n = 1.
        cv_ratio: sd / |mean|; None for n = 1 or mean 0.
        median: Median.
        mad: Median absolute deviation from the median, unscaled; None for n = 1.
        p5: 5th percentile.
        p95: 95th percentile.
        interval: t interval for the mean; None for n = 1: one value has no interval.
        bootstrap: BCa interval beside it, from 20 values on.
        half_width_ratio: Half the t interval / |mean|.
        outliers: Positions of values further than 3.5 scaled MAD from the median; all numbers keep them.
    """

    n: int
    mean: float
    sd: float | None
    cv_ratio: float | None
    median: float
    mad: float | None
    p5: float
    p95: float
    interval: Interval | None
    bootstrap: Interval | None
    half_width_ratio: float | None
    outliers: tuple[int, ...]


def describe(values: Iterable[float]) -> Description | None:
    """Describe the values of the cycles; None when there is no value."""
    data = [float(value) for value in values]
    if not data:
        return None
    ordered, mean, middle, sd = sorted(data), _mean(data), median(data), _sd(data)
    interval = t_interval(data)
    return Description(
        n=len(data),
        mean=mean,
        sd=sd,
        cv_ratio=sd / abs(mean) if sd is not None and mean else None,
        median=middle,
        mad=_mad(data, middle) if len(data) > 1 else None,
        p5=_quantile(ordered, 0.05),
        p95=_quantile(ordered, 0.95),
        interval=interval,
        bootstrap=bca_interval(data),
        half_width_ratio=(interval.high - interval.low) / 2 / abs(mean) if interval and mean else None,
        outliers=outliers(data),
    )


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval | None:
    """Interval for the mean.

    Formula: mean +- t(1 - alpha / 2, n - 1) sd / sqrt(n). Its coverage is right at any n for normal data,
    where bootstrap intervals cover 72 to 75 % at n = 3. None for n < 2.
    """
    sd = _sd(values)
    if sd is None:
        return None
    mean = _mean(values)
    half = _t_quantile((1 + confidence) / 2, len(values) - 1) * sd / len(values) ** 0.5
    return Interval(mean - half, mean + half, "t", confidence)


def bca_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval | None:
    """BCa bootstrap interval for the mean; None below 20 values or without spread."""
    if len(values) < BOOTSTRAP_FROM_N or float(np.ptp(values)) == 0.0:
        return None
    found = stats.bootstrap(
        (np.asarray(values, dtype=float),),
        np.mean,
        confidence_level=confidence,
        n_resamples=_BOOTSTRAP_RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(_BOOTSTRAP_SEED),
    ).confidence_interval
    return Interval(float(found.low), float(found.high), "BCa", confidence)


def outliers(values: Sequence[float]) -> tuple[int, ...]:
    """Positions of outliers: |x - median| > 3.5 x 1.4826 MAD (Iglewicz and Hoaglin)."""
    if len(values) < 4:
        return ()
    middle = median(values)
    scale = _MAD_TO_SD * _mad(values, middle)
    if scale == 0.0:
        return ()
    return tuple(index for index, value in enumerate(values) if abs(value - middle) > _OUTLIER_MADS * scale)


def slope_ratio(positions: Sequence[float], values: Sequence[float]) -> float | None:
    """Drift over the study: Theil-Sen slope of value on position in the run order / median.

    None below 4 values.
    """
    middle = median(values) if len(values) >= 4 else 0.0
    if not middle:
        return None
    x, y = np.asarray(positions, dtype=float), np.asarray(values, dtype=float)
    dx, dy = x[:, None] - x, y[:, None] - y
    later = dx > 0
    return float(np.median(dy[later] / dx[later])) / abs(middle) if later.any() else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _sd(values: Sequence[float]) -> float | None:
    """Standard deviation with n - 1; None for one value."""
    if len(values) < 2:
        return None
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _mad(values: Sequence[float], middle: float) -> float:
    return median(abs(value - middle) for value in values)


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Quantile of ascending values, straight between neighbours (R's type 7, numpy's default)."""
    at = share * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)


@cache
def _t_quantile(share: float, degrees: int) -> float:
    return float(stats.t.ppf(share, degrees))
