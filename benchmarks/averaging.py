"""Averaged power of boards that average in every way: the energy of its integral against what holds it for 1 s.

    python -m benchmarks.averaging [--repeats 20] [--recordings FOLDER]

Simulated boards tell averaged power alone at 10 Hz, or with instant power (25 ms of each 100 ms) beside it. FOLDER is
a clone of github.com/JimZeyuYang/GPU_Power_Benchmark (arXiv 2312.02741): its recordings of real boards at about 70 Hz
are read at 10 Hz, and the integral of all their instant power counts as the truth.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from llem_airflow.analysis.series import Curve, Floats, delay_s

GRID_S = 0.001
Board = Callable[[Floats, Floats, Floats], Floats]
"""Averaged power at some instants, of a power on a grid of times."""


def boxcar(window_s: float) -> Board:
    """The mean over the last so many seconds, written every 100 ms."""

    def read(at_s: Floats, t_s: Floats, power_w: Floats) -> Floats:
        energy_j = np.concatenate([[0.0], np.cumsum(power_w[:-1] * GRID_S)])
        held_s = np.floor(at_s * 10) / 10
        used_j = np.interp(held_s, t_s, energy_j) - np.interp(held_s - window_s, t_s, energy_j)
        return np.asarray(used_j / window_s)

    return read


def exponential(tau_s: float) -> Board:
    """Exponential smoothing with a time constant, written every 100 ms."""

    def read(at_s: Floats, t_s: Floats, power_w: Floats) -> Floats:
        smooth, kept = [float(power_w[0])], float(np.exp(-GRID_S / tau_s))
        for one_w in power_w[1:].tolist():
            smooth.append(smooth[-1] * kept + one_w * (1 - kept))
        return np.asarray(np.interp(np.floor(at_s * 10) / 10, t_s, smooth))

    return read


BOARDS: dict[str, tuple[Board, float]] = {
    "none": (boxcar(0.001), 0.0),
    "25 ms of each 100 ms": (boxcar(0.025), 0.0125),
    "100 ms": (boxcar(0.1), 0.05),
    "400 ms": (boxcar(0.4), 0.2),
    "1 s": (boxcar(1.0), 0.5),
    "unknown, 1.6 s": (boxcar(1.6), 0.8),
    "exponential, 0.3 s": (exponential(0.3), 0.3),
    "exponential, 0.8 s": (exponential(0.8), 0.8),
}
"""Each with its true delay in seconds."""


@dataclass(frozen=True)
class Recorded:
    """What was read of a board at 10 Hz, and its exact power at a finer rate."""

    at_s: Floats
    average_w: Floats
    instant_w: Floats
    exact: Curve

    def delay_s(self, *, alone: bool) -> float:
        """The delay by the shipped function, from averaged power alone or with instant power beside it."""
        beside_w = np.full(len(self.at_s), np.nan) if alone else self.instant_w
        return delay_s(self.at_s, beside_w, self.average_w)

    def errors(self, begin_s: float, end_s: float) -> tuple[float, ...]:
        """Relative errors of a window: alone, beside instant power, holding the last sample, moved by 0.5 s."""
        exact_j = self.exact.integral(begin_s, end_s)
        inside_s = self.at_s[(self.at_s > begin_s) & (self.at_s < end_s)]
        edges_s = np.concatenate([[begin_s], inside_s, [end_s]])
        last = np.searchsorted(self.at_s, edges_s[:-1], side="right") - 1
        held_j = float((self.average_w[last] * np.diff(edges_s)).sum())
        delays_s = (self.delay_s(alone=True), self.delay_s(alone=False), 0.5)
        alone_j, both_j, half_j = (
            Curve(self.at_s - late_s, self.average_w).integral(begin_s, end_s) for late_s in delays_s
        )
        return tuple(abs(told_j / exact_j - 1) for told_j in (alone_j, both_j, held_j, half_j))


def simulated(board: Board, seed: int = 0) -> Recorded:
    """A decode load of 9 s, with idle power around it."""
    chance = np.random.default_rng(seed)
    t_s = np.arange(-9, 11, GRID_S)
    power_w = 320 + np.repeat(chance.normal(0, 10, len(t_s) // 100), 100)
    power_w[(t_s * 10).astype(int) % 43 < 4] += 80
    power_w[(t_s < -1.0) | (t_s > 8.0)] = 60.0
    at_s = np.arange(-6 + chance.uniform(0, 0.1), 10.5, 0.1)
    instant_w = boxcar(0.025)(at_s, t_s, power_w)
    return Recorded(at_s, board(at_s, t_s, power_w), instant_w, Curve(t_s, power_w))


WINDOWS_S = ((-1.0, 8.0), (0.5, 5.5), (-2.0, 3.0), (5.0, 8.5))
"""The load, a part of it, and parts with one of its edges."""


def recording(path: Path) -> Recorded:
    """A recording of a real board; without instant power, its averaged power is the truth."""
    with path.open(newline="") as lines:
        rows = [{key.strip(): value.strip() for key, value in row.items()} for row in csv.DictReader(lines)]
    stamps = [datetime.strptime(row["timestamp"] + " +0000", "%Y/%m/%d %H:%M:%S.%f %z") for row in rows]
    t_s = np.array([stamp.timestamp() for stamp in stamps])
    t_s -= t_s[0]
    average_w = np.array([float(row["power.draw [W]"]) for row in rows])
    told = "power.draw.instant [W]" in rows[0]
    instant_w = np.array([float(row["power.draw.instant [W]"]) for row in rows]) if told else average_w
    at = np.unique(np.searchsorted(t_s, np.arange(0.0, t_s[-1], 0.1)))
    beside_w = instant_w[at] if told else np.full(len(at), np.nan)
    return Recorded(t_s[at], average_w[at], beside_w, Curve(t_s, instant_w))


def _line(name: str, one: Recorded, errors: Sequence[tuple[float, ...]]) -> str:
    cells = " | ".join(f"{100 * value:.2f} %" for value in np.mean(errors, axis=0))
    return f"| {name} | {one.delay_s(alone=True):.2f} s | {one.delay_s(alone=False):.2f} s | {cells} |"


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description="Averaged power, simulated and recorded.")
    options.add_argument("--repeats", type=int, default=20)
    options.add_argument("--recordings", type=Path)
    chosen = options.parse_args()
    print(
        "| averaging | delay, alone | with instant power | error, alone | with instant power | holding | 1 s assumed |"
    )
    print("|---" * 7 + "|")
    for name, (board, _) in BOARDS.items():
        ran = [simulated(board, seed) for seed in range(chosen.repeats)]
        print(_line(name, ran[0], [one.errors(*window) for one in ran for window in WINDOWS_S]))
    for path in sorted(chosen.recordings.rglob("gpudata.csv")) if chosen.recordings else ():
        try:
            one = recording(path)
        except (KeyError, ValueError):
            continue  # another layout
        longest_s = float(one.at_s[-1])
        begins_s = np.random.default_rng(0).uniform(0.2, max(longest_s - 6.5, 0.3), 200)
        name = f"recording: {path.parent.parent.name}/{path.parent.name}"
        print(_line(name, one, [one.errors(begin_s, begin_s + 5) for begin_s in begins_s]))


if __name__ == "__main__":
    main()
