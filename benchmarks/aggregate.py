"""How the aggregate scales: wall, CPU and peak memory, against the naive layout and against the floor.

    python benchmarks/aggregate.py [--experiments 10 100 1000] [--cycles 10] [--naive 10] [--folder DIR]

Each cycle is 5 minutes at 10 Hz on 8 GPUs: 24,000 samples. Eight different recordings are stored; the cycles are hard
links to them, so that a large study costs little disk to simulate. Each file is read again for every cycle.

- ours: `aggregate_run` without drawing: energy by counter and integral, baselines, flags, latencies, statistics,
  tables, summary, and the merged series of all samples.
- scan: pyarrow reads every column of the same Parquet files and numpy integrates each GPU of each cycle: the bare
  floor, which leaves out the merged series.
- merge: the same, and the rows are written into one file with experiment, cycle and absolute time: the floor of
  an integral and a merge by pyarrow's own reader and writer.
- duckdb: as scan, in one SQL statement a file (where DuckDB is installed).
- json: pandas on an indented-JSON layout, one object a sample, with the same integrals and one merged file.
- summary: every metric of every experiment from cycles.parquet alone.
- show: what `llem-airflow report` reads: the stored summary.

With --folder the study is kept, and ways can be measured one by one: --ways ours --folder DIR. Cycles can be shorter:
--samples 300 is a usual window of one GPU, --samples 6000 ten minutes of it, --samples 57 shows what depends on the
number of experiments alone: --samples 57 --experiments 1000 --ways ours summary show.

The merged series is written by pyarrow's ParquetWriter, from decoded samples. Until it was, the aggregate copied the
column chunks of each cycle as they were encoded and wrote Parquet footers by hand. What that change costs is in
llem_airflow/results/README.md: short cycles became cheaper, as they share row groups; long ones are encoded again.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.metrics import METRICS
from llem_airflow.analysis.statistics import describe
from llem_airflow.analysis.summary import load_summary
from llem_airflow.results import ResultsRoot
from llem_airflow.results.parquet import POWER_OPTIONS
from tests.results.recorded import EPOCH_NS, Recording, experiment_id, plan_json, provenance

RECORDINGS = 8
SIZES: dict[int, dict[str, Any]] = {
    57: {"gpus": 1, "hz": 1.0, "window_s": 36.0},
    300: {"gpus": 1, "hz": 10.0, "window_s": 10.0},
    6_000: {"gpus": 1, "hz": 10.0, "window_s": 580.0},
    24_000: {"gpus": 8, "hz": 10.0, "window_s": 280.0},
}
"""What is recorded, by (about) the samples of a cycle; 20 s of it are before and after the window."""


def make(folder: Path, experiments: int, cycles: int, size: dict[str, Any], *, naive_too: bool) -> None:
    """A study of so many cycles, and the same samples as JSON."""
    run = ResultsRoot(folder).run("bench", "r")
    named = [
        (experiment_id(index, f"{index:08x}deadbeef"), f"{index:08x}deadbeef", {"index": index})
        for index in range(experiments)
    ]
    run.write_plan("model: bench\n", plan_json(named, cycles), {"dag_id": "bench"})
    for number in range(experiments * cycles):
        index, cycle = number % experiments, number // experiments + 1
        target = folder / "bench" / "r" / "experiments" / named[index][0] / f"cycle-{cycle}"
        target.mkdir(parents=True)
        source = recorded(folder, number % RECORDINGS, **size)
        for file in source.iterdir():
            os.link(file, target / file.name)
        if naive_too:
            os.link(as_json(folder, source, number % RECORDINGS), folder / f"{number}.naive.json")


def recorded(folder: Path, number: int, gpus: int, hz: float, window_s: float) -> Path:
    """The folder of one of the stored cycles, made when it is first asked for."""
    target = folder / "recorded" / "r" / "experiments" / "x" / f"cycle-{number + 1}"
    if not target.is_dir():
        noise = np.random.default_rng(number)
        recording = Recording(
            gpus=tuple(f"GPU-{index:08d}" for index in range(gpus)),
            power_w=lambda _: float(noise.normal(300, 9)),
            window_s=window_s,
            hz=hz,
            requests=200,
            load_s=6,
            warmup_s=10,
            cooldown_s=4,
        )
        raw = recording.write(folder / "raw")
        ResultsRoot(folder).run("recorded", "r").commit_cycle("x", number + 1, raw, provenance(number))
        shutil.rmtree(raw)
    return target


def as_json(folder: Path, source: Path, number: int) -> Path:
    target = folder / f"{number}.recorded.json"
    if not target.exists():
        target.write_text(json.dumps(pq.read_table(source / "power.parquet").to_pylist(), indent=2))
    return target


def power_files(folder: Path) -> list[Path]:
    return sorted((folder / "bench" / "r" / "experiments").glob("*/cycle-*/power.parquet"))


def ours(folder: Path) -> None:
    summary = aggregate_run(ResultsRoot(folder).run("bench", "r"))
    assert summary.valid == summary.planned


def scan(folder: Path) -> None:
    for file in power_files(folder):
        integrals(pq.ParquetFile(file).read())


def integrals(table: pa.Table) -> list[float]:
    """Joules of each GPU."""
    t_s = table["t_before_mono_ns"].to_numpy() / 1e9
    power_w = table["power_instant_mw"].to_numpy() / 1e3
    gpus = table["gpu"].unify_dictionaries().combine_chunks()
    codes = gpus.indices.to_numpy()
    rows = [codes == gpu for gpu in range(len(gpus.dictionary))]
    found = [float(np.trapezoid(power_w[each], t_s[each])) for each in rows]
    assert min(found) > 0
    return found


def merge(folder: Path) -> None:
    writer = None
    for file in power_files(folder):
        table = pq.ParquetFile(file).read()
        integrals(table)
        name = pa.array(np.zeros(len(table), np.int32))
        table = (
            table.append_column(
                "experiment", pa.DictionaryArray.from_arrays(name, pa.array([file.parts[-3]]))
            )
            .append_column("cycle", pa.array(np.full(len(table), int(file.parts[-2][6:]), np.int32)))
            .append_column("t_epoch_ns", pc.add(table["t_before_mono_ns"], EPOCH_NS))
        )
        writer = writer or pq.ParquetWriter(folder / "merged.parquet", table.schema, **POWER_OPTIONS)
        writer.write_table(table)
    assert writer
    writer.close()


def duckdb(folder: Path) -> None:
    engine = importlib.import_module("duckdb")

    connection = engine.connect()
    for file in power_files(folder):
        found = connection.execute(
            "select gpu, sum((t - t0) / 1e9 * (p + p0) / 2e3), max(columns(*)) from (select *, "
            "t_before_mono_ns t, power_instant_mw p, lag(t_before_mono_ns) over w t0, lag(power_instant_mw) over w p0 "
            "from read_parquet(?) window w as (partition by gpu order by t_before_mono_ns)) group by gpu",
            [str(file)],
        ).fetchall()
        assert found


def summary(folder: Path) -> None:
    table = pq.read_table(folder / "bench" / "r" / "cycles.parquet")
    columns = {metric.name: table.column(metric.name).to_pylist() for metric in METRICS}
    rows: dict[str, list[int]] = {}
    for row, experiment in enumerate(table.column("experiment").to_pylist()):
        rows.setdefault(experiment, []).append(row)
    for chosen in rows.values():
        for values in columns.values():
            describe(value for row in chosen if (value := values[row]) is not None)


def show(folder: Path) -> None:
    assert load_summary(ResultsRoot(folder).run("bench", "r"))


def naive(folder: Path) -> None:
    frames = []
    for file in sorted(folder.glob("*.naive.json")):
        frame = pd.DataFrame(json.loads(file.read_text()))
        for _, series in frame.groupby("gpu"):
            np.trapezoid(series["power_instant_mw"] / 1e3, series["t_before_mono_ns"] / 1e9)
        frames.append(frame)
    (folder / "merged.json").write_text(json.dumps(pd.concat(frames).to_dict("records"), indent=2))


WAYS: dict[str, Callable[[Path], None]] = {
    "scan": scan,
    "merge": merge,
    "duckdb": duckdb,
    "ours": ours,
    "summary": summary,
    "show": show,
    "json": naive,
}


def measure_here(way: str, folder: Path) -> None:
    """Run one way in this process and write what it took: wall and CPU in seconds, peak memory in megabytes."""
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    WAYS[way](folder)
    used = resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "wall_s": time.monotonic() - begin,
        "cpu_s": used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime,
        "peak_mb": used.ru_maxrss / 1024,
    }
    (folder / "used.json").write_text(json.dumps(found))


def in_a_process(*arguments: str) -> None:
    # A child inherits the peak memory of the process that started it, so that one must stay small.
    subprocess.run([sys.executable, __file__, *arguments], check=True)


def table(folder: Path, options: argparse.Namespace, experiments: int) -> None:
    size = (
        "--samples",
        str(options.samples),
        "--experiments",
        str(experiments),
        "--cycles",
        str(options.cycles),
        "--folder",
        str(folder),
    )
    if not (folder / "bench").is_dir():
        in_a_process("--only", "make", "--naive", str(options.naive), *size)
    files = power_files(folder)
    samples = pq.read_metadata(files[0]).num_rows * len(files)
    for way in options.ways:
        if way == "json" and experiments > options.naive:
            continue
        if way == "duckdb" and importlib.util.find_spec("duckdb") is None:
            continue
        in_a_process("--only", way, *size)
        used = json.loads((folder / "used.json").read_text())
        print(
            f"{experiments:>11,} {samples:>12,} {way:>8} {used['wall_s']:>9.2f} {used['cpu_s']:>9.2f} "
            f"{used['peak_mb']:>9.0f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiments", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--cycles", type=int, default=10)
    parser.add_argument("--naive", type=int, default=10, help="largest size at which the JSON way is tried")
    parser.add_argument("--samples", type=int, choices=SIZES, default=24_000, help="samples of a cycle")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--folder", type=Path, help="keep the study here; one size only")
    parser.add_argument("--only", choices=(*WAYS, "make"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only == "make":
        experiments = options.experiments[0]
        size = SIZES[options.samples]
        make(options.folder, experiments, options.cycles, size, naive_too=experiments <= options.naive)
    elif options.only:
        measure_here(options.only, options.folder)
    else:
        print(f"{'experiments':>11} {'samples':>12} {'way':>8} {'wall s':>9} {'CPU s':>9} {'peak MB':>9}")
        for experiments in options.experiments:
            with tempfile.TemporaryDirectory(dir=options.folder) as name:
                table(options.folder or Path(name), options, experiments)


if __name__ == "__main__":
    main()
