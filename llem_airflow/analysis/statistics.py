"""Statistics over the cycles of one experiment. n is cycles, never requests.

Plain Python where n is small: a study of 1,000 experiments has 33,000 descriptions of a handful of values each,
for which one call of numpy costs more than the whole description.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from statistics import median

import numpy as np
from scipy import stats

from llem_airflow.analysis.blocked import HostMean, are_several, by_host, host_mean
from llem_airflow.analysis.metrics import P95_FROM
from llem_airflow.protocol.typed_json import UNLESS_DEFAULT

CONFIDENCE = 0.95
SHOWN_FROM_N = 3
"""Smallest number of values whose interval is drawn and printed: at n = 2 the t quantile is 12.7, and even cycles that
differ by 1 % give an interval of 9 % to each side. It is computed, and stored, from two values on."""

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
        method: ``log t`` (of a quantity that cannot be negative), ``t`` or ``BCa``, with ``, within hosts`` where
            several hosts measured.
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
        mean: Mean; of several hosts the mean of their means.
        sd: Standard deviation (n - 1), of several hosts within them (n - hosts); None for n = 1.
        cv_ratio: sd / |mean|; None for n = 1 or mean 0.
        median: Median.
        mad: Median absolute deviation from the median, unscaled; None for n = 1.
        p5: 5th percentile; None below 20 values.
        p95: 95th percentile; None below 20 values.
        interval: t interval for the mean; None for n = 1: one value has no interval.
        bootstrap: BCa interval beside it, from 20 values on.
        half_width_ratio: Half the length of the t interval / |mean|.
        outliers: Positions of values further than 3.5 scaled MAD from the median of their host; all numbers keep them.
        hosts: Hosts that the values are from.
    """

    n: int
    mean: float
    sd: float | None
    cv_ratio: float | None
    median: float
    mad: float | None
    p5: float | None
    p95: float | None
    interval: Interval | None
    bootstrap: Interval | None
    half_width_ratio: float | None
    outliers: tuple[int, ...]
    hosts: int = field(default=1, metadata=UNLESS_DEFAULT)

    @property
    def df(self) -> int:
        """Degrees of freedom of the spread."""
        return degrees_of_freedom(self.n, self.hosts)

    @property
    def shown_interval(self) -> Interval | None:
        """The interval for people: None where there is none or n is too small for it to tell anything."""
        return self.interval if tells_interval(self.n, self.hosts) else None


def degrees_of_freedom(n: int, hosts: int = 1) -> int:
    """Those of the spread of n values: within hosts, or between them where each has one value."""
    return n - (hosts if n > hosts else 1)


def tells_interval(n: int, hosts: int = 1) -> bool:
    """Whether so many values are enough for an interval that people are shown."""
    return degrees_of_freedom(n, hosts) >= SHOWN_FROM_N - 1


def shown_interval(
    values: Sequence[float], *, signed: bool = False, hosts: Sequence[str] = ()
) -> Interval | None:
    """``describe(values).shown_interval`` alone, which costs a fifth for one host."""
    if are_several(hosts):
        found = describe(values, signed=signed, hosts=hosts)
        return found.shown_interval if found else None
    return t_interval(values, signed=signed) if len(values) >= SHOWN_FROM_N else None


def describe(
    values: Iterable[float], *, signed: bool = False, hosts: Sequence[str] = ()
) -> Description | None:
    """Describe the values of the cycles; None when there is no value.

    Args:
        values: One value a cycle.
        signed: Whether the quantity can be negative.
        hosts: The host of each value. Where there are several, mean, spread and intervals are within hosts.
    """
    data = [float(value) for value in values]
    if not data:
        return None
    ordered, middle = sorted(data), median(data)
    cells = by_host(zip(hosts, data, strict=True)) if are_several(hosts) else {}
    blocks = host_mean([*cells.values()]) if cells else None
    mean = blocks.mean if blocks else mean_of(data)
    sd = blocks.sd if blocks else _sd(data)
    interval = _host_interval(data, blocks, signed=signed) if blocks else t_interval(data, signed=signed)
    many = len(data) >= P95_FROM
    return Description(
        n=len(data),
        mean=mean,
        sd=sd,
        cv_ratio=sd / abs(mean) if sd is not None and mean else None,
        median=middle,
        mad=_mad(data, middle) if len(data) > 1 else None,
        p5=_quantile(ordered, 0.05) if many else None,
        p95=_quantile(ordered, 0.95) if many else None,
        interval=interval,
        bootstrap=None if blocks else bca_interval(data),
        half_width_ratio=(interval.high - interval.low) / 2 / abs(mean) if interval and mean else None,
        outliers=_outliers_within(data, hosts) if blocks else outliers(data),
        hosts=len(cells) or 1,
    )


