"""Experiments of one run against the first of them: how far apart, and is that more than chance?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llem_airflow.analysis.cycle import Cycle
from llem_airflow.analysis.metrics import BY_NAME
from llem_airflow.analysis.verdict import ALPHA, THRESHOLD_RATIO, compare, compare_pairs

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
        difference_ratio: Ratio of the means - 1.
        low_ratio: Lower end of the 95 % interval, which holds for all contrasts of the run together; None where a
            side has one cycle.
        high_ratio: Upper end.
        p: Two-sided p of the t test.
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
    """By ``verdict.compare_pairs`` within the passes of the run order, else by ``verdict.compare`` (Welch's)."""
    a, b = reference.values(metric), candidate.values(metric)
    pairs = [cycle for cycle in a if cycle in b] if _in_passes(reference, candidate, beside) else []
    if len(pairs) >= 2:
        a, b = {cycle: a[cycle] for cycle in pairs}, {cycle: b[cycle] for cycle in pairs}
    test = compare_pairs if len(pairs) >= 2 else compare
    found = test([*a.values()], [*b.values()], BY_NAME[metric].better, alpha=ALPHA / family)
    return Contrast(
        metric=metric,
        reference=reference.id,
        candidate=candidate.id,
        method=found.method,
        n_reference=found.n_baseline,
        n_candidate=found.n_candidate,
        difference_ratio=found.difference_ratio or 0.0,  # values are above 0, so there always is one
        low_ratio=found.low_ratio,
        high_ratio=found.high_ratio,
        p=found.p,
        p_adjusted=None if found.p is None else min(1.0, found.p * family),
        verdict=_verdict(found.low_ratio, found.high_ratio),
    )


def _in_passes(one: Measured, other: Measured, beside: int) -> bool:
    """Whether cycle k of both lies in pass k over the experiments, so that slow drift hits both alike."""
    return all(
        row.cycle is not None and row.position is not None and row.position // beside == row.cycle - 1
        for row in (*one.rows, *other.rows)
    )


def _verdict(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return UNDECIDED
    if max(abs(low), abs(high)) < THRESHOLD_RATIO:
        return SAME
    if high < 0:
        return LOWER
    return HIGHER if low > 0 else UNDECIDED
