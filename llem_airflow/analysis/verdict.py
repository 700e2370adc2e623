"""Two sets of cycles, one metric: is the second worse, better, the same, or is there not enough evidence?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache

import numpy as np
from scipy import optimize, stats

THRESHOLD_RATIO = 0.02
"""Smallest difference that matters in practice: below it, sensors and neighbours differ as much."""

ALPHA = 0.05
POWER = 0.80


class Verdict(StrEnum):
    """What a comparison says."""

    REGRESSION = "regression"
    IMPROVEMENT = "improvement"
    UNCHANGED = "unchanged"
    NOT_ENOUGH_EVIDENCE = "not enough evidence"
    NOT_COMPARABLE = "not comparable"


GRAVEST_FIRST = (
    Verdict.REGRESSION,
    Verdict.NOT_COMPARABLE,
    Verdict.NOT_ENOUGH_EVIDENCE,
    Verdict.IMPROVEMENT,
    Verdict.UNCHANGED,
)
"""The order in which people want to read verdicts."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Baseline against candidate for one metric. Ratios are relative to the baseline's mean.

    Attributes:
        n_baseline: Cycles of the baseline.
        n_candidate: Cycles of the candidate.
        mean_baseline: Mean of the baseline.
        mean_candidate: Mean of the candidate.
        difference_ratio: candidate / baseline - 1.
        low_ratio: Lower end of its 95 % interval; None when a side has one cycle.
        high_ratio: Upper end.
        p: Two-sided p of the t test (Welch's, or of pairs).
        p_adjusted: p after Benjamini-Hochberg over the family of comparisons.
        equivalence_p: p of the two one-sided tests for a difference within the threshold.
        mann_whitney_p: Second opinion without normality; cannot fall below 0.1 at n = 3.
        hedges_g: Standardised difference, corrected for small n.
        detectable_ratio: Smallest difference that would have been found with 80 % power.
        method: ``welch`` or ``paired``.
        better: ``lower`` or ``higher`` is better.
        verdict: What it comes to.
        threshold_ratio: Smallest difference that matters; the margin of the equivalence test, too.
    """

    n_baseline: int
    n_candidate: int
    mean_baseline: float
    mean_candidate: float
    difference_ratio: float
    low_ratio: float | None
    high_ratio: float | None
    p: float | None
    p_adjusted: float | None
    equivalence_p: float | None
    mann_whitney_p: float | None
    hedges_g: float | None
    detectable_ratio: float | None
    method: str
    better: str
    verdict: Verdict
    threshold_ratio: float = THRESHOLD_RATIO


def compare(
    baseline: Sequence[float],
    candidate: Sequence[float],
    better: str,
    *,
    threshold_ratio: float = THRESHOLD_RATIO,
) -> Comparison:
    """Welch's comparison of two independent sets of cycles.

    Formula: difference of means, with standard error sqrt(s1^2/n1 + s2^2/n2) and Welch-Satterthwaite degrees
    of freedom; equivalence by two one-sided tests at the threshold, which is a share of the baseline's mean.
    """
    a, b = np.asarray(baseline, dtype=float), np.asarray(candidate, dtype=float)
    difference = float(b.mean() - a.mean())
    bare = _bare(a, b, "welch", better, threshold_ratio)
    if min(a.size, b.size) < 2:
        return bare
    va, vb = float(a.var(ddof=1)) / a.size, float(b.var(ddof=1)) / b.size
    if va + vb == 0.0:
        return _decided(_without_spread(bare))
    df = (va + vb) ** 2 / (va**2 / (a.size - 1) + vb**2 / (b.size - 1))
    found = _tested(bare, difference, (va + vb) ** 0.5, df, float(abs(a.mean())))
    return _decided(
        replace(
            found,
            mann_whitney_p=float(stats.mannwhitneyu(a, b, alternative="two-sided").pvalue),
            hedges_g=hedges_g(a.tolist(), b.tolist()),
        )
    )


def compare_pairs(
    baseline: Sequence[float],
    candidate: Sequence[float],
    better: str,
    *,
    threshold_ratio: float = THRESHOLD_RATIO,
) -> Comparison:
    """Comparison of cycles that were measured next to each other (A B B A on one GPU in one run).

    Slow drift hits both members of a pair and cancels, so this is the strongest verdict. Formula: t test of
    the differences candidate - baseline, pair by pair.
    """
    a, b = np.asarray(baseline, dtype=float), np.asarray(candidate, dtype=float)
    if a.size != b.size:
        raise ValueError(f"pairs need as many cycles on both sides, found {a.size} and {b.size}")
    bare = _bare(a, b, "paired", better, threshold_ratio)
    if a.size < 2:
        return bare
    differences = b - a
    se = float(differences.std(ddof=1)) / a.size**0.5
    if se == 0.0:
        return _decided(_without_spread(bare))
    found = _tested(bare, float(differences.mean()), se, float(a.size - 1), float(abs(a.mean())))
    return _decided(replace(found, hedges_g=hedges_g(a.tolist(), b.tolist())))


def adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of one family with p corrected by Benjamini-Hochberg, and verdicts to match."""
    tested = [index for index, one in enumerate(comparisons) if one.p is not None]
    corrected = list(comparisons)
    if tested:
        values = stats.false_discovery_control([comparisons[index].p for index in tested], method="bh")
        for index, value in zip(tested, values, strict=True):
            corrected[index] = _decided(replace(comparisons[index], p_adjusted=float(value)))
    return corrected


def hedges_g(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Hedges' g of b over a; None without spread.

    Formula: (mean b - mean a) / pooled sd x (1 - 3 / (4 (n1 + n2) - 9)).
    """
    n1, n2 = len(a), len(b)
    pooled: float = ((n1 - 1) * float(np.var(a, ddof=1)) + (n2 - 1) * float(np.var(b, ddof=1))) / (
        n1 + n2 - 2
    )
    if pooled == 0.0:
        return None
    return (float(np.mean(b)) - float(np.mean(a))) / float(pooled**0.5) * (1 - 3 / (4 * (n1 + n2) - 9))


def detectable_difference(se: float, df: float, alpha: float = ALPHA, power: float = POWER) -> float:
    """Smallest true difference that a two-sided t test finds with the given power, in the unit of ``se``."""
    return _noncentrality(round(df, 2), alpha, power) * se


@lru_cache(maxsize=4096)
def _noncentrality(df: float, alpha: float, power: float) -> float:
    """Kept by degrees of freedom: a report asks for hundreds, and each takes milliseconds to find."""
    critical = float(stats.t.ppf(1 - alpha / 2, df))

    def shortfall(ncp: float) -> float:
        # The other tail adds less than 1e-6 at any power of interest.
        return float(stats.nct.sf(critical, df, ncp)) - power

    return float(optimize.brentq(shortfall, 0.0, critical + 60.0))


def _bare(a: np.ndarray, b: np.ndarray, method: str, better: str, threshold_ratio: float) -> Comparison:
    mean_a, mean_b = float(a.mean()), float(b.mean())
    return Comparison(
        n_baseline=int(a.size),
        n_candidate=int(b.size),
        mean_baseline=mean_a,
        mean_candidate=mean_b,
        difference_ratio=(mean_b - mean_a) / abs(mean_a),
        low_ratio=None,
        high_ratio=None,
        p=None,
        p_adjusted=None,
        equivalence_p=None,
        mann_whitney_p=None,
        hedges_g=None,
        detectable_ratio=None,
        method=method,
        better=better,
        verdict=Verdict.NOT_ENOUGH_EVIDENCE,
        threshold_ratio=threshold_ratio,
    )


def _tested(bare: Comparison, difference: float, se: float, df: float, scale: float) -> Comparison:
    half = float(stats.t.ppf(1 - ALPHA / 2, df)) * se
    p = 2 * float(stats.t.sf(abs(difference) / se, df))
    margin = bare.threshold_ratio * scale
    equivalence = max(
        float(stats.t.sf((difference + margin) / se, df)), float(stats.t.cdf((difference - margin) / se, df))
    )
    return replace(
        bare,
        low_ratio=(difference - half) / scale,
        high_ratio=(difference + half) / scale,
        p=p,
        p_adjusted=p,
        equivalence_p=equivalence,
        detectable_ratio=detectable_difference(se, df) / scale,
    )


def _without_spread(bare: Comparison) -> Comparison:
    """No cycle differs from another of its side: the difference is exactly what it is."""
    same = abs(bare.difference_ratio) < bare.threshold_ratio
    p = 1.0 if bare.difference_ratio == 0.0 else 0.0
    ratio = bare.difference_ratio
    return replace(
        bare,
        low_ratio=ratio,
        high_ratio=ratio,
        p=p,
        p_adjusted=p,
        equivalence_p=0.0 if same else 1.0,
        detectable_ratio=0.0,
    )


def _decided(found: Comparison) -> Comparison:
    p, size = found.p_adjusted, abs(found.difference_ratio)
    if p is not None and p < ALPHA and size >= found.threshold_ratio:
        worse = (found.difference_ratio > 0) == (found.better == "lower")
        return replace(found, verdict=Verdict.REGRESSION if worse else Verdict.IMPROVEMENT)
    if found.equivalence_p is not None and found.equivalence_p < ALPHA:
        return replace(found, verdict=Verdict.UNCHANGED)
    return replace(found, verdict=Verdict.NOT_ENOUGH_EVIDENCE)
