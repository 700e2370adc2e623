"""Experiments of one run against the first of them: how far apart, and is that more than chance?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from llem_airflow.analysis.cycle import Cycle
from llem_airflow.analysis.verdict import ALPHA, THRESHOLD_RATIO

LOWER, HIGHER, SAME, UNDECIDED = "lower", "higher", "no difference", "not enough evidence"


@dataclass(frozen=True)
class Measured:
    """One experiment of a run with the cycles that were measured.

    Attributes:
        id: ``<slug>-<hash8>``.
        label: Name for people.
        factors: What sets it apart from the others.
        rows: Its cycles with a result.
    """

    id: str
    label: str
    factors: Mapping[str, Any]
    rows: tuple[Cycle, ...]

    def values(self, metric: str) -> dict[int, float]:
        """Positive values of the metric by cycle; a ratio of others is not defined."""
        known = {row.cycle: row.measures.get(metric) for row in self.rows}
        return {cycle: v for cycle, v in known.items() if cycle is not None and v is not None and v > 0}


@dataclass(frozen=True, slots=True)
class Contrast:
    """A candidate against the reference of its run, for one metric. Ratios are candidate / reference - 1.

    Attributes:
        metric: Name in ``metrics.METRICS``.
        reference: Id of the first experiment of the run.
        candidate: Id of the other.
        method: ``paired`` (within the passes of the run order) or ``welch``.
        n_reference: Cycles of the reference; pairs where it is paired.
        n_candidate: Cycles of the candidate.
        difference_ratio: Ratio of the geometric means - 1.
        low_ratio: Lower end of the 95 % interval, which holds for all contrasts of the run together; None where a
            side has one cycle.
        high_ratio: Upper end.
        p: Two-sided p of the t test on logarithms.
        p_adjusted: p times the number of contrasts (Bonferroni), 1 at most.
        verdict: ``lower`` or ``higher`` where the interval excludes 0, ``no difference`` where it lies within the
            threshold, else ``not enough evidence``.
    """

    metric: str
    reference: str
    candidate: str
    method: str
    n_reference: int
    n_candidate: int
    difference_ratio: float
    low_ratio: float | None
    high_ratio: float | None
    p: float | None
    p_adjusted: float | None
    verdict: str


def contrasts(experiments: Sequence[Measured], metric: str, beside: int) -> tuple[Contrast, ...]:
    """Each experiment against the first one.

    Args:
        experiments: Those that have a value, in the order of the plan.
        metric: Name of a metric that is positive.
        beside: Experiments that the run planned: the length of one pass of its order.
    """
    family = len(experiments) - 1
    return tuple(_contrast(experiments[0], one, metric, beside, family) for one in experiments[1:])


def _contrast(reference: Measured, candidate: Measured, metric: str, beside: int, family: int) -> Contrast:
    """Formula: t interval of the mean difference of logarithms at 1 - 5 % / family, and its exponential.

    On logarithms the interval cannot promise an energy below zero, and an equal scatter in per cent is an equal
    scatter. Welch's degrees of freedom where cycles are no pairs.
    """
    a, b = reference.values(metric), candidate.values(metric)
    pairs = [cycle for cycle in a if cycle in b] if _in_passes(reference, candidate, beside) else []
    if len(pairs) >= 2:
        d = np.log([b[cycle] for cycle in pairs]) - np.log([a[cycle] for cycle in pairs])
        method, n = "paired", (d.size, d.size)
        mean, se, df = float(d.mean()), _sem(d), d.size - 1.0
    else:
        x, y = np.log(list(a.values())), np.log(list(b.values()))
        method, n = "welch", (x.size, y.size)
        mean = float(y.mean() - x.mean())
        se, df = _welch(x, y)
    low, high, p = _interval(mean, se, df, ALPHA / family)
    return Contrast(
        metric=metric,
        reference=reference.id,
        candidate=candidate.id,
        method=method,
        n_reference=n[0],
        n_candidate=n[1],
        difference_ratio=math.expm1(mean),
        low_ratio=low,
        high_ratio=high,
        p=p,
        p_adjusted=None if p is None else min(1.0, p * family),
        verdict=_verdict(low, high),
    )


def _in_passes(one: Measured, other: Measured, beside: int) -> bool:
    """Whether cycle k of both lies in pass k over the experiments, so that slow drift hits both alike."""
    return all(
        row.cycle is not None and row.position is not None and row.position // beside == row.cycle - 1
        for row in (*one.rows, *other.rows)
    )


def _sem(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / np.sqrt(values.size))


def _welch(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Standard error of the difference of means, and Welch-Satterthwaite degrees of freedom; 0 of both unknown."""
    if min(x.size, y.size) < 2:
        return 0.0, 0.0
    vx, vy = _sem(x) ** 2, _sem(y) ** 2
    if vx + vy == 0.0:
        return 0.0, float(x.size + y.size - 2)
    return (vx + vy) ** 0.5, (vx + vy) ** 2 / (vx**2 / (x.size - 1) + vy**2 / (y.size - 1))


def _interval(
    mean: float, se: float, df: float, alpha: float
) -> tuple[float | None, float | None, float | None]:
    if df <= 0:
        return None, None, None
    if se == 0.0:  # no cycle differs from another: the difference is exactly what it is
        return math.expm1(mean), math.expm1(mean), float(mean == 0.0)
    half = float(stats.t.ppf(1 - alpha / 2, df)) * se
    low, high = (float(np.expm1(min(end, 700.0))) for end in (mean - half, mean + half))
    return low, high, 2 * float(stats.t.sf(abs(mean) / se, df))


def _verdict(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return UNDECIDED
    if max(abs(low), abs(high)) < THRESHOLD_RATIO:
        return SAME
    if high < 0:
        return LOWER
    return HIGHER if low > 0 else UNDECIDED
