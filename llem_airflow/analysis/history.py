"""A metric over the runs of a study: what the nightly verdict told, and, looking back, where it changed."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from llem_airflow.analysis.alarm import (
    FAMILY,
    GROSS_RATIO,
    LEARNING,
    QUARTER,
    Alarm,
    Series,
    Watch,
    watch_study,
)
from llem_airflow.analysis.blocked import by_host, host_mean
from llem_airflow.analysis.metrics import BY_NAME
from llem_airflow.analysis.nights import Alike, Measured, Night, measured
from llem_airflow.analysis.noise import without_spikes
from llem_airflow.analysis.statistics import mean_of
from llem_airflow.analysis.verdict import THRESHOLD_RATIO, Verdict, compare
from llem_airflow.results import ResultsRoot, StoredRun, layout
from llem_airflow.results.store import runs_in

MAX_P = 0.001
"""A change point must be this improbable by chance: at 0.01, one flat series of 40 runs in three alarms."""

ALONE = 5
"""Experiments up to which MAX_P holds for each; with more, they share it.

Found once in one flat history of 20 to 30 independent runs in a hundred (benchmarks/error_rates.py). Where runs
remember, there are more: the budget of false alarms is the verdict's (alarm.py), not that of this list."""

MIN_POINTS = 2
"""Smallest stretch between two change points, in runs."""

DAY_NS = 86_400 * 10**9

BUDGET = (
    f"at most one false alarm in {QUARTER} nights over all experiments of the study (of up to {FAMILY}, and of all "
    "where there are more), and one false drift a year"
)
"""What the verdict promises; benchmarks/nightly.py holds it to that."""


