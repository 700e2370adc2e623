"""Stand-in GPUs for a test: a script for the driver, and an environment that finds it."""

from __future__ import annotations

import csv
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.analysis.checks import flags
from llem_airflow.analysis.energy import EnergyOfWindow, window_energy
from llem_airflow.analysis.flags import Flag
from llem_airflow.measurement.sampler import start_sampler
from llem_airflow.protocol.files import POWER_COLUMNS
from llem_airflow.protocol.result import Anchor, CycleResult, Meter, Warmup, Window
from llem_airflow.protocol.spec import MeterSpec
from tests.parts import missing
from tests.standins.build import Standins, build


def built() -> Standins:
    """The stand-in driver; the test ends here when this machine cannot build it."""
    try:
        return build()
    except RuntimeError as error:
        missing(str(error))


def use_script(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    script: str,
    *,
    starts_in_s: float = 0.0,
    now_s: float | None = None,
) -> None:
    """Let processes started from now on see the GPUs of a script.

    Args:
        monkeypatch: Of the test.
        folder: Where the script is written.
        script: Lines of the script, without ``t0``.
        starts_in_s: When its clock reaches 0, from now.
        now_s: What now is, in seconds since 1970, where those processes have a time of their own.
    """
    t0 = (time.time_ns() / 1e9 if now_s is None else now_s) + starts_in_s
    path = folder / "gpus.conf"
    path.write_text(f"t0 = {t0:.6f}\n{script}\n")
    for name, value in built().environment(path).items():
        monkeypatch.setenv(name, value)


@dataclass(frozen=True)
class Measured:
    """What a sampler saw in a short window.

    Attributes:
        power: Columns of power.csv.
        result: As an attempt would have written it.
        gpus: What the devices said before.
    """

    power: dict[str, list[Any]]
    result: CycleResult
    gpus: list[dict[str, Any]]

    @property
    def energy(self) -> EnergyOfWindow:
        return window_energy(self.power, self.result.meter, self.result.window)

    @property
    def flags(self) -> tuple[Flag, ...]:
        return flags(self.result, self.energy, environment={"gpus": self.gpus})

    @property
    def codes(self) -> set[str]:
        """Codes of the flags, without the two that every test with a stand-in has and those of the host."""
        return {flag.code for flag in self.flags} - {"stand_in", "short_window"} - BUSY_HOST


BUSY_HOST = {"gap", "few_samples"}
"""True where other tests keep the cores from the sampler for half a second; they say nothing about the attempt."""


def doubt_ratio(energy: EnergyOfWindow, at_least: float = 5e-3) -> float:
    """How far the energy of a window may be off: a ratio for a quiet host, or what it says of itself.

    A busy host hides the counter's moves beside the window's edges now and then; the uncertainty is wider then.
    """
    assert energy.energy_j is not None
    assert energy.uncertainty_j is not None
    return max(at_least, energy.uncertainty_j / energy.energy_j)


def measure(folder: Path, spec: MeterSpec, duration_s: float = 1.0) -> Measured:
    """Sample a window as an attempt does: tick, window, tick, a second more."""
    power_csv = folder / "power.csv"
    sampler = start_sampler(spec, power_csv)
    try:
        gpus = sampler.describe_gpus()
        tick_ns = sampler.wait_for_tick()
        begin_ns = tick_ns if tick_ns is not None else time.monotonic_ns()
        time.sleep(duration_s)
        end_ns = time.monotonic_ns()
        sampler.wait_for_tick()
    finally:
        meter = sampler.stop()
    window = Window(begin_ns, end_ns, 1, 1, 1, 1)
    return Measured(read_columns(power_csv), result_of(window, meter), gpus)


def read_columns(power_csv: Path) -> dict[str, list[Any]]:
    """The columns of a power.csv, with None for empty cells."""
    with power_csv.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    return {name: [_cell(name, row[name]) for row in rows] for name in POWER_COLUMNS}


def _cell(name: str, text: str) -> Any:
    return None if text == "" else text if name in ("gpu", "error") else int(text)


def result_of(window: Window, meter: Meter) -> CycleResult:
    """A result with this window and meter and nothing to reproach otherwise."""
    return CycleResult(
        schema_version=1,
        experiment_hash="0" * 16,
        cycle=1,
        engine="none",
        engine_version="0",
        window=window,
        warmup=Warmup("converged", 10, 1.0, 0.01, "flat"),
        meter=meter,
        anchors=(Anchor(0, 10**18), Anchor(10**9, 10**18 + 10**9)),
        model={},
        memory={},
        bundle_version="0",
    )
