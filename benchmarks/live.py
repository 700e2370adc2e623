"""What showing live power costs: CPU seconds per measured hour, on the host of the container and on the worker.

    python -m benchmarks.live [--gpus 1] [--hz 10]

In the sampling process: summing up each sweep and writing a record every two seconds. In the worker: taking records out
of the output, thinning them and writing the file, as often as the writer would at that cost.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

from llem_airflow.measurement.meters.contract import MeterFacts, Reading
from llem_airflow.measurement.sampling import EVERY_NS, LiveTeller
from llem_airflow.operators.live import SHARE, LiveSeries
from llem_airflow.protocol.live import LivePhase, LivePower
from llem_airflow.results import ResultsRoot
from llem_airflow.results.records import write_live
from llem_airflow.runners.output import LiveRecords

HOUR_S = 3600


def sampling_process_s(gpus: int, hz: float) -> tuple[float, bytes]:
    """CPU time that the records of an hour take, and the records."""
    heard, mouth = os.pipe()
    pieces: list[bytes] = []

    def drain() -> None:
        while data := os.read(heard, 1 << 16):
            pieces.append(data)

    reader = threading.Thread(target=drain)
    reader.start()
    teller = LiveTeller(MeterFacts("nvml", "measured", "board", (), ""), mouth)
    names = [f"GPU-{n:08d}-0000-0000-0000-000000000000" for n in range(gpus)]
    spent_s = 0.0
    for sweep in range(round(HOUR_S * hz)):
        at_ns = round(sweep / hz * 1e9)
        readings = [Reading(at_ns, at_ns, name, power_instant_mw=300_000 + sweep % 997) for name in names]
        begin_s = time.thread_time()
        teller.add(readings)
        spent_s += time.thread_time() - begin_s
    os.close(mouth)
    reader.join()
    os.close(heard)
    return spent_s, b"".join(pieces)


def worker_s(records: bytes) -> tuple[float, float, int]:
    """CPU time that an hour's records take, that of one write of the file, and its size."""
    series = LiveSeries()
    found: list[LivePower | LivePhase] = []
    begin_s = time.thread_time()
    live = LiveRecords(found.append)
    for line in records.splitlines(keepends=True):
        live.taken_out_of(line)
    for record in found:
        series.add(record)
    taking_s = time.thread_time() - begin_s
    with tempfile.TemporaryDirectory() as folder:
        run = ResultsRoot(folder).run("study", "run")
        begin_s = time.thread_time()
        for _ in range(20):
            told = series.told(1)
            assert told is not None
            write_live(run, "experiment", 1, told)
        write_s = (time.thread_time() - begin_s) / 20
        (path,) = Path(folder).rglob("cycle-1.json")
        return taking_s, write_s, path.stat().st_size


def main() -> None:
    """Print the costs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--hz", type=float, default=10.0)
    asked = parser.parse_args()
    telling_s, records = sampling_process_s(asked.gpus, asked.hz)
    taking_s, write_s, size = worker_s(records)
    pause_s = max(EVERY_NS / 1e9, write_s / SHARE)
    writing_s = HOUR_S / pause_s * write_s
    print(f"{asked.gpus} GPU(s) at {asked.hz:g} Hz, {len(records) / 1e3:.0f} kB of records an hour")
    for where, spent_s in (("sampling process", telling_s), ("worker", taking_s + writing_s)):
        print(f"{where:>17}: {spent_s:6.2f} CPU s per hour = {spent_s / HOUR_S:.3%} of a core")
    print(
        f"{'file':>17}: {size / 1e3:.0f} kB at most, {write_s * 1e3:.1f} ms a write, one every {pause_s:.1f} s"
    )


if __name__ == "__main__":
    main()
