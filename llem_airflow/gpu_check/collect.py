"""Run the process that reads the boards, and take what it leaves."""

from __future__ import annotations

import contextlib
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llem_airflow.gpu_check.register import Floats, Readings
from llem_airflow.gpu_check.window import Load
from llem_airflow.protocol.processes import MessagePipe, child_environment

LEAST_S = 6.0
"""In less, no register can tell its period."""
_STARTS_S, _ENDS_S = 60.0, 10.0


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


def collect(
    seconds: float, folder: Path, on_progress: Callable[[dict[str, Any]], None], least_s: float = LEAST_S
) -> list[Seen]:
    """Read all boards; where the driver hangs on one, the others go on without it.

    Args:
        seconds: How long, for all of them together.
        folder: Where the readings go.
        on_progress: Called with what the process says.
        least_s: How long for each of them at least.

    Raises:
        NoBoardError: There is none, or the process ended or hung without a word of any.
    """
    left_out: set[int] = set()
    while True:
        ended = _run([str(seconds), str(least_s), str(folder), *map(str, sorted(left_out))], on_progress)
        if ended is None:
            break
        number, why = ended
        at_once = number is None or number in left_out  # then none of the others can be reached, either
        for one in _undone(folder) if at_once else [number]:
            _give_up(folder / f"{one}.json", why)
        if not _numbers(folder):
            raise NoBoardError(why)
        if at_once:
            break
        left_out = set(_numbers(folder)) - set(_undone(folder))
    return [_read(folder / f"{number}.json") for number in sorted(_numbers(folder))]


def _undone(folder: Path) -> list[int]:
    return [number for number in _numbers(folder) if not _facts(folder / f"{number}.json")["done"]]


def _numbers(folder: Path) -> list[int]:
    return [int(path.stem) for path in folder.glob("*.json")]


def _run(
    arguments: list[str], on_progress: Callable[[dict[str, Any]], None]
) -> tuple[int | None, str] | None:
    """Run the process; None when it came to its end, else the board that it was at, and how it ended."""
    number: int | None = None
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "llem_airflow.measurement.board", *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=child_environment(),
        )
        assert process.stdout is not None
        messages, within_s, doing = MessagePipe(process.stdout), _STARTS_S, "starting Python"
        try:
            while (message := messages.receive(within_s)) is not None:
                if "error" in message:
                    return None, str(message["error"])
                within_s, doing = message.get("within_s", within_s), message.get("doing", doing)
                number = message.get("number", number)
                on_progress(message)
            if not messages.ended:
                why = f"the NVIDIA driver hangs: no answer for {within_s:.0f} s while {doing}"
                return number, f"{why}. Run nvidia-smi; where that hangs, too, restart the machine"
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_ENDS_S)
        finally:
            _end(process)
        if process.returncode:
            errors.seek(0)
            last = next(reversed(errors.read().strip().splitlines()), "it said nothing")
            return (
                number,
                f"the process that reads the boards ended with {process.returncode} while {doing}: {last}",
            )
    return None


def _give_up(path: Path, why: str) -> None:
    """Note on a board how its check ended; what was read of it before stays."""
    facts = _facts(path)
    facts |= {"lost" if facts["phases"] else "refused": why, "done": True}
    path.write_text(json.dumps(facts), encoding="utf-8")


def _facts(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return facts


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it where it still runs; what hangs inside a driver may not even die of that, and is left alone."""
    process.kill()
    if process.stdout is not None:
        process.stdout.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_ENDS_S)


def whole_rows(power_csv: Path) -> list[dict[str, str]]:
    """The rows of a file of readings, without a line that was cut off."""
    with power_csv.open(newline="", encoding="ascii") as lines:
        return [row for row in csv.DictReader(lines) if None not in row.values()]


def _read(path: Path) -> Seen:
    facts = _facts(path)
    series = path.with_suffix(".csv")
    rows = whole_rows(series) if series.exists() else []
    facts["origin_ns"] = int(rows[0]["t_before_mono_ns"]) if rows else 0
    names = ("power_instant_mw", "power_average_mw", "energy_mj", "event_reasons", "temperature_c")
    columns = {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}
    for name in ("t_before_mono_ns", "t_after_mono_ns"):
        columns[name] = np.array([(int(row[name]) - facts["origin_ns"]) / 1e9 for row in rows])
    return Seen(facts, columns)
