"""How often the nightly verdict is wrong, and how soon it sees a change, beside other ways to watch a benchmark.

    uv run --no-project --python 3.11 --with 'apache-otava==0.8.*' --with 'ruptures==1.1.*' --with scipy \
        python benchmarks/nightly.py [--series 800] [--peers 40]
    python benchmarks/nightly.py --histories [--series 800]

The peers need an environment of their own (apache-otava pins an older numpy); without them the table has the other
rows. Nights are a level with AR(1) noise and a weekly pattern, and five cycles of CV 1 % each. All methods see the
same nights, one after the other, and an alarm is a night on which one tells a change that it had not told before.
``--histories`` prints the nightly verdict by the nights and experiments that it has, beside the best that there can be.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))

from llem_airflow.analysis.alarm import FAMILY, QUARTER, Series, watch, watch_study
from llem_airflow.analysis.history import Point, change_points

Floats = NDArray[np.float64]
Method = Callable[[Floats, int], list[list[int]]]
"""Cycles by series and night, and the first night to judge: the nights that told a change, by series."""

CYCLES, CYCLE_CV = 5, 0.01
"""Cycles of a night, and how much they differ."""

FLAT, AFTER = 60, 14
"""Nights before a step, and after it."""


@dataclass(frozen=True)
class World:
    """How nights differ.

    Attributes:
        name: What it is called in the table.
        sd: Standard deviation of nights, as a ratio.
        phi: Correlation of a night with the next.
        week: Amplitude of the weekly pattern, as a ratio.
    """

    name: str
    sd: float
    phi: float = 0.0
    week: float = 0.0

    def nights(self, rng: np.random.Generator, series: int, n: int) -> Floats:
        """Cycles by series and night, around 100."""
        level = rng.normal(0, self.sd, (series, n))
        for night in range(1, n):
            level[:, night] = self.phi * level[:, night - 1] + (1 - self.phi**2) ** 0.5 * level[:, night]
        level += self.week * np.sin(2 * np.pi * np.arange(n) / 7)
        return 100 * (1 + level[..., None]) * (1 + rng.normal(0, CYCLE_CV, (series, n, CYCLES)))


HARD = World("sd 2 %, AR 0.5, weekly 1 %", 0.02, 0.5, 0.01)
CALM = World("sd 1 %", 0.01)
REMEMBERING = World("sd 1 %, AR 0.5", 0.01, 0.5)
LINKED = World("sd 1 %, AR 0.5, weekly 1 %", 0.01, 0.5, 0.01)
STUDIES = (1, 8, 40)
"""Experiments of a study."""

STEPS = ((0.05, 3), (0.03, 7))
"""Steps, and the nights within which each must be told."""


def nightly_verdict(cycles: Floats, first: int, experiments: int = 1) -> list[list[int]]:
    """What the product tells; the series are those of studies of so many experiments."""
    means, told = cycles.mean(axis=2).tolist(), []
    nights = range(len(means[0]))
    for begin in range(0, len(means), experiments):
        study = [Series(each, nights, nights) for each in means[begin : begin + experiments]]
        told += [
            [alarm.told for alarm in seen.alarms if alarm.told >= first]
            for seen in watch_study(study, experiments=FAMILY)
        ]
    return told


def welch(cycles: Floats, first: int) -> list[list[int]]:
    """Each night against the one before: p < 5 % and 2 % or more."""
    before, after = cycles[:, :-1], cycles[:, 1:]
    p = stats.ttest_ind(before, after, axis=2, equal_var=False).pvalue
    ratio = after.mean(axis=2) / before.mean(axis=2) - 1
    told = (p < 0.05) & (np.abs(ratio) >= 0.02)
    return [[int(night) + 1 for night in np.flatnonzero(each) if night + 1 >= first] for each in told]


def looking_back(splits: Callable[[Floats], list[int]]) -> Method:
    """A method that looks back, asked every night."""
    return lambda cycles, first: [retold(splits, means, first) for means in cycles.mean(axis=2)]


def retold(splits: Callable[[Floats], list[int]], means: Floats, first: int) -> list[int]:
    """It tells a change when one lies after the last that it told."""
    told, last = [], 0
    for night in range(max(first, 4), len(means)):
        found = [at for at in splits(means[: night + 1]) if at > last + 1]
        if found:
            told.append(night)
            last = found[-1]
    return told


def our_change_points(means: Floats) -> list[int]:
    points = [Point(str(k), k, (float(mean),)) for k, mean in enumerate(means)]
    return [change.index for change in change_points(points, "lower", experiments=FAMILY)]


def peers() -> Iterator[tuple[str, Method]]:
    """Those that are installed, with the settings that they recommend."""
    try:
        from otava.analysis import compute_change_points  # noqa: PLC0415 - there only where the peers are installed
    except ImportError:
        print("apache-otava is not installed: see the command in this file", file=sys.stderr)
    else:

        def otava(means: Floats) -> list[int]:
            found, _ = compute_change_points(
                means.tolist(), window_len=50, max_pvalue=0.001, min_magnitude=0.02
            )
            return [int(each.index) for each in found]

        yield "apache-otava, p 0.001, 2 %", looking_back(otava)
    try:
        import ruptures  # noqa: PLC0415 - likewise
    except ImportError:
        print("ruptures is not installed: see the command in this file", file=sys.stderr)
    else:

        def pelt(means: Floats) -> list[int]:
            usual = float(np.median(np.abs(np.diff(means)))) / 0.6745 / 2**0.5
            model = ruptures.KernelCPD(kernel="linear", min_size=2).fit(means[:, None])
            return list(model.predict(pen=3 * np.log(len(means)) * usual**2)[:-1])

        yield "ruptures PELT, 3 log n", looking_back(pelt)


def false_a_quarter(
    method: Method, rng: np.random.Generator, world: World, series: int, nights: int
) -> float:
    """False alarms of a study of FAMILY experiments in QUARTER nights."""
    told = sum(len(each) for each in method(world.nights(rng, series, nights), 0))
    return told / series * FAMILY * QUARTER / nights


def delays(
    method: Method,
    rng: np.random.Generator,
    world: World,
    step: float,
    series: int,
    *,
    outlier: int = 0,
    flat: int = FLAT,
) -> Floats:
    """Nights until a step after ``flat`` nights is told, the first one as 1; infinite when it is not within AFTER."""
    cycles = world.nights(rng, series, flat + AFTER)
    cycles[:, flat:] *= 1 + step
    if outlier:
        cycles[:, flat - outlier] *= 1.10
    told = method(cycles, flat)
    return np.array([nights[0] - flat + 1 if nights else np.inf for nights in told])


def clairvoyant(rng: np.random.Generator, world: World, step: float, series: int, flat: int) -> Floats:
    """``delays`` of who knows the noise and the weekly pattern, and only has to find level and step.

    Each night the best of all steps that are 2 nights old or older, by generalised least squares under the true
    covariance; the limit is the one that makes one false alarm of 40 experiments in 91 nights.
    """
    n = flat + AFTER
    lags = np.abs(np.arange(n)[:, None] - np.arange(n))
    noise = world.sd**2 * (1.0 * (lags == 0) if world.phi == 0 else world.phi**lags)
    noise += np.eye(n) * CYCLE_CV**2 / CYCLES
    root = np.linalg.cholesky(noise)

    def highest(values: Floats) -> Floats:
        """By series and night after the step: |z| of the best step."""
        found = []
        for until in range(flat + 1, n + 1):
            white = np.linalg.solve(root[:until, :until], np.tri(until)[:, : until - 1])
            y = np.linalg.solve(root[:until, :until], values[:, :until].T)
            level, steps = white[:, :1], white[:, max(1, flat - 7) :]
            steps = steps - level * (level.T @ steps) / (level.T @ level)
            found.append(np.abs(steps.T @ y / np.linalg.norm(steps, axis=0)[:, None]).max(axis=0))
        return np.array(found).T

    many = 20_000
    worst = np.sort(highest(rng.normal(size=(many, n)) @ root.T).max(axis=1))
    limit = worst[-round(many * AFTER / (FAMILY * QUARTER))]
    values = rng.normal(size=(series, n)) @ root.T
    values[:, flat:] += np.log1p(step)
    over = highest(values) > limit
    return np.where(over.any(axis=1), over.argmax(axis=1) + 1.0, np.inf)


def drifts_found(rng: np.random.Generator, world: World, a_year: float, series: int) -> float:
    """Share of years in which the nightly verdict tells a slow drift as one."""
    rise = 1 + a_year * np.arange(365) / 365
    years = world.nights(rng, series, 365).mean(axis=2) * rise
    found = [watch(year.tolist(), range(365), experiments=FAMILY).alarms for year in years]
    return float(np.mean([any(alarm.drift for alarm in alarms) for alarms in found]))


def told_within(found: Floats, nights: int) -> str:
    median = float(np.median(found))
    return (
        f"{median:.0f} ({np.mean(found <= nights):.0%})"
        if np.isfinite(median)
        else f"- ({np.mean(found <= nights):.0%})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--series", type=int, default=800, help="Series for the nightly verdict and the t test."
    )
    parser.add_argument("--peers", type=int, default=40, help="Series for what is asked anew every night.")
    parser.add_argument(
        "--histories", action="store_true", help="By nights before the step, and by experiments."
    )
    given = parser.parse_args()
    if given.histories:
        print_histories(given.series, given.peers)
    else:
        print_methods(given.series, given.peers)


def print_histories(ours: int, theirs: int) -> None:
    """How soon a step is told, by the nights before it and the experiments of the study."""
    methods: list[tuple[str, Method, int]] = [
        *(
            (f"nightly verdict, {k} experiments", partial(nightly_verdict, experiments=k), ours)
            for k in STUDIES
        ),
        ("t test against the night before", welch, ours),
        *((name, method, theirs) for name, method in peers()),
    ]
    worlds = (CALM, REMEMBERING, LINKED)
    titles = [f"{step:+.0%} in {within}, {world.name}" for world in worlds for step, within in STEPS]
    print("Nights until a step is told: the median, and the share that is told in time.\n")
    print(f"| nights before | method | {' | '.join(titles)} |\n" + "|---" * 8 + "|")
    for flat in (30, FLAT):
        for name, method, series in methods:
            cells = [
                told_within(delays(method, np.random.default_rng(1), world, step, series, flat=flat), within)
                for world in worlds
                for step, within in STEPS
            ]
            print(f"| {flat} | {name} | " + " | ".join(cells) + " |", flush=True)
        cells = [
            told_within(clairvoyant(np.random.default_rng(1), world, step, 4000, flat), within)
            for world in worlds
            for step, within in STEPS
        ]
        print(f"| {flat} | the best that can be | " + " | ".join(cells) + " |", flush=True)
    print("\nFalse alarms of 40 experiments in 91 nights\n")
    worlds = (HARD, CALM, LINKED)
    print(f"| experiments | {' | '.join(world.name for world in worlds)} |\n" + "|---" * 4 + "|")
    for k in STUDIES:
        method = partial(nightly_verdict, experiments=k)
        rates = [
            false_a_quarter(method, np.random.default_rng(3), world, 2 * ours, QUARTER) for world in worlds
        ]
        print(f"| {k} | " + " | ".join(f"{rate:.2f}" for rate in rates) + " |", flush=True)


def print_methods(ours: int, theirs: int) -> None:
    """All methods."""
    methods: list[tuple[str, Method, int]] = [
        ("nightly verdict, experiment alone", nightly_verdict, ours),
        ("nightly verdict, study of 40", partial(nightly_verdict, experiments=40), ours),
        ("t test against the night before", welch, ours),
        ("change points of `history`", looking_back(our_change_points), theirs),
        *((name, method, theirs) for name, method in peers()),
    ]
    print(f"False alarms of {FAMILY} experiments in {QUARTER} nights;")
    print("nights until a step is told, the median, and the share that is told in time.\n")
    titles = (
        f"false, {HARD.name}",
        f"false, {CALM.name}",
        "+5 % in 3",
        "+3 % in 7",
        "+5 % in 3, outlier before",
    )
    print(f"| method | {' | '.join((*titles, f'+5 % in 3, {LINKED.name}'))} |\n" + "|---" * 7 + "|")
    for name, method, series in methods:
        rng = np.random.default_rng(1)
        few = max(series // 4, 20)
        cells = [f"{false_a_quarter(method, rng, world, series, QUARTER):.1f}" for world in (HARD, CALM)]
        cells += [told_within(delays(method, rng, CALM, step, few), in_time) for step, in_time in STEPS]
        cells.append(told_within(delays(method, rng, CALM, 0.05, few, outlier=3), 3))
        cells.append(told_within(delays(method, rng, LINKED, 0.05, few), 3))
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    rng = np.random.default_rng(2)
    shares = [f"{world.name}: {drifts_found(rng, world, 0.03, 40):.0%}" for world in (CALM, LINKED)]
    print(f"\nYears with a drift of +3 % in which the nightly verdict tells a drift: {'; '.join(shares)}")


if __name__ == "__main__":
    main()
