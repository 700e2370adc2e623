"""What the power sampler costs and loses: CPU share and missed samples, with idle and with busy cores.

    python -m benchmarks.sampler_cost [--seconds 20] [--gpus 8]

The stand-in driver answers from memory; a real one crosses into the kernel, so its calls cost more.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from llem_airflow.measurement.sampler import start_sampler
from llem_airflow.protocol.result import Meter
from llem_airflow.protocol.spec import MeterSpec
from tests.standins.build import build


def sample(hz: float, seconds: float, busy_cores: int, folder: Path) -> tuple[Meter, float]:
    """Sample for a while beside busy processes.

    Returns:
        The meter, and the longest interval between two samples in seconds.
    """
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy_cores)]
    power_csv = folder / f"{hz:g}-{busy_cores}.csv"
    try:
        sampler = start_sampler(MeterSpec(kind="nvml", power_hz=hz), power_csv)
        time.sleep(seconds)
        meter = sampler.stop()
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    lines = [line.split(",") for line in power_csv.read_text().splitlines()[1:]]
    times_ns = [int(cells[0]) for cells in lines if cells[2] == meter.devices[0]]
    return meter, max(b - a for a, b in pairwise(times_ns)) / 1e9


def main() -> None:
    """Print one row for each rate and load."""
    options = argparse.ArgumentParser(description="Cost of the power sampler on stand-in GPUs.")
    options.add_argument("--seconds", type=float, default=20.0)
    options.add_argument("--gpus", type=int, default=8)
    chosen = options.parse_args()
    cores = os.cpu_count() or 1
    print(
        "| rate | other load | CPU share of one core | samples missed | longest interval | one reading (median) |"
    )
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "gpus.conf"
        script.write_text(f"gpus = {chosen.gpus}\n")
        os.environ.update(build().environment(script))
        for hz in (10.0, 20.0):
            for busy in (0, cores):
                meter, longest_s = sample(hz, chosen.seconds, busy, Path(folder))
                assert meter.sampler_cpu_s is not None
                assert meter.call_p50_s is not None
                sweeps = meter.samples / chosen.gpus
                sampled_s = sweeps / (meter.achieved_hz or hz)
                missed = max(sampled_s * hz - sweeps, 0)
                load = f"{busy} busy processes" if busy else "none of ours"
                print(
                    f"| {hz:g} Hz | {load} | {meter.sampler_cpu_s / sampled_s:.2%} | {missed:.1f} of {sweeps:.0f} "
                    f"| {longest_s * 1e3:.0f} ms | {meter.call_p50_s * 1e6:.0f} us |"
                )


if __name__ == "__main__":
    main()
