"""The nightly alarm: one sequential test with a false-alarm budget for a whole study.

The values of one experiment, night after night, are a level, a pattern of the weekday, and noise in which one night
remembers the last (AR(1)). After every night two questions are asked of the nights so far: has the level moved (a
step), does it move slowly (a drift). What is told becomes the new level, so that a change is told once.

The test is Student's t of generalised least squares under AR(1); the critical value shares a budget of false alarms
over experiments, nights and windows by the union bound. noise.py says how nights differ, and benchmarks/nightly.py
measures what that comes to.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from llem_airflow.analysis.noise import (
    FAR,
    MEMORY,
    POOLED_FROM,
    Floats,
    Integers,
    Noise,
    Pattern,
    Prior,
    RunningSums,
    Sums,
    may_have_spikes,
    whitened,
    without_spikes,
)

QUARTER = 91
"""Nights over which a study may tell one false step."""

YEAR = 365
"""Nights over which a study may tell one false drift."""

FAMILY = 40
"""Experiments that share a budget; a study of more than these shares it among all of its own."""

LEARNING = 10
"""Nights that must be known before the noise of an experiment is taken from them; until then only gross changes are
told."""

GROSS_RATIO = 0.10
"""Smallest gross change."""

WINDOWS = (2, 3, 5, 7)
"""How many nights ago a step may have begun. Never one: a night alone is an outlier until another confirms it."""

LASTING = 5
"""Nights from which on a level is one."""

DRIFT_FROM = 60
"""Nights on one level from which on a drift is looked for."""


class Change(NamedTuple):
    """Position of the first night of a new level, or of the level that drifted, and the change as a share of it."""

    began: int
    ratio: float


class Nights:
    """The nights so far of experiments, without spikes and without what the weekday adds."""

    def __init__(
        self,
        values: Floats,
        starts: Sequence[Sequence[int]],
        patterns: Sequence[Pattern],
        prior: Prior,
        experiments: int,
        logs: NDArray[np.bool_] | None = None,
    ) -> None:
        """Take the nights.

        Args:
            values: One row an experiment, as ``_relative`` has them.
            starts: Where the levels of each began.
            patterns: What was taken off each for its weekdays.
            prior: What is known of the noise of each.
            experiments: Experiments that share the budget.
            logs: Which rows are logarithms; else all.
        """
        self._logs = np.ones(len(values), dtype=bool) if logs is None else logs
        self._values, self._starts, self._prior, self._experiments = values, starts, prior, experiments
        self._taken = np.array([pattern.df for pattern in patterns])
        self._inflation = np.array([pattern.variance for pattern in patterns])
        self._last = np.array([each[-1] for each in starts])

    def steps(
        self, threshold_ratio: float, rows: Integers | None = None, nights: Integers | None = None
    ) -> dict[int, Change]:
        """The most improbable step of the last nights, where it is improbable and large enough.

        Args:
            threshold_ratio: Smallest step that matters.
            rows: Rows that are judged, each as often as it is; else each once.
            nights: After how many of its nights; else after all.

        Returns:
            What was found, by the position in ``rows``.
        """
        values = self._values
        rows = np.arange(len(values)) if rows is None else rows
        nights = np.full(len(rows), values.shape[1]) if nights is None else nights
        sums = np.concatenate((np.zeros((len(values), 1)), np.cumsum(values, axis=1)), axis=1)
        best, found = np.zeros(len(rows)), dict[int, Change]()
        asked = [(m, np.flatnonzero(self._last[rows] < nights - m)) for m in WINDOWS]
        noises = self._noises_until([(rows[at], nights[at] - m) for m, at in asked])
        for (m, at), noise in zip(asked, noises, strict=True):
            row, edge = rows[at], nights[at] - m
            begin = np.maximum(self._last[row], edge - MEMORY)
            after = values[row[:, None], edge[:, None] + np.arange(m)]
            before = _Before(
                sums[row, edge] - sums[row, begin], edge - begin, values[row, begin], values[row, edge - 1]
            )
            step, error = _step(before, _confirmed(before.mean, after, noise.sd), noise)
            t, least = np.abs(step) / error, np.where(edge < LEARNING, GROSS_RATIO, 0.0)
            size = np.abs(self._ratio(step, before.mean, row))
            told = (size >= np.maximum(threshold_ratio, least)) & (t > best[at])
            told &= _beyond(t, told, self._experiments, QUARTER * len(WINDOWS), noise.df)
            best[at[told]] = t[told]
            ratios = self._ratio(after.mean(axis=1) - before.mean, before.mean, row)
            found |= {
                int(at[one]): Change(int(edge[one]), float(ratios[one])) for one in np.flatnonzero(told)
            }
        return found

    def drifts(self, threshold_ratio: float) -> dict[int, Change]:
        """By row, a slope over all nights of its present level, where it is improbable and large enough."""
        n, found = self._values.shape[1], dict[int, Change]()
        for start in np.unique(self._last[n - self._last >= DRIFT_FROM]).tolist():
            rows = np.flatnonzero(self._last == start)
            values, nights = self._values[rows, start:], np.arange(n - start, dtype=float)
            off = nights - nights.mean()
            line = values.mean(axis=1, keepdims=True) + np.outer(values @ off / (off @ off), off)
            level = self._values[rows]
            level[:, start:] -= line
            noise = self._noise_of(level, rows)
            slope, error = _second(values, np.ones_like(values), np.broadcast_to(nights, values.shape), noise)
            size = slope * nights[-1]
            limit = _limit(self._experiments, YEAR // 7, noise.df)
            ratio = self._ratio(size, line[:, 0], rows)
            told = (np.abs(ratio) >= threshold_ratio / 2) & (np.abs(slope) > limit * error)
            found |= {int(rows[at]): Change(start, float(ratio[at])) for at in np.flatnonzero(told)}
        return found

    def newest(self) -> tuple[float, float, float] | None:
        """Of one experiment alone, as shares; None where its level has no night before the newest.

        Returns:
            The newest night off the level before it, its margin at 5 % to each side, and the limit of an outlier.
        """
        (alone,) = self._values
        before = alone[self._last.item() : -1]
        if not len(before):
            return None
        noise = self._noise_of(self._values[:, :-1])
        phi, df = noise.phi.item(), noise.df.item()
        sd = noise.sd.item() / math.sqrt(1 - phi**2) * math.sqrt(1 + 1 / len(before))
        level = float(np.median(before[-MEMORY:]))
        limit = _limit(self._experiments, QUARTER, noise.df).item()
        sizes = np.array([alone[-1] - level, float(special.stdtrit(df, 0.95)) * sd, limit * sd])
        off, margin, furthest = self._ratio(sizes, np.full(3, level), np.zeros(3, dtype=np.int64)).tolist()
        return off, margin, furthest

    def detectable(self) -> float | None:
        """Of one experiment alone: the step of a week that would be told with 80 % power; None with one night."""
        n = min(self._values.shape[1] - self._last.item(), MEMORY)
        if n < 2:
            return None
        noise = self._noise_of(self._values)
        zero = np.zeros_like(noise.sd)
        _, error = _step(_Before(zero, np.array([n]), zero, zero), np.zeros((1, WINDOWS[-1])), noise)
        limit = _limit(self._experiments, QUARTER * len(WINDOWS), noise.df)
        level = self._values[:, self._last.item() :].mean(axis=1)
        return float(self._ratio((limit + special.ndtri(0.8)) * error, level, np.zeros(1, np.int64)).item())

    def _ratio(self, size: Floats, level: Floats, rows: Integers) -> Floats:
        """Sizes as shares of the level that they are off; of a level of 0 as shares of the row's median."""
        with np.errstate(over="ignore"):
            of_logs = np.minimum(np.expm1(size), np.finfo(float).max)
        shares: Floats = np.where(self._logs[rows], of_logs, size / np.where(level, np.abs(level), 1.0))
        return shares

    def _noises_until(self, asked: Sequence[tuple[Integers, Integers]]) -> list[Noise]:
        """The noise of rows over so many of their first nights each; what is asked for again is worked out once."""
        width = self._values.shape[1] + 1
        keys = [rows * width + nights for rows, nights in asked]
        known, place = np.unique(np.concatenate(keys), return_inverse=True)
        noise = self._noise_until(known // width, known % width)
        ends = np.cumsum([len(key) for key in keys])[:-1]
        return [Noise(noise.phi[at], noise.sd[at], noise.df[at]) for at in np.split(place, ends)]

    def _noise_until(self, rows: Integers, nights: Integers) -> Noise:
        """The noise of the first nights; of rows on one level, which are nearly all, from running sums."""
        noise = Noise(*np.zeros((3, len(rows))))
        fast = np.flatnonzero((self._last[rows] == 0) & (nights > 1))
        sums, exact = RunningSums(self._values).first(nights[fast], rows[fast])
        fast = fast[exact]
        _put(noise, fast, Noise.of_sums(Sums(*(each[exact] for each in sums)), *self._known(rows[fast], 1)))
        others = np.delete(np.arange(len(rows)), fast)
        for n in np.unique(nights[others]).tolist():
            at = others[nights[others] == n]
            _put(noise, at, self._noise_of(self._values[rows[at], :n], rows[at]))
        return noise

    def _noise_of(self, values: Floats, rows: Integers | None = None) -> Noise:
        rows = np.arange(len(values)) if rows is None else rows
        n, starts = values.shape[1], [self._starts[row] for row in rows]
        levels = np.array([len(lasting(each, n)) for each in starts])
        return Noise.of(around_levels(values, starts, np.mean), *self._known(rows, levels))

    def _known(self, rows: Integers, levels: Any) -> tuple[Floats, Floats, Prior]:
        """Degrees of freedom that levels and pattern took, what the pattern's error adds, what is known before."""
        return levels + self._taken[rows], self._inflation[rows], self._prior.of(rows)


def _put(noise: Noise, at: Integers, own: Noise) -> None:
    noise.phi[at], noise.sd[at], noise.df[at] = own.phi, own.sd, own.df


class _Before(NamedTuple):
    """The nights before a step, one value an experiment: their sum and number, the first and the last."""

    sum: Floats
    n: Integers
    first: Floats
    last: Floats

    @property
    def mean(self) -> Floats:
        """Their mean."""
        return self.sum / self.n


def lasting(starts: Sequence[int], n: int) -> list[int]:
    """Levels that lasted; a restless series, which left each level soon, must not be taken for a calm one."""
    if len(starts) == 1:  # of nearly all experiments in nearly all nights
        return [0]
    ends = [*starts[1:], n + LASTING]
    return [a for a, end in zip(starts, ends, strict=True) if a < n and (a == 0 or end - a >= LASTING)]


def around_levels(values: Floats, starts: Sequence[Sequence[int]], centre: Callable[..., Any]) -> Floats:
    """Each row around the centre (mean or median) of each of its levels."""
    rest: Floats = values - centre(values, axis=1, keepdims=True)
    for row, each in enumerate(starts):
        if len(each) > 1:
            for begin, end in pairwise([*lasting(each, values.shape[1]), values.shape[1]]):
                rest[row, begin:end] = values[row, begin:end] - centre(values[row, begin:end])
    return rest


def _confirmed(level: Floats, nights: Floats, sd: Floats) -> Floats:
    """The night that went furthest counts only as far as the second: no night makes a step alone.

    One that goes far beyond all others is an outlier, and counts as the level before.
    """
    found, rows = nights.copy(), np.arange(len(nights))
    up = nights.mean(axis=1) > level
    ranked = np.sort(nights, axis=1)
    furthest = np.where(up, ranked[:, -1], ranked[:, 0])
    second = np.where(up, ranked[:, -2], ranked[:, 1])
    at = np.where(up, nights.argmax(axis=1), nights.argmin(axis=1))
    found[rows, at] = np.where(np.abs(furthest - second) > FAR * sd, level, second)
    return found


def _step(before: _Before, after: Floats, noise: Noise) -> tuple[Floats, Floats]:
    """Step between two stretches by generalised least squares under AR(1), and its standard error, by row.

    The sums below are products of the whitened regressors (level: sqrt(1 - phi^2), then 1 - phi; step: 1, then
    1 - phi) and of them with the whitened nights.
    """
    phi, new, last = noise.phi, 1 - noise.phi, after[:, -1]
    since, m = after.sum(axis=1), after.shape[1]
    total, n = before.sum + since, before.n + m
    level_level = new * (1 + phi) + (n - 1) * new**2
    level_step = new + (m - 1) * new**2
    left = 1 + (m - 1) * new**2 - level_step**2 / level_level
    level_y = new * (1 + phi) * before.first + new * (total - before.first - phi * (total - last))
    step_y = after[:, 0] - phi * before.last + new * (since - after[:, 0] - phi * (since - last))
    return (step_y - level_step / level_level * level_y) / left, noise.sd / left**0.5


def _second(values: Floats, one: Floats, two: Floats, noise: Noise) -> tuple[Floats, Floats]:
    """Generalised least squares under AR(1): coefficient of the second regressor, and its standard error, by row."""
    y, a, b = (whitened(each, noise.phi) for each in (values, one, two))
    ratio = np.sum(a * b, axis=1) / np.sum(a * a, axis=1)
    left = np.sum(b * b, axis=1) - ratio * np.sum(a * b, axis=1)
    return (np.sum(b * y, axis=1) - ratio * np.sum(a * y, axis=1)) / left, noise.sd / left**0.5


def _beyond(
    t: Floats, asked: NDArray[np.bool_], experiments: int, tests: int, df: Floats
) -> NDArray[np.bool_]:
    """Which of those that are asked lie beyond the limit; it is nowhere below that of the normal distribution."""
    least = -float(special.ndtri(0.5 / (max(experiments, FAMILY) * tests)))
    beyond = asked & (t > 0.999 * least)
    beyond[beyond] = t[beyond] > _limit(experiments, tests, df[beyond])
    return beyond


def _limit(experiments: int, tests: int, df: Floats) -> Floats:
    """Critical value of a two-sided t test when all tests of all experiments share one false alarm."""
    limit: Floats = -special.stdtrit(df, 0.5 / (max(experiments, FAMILY) * tests))
    return limit


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
        self._without_weekdays = self._values
        self._logs = np.array([_are_logs(one.values) for one in series])

    def walk(self) -> None:
        """Judge night after night; between two times of learning, all nights at once."""
        owner = np.concatenate([np.full(len(runs), row) for row, runs in enumerate(self._runs)])
        night = np.concatenate([np.arange(1, len(runs) + 1) for runs in self._runs])
        week = (np.concatenate(self._runs) + 1) // 7
        for each in range(int(week.max(initial=-1)) + 1):
            if each:
                self._learn(7 * each - WINDOWS[-1])
            at = (week == each) & (night > 2)
            self._judge(owner[at], night[at])

    def watched(self, row: int) -> Watch:
        """What there is to say of an experiment after its last night."""
        n, alarms = len(self._runs[row]), self._alarms[row]
        now = self._nights([row], n)
        off, margin, limit = now.newest() or (None,) * 3
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
        starts = [self._starts[row] for row in rows]
        values = without_spikes(self._without_weekdays[rows, :n])
        return Nights(values, starts, patterns, self._prior.of(rows), self._experiments, self._logs[rows])

    def _judge(self, rows: Integers, nights: Integers) -> None:
        """Judge rows after so many of their nights each; after a change the later ones of that row are judged anew."""
        while len(rows):
            changes = self._changes(rows, nights)
            first: dict[int, tuple[int, Alarm, int]] = {}
            for at, (alarm, start) in changes.items():
                row = int(rows[at])
                if row not in first or alarm.told < first[row][0]:
                    first[row] = alarm.told, alarm, start
            for row, (_, alarm, start) in first.items():
                self._alarms[row].append(alarm)
                self._starts[row].append(start)
            told = np.full(len(self._runs), self._values.shape[1])  # later than any night
            told[[*first]] = [n + 1 for n, _, _ in first.values()]
            later = nights > told[rows]
            rows, nights = rows[later], nights[later]

    def _changes(self, rows: Integers, nights: Integers) -> dict[int, tuple[Alarm, int]]:
        """What is told by position in ``rows``, and where the new level begins."""
        found: dict[int, tuple[Alarm, int]] = {}
        for n in np.unique(nights[nights % 7 == 0]).tolist():
            at = np.flatnonzero(nights == n)
            drifts = self._nights(rows[at].tolist(), n).drifts(self._threshold_ratio)
            for one, drift in drifts.items():
                alarm = Alarm(n - 1, drift.began, drift.ratio, drift=True)
                found[int(at[one])] = alarm, n - 2 * WINDOWS[-1]
        owners, series, places = self._series(rows, nights)
        patterns, starts = [self._patterns[row] for row in owners], [self._starts[row] for row in owners]
        prior, logs = self._prior.of(owners), self._logs[owners]
        so_far = Nights(series, starts, patterns, prior, self._experiments, logs)
        for place, step in so_far.steps(self._threshold_ratio, places, nights).items():
            found[place] = Alarm(int(nights[place]) - 1, step.began, step.ratio), step.began
        return found

    def _series(self, rows: Integers, nights: Integers) -> tuple[Integers, Floats, Integers]:
        """The nights of these rows without spikes: one series for those without, one more for each with some.

        Returns:
            The row of each series, the series, and which of them each row after so many nights is.
        """
        owners, places = np.unique(rows, return_inverse=True)
        values = self._without_weekdays[owners, : nights.max()]
        may = may_have_spikes(values, places, nights)
        more = np.zeros((int(may.sum()), values.shape[1]))
        for n in np.unique(nights[may]).tolist():
            more[nights[may] == n, :n] = without_spikes(values[places[may & (nights == n)], :n])
        owners, places = np.concatenate((owners, rows[may])), places.copy()
        places[may] = len(values) + np.arange(len(more))
        return owners, np.concatenate((values, more)), places

    def _learn(self, until: int) -> None:
        """What weekdays add and how nights differ, from the runs before ``until``."""
        rest, taken = np.full((len(self._runs), until), np.nan), np.zeros(len(self._runs))
        known = np.array([np.searchsorted(runs, until) for runs in self._runs])
        for n in np.unique(known[known > 0]).tolist():
            rows = np.flatnonzero(known == n)
            starts = [self._starts[row] for row in rows]
            values = without_spikes(self._values[rows, :n])
            runs = np.array([self._runs[row][:n] for row in rows])
            rest[rows[:, None], runs] = around_levels(values, starts, np.median)
            taken[rows] = [len(lasting(each, n)) for each in starts]
        weekdays = self._weekday_of_run[:until]
        self._patterns = _patterns(rest, weekdays)
        adds = np.array([pattern.adds for pattern in self._patterns])
        self._without_weekdays = self._values - np.take_along_axis(adds, self._weekdays, axis=1)
        rest -= adds[:, weekdays]
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
    told = rest[rows][:, nights]
    median = np.nanmedian if np.isnan(told).any() else np.median  # the same, and a tenth of the time
    middle = median(told, axis=0)
    common = Pattern.of(middle, weekdays[nights])
    usual = float(np.nanmean(rest[rows] ** 2))
    share = min(1.0, float(np.mean(middle**2)) / usual) if usual > 0 else 1.0
    alike: dict[bytes, list[int]] = defaultdict(list)
    for row, there in enumerate(measured):
        alike[there.tobytes()].append(row)
    found = [common] * len(rest)
    for those in alike.values():
        there = measured[those[0]]
        own = Pattern.of_rows(rest[those][:, there] - common.adds[weekdays[there]], weekdays[there])
        for row, one in zip(those, own, strict=True):
            found[row] = one.beside(common, share)
    return found


def _are_logs(values: Sequence[float]) -> bool:
    return all(value > 0 for value in values)


def _relative(values: Sequence[float]) -> Floats:
    """Logarithms, in which a change is a ratio; a metric that is not positive is taken over its median.

    In steps of 2^-40, so that sums of them are exact: nights that are all the same have no noise, not that of rounding,
    in which a pattern of weekdays could be seen.
    """
    given = np.asarray(values, dtype=float)
    if _are_logs(values):
        return _exact(np.log(given))
    middle = float(np.median(np.abs(given)))
    return _exact(given / middle) if middle > 0 else np.zeros(len(given))


def _exact(values: Floats) -> Floats:
    rounded: Floats = np.round(values * 2.0**40) / 2.0**40
    return rounded
