"""What the power sampler costs and loses: CPU share and missed samples, with idle and with busy cores.

    python -m benchmarks.sampler_cost [--seconds 30] [--gpus 8]

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
from typing import NamedTuple

from llem_airflow.measurement.sampler import Sampler, start_sampler
from llem_airflow.protocol.result import Meter
from llem_airflow.protocol.spec import MeterSpec
from tests.standins.build import build

SETTLING_S = 6.0
"""At its start the sampler looks three times for the moves of the counters' registers, before any window opens."""


class Cost(NamedTuple):
    """What the sampler cost.

    Attributes:
        meter: What it says of itself.
        share: CPU time by time, from 6 s after its start.
        settling_s: CPU time of the 6 s before.
        longest_s: Longest interval between two samples.
        due: Samples of each device that were due.
    """

    meter: Meter
    share: float
    settling_s: float
    longest_s: float
    due: float


def sample(hz: float, seconds: float, busy_cores: int, folder: Path) -> Cost:
    """Sample for a while beside busy processes."""
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy_cores)]
    power_csv = folder / f"{hz:g}-{busy_cores}.csv"
    try:
        sampler = start_sampler(MeterSpec(kind="nvml", power_hz=hz), power_csv)
        pid = pid_of(sampler)
        started_s = cpu_s_of(pid)
        time.sleep(SETTLING_S)
        begin_s, settled_s = time.monotonic(), cpu_s_of(pid)
        time.sleep(seconds)
        share = (cpu_s_of(pid) - settled_s) / (time.monotonic() - begin_s)
        meter = sampler.stop()
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    lines = [line.split(",") for line in power_csv.read_text().splitlines()[1:]]
    times_ns = [int(cells[0]) for cells in lines if cells[2] == meter.devices[0]]
    longest_s = max(b - a for a, b in pairwise(times_ns)) / 1e9
    assert meter.achieved_hz is not None
    due = (meter.samples / len(meter.devices) - 1) / meter.achieved_hz * hz + 1
    return Cost(meter, share, settled_s - started_s, longest_s, due)


def pid_of(sampler: Sampler) -> int:
    """The sampler's own process."""
    pid: int = sampler._channel.process.pid
    return pid


def cpu_s_of(pid: int) -> float:
    """CPU time of another process, by the clock that Linux keeps for it (clock_getcpuclockid)."""
    return time.clock_gettime(~pid << 3 | 2)


def main() -> None:
    """Print one row for each rate and load."""
    options = argparse.ArgumentParser(description="Cost of the power sampler on stand-in GPUs.")
    options.add_argument("--seconds", type=float, default=30.0)
    options.add_argument("--gpus", type=int, default=8)
    chosen = options.parse_args()
    cores = os.cpu_count() or 1
    print(
        "| rate | other load | CPU share of one core | CPU of the first 6 s | samples lost | longest interval "
        "| one reading (median) |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "gpus.conf"
        script.write_text(f"gpus = {chosen.gpus}\n")
        os.environ.update(build().environment(script))
        for hz in (10.0, 20.0):
            for busy in (0, cores):
                cost = sample(hz, chosen.seconds, busy, Path(folder))
                assert cost.meter.call_p50_s is not None
                lost = max(cost.due - cost.meter.samples / chosen.gpus, 0)
                load = f"{busy} busy processes" if busy else "none of ours"
                print(
                    f"| {hz:g} Hz | {load} | {cost.share:.2%} | {cost.settling_s * 1e3:.0f} ms "
                    f"| {lost:.0f} of {cost.due:.0f} | {cost.longest_s * 1e3:.0f} ms "
                    f"| {cost.meter.call_p50_s * 1e6:.0f} us |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
