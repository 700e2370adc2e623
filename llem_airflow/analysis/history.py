"""A metric over runs: where it changed, and whether the newest run is a regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from llem_airflow.analysis.verdict import (
    THRESHOLD_RATIO,
    Comparison,
    Verdict,
    compare,
    detectable_difference,
)

MAX_P = 0.001
"""A change point must be this improbable by chance: at 0.01, one flat series of 40 runs in three alarms."""

MIN_POINTS = 2
"""Smallest stretch between two change points, in runs."""


@dataclass(frozen=True, slots=True)
class Point:
    """One run of one experiment.

    Attributes:
        run_id: Id of the run.
        t_epoch_ns: When it began.
        values: The metric's value of each cycle.
        conditions: Fingerprint without the factors, as text; only equal ones are joined.
    """

    run_id: str
    t_epoch_ns: int
    values: tuple[float, ...]
    conditions: str = ""

    @property
    def mean(self) -> float:
        """Mean over cycles."""
        return float(np.mean(self.values))


@dataclass(frozen=True, slots=True)
class ChangePoint:
    """Where a metric changed.

    Attributes:
        index: Position of the first run after the change.
        run_id: Its id: the run where it began.
        before: Mean of the stretch before.
        after: Mean of the stretch after.
        ratio: after / before - 1.
        p: Probability of such a difference by chance.
        verdict: regression or improvement.
    """

    index: int
    run_id: str
    before: float
    after: float
    ratio: float
    p: float
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Trend:
    """What a history says.

    Attributes:
        points: The runs of one experiment under equal conditions, oldest first.
        left_out: Earlier runs under other conditions; they are shown and never compared with these.
        changes: Change points, oldest first.
        latest: The newest run against all runs since the last change; None with one run.
        detectable_ratio: Smallest change that the newest run could have shown with 80 % power; with two runs from
            their cycles alone, and None where even those do not tell.
        verdict: Of the newest run, or of a change that began in the last runs.
        began: Run where the present regression or improvement began, if there is one.
        note: How far to trust it.
    """

    points: tuple[Point, ...]
    left_out: tuple[Point, ...]
    changes: tuple[ChangePoint, ...]
    latest: Comparison | None
    detectable_ratio: float | None
    verdict: Verdict
    began: str | None
    note: str


def trend(points: Sequence[Point], better: str) -> Trend:
    """What the history of one experiment says; works from two runs on, and says what it cannot see."""
    ordered = sorted(points, key=lambda point: point.t_epoch_ns)
    same = [point for point in ordered if point.conditions == ordered[-1].conditions]
    left_out = tuple(point for point in ordered if point.conditions != ordered[-1].conditions)
    changes = change_points(same, better)
    start = changes[-1].index if changes else 0
    earlier, newest = same[start:-1], same[-1]
    latest = _against(earlier, newest, better) if earlier else None
    verdict, began = _present(changes, latest, newest)
    return Trend(
        points=tuple(same),
        left_out=left_out,
        changes=tuple(changes),
        latest=latest,
        detectable_ratio=latest.detectable_ratio if latest else None,
        verdict=verdict,
        began=began,
        note=_note(len(same), len(left_out)),
    )


def change_points(points: Sequence[Point], better: str) -> list[ChangePoint]:
    """Change points by divisive segmentation with the energy statistic, kept where a t test agrees.

    The series is split where the energy distance between both sides is largest (E-divisive, Matteson and
    James 2014), each side again, and so on. A split stays when Student's t test of the two stretches next to
    it has p < 0.001 and their means differ by 2 % or more (the rule of "Hunter", Fleming et al. 2023).
    """
    values = np.array([point.mean for point in points], dtype=float)
    splits = _split(values, 0, len(values))
    while splits:
        edges = [0, *splits, len(values)]
        tests = [
            _test(values[edges[k] : edges[k + 1]], values[edges[k + 1] : edges[k + 2]])
            for k in range(len(splits))
        ]
        weakest = max(range(len(splits)), key=lambda k: tests[k])
        if tests[weakest] < MAX_P:
            return [_change(points, values, edges, k, tests[k], better) for k in range(len(splits))]
        del splits[weakest]
    return []


def _split(values: NDArray[np.float64], begin: int, end: int) -> list[int]:
    if end - begin < 2 * MIN_POINTS:
        return []
    part = values[begin:end]
    scores = [(_energy_distance(part, k), k) for k in range(MIN_POINTS, len(part) - MIN_POINTS + 1)]
    best, at = max(scores)
    if best <= 0.0 or _test(part[:at], part[at:]) > 0.05:
        return []
    middle = begin + at
    return [*_split(values, begin, middle), middle, *_split(values, middle, end)]


def _energy_distance(values: NDArray[np.float64], at: int) -> float:
    """Scaled energy distance between values[:at] and values[at:], with distances |x - y|."""
    one, other = values[:at], values[at:]
    n, m = len(one), len(other)
    between = np.abs(one[:, None] - other[None, :]).mean()
    within_one = np.abs(one[:, None] - one[None, :]).sum() / (n * (n - 1))
    within_other = np.abs(other[:, None] - other[None, :]).sum() / (m * (m - 1))
    return float(n * m / (n + m) * (2 * between - within_one - within_other))


def _test(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Two-sided p of Student's t test; 1 where the means differ by less than the threshold.

    The spread is pooled: a stretch of two runs cannot tell its own, and Welch's test would be blind there.
    """
    before, after = float(one.mean()), float(other.mean())
    if abs(after - before) < THRESHOLD_RATIO * abs(before):
        return 1.0
    if float(np.ptp(one)) == 0.0 and float(np.ptp(other)) == 0.0:
        return 0.0
    return float(stats.ttest_ind(one, other).pvalue)


