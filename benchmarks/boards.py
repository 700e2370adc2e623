"""Accuracy of a window's energy on boards that somebody has seen: ``python -m benchmarks.boards``.

The stand-in driver plays each published profile (tests/standins/boards) with three loads of known energy, all at once;
one sampler reads them as an attempt does. Told are the error of the energy by the counter, without and with the board's
profile, how often it lies within the stated uncertainty, and the error of what only integrals of power would say.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.accuracy import Profile as Load
from benchmarks.accuracy import profiles as loads_of
from benchmarks.on_gpu.checks import columns
from llem_airflow.analysis.energy import GpuEnergy, window_energy
from llem_airflow.measurement.sampler import start_sampler
from llem_airflow.protocol.gpu_profile import GpuProfile
from llem_airflow.protocol.result import Meter, Window
from llem_airflow.protocol.spec import MeterSpec
from tests.standins.boards import published, script_of
from tests.standins.gpus import use_script

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
    chosen = options.parse_args()
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
