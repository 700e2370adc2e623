"""How the aggregate scales: wall, CPU and peak memory, against the naive layout and against the floor.

    python benchmarks/aggregate.py [--experiments 10 100 1000] [--naive 10] [--folder DIR]

Each experiment is one cycle of 5 minutes at 10 Hz on 8 GPUs: 24,000 samples. The samples of all experiments are
the same file (hard links), so a large study costs little disk to simulate; it is read again for every experiment.

- ours: `aggregate_run` without drawing, i.e. energy, flags, latencies, statistics, tables and the merged series.
- floor: pyarrow reads the same Parquet files and writes them into one, which is the least that a merge can do.
- scan: pyarrow only reads them and adds up the power.
- json: pandas on an indented-JSON layout, one object a sample, with the same energies out of it.
- summary: from cycles.parquet alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.statistics import describe
from llem_airflow.results import ResultsRoot
from tests.results.recorded import Recording, experiment_id, plan_json, provenance

GPUS, HZ, WINDOW_S = 8, 10.0, 280.0
MODES = ("ours", "floor", "scan", "summary", "json")


def make_run(folder: Path, experiments: int) -> None:

    gpus = tuple(f"GPU-{index:08d}" for index in range(GPUS))
    recording = Recording(
        gpus=gpus, window_s=WINDOW_S, hz=HZ, requests=200, load_s=6, warmup_s=10, cooldown_s=4
    )
    run = ResultsRoot(folder).run("bench", "r")
    hashes = [f"{index:08x}deadbeef" for index in range(experiments)]
    named = [(experiment_id(index, hash_), hash_, {"index": index}) for index, hash_ in enumerate(hashes)]
    run.write_plan("model: bench\n", plan_json(named, 1), {"dag_id": "bench"})
    first = Path(run.commit_cycle(named[0][0], 1, recording.write(folder / "raw"), provenance()))
    for name, _, _ in named[1:]:
        target = first.parents[1] / name / "cycle-1"
        target.mkdir(parents=True)
        for file in first.iterdir():
            os.link(file, target / file.name)
    shutil.rmtree(folder / "raw")


def make_json(folder: Path, experiments: int) -> None:

    source = next((folder / "bench" / "r" / "experiments").glob("*/cycle-1/power.parquet"))
    rows = pq.read_table(source).to_pylist()
    (folder / "json").mkdir(exist_ok=True)
    first = folder / "json" / "0.json"
    first.write_text(json.dumps(rows, indent=2))
    for index in range(1, experiments):
        os.link(first, folder / "json" / f"{index}.json")


def ours(folder: Path) -> None:

    summary = aggregate_run(ResultsRoot(folder).run("bench", "r"), report=False)
    assert summary.valid == summary.planned


def floor(folder: Path) -> None:

    files = sorted((folder / "bench" / "r" / "experiments").glob("*/cycle-1/power.parquet"))
    with pq.ParquetWriter(folder / "floor.parquet", pq.read_schema(files[0]), compression="zstd") as writer:
        for file in files:
            writer.write_table(pq.read_table(file))


def scan(folder: Path) -> None:

    total = 0
    for file in sorted((folder / "bench" / "r" / "experiments").glob("*/cycle-1/power.parquet")):
        total += pc.sum(pq.read_table(file).column("power_instant_mw").cast("int64")).as_py()
    assert total > 0


def summary(folder: Path) -> None:

    table = pq.read_table(folder / "bench" / "r" / "cycles.parquet")
    frame = table.select(["experiment", "energy_per_output_token_j", "output_tokens_per_s"]).to_pandas()
    for _, group in frame.groupby("experiment"):
        describe(group["energy_per_output_token_j"])
        describe(group["output_tokens_per_s"])


def naive(folder: Path) -> None:

    frames = []
    for file in sorted((folder / "json").glob("*.json")):
        frame = pd.DataFrame(json.loads(file.read_text()))
        for _, series in frame.groupby("gpu"):
            np.trapezoid(series["power_instant_mw"] / 1e3, series["t_before_mono_ns"] / 1e9)
        frames.append(frame)
    (folder / "merged.json").write_text(json.dumps(pd.concat(frames).to_dict("records"), indent=2))


def measured(mode: str, folder: Path) -> dict[str, float]:
    """One mode in a process of its own: wall and CPU in seconds, peak memory in megabytes."""
    subprocess.run([sys.executable, __file__, "--only", mode, "--folder", str(folder)], check=True)
    found: dict[str, float] = json.loads((folder / "used.json").read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiments", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--naive", type=int, default=10, help="largest size at which the JSON way is tried")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", choices=(*MODES, "make"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only == "make":
        make_run(options.folder, options.experiments[0])
        if options.naive:
            make_json(options.folder, options.experiments[0])
        return
    if options.only:
        way = {"ours": ours, "floor": floor, "scan": scan, "summary": summary, "json": naive}[options.only]
        begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
        way(options.folder)
        used = resource.getrusage(resource.RUSAGE_SELF)
        found = {
            "wall_s": time.monotonic() - begin,
            "cpu_s": used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime,
            "peak_mb": used.ru_maxrss / 1024,
        }
        (options.folder / "used.json").write_text(json.dumps(found))
        return
    print(
        f"{'experiments':>11} {'samples':>12} {'way':>8} {'wall s':>9} {'CPU s':>9} {'peak MB':>9} {'x floor':>8}"
    )
    for experiments in options.experiments:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            table(Path(name), experiments, naive_too=experiments <= options.naive)


def table(folder: Path, experiments: int, *, naive_too: bool) -> None:
    # In a process of its own: a child inherits the peak memory of the process that started it.
    subprocess.run(
        [
            sys.executable,
            __file__,
            "--only",
            "make",
            "--naive",
            str(int(naive_too)),
            "--experiments",
            str(experiments),
            "--folder",
            str(folder),
        ],
        check=True,
    )
    modes = ("floor", "scan", "ours", "summary", *(("json",) if naive_too else ()))
    base = None
    for mode in modes:
        found = measured(mode, folder)
        base = base or found["cpu_s"]
        samples = experiments * 300 * 10 * GPUS
        print(
            f"{experiments:>11,} {samples:>12,} {mode:>8} {found['wall_s']:>9.2f} {found['cpu_s']:>9.2f} "
            f"{found['peak_mb']:>9.0f} {found['cpu_s'] / base:>8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
