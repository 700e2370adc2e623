"""What must hold on every NVIDIA GPU, real or stand-in: ``checks.py FOLDER``; the tests marked ``gpu`` are these.

Each check takes nothing, returns one line for people, and raises AssertionError with what was found otherwise.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from benchmarks.on_gpu.load import computes
from llem_airflow.analysis.energy import window_energy
from llem_airflow.measurement.meters.nvml import NvmlMeter
from llem_airflow.measurement.sampler import start_sampler
from llem_airflow.protocol.files import POWER_COLUMNS
from llem_airflow.protocol.result import Window
from llem_airflow.protocol.spec import MeterSpec
from tests.measurement.meter_contract import breaches

NVML = MeterSpec(kind="nvml")
WINDOW_S = 2.0


def the_meter_keeps_its_contract() -> str:
    """Units, errors, times: what every meter keeps."""
    found = breaches(NVML)
    assert not found, found
    return "nvml keeps the contract of meters"


def the_counter_moves() -> str:
    """The register's period lies where the method expects it."""
    meter = NvmlMeter()
    try:
        begin_s, moves = time.monotonic(), dict.fromkeys(meter.facts.devices, 0)
        last: dict[str, int | None] = {}
        while time.monotonic() < begin_s + WINDOW_S:
            for row in meter.counters():
                moves[row.gpu] += row.gpu in last and row.energy_mj != last[row.gpu]
                last[row.gpu] = row.energy_mj
            time.sleep(0.0005)
    finally:
        meter.close()
    periods_s = {gpu: WINDOW_S / count if count else None for gpu, count in moves.items()}
    assert all(period_s and 0.004 < period_s < 1.1 for period_s in periods_s.values()), periods_s
    return "the energy counters move every " + ", ".join(f"{p * 1e3:.0f} ms" for p in periods_s.values() if p)


def a_window_has_its_energy_with_an_uncertainty() -> str:
    """The measuring path without an engine: a counter's energy, vouched for by the integral of power."""
    with tempfile.TemporaryDirectory() as folder:
        power_csv = Path(folder) / "power.csv"
        sampler = start_sampler(NVML, power_csv)
        try:
            begin_ns = sampler.wait_for_tick() or time.monotonic_ns()
            time.sleep(WINDOW_S)
            end_ns = time.monotonic_ns()
            sampler.wait_for_tick()
        finally:
            meter = sampler.stop()
        energy = window_energy(columns(power_csv), meter, Window(begin_ns, end_ns, 1, 1, 1, 1))
    assert energy.energy_j is not None, energy.withheld
    assert meter.failed_reads == 0, meter
    sources = {gpu.source for gpu in energy.gpus}
    assert sources == {"counter"}, sources
    return (
        f"{energy.energy_j:.1f} J +- {energy.uncertainty_j or float('nan'):.2f} J in {WINDOW_S:g} s at "
        f"{meter.achieved_hz or 0:.1f} Hz; one reading {(meter.call_p50_s or 0) * 1e6:.0f} us"
    )


def the_board_says_what_a_comparison_needs() -> str:
    """Driver, limits and modes, by which measurements are held together."""
    meter = NvmlMeter()
    try:
        told = meter.describe()
    finally:
        meter.close()
    names = ("uuid", "name", "driver_version", "enforced_power_limit_w", "memory_total_bytes")
    absent = [name for board in told for name in names if board.get(name) is None]
    assert not absent, absent
    return "; ".join(f"{board['name']}, limit {board['enforced_power_limit_w']:.0f} W" for board in told)


def pytorch_names_the_boards_as_the_meter_does() -> str:
    """The joules belong to the device that computes."""
    if not computes():
        return "PyTorch is not installed, or sees no CUDA device: not looked at"
    import torch

    theirs = {f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in range(torch.cuda.device_count())}
    meter = NvmlMeter()
    try:
        ours = set(meter.facts.devices)
    finally:
        meter.close()
    assert theirs <= ours, (theirs, ours)
    return "PyTorch and the meter name the same boards"


CHECKS: tuple[Callable[[], str], ...] = (
    the_meter_keeps_its_contract,
    the_counter_moves,
    a_window_has_its_energy_with_an_uncertainty,
    the_board_says_what_a_comparison_needs,
    pytorch_names_the_boards_as_the_meter_does,
)


def columns(power_csv: Path) -> dict[str, list[int | str | None]]:
    """The columns of a power.csv, with None for empty cells."""
    with power_csv.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    texts = ("gpu", "error")
    return {
        name: [(row[name] if name in texts else int(row[name])) if row[name] else None for row in rows]
        for name in POWER_COLUMNS
    }


def main() -> int:
    """Run all; 1 when one failed."""
    found = []
    for check in CHECKS:
        try:
            said, ok = check(), True
        except Exception as error:  # noqa: BLE001  # whatever it is, the other checks go on
            traceback.print_exc()
            said, ok = f"{type(error).__name__}: {error}", False
        found.append({"check": check.__name__, "ok": ok, "said": said})
        print(f"> {'ok    ' if ok else 'FAILED'} {said}", flush=True)
    Path(sys.argv[1], "checks.json").write_text(json.dumps(found, indent=1))
    return int(not all(one["ok"] for one in found))


if __name__ == "__main__":
    sys.exit(main())
