"""The nightly alarm: one sequential test with a false-alarm budget for a whole study.

The values of one experiment, night after night, are a level, a pattern of the weekday, and noise in which one night
remembers the last (AR(1)). After every night two questions are asked of the nights so far: has the level moved (a
step), does it move slowly (a drift). What is told becomes the new level, so that a change is told once.

level_tests.py has the tests, noise.py how nights differ, and benchmarks/nightly.py measures what that comes to.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llem_airflow.analysis.level_tests import WINDOWS, Nights, around_levels, lasting
from llem_airflow.analysis.noise import POOLED_FROM, Floats, Integers, Pattern, Prior, without_spikes


@dataclass(frozen=True, slots=True)
class Series:
    """One experiment, night after night.

    Attributes:
        values: One value a night, oldest first.
        days: Day of each night, as a count: days that are 7 apart are the same weekday.
        runs: Which of the study's runs each night was, as ascending numbers.
    """

    values: Sequence[float]
    days: Sequence[int]
    runs: Sequence[int]


@dataclass(frozen=True, slots=True)
class Alarm:
    """A change that is told.

    Attributes:
        told: Position of the night that told it.
        began: Position of the first night of the new level; for a drift, of the level that drifted.
        ratio: Size of the step, or of the drift so far.
        drift: Whether it is a drift.
    """

    told: int
    began: int
    ratio: float
    drift: bool = False


@dataclass(frozen=True, slots=True)
class Watch:
    """What the nights so far say.

    Attributes:
        alarms: What was told, oldest first.
        began: Position of the first night of the present level.
        newest_ratio: The newest night over the level of the nights before it, minus 1; None with one night.
        margin_ratio: How far a night may lie off by chance, at 5 % to each side; None with one night.
        outlier: Whether the newest night alone lies further off than the budget's tests allow.
        detectable_ratio: Step that would be told within 7 nights with 80 % power; None with one night.
    """

    alarms: tuple[Alarm, ...]
    began: int
    newest_ratio: float | None
    margin_ratio: float | None
    outlier: bool
    detectable_ratio: float | None


def watch(
    values: Sequence[float], days: Sequence[int], *, experiments: int = 1, threshold_ratio: float = 0.02
) -> Watch:
    """Watch one experiment alone: see ``watch_study``."""
    alone = Series(values, days, range(len(values)))
    return watch_study([alone], experiments=experiments, threshold_ratio=threshold_ratio)[0]


def watch_study(
    series: Sequence[Series], *, experiments: int = 1, threshold_ratio: float = 0.02
) -> list[Watch]:
    """Walk over the nights as they came; each is judged with those before it alone.

    Args:
        series: The experiments of a study. Each has a verdict of its own; how nights differ by chance is learnt from
            all of them.
        experiments: Experiments that share the budget.
        threshold_ratio: Smallest step that matters. A drift matters from half of it on, because it goes on.
    """
    if not series:
        return []
    study = _Study(series, experiments, threshold_ratio)
    study.walk()
    return [study.watched(row) for row in range(len(series))]


class _Study:
    """All experiments of a study, as far as the walk has come. Rows are experiments."""

    def __init__(self, series: Sequence[Series], experiments: int, threshold_ratio: float) -> None:
        self._experiments, self._threshold_ratio = experiments, threshold_ratio
        order = {run: at for at, run in enumerate(sorted({run for one in series for run in one.runs}))}
        self._runs = [np.array([order[run] for run in one.runs]) for one in series]
        shape = len(series), max((len(one.values) for one in series), default=0)
        self._values, self._weekdays = np.zeros(shape), np.zeros(shape, dtype=np.int64)
        self._weekday_of_run = np.zeros(len(order), dtype=np.int64)
        for row, one in enumerate(series):
            weekdays = np.asarray(one.days) % 7
            self._values[row, : len(one.values)] = _relative(one.values)
            self._weekdays[row, : len(one.values)] = weekdays
            self._weekday_of_run[self._runs[row]] = weekdays
        self._starts: list[list[int]] = [[0] for _ in series]
        self._alarms: list[list[Alarm]] = [[] for _ in series]
        self._patterns = [Pattern(np.zeros(7)) for _ in series]
        self._prior = Prior.assumed(len(series))

    def walk(self) -> None:
        """Judge night after night."""
        measured: list[dict[int, list[int]]] = [defaultdict(list) for _ in self._weekday_of_run]
        for row, runs in enumerate(self._runs):
            for n, run in enumerate(runs, start=1):
                measured[run][n].append(row)
        for run, rows_by_nights in enumerate(measured, start=1):
            if run % 7 == 0:
                self._learn(run - WINDOWS[-1])
            for n, rows in rows_by_nights.items():
                if n > 2:
                    self._judge(rows, n)

    def watched(self, row: int) -> Watch:
        """What there is to say of an experiment after its last night."""
        n, alarms = len(self._runs[row]), self._alarms[row]
        now = self._nights([row], n)
        off, margin, limit = (math.expm1(one) for one in found) if (found := now.newest()) else (None,) * 3
        told = bool(alarms) and alarms[-1].told == n - 1
        return Watch(
            alarms=tuple(alarms),
            began=self._starts[row][-1],
            newest_ratio=off,
            margin_ratio=margin,
            outlier=not told
            and off is not None
            and limit is not None
            and abs(off) > max(limit, self._threshold_ratio),
            detectable_ratio=now.detectable(),
        )

    def _nights(self, rows: list[int], n: int) -> Nights:
        patterns = [self._patterns[row] for row in rows]
        adds = np.array([pattern.adds for pattern in patterns])
        values = self._values[rows, :n] - np.take_along_axis(adds, self._weekdays[rows, :n], axis=1)
        starts = [self._starts[row] for row in rows]
        return Nights(without_spikes(values), starts, patterns, self._prior.of(rows), self._experiments)

    def _judge(self, rows: list[int], n: int) -> None:
        nights = self._nights(rows, n)
        steps = nights.steps(self._threshold_ratio)
        for at, row in enumerate(rows):
            if step := steps.get(at):
                self._alarms[row].append(Alarm(n - 1, step.began, math.expm1(step.size)))
                self._starts[row].append(step.began)
            elif n % 7 == 0 and (drift := nights.drift(at, self._threshold_ratio)):
                self._alarms[row].append(Alarm(n - 1, drift.began, math.expm1(drift.size), drift=True))
                self._starts[row].append(n - 2 * WINDOWS[-1])

    def _learn(self, until: int) -> None:
        """What weekdays add and how nights differ, from the runs before ``until``."""
        rest, taken = np.full((len(self._runs), until), np.nan), np.zeros(len(self._runs))
        for row, runs in enumerate(self._runs):
            before = runs[: np.searchsorted(runs, until)]
            if len(before):
                values = without_spikes(self._values[row, : len(before)])
                rest[row, before] = around_levels(values[None], [self._starts[row]], np.median)[0]
                taken[row] = len(lasting(self._starts[row], len(before)))
        weekdays = self._weekday_of_run[:until]
        self._patterns = _patterns(rest, weekdays)
        rest -= np.array([pattern.adds for pattern in self._patterns])[:, weekdays]
        self._prior = Prior.pooled(rest, taken + [pattern.df for pattern in self._patterns])


def _patterns(rest: Floats, weekdays: Integers) -> list[Pattern]:
    """The pattern that the experiments have in common (of each night's median), and what each adds of its own.

    Args:
        rest: Nights of each experiment around its level; NaN where it was not measured.
        weekdays: Of each night.
    """
    measured = ~np.isnan(rest)
    rows = measured.sum(axis=1) >= POOLED_FROM
    nights = measured[rows].any(axis=0)
    if not nights.any():
        return [Pattern(np.zeros(7))] * len(rest)
    middle = np.nanmedian(rest[rows][:, nights], axis=0)
    common = Pattern.of(middle, weekdays[nights])
    usual = float(np.nanmean(rest[rows] ** 2))
    share = min(1.0, float(np.mean(middle**2)) / usual) if usual > 0 else 1.0
    found = []
    for row, there in zip(rest, measured, strict=True):
        own = Pattern.of(row[there] - common.adds[weekdays[there]], weekdays[there])
        found.append(own.beside(common, share))
    return found


def _relative(values: Sequence[float]) -> Floats:
    """Logarithms, in which a change is a ratio; a metric that is not positive is taken over its median."""
    given = np.asarray(values, dtype=float)
    if np.all(given > 0):
        logs: Floats = np.log(given)
        return logs
    middle = float(np.median(np.abs(given)))
    return given / middle if middle > 0 else np.zeros(len(given))
