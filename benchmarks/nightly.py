"""How often the nightly verdict is wrong, and how soon it sees a change, beside other ways to watch a benchmark.

    uv run --no-project --python 3.11 --with 'apache-otava==0.8.*' --with 'ruptures==1.1.*' --with scipy \
        python benchmarks/nightly.py [--series 800] [--peers 40]

The peers need an environment of their own (apache-otava pins an older numpy); without them the table has the other
rows. Nights are a level with AR(1) noise and a weekly pattern, and five cycles of CV 1 % each. All methods see the
same nights, one after the other, and an alarm is a night on which one tells a change that it had not told before.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))

from llem_airflow.analysis.history import Point, change_points
from llem_airflow.analysis.sequential import FAMILY, QUARTER, watch

Floats = NDArray[np.float64]
Method = Callable[[Floats, int], list[int]]
"""Cycles by night, and the first night to judge: the nights that told a change."""

CYCLES, CYCLE_CV, FLAT = 5, 0.01, 60
"""Cycles of a night, how much they differ, and nights before a step."""


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
LINKED = World("sd 1 %, AR 0.5, weekly 1 %", 0.01, 0.5, 0.01)


def nightly_verdict(cycles: Floats, first: int) -> list[int]:
    """What the product tells."""
    seen = watch(cycles.mean(axis=1).tolist(), range(len(cycles)), experiments=FAMILY)
    return [alarm.told for alarm in seen.alarms if alarm.told >= first]


def welch(cycles: Floats, first: int) -> list[int]:
    """Each night against the one before: p < 5 % and 2 % or more."""
    before, after = cycles[:-1], cycles[1:]
    p = stats.ttest_ind(before, after, axis=1, equal_var=False).pvalue
    ratio = after.mean(axis=1) / before.mean(axis=1) - 1
    return [
        int(night) + 1 for night in np.flatnonzero((p < 0.05) & (np.abs(ratio) >= 0.02)) if night + 1 >= first
    ]


def retold(splits: Callable[[Floats], list[int]], cycles: Floats, first: int) -> list[int]:
    """A method that looks back, asked every night: it tells a change when one lies after the last that it told."""
    means = cycles.mean(axis=1)
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

        yield "apache-otava, p 0.001, 2 %", lambda cycles, first: retold(otava, cycles, first)
    try:
        import ruptures  # noqa: PLC0415 - likewise
    except ImportError:
        print("ruptures is not installed: see the command in this file", file=sys.stderr)
    else:

        def pelt(means: Floats) -> list[int]:
            usual = float(np.median(np.abs(np.diff(means)))) / 0.6745 / 2**0.5
            model = ruptures.KernelCPD(kernel="linear", min_size=2).fit(means[:, None])
            return list(model.predict(pen=3 * np.log(len(means)) * usual**2)[:-1])

        yield "ruptures PELT, 3 log n", lambda cycles, first: retold(pelt, cycles, first)


def false_a_quarter(
    method: Method, rng: np.random.Generator, world: World, series: int, nights: int
) -> float:
    """False alarms of a study of FAMILY experiments in QUARTER nights."""
    told = sum(len(method(cycles, 0)) for cycles in world.nights(rng, series, nights))
    return told / series * FAMILY * QUARTER / nights


def delays(
    method: Method, rng: np.random.Generator, world: World, step: float, series: int, *, outlier: int = 0
) -> Floats:
    """Nights until a step after FLAT nights is told, the first one as 1; infinite when it is not within 14."""
    cycles = world.nights(rng, series, FLAT + 14)
    cycles[:, FLAT:] *= 1 + step
    if outlier:
        cycles[:, FLAT - outlier] *= 1.10
    told = [method(each, FLAT) for each in cycles]
    return np.array([nights[0] - FLAT + 1 if nights else np.inf for nights in told])


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
    given = parser.parse_args()
    looking_back: Method = lambda cycles, first: retold(our_change_points, cycles, first)  # noqa: E731 - as the peers
    methods = [
        ("nightly verdict", nightly_verdict, given.series),
        ("t test against the night before", welch, given.series),
        ("change points of `history`", looking_back, given.peers),
        *((name, method, given.peers) for name, method in peers()),
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
        cells += [
            told_within(delays(method, rng, CALM, step, few), in_time)
            for step, in_time in ((0.05, 3), (0.03, 7))
        ]
        cells.append(told_within(delays(method, rng, CALM, 0.05, few, outlier=3), 3))
        cells.append(told_within(delays(method, rng, LINKED, 0.05, few), 3))
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    rng = np.random.default_rng(2)
    shares = [f"{world.name}: {drifts_found(rng, world, 0.03, 40):.0%}" for world in (CALM, LINKED)]
    print(f"\nYears with a drift of +3 % in which the nightly verdict tells a drift: {'; '.join(shares)}")


if __name__ == "__main__":
    main()
