"""Accuracy of a window's energy on boards that somebody has seen: ``python -m benchmarks.boards``.

The stand-in driver plays each published profile (tests/standins/boards) with three loads of known energy, all at once;
one sampler reads them as an attempt does. Told are the error of the energy by the counter, without and with the board's
profile, how often it lies within the stated uncertainty, and the error of what only integrals of power would say.
With ``--simulated N`` the same registers in virtual time, with thousands of windows: is an energy with a profile worse?
With ``--checked SECONDS`` gpu-check looks at each board for so long: what it finds beside what is played.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.accuracy import Profile as Load
from benchmarks.accuracy import profiles as loads_of
from benchmarks.coverage import Cell, simulate
from benchmarks.on_gpu.checks import columns
from llem_airflow.analysis.counter import counter_energy
from llem_airflow.analysis.energy import GpuEnergy, window_energy
from llem_airflow.analysis.series import Labels
from llem_airflow.gpu_check.collect import collect
from llem_airflow.gpu_check.profile import profile_of
from llem_airflow.measurement.sampler import start_sampler
from llem_airflow.protocol.gpu_profile import GpuProfile, Sensor
from llem_airflow.protocol.result import Meter, Window
from llem_airflow.protocol.spec import MeterSpec
from tests.gpu_check.scripted import play_profiles, stepped
from tests.standins.boards import published, script_of
from tests.standins.gpus import use_script

_NO_ARRAYS = ("gpu", "errors", "sensor")
LOADS = ("sine", "replay", "square 100/400 W, 0.737 s")


@dataclass(frozen=True)
class Played:
    """One GPU of the script.

    Attributes:
        board: Name of the board's file.
        profile: What it plays, under a UUID of its own.
        load: Its power and the exact integral.
    """

    board: str
    profile: GpuProfile
    load: Load


def gpus(folder: Path) -> list[Played]:
    """Every board with every load."""
    chosen = [load for load in loads_of(folder) if load.name.startswith(LOADS)]
    return [
        Played(board, replace(profile, uuid=f"{profile.uuid[:-4]}{number}{i:03d}"), load)
        for number, (board, profile) in enumerate(published().items())
        for i, load in enumerate(chosen)
    ]


def measure(played: Sequence[Played], windows_s: Sequence[float], folder: Path) -> list[dict[str, Any]]:
    """Each window of each GPU: exact joules and what was found without and with the profiles."""
    script = "".join(
        f"{script_of(one.profile, i)}gpu.{i}.power = {one.load.script}\n" for i, one in enumerate(played)
    )
    with pytest.MonkeyPatch.context() as patch:
        use_script(patch, folder, f"gpus = {len(played)}\n{script}")
        t0_ns = round(float((folder / "gpus.conf").read_text().split()[2]) * 1e9)
        sampler = start_sampler(MeterSpec(kind="nvml"), folder / "power.csv")
    windows = []
    for seconds in windows_s:
        time.sleep(random.random())
        begin_ns = sampler.wait_for_tick() or time.monotonic_ns()
        time.sleep(seconds + random.random() / 10)
        windows.append(Window(begin_ns, time.monotonic_ns(), 1, 1, 1, 1))
        sampler.wait_for_tick()
    meter = sampler.stop()
    offset_ns = time.time_ns() - time.monotonic_ns() - t0_ns
    power = columns(folder / "power.csv")
    return [row for window in windows for row in _rows(played, power, meter, window, offset_ns)]


def _rows(
    played: Sequence[Played], power: dict[str, list[Any]], meter: Meter, window: Window, offset_ns: int
) -> list[dict[str, Any]]:
    begin_s, end_s = ((t_ns + offset_ns) / 1e9 for t_ns in (window.t_begin_mono_ns, window.t_end_mono_ns))
    # The counter is played with the clock of the power registers: a check of the board would find that.
    sensors = {
        one.profile.uuid: replace(one.profile.sensor, counter_period_s=one.profile.power_period_s)
        for one in played
    }
    found = {gpu.gpu: gpu for gpu in window_energy(power, meter, window).gpus}
    known = {gpu.gpu: gpu for gpu in window_energy(power, meter, window, sensors=sensors).gpus}
    return [
        {
            "board": one.board,
            "load": one.load.name,
            "exact_j": one.load.energy_j(end_s) - one.load.energy_j(begin_s),
            "found": found[one.profile.uuid],
            "known": known[one.profile.uuid],
        }
        for one in played
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One line a board, errors in percent: mean (worst)."""
    lines = [
        "| board | period | instant power over | windows | counter | with the profile | within, both | instant power |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for board, profile in published().items():
        own = [row for row in rows if row["board"] == board]
        period_s, window_s = profile.power_period_s or 0.0, profile.instant_window_s or 0.0
        name = profile.name.removesuffix(" (STAND-IN)")
        lines.append(
            f"| {name} | {period_s * 1e3:g} ms | {window_s * 1e3:.1f} ms | {len(own)} | "
            f"{_errors(own, 'found', lambda gpu: gpu.energy_j)} | {_errors(own, 'known', lambda gpu: gpu.energy_j)} | "
            f"{_covered(own, 'found')}, {_covered(own, 'known')} | {_errors(own, 'found', lambda gpu: gpu.instant_j)} |"
        )
    return "\n".join(lines)


SIMULATED = ("ramp", "square 0.737 s", "square 7 x in step", "bursts", "random walk")
WATCHES: dict[str, tuple[float, float, bool]] = {
    "all": (-np.inf, np.inf, False),
    "all, on a busy host": (-np.inf, np.inf, True),
    "the one at the begin": (-0.5, 0.5, False),
    "none": (0.0, 0.0, False),
}
"""Which watches for the register's moves saw one: by when (in seconds since the begin), and on what host."""


@dataclass(frozen=True)
class Simulated:
    """Windows of one register under all loads, in virtual time.

    Attributes:
        period_s: Of the register.
        watches: Which of the watches for its moves saw one.
        errors: Error of each window in percent, without and with the profile.
    """

    period_s: float
    watches: str
    errors: NDArray[np.float64]

    @property
    def difference(self) -> tuple[float, float]:
        """How much larger the error is with the profile, by window: mean and 1.96 standard errors of it."""
        apart = self.errors[:, 1] - self.errors[:, 0]
        return float(apart.mean()), 1.96 * float(apart.std(ddof=1)) / len(apart) ** 0.5


def simulated(repeats: int, window_s: float = 5.0) -> list[Simulated]:
    """Every register and way of watching, so many windows a load; the boards of one period share their rows."""
    periods_s = sorted({profile.power_period_s or 0.0 for profile in published().values()})
    return [
        Simulated(
            period_s,
            watches,
            np.array(
                [
                    _simulated(period_s, load, watches, window_s, number)
                    for load in SIMULATED
                    for number in range(repeats)
                ]
            ),
        )
        for period_s in periods_s
        for watches in WATCHES
    ]


def simulated_table(rows: Sequence[Simulated]) -> str:
    """One line a row, in percent."""
    lines = [
        "| register | watches that saw a move | windows | without | with the profile | difference, 95 % interval |",
        "|---|---|---|---|---|---|",
    ]
    for one in rows:
        mean, off = one.difference
        lines.append(
            f"| {one.period_s * 1e3:g} ms | {one.watches} | {len(one.errors)} | {one.errors[:, 0].mean():.4f} | "
            f"{one.errors[:, 1].mean():.4f} | {mean:+.4f} +- {off:.4f} |"
        )
    return "\n".join(lines)


def _simulated(period_s: float, load: str, watches: str, window_s: float, number: int) -> tuple[float, float]:
    """Error of one window in percent without and with the profile."""
    since_s, until_s, busy = WATCHES[watches]
    cell = Cell(period_s, 0.0, 0.0, busy, load, window_s)
    chance = np.random.default_rng([number, *map(ord, load + watches)])
    one = simulate(cell, chance)
    t_s = one.series.t_s
    rows = ~np.isnan(one.series.instant_w) | ((t_s > since_s) & (t_s < until_s))
    arrays = {
        f.name: getattr(one.series, f.name)[rows] for f in fields(one.series) if f.name not in _NO_ARRAYS
    }
    series = replace(one.series, errors=Labels.of([None] * int(rows.sum())), **arrays)
    sensor = Sensor(period_s * (1 + 1e-5 * chance.normal()), 3e-5 * period_s)
    found = (
        counter_energy(replace(series, sensor=each), 0.0, one.end_s, steps=True)
        for each in (Sensor(), sensor)
    )
    without, known = (abs((each.energy_j or np.nan) / one.exact_j - 1) * 100 for each in found)
    return without, known


def checked(each_s: float) -> list[str]:
    """What gpu-check finds of each board on the stand-in driver, beside what is played."""
    lines = [
        "| board | period, played | found | instant power over, played | found | counter's step, played | found |",
        "|---|---|---|---|---|---|---|",
    ]
    boards = [*stepped().values()]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        play_profiles(patch, Path(folder), boards, each_s)
        readings = Path(folder) / "readings"
        readings.mkdir()
        found = [profile_of(one) for one in collect(each_s * len(boards), readings, _unsaid)]
    for played, told in zip(boards, found, strict=True):
        window = {each.what: each for each in told.findings}["averaging window of instant power"]
        lines.append(
            f"| {played.name.removesuffix(' (STAND-IN)')} | {(played.power_period_s or 0) * 1e3:g} ms | "
            f"{_ms(told.power_period_s)}, counter {_ms(told.counter_period_s)} | "
            f"{(played.instant_window_s or 0) * 1e3:.1f} ms | {window.value or window.why} | "
            f"{played.counter_step_mj:g} mJ | {told.counter_step_mj or 0:g} mJ |"
        )
    return lines


def _unsaid(message: dict[str, Any]) -> None:
    """Progress is shown to nobody."""


def _ms(seconds: float | None) -> str:
    return "not known" if seconds is None else f"{seconds * 1e3:.2f} ms"


def _covered(rows: Sequence[dict[str, Any]], which: str) -> str:
    within = [
        abs(row[which].energy_j - row["exact_j"]) <= row[which].uncertainty_j
        for row in rows
        if row[which].energy_j is not None and row[which].uncertainty_j is not None
    ]
    return f"{sum(within)} of {len(within)}"


def _errors(rows: Sequence[dict[str, Any]], which: str, of: Callable[[GpuEnergy], float | None]) -> str:
    off = [abs(joules / row["exact_j"] - 1) * 100 for row in rows if (joules := of(row[which])) is not None]
    return f"{statistics.mean(off):.3f} ({max(off):.3f})" if off else "-"


def main() -> None:
    """Measure and print the table."""
    options = argparse.ArgumentParser(description="Accuracy on boards that somebody has seen.")
    options.add_argument("--windows", type=float, nargs="+", default=[5, 5, 5, 10, 10])
    options.add_argument("--output", type=Path)
    options.add_argument(
        "--simulated", type=int, default=0, help="instead: so many windows a load in virtual time"
    )
    options.add_argument(
        "--checked", type=float, default=0.0, help="instead: gpu-check, so many seconds a board"
    )
    chosen = options.parse_args()
    if chosen.checked:
        print("\n".join(checked(chosen.checked)))
        return
    if chosen.simulated:
        print(simulated_table(simulated(chosen.simulated)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(gpus(Path(folder)), chosen.windows, Path(folder))
    print(table(rows))
    if chosen.output:
        told = [
            {**row, **{which: {"energy_j": row[which].energy_j} for which in ("found", "known")}}
            for row in rows
        ]
        chosen.output.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