class Point(NamedTuple):
    """One run of one experiment.

    Attributes:
        run_id: Id of the run.
        t_epoch_ns: When it began.
        values: The metric's value of each cycle.
        conditions: Fingerprint without the factors, as ``nights.measured`` tells it; only equal ones are joined.
        hosts: The host of each value, where they are several.
    """

    run_id: str
    t_epoch_ns: int
    values: tuple[float, ...]
    conditions: str = ""
    hosts: tuple[str, ...] = ()

    @classmethod
    def of(cls, night: Night, one: Measured) -> Point:
        """What a run measured of an experiment."""
        return cls(night.run_id, night.t_epoch_ns, one.values, one.conditions, one.hosts)

    @property
    def mean(self) -> float:
        """Mean over cycles; of several hosts the mean of their means."""
        if self.hosts:
            return host_mean([*by_host(zip(self.hosts, self.values, strict=True)).values()]).mean
        try:
            return math.fsum(self.values) / len(self.values)  # numpy takes ten times as long for a few values
        except OverflowError:
            return mean_of(self.values)

    @property
    def is_estimate(self) -> bool:
        """Whether the energy is an estimate."""
        return self.conditions.startswith("estimate ")


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
        changes: Change points, looking back, oldest first.
        alarms: What the nightly verdict told, oldest first; each was told once.
        verdict: Of the newest run: regression or improvement when it is the one that tells a change.
        began: Run where the present level began, if a change was told.
        outlier: Whether the newest run alone lies far off.
        newest_ratio: The newest run over the level before it, minus 1.
        detectable_ratio: Step that would be told within 7 runs with 80 % power; None with one run.
        note: How far to trust it.
    """

    points: tuple[Point, ...]
    left_out: tuple[Point, ...]
    changes: tuple[ChangePoint, ...]
    alarms: tuple[Alarm, ...]
    verdict: Verdict
    began: str | None
    outlier: bool
    newest_ratio: float | None
    detectable_ratio: float | None
    note: str

    @property
    def told(self) -> Alarm | None:
        """The change that the newest run tells, if it tells one."""
        newest = len(self.points) - 1
        return self.alarms[-1] if self.alarms and self.alarms[-1].told == newest else None

    @property
    def state(self) -> str:
        """The verdict in a few words, with what it comes from."""
        if self.told is not None:
            what = "drift" if self.told.drift else "step"
            return f"{self.verdict}: {what} of {self.told.ratio:+.1%} since {self.points[self.told.began].run_id}"
        if self.outlier:
            return f"outlier: {self.newest_ratio:+.1%}, one run alone; another would make it a change"
        if 1 < len(self.points) <= LEARNING:
            return f"learning, night {len(self.points)} of {LEARNING}: only gross changes are told"
        return str(self.verdict)


def trends(
    histories: Sequence[Sequence[Point]],
    better: str,
    *,
    experiments: int = 1,
    threshold_ratio: float = THRESHOLD_RATIO,
    looking_back: bool = True,
) -> list[Trend]:
    """What the histories of a study's experiments say: how runs differ by chance is learnt from all of them.

    Args:
        histories: The runs of each experiment; at least one each.
        better: ``lower`` or ``higher`` is better.
        experiments: Experiments of the study: they share the budget of false alarms.
        threshold_ratio: Smallest change that matters.
        looking_back: Whether change points are asked for; without them the verdict is the same.
    """
    ordered = [sorted(points, key=lambda point: point.t_epoch_ns) for points in histories]
    same = [[one for one in each if one.conditions == each[-1].conditions] for each in ordered]
    means = [[point.mean for point in points] for points in same]
    begun = [[point.t_epoch_ns for point in points] for points in same]
    night_ns = usual_time_ns([t_ns for each in begun for t_ns in each])
    seen = watch_study(
        [
            Series(values=values, days=[round((t_ns - night_ns) / DAY_NS) for t_ns in runs], runs=runs)
            for runs, values in zip(begun, means, strict=True)
        ],
        experiments=experiments,
        threshold_ratio=threshold_ratio,
    )
    changes = [
        tuple(_change_points(points, values, better, experiments)) if looking_back else ()
        for points, values in zip(same, means, strict=True)
    ]
    return [
        _trend(
            points,
            [one for one in each if one.conditions != each[-1].conditions],
            watched,
            back,
            better,
            threshold_ratio,
        )
        for each, points, back, watched in zip(ordered, same, changes, seen, strict=True)
    ]


def usual_time_ns(begun: Sequence[int]) -> int:
    """The time of the day at which runs usually begin: the circular mean, in nanoseconds since 0:00 UTC.

    Days are counted from it. From any other time, such as that of a first run by hand in the afternoon, nights that
    begin half a day off it would fall on one day or the next by minutes, and with them on another weekday.
    """
    turns = 2 * np.pi * (np.array(begun, dtype=np.int64) % DAY_NS) / DAY_NS
    return round(float(np.arctan2(np.sin(turns).sum(), np.cos(turns).sum())) / (2 * np.pi) * DAY_NS)


def _trend(
    same: Sequence[Point],
    left_out: Sequence[Point],
    seen: Watch,
    changes: tuple[ChangePoint, ...],
    better: str,
    threshold_ratio: float,
) -> Trend:
    alarms, verdict = seen.alarms, _verdict(same, seen, better, threshold_ratio)
    if len(same) == 2 and verdict in {Verdict.REGRESSION, Verdict.IMPROVEMENT}:
        alarms = (Alarm(1, 1, same[1].mean / same[0].mean - 1),)
    return Trend(
        points=tuple(same),
        left_out=tuple(left_out),
        changes=changes,
        alarms=alarms,
        verdict=verdict,
        began=same[max(seen.began, alarms[-1].began)].run_id if alarms else None,
        outlier=seen.outlier and len(same) > 2,
        newest_ratio=seen.newest_ratio,
        detectable_ratio=seen.detectable_ratio,
        note=_note(len(same), len(left_out)) + _cycles_note(same),
    )


def _verdict(same: Sequence[Point], seen: Watch, better: str, threshold_ratio: float) -> Verdict:
    """The verdict on the newest run."""
    if len(same) == 2:
        return _two_runs(same[0], same[1], better, threshold_ratio)
    if seen.alarms and seen.alarms[-1].told == len(same) - 1:
        return _direction(seen.alarms[-1].ratio, better)
    off, margin = seen.newest_ratio, seen.margin_ratio
    if off is None or margin is None or len(same) <= LEARNING or abs(off) + margin >= threshold_ratio:
        return Verdict.NOT_ENOUGH_EVIDENCE
    return Verdict.UNCHANGED


def _two_runs(before: Point, newest: Point, better: str, threshold_ratio: float) -> Verdict:
    """Cycle against cycle, which cannot know how much whole runs differ: only a gross change counts."""
    values, hosts = (before.values, newest.values), (before.hosts, newest.hosts)
    within = hosts if all(hosts) else None
    least = max(threshold_ratio, GROSS_RATIO)
    gross = compare(*values, better, threshold_ratio=least, hosts=within)
    if gross.verdict in {Verdict.REGRESSION, Verdict.IMPROVEMENT}:
        return gross.verdict
    found = compare(*values, better, threshold_ratio=threshold_ratio, hosts=within).verdict
    return found if found is Verdict.UNCHANGED else Verdict.NOT_ENOUGH_EVIDENCE


def _direction(ratio: float, better: str) -> Verdict:
    return Verdict.REGRESSION if (ratio > 0) == (better == "lower") else Verdict.IMPROVEMENT


def change_points(points: Sequence[Point], better: str, *, experiments: int = 1) -> list[ChangePoint]:
    """Change points by divisive segmentation with the energy statistic, kept where a t test agrees.

    The series is split where the energy distance between both sides is largest (E-divisive, Matteson and
    James 2014), each side again, and so on. A split stays when Student's t test of the two stretches next to
    it has p < 0.001 and their means differ by 2 % or more (the rule of "Hunter", Fleming et al. 2023); with more
    than five experiments they share that. One run far off both neighbours splits nothing and hides nothing: the mean
    of its neighbours stands for it.
    """
    return _change_points(points, [point.mean for point in points], better, experiments)


def _change_points(
    points: Sequence[Point], means: Sequence[float], better: str, experiments: int
) -> list[ChangePoint]:
    values = np.array(means, dtype=float)
    values = without_spikes(values, least=THRESHOLD_RATIO * abs(float(np.median(values))))
    splits = _split(values, 0, len(values))
    max_p = MAX_P * min(1.0, ALONE / max(experiments, 1))
    while splits:
        edges = [0, *splits, len(values)]
        tests = [
            _test(values[edges[k] : edges[k + 1]], values[edges[k + 1] : edges[k + 2]])
            for k in range(len(splits))
        ]
        weakest = max(range(len(splits)), key=lambda k: tests[k])
        if tests[weakest] < max_p:
            return [_change(points, values, edges, k, tests[k], better) for k in range(len(splits))]
        del splits[weakest]
    return []


def _split(values: NDArray[np.float64], begin: int, end: int) -> list[int]:
    if end - begin < 2 * MIN_POINTS:
        return []
    part = values[begin:end]
    scores = _energy_distances(part)
    at = MIN_POINTS + int(len(scores) - 1 - np.argmax(scores[::-1]))  # of equal ones the last
    if scores.max() <= 0.0 or _test(part[:at], part[at:]) > 0.05:
        return []
    middle = begin + at
    return [*_split(values, begin, middle), middle, *_split(values, middle, end)]


def _energy_distances(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scaled energy distance between values[:k] and values[k:], with distances |x - y|, for each k that may split.

    All pairs are summed once: from the distances of value k to the values before it follows the sum within each side.
    """
    apart = np.abs(values[:, None] - values[None, :])
    n = np.arange(MIN_POINTS, len(values) - MIN_POINTS + 1)
    m, whole = len(values) - n, float(apart.sum())
    before = 2 * np.cumsum(np.tril(apart).sum(axis=1))[n - 1]
    rows = np.cumsum(apart.sum(axis=1))[n - 1]
    between = rows - before
    after = whole - before - 2 * between
    found: NDArray[np.float64] = (
        n * m / (n + m) * (2 * between / (n * m) - before / (n * (n - 1)) - after / (m * (m - 1)))
    )
    return found