def t_interval(
    values: Sequence[float], confidence: float = CONFIDENCE, *, signed: bool = False
) -> Interval | None:
    """Interval for the mean.

    Formula: mean x exp(+- t(1 - alpha / 2, n - 1) CV / sqrt(n)), the t interval for the logarithm of the mean by the
    delta method: its lower end is never below 0, and it covers the mean at least as often as the plain one
    (benchmarks/error_rates.py --intervals; the interval of the mean logarithm does not, it is about the geometric
    mean). Where the quantity can be negative, mean +- t sd / sqrt(n). Bootstrap intervals cover 72 to 75 % at n = 3.
    None for n < 2, and for a negative value of a quantity that has none.
    """
    sd = _sd(values)
    if sd is None or (not signed and min(values) < 0.0):
        return None
    half = _t_quantile((1 + confidence) / 2, len(values) - 1) * sd / len(values) ** 0.5
    return _around(mean_of(values), half, confidence, signed=signed)


def _host_interval(values: Sequence[float], blocks: HostMean, *, signed: bool) -> Interval | None:
    """The same interval around the mean over hosts, with the standard error and degrees of freedom of the blocks."""
    if not signed and min(values) < 0.0:
        return None
    half = _t_quantile((1 + CONFIDENCE) / 2, blocks.df) * blocks.error
    found = _around(blocks.mean, half, CONFIDENCE, signed=signed)
    return replace(found, method=f"{found.method}, within hosts")


def _around(mean: float, half: float, confidence: float, *, signed: bool) -> Interval:
    if signed:
        return Interval(mean - half, mean + half, "t", confidence)
    # Of values that are not negative, CV / sqrt(n) is 1 at most, so the exponent has a bound.
    factor = math.exp(half / mean) if mean else 1.0
    return Interval(mean / factor, mean * factor, "log t", confidence)


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


def _outliers_within(values: Sequence[float], hosts: Sequence[str]) -> tuple[int, ...]:
    """Positions of values that are outliers among those of their host."""
    cells = by_host((host, place) for place, host in enumerate(hosts)).values()
    return tuple(sorted(cell[at] for cell in cells for at in outliers([values[place] for place in cell])))


def slope_ratio(
    positions: Sequence[float], values: Sequence[float], hosts: Sequence[str] = ()
) -> float | None:
    """Drift over the study: Theil-Sen slope of value on position in the run order / median.

    Of several hosts, of pairs of values of one host. None below 4 values.
    """
    middle = median(values) if len(values) >= 4 else 0.0
    if not middle:
        return None
    x, y = np.asarray(positions, dtype=float), np.asarray(values, dtype=float)
    dx, dy = x[:, None] - x, y[:, None] - y
    later = dx > 0
    if are_several(hosts):
        name = np.asarray(hosts)
        later &= name[:, None] == name
    return float(np.median(dy[later] / dx[later])) / abs(middle) if later.any() else None


def mean_of(values: Sequence[float]) -> float:
    """Mean, of values up to the largest that a float holds; of equal values exactly that value."""
    largest = max(map(abs, values))
    if not largest:
        return 0.0
    mean = largest * (math.fsum(value / largest for value in values) / len(values))
    return min(max(mean, min(values)), max(values))


def _sd(values: Sequence[float]) -> float | None:
    """Standard deviation with n - 1; None for one value."""
    if len(values) < 2:
        return None
    mean = mean_of(values)
    return math.hypot(*(value - mean for value in values)) / math.sqrt(len(values) - 1)


def _mad(values: Sequence[float], middle: float) -> float:
    return median(abs(value - middle) for value in values)


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Quantile below the largest of ascending values, straight between neighbours (R's type 7, numpy's default)."""
    at = share * (len(ordered) - 1)
    below = math.floor(at)
    return ordered[below] + (ordered[below + 1] - ordered[below]) * (at - below)


@cache
def _t_quantile(share: float, degrees: int) -> float:
    return float(stats.t.ppf(share, degrees))


Coordinate = float | tuple[float, float] | None
"""A value, an interval in which it lies, or None for "not known"."""


def pareto(points: Mapping[str, Sequence[Coordinate]], better: Sequence[str]) -> set[str]:
    """Names of the points that no other point dominates, whatever lies in their intervals.

    A point dominates another when it is at least as good in every coordinate and better in one. The best that one's
    intervals allow is held against the worst that the other's allow, so a point whose intervals overlap another's in
    every direction is not among the names.

    Args:
        points: By name, the coordinates.
        better: For each coordinate, ``lower`` or ``higher``.
    """
    costs = {
        name: [_cost(value, direction) for value, direction in zip(values, better, strict=True)]
        for name, values in points.items()
    }
    best = {name: [low for low, _ in mine] for name, mine in costs.items()}
    worst = {name: [high for _, high in mine] for name, mine in costs.items()}
    return {
        name
        for name in points
        if not any(_dominates(best[key], worst[name]) for key in points if key != name)
    }


def _cost(value: Coordinate, direction: str) -> tuple[float, float]:
    """Least and greatest of what a coordinate costs."""
    if value is None:
        return -math.inf, math.inf
    low, high = value if isinstance(value, tuple) else (value, value)
    return (low, high) if direction == "lower" else (-high, -low)


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
