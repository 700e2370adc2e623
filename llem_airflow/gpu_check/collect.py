"""Run the process that reads the boards, and take what it leaves."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llem_airflow.gpu_check.register import Floats, Readings
from llem_airflow.gpu_check.window import Load


class NoBoardError(RuntimeError):
    """No board can be checked here; the message says why and what to do."""


@dataclass(frozen=True)
class Seen:
    """What was read of one board.

    Attributes:
        facts: What it said of itself, when each phase was, and what went wrong.
        columns: The readings, by column of power.csv; NaN is not known.
    """

    facts: Mapping[str, Any]
    columns: Mapping[str, Floats]

    def readings(self, column: str, unit: float, phase: str = "") -> Readings:
        """A column in seconds and in multiples of a unit, of the whole time or of one phase."""
        values = self.columns[column]
        rows = ~np.isnan(values)
        before_s, after_s = self.columns["t_before_mono_ns"], self.columns["t_after_mono_ns"]
        if phase:
            begin_s, end_s = self.phase_s(phase)
            rows = rows & (before_s >= begin_s) & (after_s <= end_s)
        return Readings(before_s[rows], after_s[rows], values[rows] * unit)

    def phase_s(self, phase: str) -> tuple[float, float]:
        """When a phase began and ended; an empty span when it did not come."""
        for one in self.facts["phases"]:
            if one["name"] == phase:
                return self._s(one["begin_ns"]), self._s(one["end_ns"])
        return 0.0, 0.0

    def load(self, phase: str) -> Load:
        """When the load was on in a phase."""
        edges = [one for one in self.facts["edges"] if one["phase"] == phase]
        return Load(*(np.array([self._s(one[name]) for one in edges]) for name in ("on_ns", "off_ns")))

    def _s(self, t_ns: int) -> float:
        return float(t_ns - self.facts["origin_ns"]) / 1e9


def collect(seconds: float, folder: Path, on_progress: Callable[[dict[str, Any]], None]) -> list[Seen]:
    """Read all boards.

    Args:
        seconds: How long, for all of them together.
        folder: Where the readings go.
        on_progress: Called with what the process says.

    Raises:
        NoBoardError: There is none, or the process ended without a word.
    """
    root = str(Path(__file__).parents[2])
    inherited = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{inherited}" if inherited else root}
    command = [sys.executable, "-m", "llem_airflow.measurement.board", str(seconds), str(folder)]
    with (folder / "errors.txt").open("w+", encoding="utf-8") as errors:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                message = json.loads(line)
                if "error" in message:
                    raise NoBoardError(str(message["error"]))
                on_progress(message)
        errors.seek(0)
        said = errors.read().strip().splitlines()
    found = [_read(path) for path in sorted(folder.glob("*.json"), key=lambda path: int(path.stem))]
    if process.returncode or not found:
        last = said[-1] if said else "it said nothing"
        raise NoBoardError(f"the process that reads the boards ended with {process.returncode}: {last}")
    return found


def _read(path: Path) -> Seen:
    facts = json.loads(path.read_text(encoding="utf-8"))
    rows: list[dict[str, str]] = []
    series = path.with_suffix(".csv")
    if series.exists():
        with series.open(newline="", encoding="ascii") as lines:
            rows = [
                row for row in csv.DictReader(lines) if None not in row.values()
            ]  # without a line that was cut off
    facts["origin_ns"] = int(rows[0]["t_before_mono_ns"]) if rows else 0
    names = ("power_instant_mw", "power_average_mw", "energy_mj", "event_reasons", "temperature_c")
    columns = {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}
    for name in ("t_before_mono_ns", "t_after_mono_ns"):
        columns[name] = np.array([(int(row[name]) - facts["origin_ns"]) / 1e9 for row in rows])
    return Seen(facts, columns)
