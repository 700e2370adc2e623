"""Does the uncertainty of an energy cover its error? Simulated registers, hosts and loads, the shipped functions.

    python -m benchmarks.coverage [--windows 1 5 10 30 60] [--repeats 25] [--periods 20 50 100 150 200 500 1000]

For each register period, jitter of its writes, publishing lag, host (idle, or busy: late samples, slow calls, blurred
moves) and load, windows at random phases are measured as the sampler does: 10 Hz, with watches for the register's
moves at the start, at both edges of the window and now and then between. A cell's coverage is the share of windows
whose error is within ``energy_uncertainty_j``, which states 95 %. Beside its error stands that of two plain reads of
the counter at the window's edges.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llem_airflow.analysis.counter import counter_energy
from llem_airflow.analysis.series import Floats, GpuSeries, Labels

GRID_S = 0.001
LEAD_S, TAIL_S = 6.0, 1.3
IDLE_W = 60.0
JITTERS_S, LAGS_S, HOSTS = (0.0, 0.01, 0.02), (0.0, 0.025, 0.05), (False, True)
STATED = 0.93
"""Coverage below which a cell is listed: 95 %, less what chance takes from it."""


@dataclass(frozen=True)
class Scene:
    """What a load may depend on: random numbers, the times, the register's period and the window's end."""

    chance: np.random.Generator
    t_s: Floats
    register_s: float
    end_s: float

    def square(self, period_s: float) -> Floats:
        """400 W for 30 % of the time, 100 W else, at a random phase."""
        high = (self.t_s / period_s + self.chance.random()) % 1 < 0.3
        return np.asarray(np.where(high, 400.0, 100.0))


def _noisy(scene: Scene) -> Floats:
    steps_w = scene.chance.normal(300, 6, len(scene.t_s) // 20 + 1)
    return np.asarray(np.repeat(steps_w, 20)[: len(scene.t_s)])


def _bursts(scene: Scene) -> Floats:
    t_s, power_w = scene.t_s, np.full(len(scene.t_s), 200.0)
    for begin_s in scene.chance.uniform(t_s[0], t_s[-1], int((t_s[-1] - t_s[0]) * 1.5)):
        power_w[(t_s >= begin_s) & (t_s < begin_s + scene.chance.uniform(0.02, 0.4))] = 380.0
    return power_w


def _walk(scene: Scene) -> Floats:
    steps_w, at_w = [], 250.0
    for step_w in scene.chance.normal(0, 12, int((scene.t_s[-1] - scene.t_s[0]) / 0.05) + 2):
        at_w = min(max(at_w + step_w, 90.0), 400.0)
        steps_w.append(at_w)
    return np.asarray(np.array(steps_w)[((scene.t_s - scene.t_s[0]) / 0.05).astype(int)])


LOADS: dict[str, Callable[[Scene], Floats]] = {
    "constant": lambda scene: np.full(len(scene.t_s), 300.0),
    "noisy": _noisy,
    "idle, load, idle": lambda scene: np.where(
        (scene.t_s >= 0.01) & (scene.t_s <= scene.end_s - 0.01), 300.0, IDLE_W
    ),
    "ramp": lambda scene: np.linspace(100, 400, len(scene.t_s)),
    "square 0.737 s": lambda scene: scene.square(0.737),
    "square 0.1 s": lambda scene: scene.square(0.1),
    "square in step": lambda scene: scene.square(scene.register_s),
    "square 7 x in step": lambda scene: scene.square(7 * scene.register_s),
    "bursts": _bursts,
    "random walk": _walk,
}


@dataclass(frozen=True)
class Cell:
    """What a simulated board, host and load are like; times in seconds."""

    period_s: float
    jitter_s: float
    lag_s: float
    busy: bool
    load: str
    window_s: float


@dataclass(frozen=True)
class Simulated:
    """One window: what was read, its edges, its exact energy and that of two plain reads of the counter."""

    series: GpuSeries
    end_s: float
    exact_j: float
    plain_j: float


def simulate(cell: Cell, chance: np.random.Generator, *, view: float = 0.25) -> Simulated:
    """One window on a simulated board.

    Args:
        cell: What it is like.
        chance: Random numbers.
        view: Share of each register period whose mean is the instant power.
    """
    end_s = cell.window_s + chance.uniform(0, 0.1)
    t_s = np.arange(-LEAD_S - 1.2, end_s + TAIL_S + 1.2, GRID_S)
    power_w = LOADS[cell.load](Scene(chance, t_s, cell.period_s, end_s))
    energy_j = np.concatenate([[0.0], np.cumsum(power_w[:-1]) * GRID_S])

    def exact_j(at_s: Floats | float) -> Floats:
        return np.asarray(np.interp(at_s, t_s, energy_j))

    first_s = t_s[0] + 0.1 + chance.uniform(0, cell.period_s)
    taken_s = first_s + np.arange(int((t_s[-1] - first_s) / cell.period_s) + 1) * cell.period_s
    taken_s = taken_s + chance.uniform(0, 1, len(taken_s)) * min(cell.jitter_s, 0.9 * cell.period_s)
    shown_s, held_j = taken_s + cell.lag_s, np.floor(exact_j(taken_s) * 1e3) / 1e3
    held_w = (exact_j(taken_s) - exact_j(taken_s - view * cell.period_s)) / (view * cell.period_s)

    def counter(at_s: Floats | float) -> Floats:
        return held_j[np.maximum(np.searchsorted(shown_s, at_s, side="right") - 1, 0)]

    begin_s, rows_s, call_s, kinds = _readings(cell, chance, shown_s, end_s)
    # Everything in the window's own time: it begins at the move that opened it.
    seen_j = counter(rows_s)
    seen_w = held_w[np.maximum(np.searchsorted(shown_s, rows_s, side="right") - 1, 0)]
    nothing = np.full(len(rows_s), np.nan)
    series = GpuSeries(
        "GPU-0",
        rows_s - begin_s,
        call_s,
        np.where(kinds, np.round(seen_w, 3), np.nan),
        nothing,
        seen_j,
        nothing,
        nothing,
        nothing,
        Labels.of([None] * len(rows_s)),
    )
    plain_j = float(counter(end_s) - counter(begin_s))
    return Simulated(series, end_s - begin_s, float(exact_j(end_s) - exact_j(begin_s)), plain_j)


def _readings(
    cell: Cell, chance: np.random.Generator, shown_s: Floats, end_s: float
) -> tuple[float, Floats, Floats, npt.NDArray[np.bool_]]:
    """The window's begin, and each reading: its middle, its length, and whether it tells power as well."""
    late_s = 0.004 if cell.busy else 0.0005
    regular_s = np.arange(-LEAD_S + chance.uniform(0, 0.1), end_s + TAIL_S, 0.1)
    regular_s = regular_s + chance.exponential(late_s, len(regular_s))
    if cell.busy:  # now and then the host is away for some periods
        away = chance.random(len(regular_s)) < 0.03
        regular_s = np.unique(
            np.maximum.accumulate(regular_s + away * chance.uniform(0.05, 0.4, len(regular_s)))
        )
    starts_s = [regular_s[0], regular_s[0] + 1, *np.arange(regular_s[0] + 5, end_s, 20)]
    pairs: list[float] = []
    for number, start_s in enumerate(starts_s):
        pairs += _watched(cell, chance, shown_s, start_s, 0.002, moves=2 if number == 0 else 1)
    opened = _watched(cell, chance, shown_s, 0.0, 0.0005)
    begin_s = (opened[0] + opened[1]) / 2 if opened and opened[1] < 0.3 else 0.3
    pairs += opened + _watched(cell, chance, shown_s, end_s, 0.0005)
    rows_s = np.concatenate([regular_s, pairs])
    order = np.argsort(rows_s, kind="stable")
    call_s = chance.exponential(0.001 if cell.busy else 0.00003, len(rows_s))
    return begin_s, rows_s[order], call_s[order], (np.arange(len(rows_s)) < len(regular_s))[order]