def _change(
    points: Sequence[Point], values: NDArray[np.float64], edges: list[int], k: int, p: float, better: str
) -> ChangePoint:
    before = float(values[edges[k] : edges[k + 1]].mean())
    after = float(values[edges[k + 1] : edges[k + 2]].mean())
    worse = (after > before) == (better == "lower")
    return ChangePoint(
        index=edges[k + 1],
        run_id=points[edges[k + 1]].run_id,
        before=before,
        after=after,
        ratio=after / before - 1,
        p=p,
        verdict=Verdict.REGRESSION if worse else Verdict.IMPROVEMENT,
    )


def _against(earlier: Sequence[Point], newest: Point, better: str) -> Comparison:
    """One earlier run: cycle against cycle. From two on, the runs' means: runs differ more than cycles."""
    if len(earlier) == 1:
        return compare(earlier[0].values, newest.values, better)
    means = [point.mean for point in earlier]
    centre, sd = float(np.mean(means)), float(np.std(means, ddof=1))
    spread = sd * (1 + 1 / len(means)) ** 0.5
    if spread == 0.0:
        return compare(means, [newest.mean, newest.mean], better)
    df = len(means) - 1
    difference = newest.mean - centre
    half = float(stats.t.ppf(0.975, df)) * spread
    p = 2 * float(stats.t.sf(abs(difference) / spread, df))
    size = abs(difference) / abs(centre)
    worse = (difference > 0) == (better == "lower")
    verdict = Verdict.NOT_ENOUGH_EVIDENCE
    if p < 0.05 and size >= THRESHOLD_RATIO:
        verdict = Verdict.REGRESSION if worse else Verdict.IMPROVEMENT
    elif size + half / abs(centre) < THRESHOLD_RATIO:
        verdict = Verdict.UNCHANGED
    return Comparison(
        n_baseline=len(means),
        n_candidate=1,
        mean_baseline=centre,
        mean_candidate=newest.mean,
        difference_ratio=difference / abs(centre),
        low_ratio=(difference - half) / abs(centre),
        high_ratio=(difference + half) / abs(centre),
        p=p,
        p_adjusted=p,
        equivalence_p=None,
        mann_whitney_p=None,
        hedges_g=None,
        detectable_ratio=detectable_difference(spread, df) / abs(centre),
        method="prediction interval over runs",
        better=better,
        verdict=verdict,
    )


def _present(
    changes: Sequence[ChangePoint], latest: Comparison | None, newest: Point
) -> tuple[Verdict, str | None]:
    if latest is not None and latest.verdict in {Verdict.REGRESSION, Verdict.IMPROVEMENT}:
        return latest.verdict, newest.run_id
    if changes:
        return changes[-1].verdict, changes[-1].run_id
    return (latest.verdict, None) if latest is not None else (Verdict.NOT_ENOUGH_EVIDENCE, None)


def _note(n: int, left_out: int) -> str:
    other = f"; {left_out} earlier runs under other conditions are not compared" if left_out else ""
    if n == 1:
        return "one run: nothing to compare with" + other
    if n == 2:
        return (
            "two runs: compared cycle by cycle, which cannot see how much whole runs differ by chance" + other
        )
    if n < 8:
        return (
            f"{n} runs: where runs differ by 1 %, a change of 3 % needs about 5 runs after it to be found reliably"
            + other
        )
    return f"{n} runs" + other
