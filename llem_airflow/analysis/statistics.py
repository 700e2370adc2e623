"""Statistics over the cycles of one experiment. n is cycles, never requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
    data = np.array(list(values), dtype=float)
    if data.size == 0:
        return None
    mean, median = float(data.mean()), float(np.median(data))
    p5, p95 = (float(value) for value in np.percentile(data, (5, 95)))
    sd = float(data.std(ddof=1)) if data.size > 1 else None
    interval = t_interval(data.tolist())
    return Description(
        n=int(data.size),
        mean=mean,
        sd=sd,
        cv_ratio=sd / abs(mean) if sd is not None and mean else None,
        median=median,
        mad=float(np.median(np.abs(data - median))) if data.size > 1 else None,
        p5=p5,
        p95=p95,
        interval=interval,
        bootstrap=bca_interval(data.tolist()),
        half_width_ratio=(interval.high - interval.low) / 2 / abs(mean) if interval and mean else None,
        outliers=outliers(data.tolist()),
    )


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval | None:
    """Interval for the mean.

    Formula: mean +- t(1 - alpha / 2, n - 1) sd / sqrt(n). Its coverage is right at any n for normal data,
    where bootstrap intervals cover 72 to 75 % at n = 3. None for n < 2.
    """
    n = len(values)
    if n < 2:
        return None
    mean = float(np.mean(values))
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * float(np.std(values, ddof=1)) / n**0.5
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
    data = np.asarray(values, dtype=float)
    distance = np.abs(data - np.median(data))
    scale = _MAD_TO_SD * float(np.median(distance))
    if data.size < 4 or scale == 0.0:
        return ()
    return tuple(int(index) for index in np.flatnonzero(distance > _OUTLIER_MADS * scale))


def slope_ratio(positions: Sequence[float], values: Sequence[float]) -> float | None:
    """Drift over the study: Theil-Sen slope of value on position in the run order / median.

    None below 4 values.
    """
    if len(values) < 4 or not float(np.median(values)):
        return None
    slope = float(stats.theilslopes(values, positions).slope)
    return slope / abs(float(np.median(values)))