def _watched(
    cell: Cell, chance: np.random.Generator, shown_s: Floats, start_s: float, poll_s: float, moves: int = 1
) -> list[float]:
    """Times of the readings around the moves that a watch sees."""
    at_s, until_s, rows, tries = start_s, start_s + 0.5, [], moves + 2
    while moves and tries:
        move_s = float(shown_s[np.searchsorted(shown_s, at_s, side="right")])
        if move_s > until_s:
            break
        apart_s = poll_s + chance.exponential(0.003 if cell.busy else 0.0001)
        if cell.busy and chance.random() < 0.15:
            apart_s += chance.uniform(0.01, 0.15)
        before_s = max(move_s - chance.random() * apart_s, at_s)
        rows += [before_s, move_s + (apart_s - (move_s - before_s))]
        at_s = rows[-1]
        tries -= 1
        moves -= apart_s <= 0.005
    return rows


@dataclass(frozen=True)
class Row:
    """A cell's outcome: shares from 0 to 1, errors and uncertainty in joules."""

    cell: Cell
    covered: float
    unknown: float
    error_j: float
    plain_error_j: float
    uncertainty_j: float
    exact_j: float


def measure(cell: Cell, repeats: int, *, view: float = 0.25) -> Row:
    """Coverage and errors of one cell."""
    chance = np.random.default_rng([*map(ord, repr(cell))])
    found = []
    for _ in range(repeats):
        one = simulate(cell, chance, view=view)
        energy = counter_energy(one.series, 0.0, one.end_s, steps=True)
        told_j = np.nan if energy.energy_j is None else energy.energy_j
        off_j = np.nan if energy.uncertainty_j is None else energy.uncertainty_j
        found.append((abs(told_j - one.exact_j), off_j, abs(one.plain_j - one.exact_j), one.exact_j))
    errors_j, offs_j, plain_j, exact_j = np.array(found).T
    known = ~np.isnan(offs_j)
    covered = float((errors_j[known] <= offs_j[known] + 0.002).mean()) if known.any() else np.nan
    return Row(
        cell,
        covered,
        float(1 - known.mean()),
        float(np.nanmean(errors_j)) if (~np.isnan(errors_j)).any() else np.nan,
        float(plain_j.mean()),
        float(np.nanmean(offs_j)) if known.any() else np.nan,
        float(exact_j.mean()),
    )


