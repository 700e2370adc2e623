"""The measuring path on a model with random weights: run it for a board, and read what it left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llem_airflow.analysis.energy import GpuEnergy, window_energy
from llem_airflow.gpu_check.collect import whole_rows
from llem_airflow.protocol.files import POWER_COLUMNS
from llem_airflow.protocol.gpu_profile import GpuProfile, MeasuringPath
from llem_airflow.protocol.processes import child_environment
from llem_airflow.protocol.result import Meter, Window
from llem_airflow.protocol.typed_json import from_json

_STARTS_S = 120.0
"""Importing PyTorch from a cold disk and making 7 billion weights take a minute."""
_T95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}
"""97.5 % quantile of Student's t for n - 1 degrees of freedom, by n (as in any table of it)."""


def walk(profile: GpuProfile, seconds: float, folder: Path) -> MeasuringPath:
    """Run the measuring path on one board.

    Args:
        profile: Of the board; what it says of the sensor is used.
        seconds: How long, beside the start of PyTorch.
        folder: An empty one, where the readings go.
    """
    command = [
        sys.executable,
        "-m",
        "llem_airflow.measurement.board.path",
        profile.uuid,
        str(seconds),
        str(folder),
    ]
    environment = {**child_environment(), "CUDA_VISIBLE_DEVICES": profile.uuid}
    with (folder / "errors.txt").open("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds + _STARTS_S)
        except subprocess.TimeoutExpired:
            return MeasuringPath(problem=f"it was not done after {seconds + _STARTS_S:.0f} s and was ended")
        finally:
            _end(process)
        if not (folder / "path.json").exists():
            errors.seek(0)
            last = next(reversed(errors.read().strip().splitlines()), "it said nothing")
            return MeasuringPath(problem=f"its process ended with {code}: {last}")
    return path_of(
        json.loads((folder / "path.json").read_text(encoding="utf-8")), folder / "power.csv", profile
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # with the sampler and the tools that it started
    process.wait()


def path_of(found: Mapping[str, Any], power_csv: Path, profile: GpuProfile) -> MeasuringPath:
    """What the path's process left, as numbers.

    Formulas: joules per token are the mean over the windows; their interval is Student's t of the windows' spread, and
    the mean of what the energies say of their own uncertainty, added. The harness costs the median ratio of
    neighbouring blocks; its interval is twice the standard error of a median (1.253 x 1.483 x median absolute
    deviation / root of n).
    """
    if "problem" in found:
        return MeasuringPath(problem=str(found["problem"]))
    meter, columns = from_json(Meter, found["meter"], "path.json: meter"), _columns(power_csv)

    def energy(begin_ns: int, end_ns: int, tokens: int = 1) -> GpuEnergy | None:
        window = Window(begin_ns, end_ns, 1, 1, 1, tokens)
        gpus = window_energy(columns, meter, window, sensors={profile.uuid: profile.sensor}).gpus
        return gpus[0] if gpus and gpus[0].energy_j is not None else None

    windows = [(one, energy(one["begin_ns"], one["end_ns"])) for one in found["windows"]]
    known = [(one["output_tokens"], gpu) for one, gpu in windows if gpu is not None]
    ratio, ratio_off = _median(found["harness_to_bare"])
    path = MeasuringPath(
        **found["model"],
        windows=len(known),
        harness_to_bare_ratio=ratio,
        harness_to_bare_uncertainty_ratio=ratio_off,
        counter_to_integral_ratio=_counter_to_integral([gpu for _, gpu in known]),
        peer_ratios=_peer_ratios(found["windows"], energy),
        peer_problems=found["peer_problems"],
    )
    if len(known) < 2:
        return replace(path, problem="the meter told the energy of fewer than two windows")
    each_j = [gpu.energy_j / tokens for tokens, gpu in known if gpu.energy_j is not None]
    offs_j = [gpu.uncertainty_j / tokens for tokens, gpu in known if gpu.uncertainty_j is not None]
    spread_j = _T95[len(each_j)] * statistics.stdev(each_j) / len(each_j) ** 0.5
    return replace(
        path,
        energy_per_token_j=statistics.mean(each_j),
        energy_per_token_uncertainty_j=spread_j + statistics.mean(offs_j)
        if len(offs_j) == len(known)
        else None,
    )


def _median(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The median, and twice its standard error as of a normal distribution with the sample's absolute deviation."""
    if not values:
        return None, None
    middle = statistics.median(values)
    deviation = statistics.median(abs(value - middle) for value in values)
    return middle, 2 * 1.253 * 1.483 * deviation / len(values) ** 0.5


def _counter_to_integral(gpus: Sequence[GpuEnergy]) -> float | None:
    both = [(gpu.counter_j, gpu.instant_j) for gpu in gpus if gpu.counter_j is not None and gpu.instant_j]
    return sum(counter for counter, _ in both) / sum(integral for _, integral in both) if both else None


def _peer_ratios(
    windows: Sequence[Mapping[str, Any]], energy: Callable[[int, int], GpuEnergy | None]
) -> dict[str, float]:
    """The median of another tool's joules over ours in the tool's own windows, by tool."""
    found: dict[str, list[float]] = {}
    for one in windows:
        for tool, told in one["peers"].items():
            ours = energy(told["begin_ns"], told["end_ns"])
            if ours is not None and ours.energy_j:
                found.setdefault(tool, []).append(told["joules"] / ours.energy_j)
    return {tool: statistics.median(ratios) for tool, ratios in found.items()}


def _columns(power_csv: Path) -> dict[str, list[Any]]:
    rows, texts = whole_rows(power_csv), ("gpu", "error")
    return {
        name: [(row[name] if name in texts else int(row[name])) if row[name] else None for row in rows]
        for name in POWER_COLUMNS
    }