def _test(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Two-sided p of Student's t test; 1 where the means differ by less than the threshold.

    The spread is pooled: a stretch of two runs cannot tell its own, and Welch's test would be blind there.
    """
    before, after = float(one.mean()), float(other.mean())
    if before == 0.0 or abs(after - before) < THRESHOLD_RATIO * abs(before):
        return 1.0
    df = len(one) + len(other) - 2
    variance = (len(one) * float(one.var()) + len(other) * float(other.var())) / df
    if variance == 0.0:
        return 0.0
    t = abs(after - before) / (variance * (1 / len(one) + 1 / len(other))) ** 0.5
    return 2 * float(special.stdtr(df, -t))


def _change(
    points: Sequence[Point], values: NDArray[np.float64], edges: list[int], k: int, p: float, better: str
) -> ChangePoint:
    before = float(values[edges[k] : edges[k + 1]].mean())
    after = float(values[edges[k + 1] : edges[k + 2]].mean())
    return ChangePoint(
        index=edges[k + 1],
        run_id=points[edges[k + 1]].run_id,
        before=before,
        after=after,
        ratio=after / before - 1,
        p=p,
        verdict=_direction(after - before, better),
    )


def cycle_correlation(points: Sequence[Point]) -> tuple[float, float]:
    """How much a cycle follows the one before it in its run, pooled over runs, and its standard error.

    Formula: sum x_k x_(k+1) / sum x_k^2 around each run's mean, plus the 1/n that the mean takes; its standard error
    without any correlation is at most 1 / sqrt(cycles). A few cycles tell less of it than there is.
    """
    products = squares = cycles = 0.0
    runs: dict[int, list[tuple[float, ...]]] = {}
    for point in points:
        if point.hosts:  # cycles that follow each other were on different hosts
            continue
        runs.setdefault(len(point.values), []).append(point.values)
    for n, alike in runs.items():
        if n < 3:
            continue
        values = np.array(alike)
        rest = values - values.mean(axis=1, keepdims=True)
        own = float(np.sum(rest**2))
        products += float(np.sum(rest[:, 1:] * rest[:, :-1])) + own / n
        squares += own
        cycles += values.size
    return (products / squares, cycles**-0.5) if squares > 0.0 else (0.0, 0.0)


def _cycles_note(points: Sequence[Point]) -> str:
    found, error = cycle_correlation(points)
    if found <= 3 * error or error == 0.0:
        return ""
    return (
        f"; cycles of a run follow each other (correlation {found:.2f} or more), so the 95 % interval of one run is "
        "too narrow; this verdict, which goes by whole runs, is not affected"
    )


def _note(n: int, left_out: int) -> str:
    other = f"; {left_out} earlier runs under other conditions are not compared" if left_out else ""
    if n == 1:
        return "one run: nothing to compare with" + other
    if n == 2:
        return (
            "two runs: compared cycle by cycle, which cannot see how much whole runs differ by chance: only a gross "
            f"change ({GROSS_RATIO:.0%} or more) counts" + other
        )
    return BUDGET + other


RUNS = 400
"""Newest runs that a history has: over a year of nights."""

log = logging.getLogger(__name__)


def _logged(run: StoredRun, error: Exception) -> None:
    log.warning("%s is left out of the history: %s", run.url, error)


class Followed(NamedTuple):
    """What a history is of.

    Attributes:
        experiment: Id of the experiment.
        release: Its release, where the study has histories of the same experiment for several; else empty.
    """

    experiment: str
    release: str

    def __str__(self) -> str:
        return f"{self.experiment} of {self.release}" if self.release else self.experiment


def histories(
    root: ResultsRoot,
    study: str,
    metric: str,
    on_damaged: Callable[[StoredRun, Exception], None] = _logged,
) -> dict[Followed, Trend]:
    """The history of each experiment of a study, by its newest id, and of each release: one point a run and identity.

    Args:
        root: Where the runs lie.
        study: Name of the study.
        metric: Name of the metric.
        on_damaged: Told of each run whose table does not read; it is left out.
    """
    runs = [run for run in root.runs(study) if run.folder.exists(layout.CYCLES_TABLE)]
    return trends_of(_nights(runs, metric, on_damaged), metric)


def history_until(run: StoredRun, metric: str, threshold_ratio: float = THRESHOLD_RATIO) -> dict[str, Trend]:
    """The histories of the experiments that a run measured, as they were when it had ended.

    Args:
        run: The run; later ones are not looked at.
        metric: Name of the metric.
        threshold_ratio: Smallest change that matters.
    """
    began = run.started_epoch_ns()
    earlier = [
        one
        for one in runs_in(run.folder.above())
        if one.started_epoch_ns() <= began and one.folder.path != run.folder.path and one.is_aggregated()
    ]
    found = trends_of(_nights([*earlier, run], metric), metric, threshold_ratio)
    return {name: one for (name, _), one in found.items() if one.points[-1].run_id == run.run_id}


def trends_of(
    nights: Sequence[Night],
    metric: str,
    threshold_ratio: float = THRESHOLD_RATIO,
    *,
    looking_back: bool = True,
) -> dict[Followed, Trend]:
    """The history of each experiment of a study, by its newest id, and of each release.

    Args:
        nights: The runs, oldest first.
        metric: Name of the metric.
        threshold_ratio: Smallest change that matters.
        looking_back: As for ``trends``.
    """
    points, newest = points_of(nights)
    found = trends(
        list(points.values()),
        BY_NAME[metric].better,
        experiments=newest,
        threshold_ratio=threshold_ratio,
        looking_back=looking_back,
    )
    return dict(zip(points, found, strict=True))


def points_of(nights: Sequence[Night]) -> tuple[dict[Followed, list[Point]], int]:
    """The points of each history, oldest first, and how many experiments the newest run has.

    Args:
        nights: The runs, oldest first.
    """
    points: dict[str, list[Point]] = {}
    told: dict[str, tuple[str, str]] = {}
    newest = 0
    for night in nights:
        newest = len(night.measured) or newest
        for one in night.measured:
            points.setdefault(one.identity, []).append(Point.of(night, one))
            told[one.identity] = one.experiment, night.release or one.identity[:8]
    shared = Counter(name for name, _ in told.values())
    names = {key: Followed(name, release * (shared[name] > 1)) for key, (name, release) in told.items()}
    return {names[identity]: found for identity, found in points.items()}, newest


def _nights(
    runs: Sequence[StoredRun], metric: str, on_damaged: Callable[[StoredRun, Exception], None] = _logged
) -> list[Night]:
    """The newest runs; a damaged one hides no other."""
    found, alike = [], Alike()
    for run in runs[-RUNS:]:
        try:
            told = measured(run, metric, alike)
            release = str(run.facts().get("version") or "")
        except (OSError, ValueError) as error:
            on_damaged(run, error)
            continue
        found.append(Night(run.run_id, run.started_epoch_ns(), release, told))
    return found