def measured(cell: Cell, repeats: int) -> Row:
    """A cell's outcome; with ten times the windows where a few of them say that it falls short."""
    row = measure(cell, repeats)
    return measure(cell, 10 * repeats) if row.covered < STATED else row


def cells(periods_s: Sequence[float], windows_s: Sequence[float]) -> list[Cell]:
    """Every combination."""
    every = itertools.product(periods_s, windows_s, LOADS, JITTERS_S, LAGS_S, HOSTS)
    return [
        Cell(period, jitter, lag, busy, load, window) for period, window, load, jitter, lag, busy in every
    ]


def table(rows: Sequence[Row], key: Callable[[Row], tuple[str, str]]) -> str:
    """Groups of cells as a Markdown table."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    lines = [
        "| | | cells | coverage, mean (lowest) | not characterised | error | two plain reads | uncertainty |",
        "|---" * 8 + "|",
    ]
    for names, group in groups.items():
        covered = [row.covered for row in group if not np.isnan(row.covered)]
        percent = [
            100 * float(np.nanmean([value / row.exact_j for value, row in zip(values, group, strict=True)]))
            for values in (
                [row.error_j for row in group],
                [row.plain_error_j for row in group],
                [row.uncertainty_j for row in group],
            )
        ]
        lines.append(
            f"| {names[0]} | {names[1]} | {len(group)} | {np.mean(covered):.3f} ({min(covered):.3f}) | "
            f"{np.mean([row.unknown for row in group]):.1%} | "
            + " | ".join(f"{value:.3f} %" for value in percent)
            + " |"
        )
    return "\n".join(lines)


def main() -> None:
    """Simulate, print the tables, and name every cell that falls short."""
    options = argparse.ArgumentParser(description="Coverage of the energy's uncertainty, simulated.")
    options.add_argument("--windows", type=float, nargs="+", default=[1, 5, 10, 30, 60], help="seconds")
    options.add_argument(
        "--periods", type=float, nargs="+", default=[20, 50, 100, 150, 200, 500, 1000], help="ms"
    )
    options.add_argument("--repeats", type=int, default=25, help="windows of a cell")
    chosen = options.parse_args()
    periods_s = [period / 1e3 for period in chosen.periods]
    rows = [measured(cell, chosen.repeats) for cell in cells(periods_s, chosen.windows)]
    print(table(rows, lambda row: (f"{row.cell.period_s * 1e3:g} ms", f"{row.cell.window_s:g} s")))
    print()
    print(table(rows, lambda row: (row.cell.load, "busy" if row.cell.busy else "idle")))
    short = [row for row in rows if row.covered < STATED]
    worse = [
        names
        for names, group in itertools.groupby(
            rows, lambda row: (row.cell.period_s, row.cell.window_s, row.cell.load)
        )
        if sum(row.error_j - row.plain_error_j for row in group) > 0
    ]
    print(f"\n{len(short)} of {len(rows)} cells are covered by less than {STATED:.0%}")
    print("".join(f"  {row.covered:.3f} {row.cell}\n" for row in short), end="")
    print(f"{len(worse)} rows (period, window, load) with a larger mean error than two plain reads: {worse}")


if __name__ == "__main__":
    main()
