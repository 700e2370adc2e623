"""How long the routes of the pages' API take on a year of nights x 100 experiments: cold, and warm (95th percentile).

    python -m benchmarks.web [--nights 365] [--experiments 100] [--cycles 3]

The runs are written by the tables' own writers, without raw cycles; Airflow's database is an empty SQLite one.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from fastapi.testclient import TestClient

from llem_airflow.analysis.cycle import Cycle
from llem_airflow.analysis.metrics import METRICS
from llem_airflow.analysis.plan import planned
from llem_airflow.analysis.summary import summarise
from llem_airflow.analysis.tables import cycles_table, experiments_table
from llem_airflow.results import ResultsRoot, layout
from llem_airflow.results.folder import json_bytes
from llem_airflow.web import access, app

DAY_NS = 86_400 * 10**9
BEGAN_NS = 1_760_000_000 * 10**9
RUN = "scheduled__2026-{:03d}"


def write_runs(root: ResultsRoot, nights: int, experiments: int, cycles: int) -> None:
    """A study of so many nights: the first is made whole, the others are copies under their own names."""
    random = np.random.default_rng(0)
    plan = {
        "cycles": cycles,
        "experiments": [
            {
                "id": f"tiny-{index}-{index:08x}",
                "slug": f"tiny-{index}",
                "hash": f"{index:016x}",
                "engine": "vllm",
                "config": {
                    "engine": "vllm",
                    "task": {"model": "tiny", "max_output_tokens": 8 + index % 10},
                    "vllm": {"b": index // 10},
                },
            }
            for index in range(experiments)
        ],
    }
    whole = planned(plan)
    rows = [_row(name, cycle, index, random) for index, (name, cycle) in enumerate(whole.cycles)]
    summary = summarise("nightly", RUN.format(0), whole, rows)
    first = root.run("nightly", RUN.format(0))
    for night in range(nights):
        run = root.run("nightly", RUN.format(night))
        run.write_plan("", plan, {"dag_id": "nightly", "started_epoch_ns": BEGAN_NS + night * DAY_NS})
        if night:
            for name in (layout.SUMMARY, layout.CYCLES_TABLE, layout.EXPERIMENTS_TABLE):
                shutil.copyfile(f"{first.folder.path}/{name}", f"{run.folder.path}/{name}")
            continue
        run.folder.write(layout.SUMMARY, json_bytes(summary.to_json()))
        for name, table in (
            (layout.CYCLES_TABLE, cycles_table("nightly", run.run_id, rows, whole)),
            (layout.EXPERIMENTS_TABLE, experiments_table(summary)),
        ):
            with run.folder.atomic_write(name) as file:
                pq.write_table(table, file, compression="zstd")


def _row(name: str, cycle: int, index: int, random: Any) -> Cycle:
    values = {metric.name: float(random.uniform(1, 2)) for metric in METRICS}
    return Cycle(
        name,
        cycle,
        "valid",
        position=index,
        hash=name[-8:],
        engine="vllm",
        energy_kind="measured",
        measures=values,
    )


def client(root: ResultsRoot) -> TestClient:
    """The API with a user who may read everything; Airflow itself is not measured."""
    found, state = app.create_app(), app.Server(root.url)
    anybody = lambda: None  # noqa: E731
    found.dependency_overrides |= {
        app.get_user: anybody,
        app.server: lambda: state,
        access.readable_dags: lambda: {"nightly"},
        access.may_read_logs: lambda: True,
    }
    for dependency in (*access.READS_RUN, *access.READS_DAG):
        found.dependency_overrides[dependency.dependency] = anybody
    return TestClient(found)


def timed(ask: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    answer = ask()
    assert answer.status_code == 200, answer.text
    return time.perf_counter() - begin


def measure(root: ResultsRoot, nights: int) -> Iterator[tuple[str, float, float, int]]:
    asked = {"dag_id": "nightly", "run_id": RUN.format(nights - 1), "study": "nightly", "metric": "energy_j"}
    asked |= {"table": "experiments", "format": "csv", "name": "summary.json"}
    paths = ("/api/headline", "/api/runs", "/api/explore", "/api/values", "/download/table", "/download/file")
    for path in paths:
        fresh = client(root)
        gc.collect()
        cold_s = timed(lambda fresh=fresh, path=path: fresh.get(path, params=asked))  # type: ignore[misc]
        warm_s = [timed(lambda fresh=fresh, path=path: fresh.get(path, params=asked)) for _ in range(40)]  # type: ignore[misc]
        size = len(fresh.get(path, params=asked).content)
        yield path, cold_s, statistics.quantiles(warm_s, n=20)[-1], size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("--nights", 365), ("--experiments", 100), ("--cycles", 3)):
        parser.add_argument(name, type=int, default=default)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = ResultsRoot(Path(folder))
        write_runs(root, asked.nights, asked.experiments, asked.cycles)
        client(root).get("/api/runs", params={"dag_id": "nightly"})  # imports are not what is measured
        print(f"{asked.nights} nights x {asked.experiments} experiments x {asked.cycles} cycles")
        print(f"{'route':<18} {'cold ms':>8} {'warm p95 ms':>12} {'answer KB':>10}")
        for path, cold_s, warm_s, size in measure(root, asked.nights):
            print(f"{path:<18} {cold_s * 1e3:8.0f} {warm_s * 1e3:12.1f} {size / 1e3:10.0f}")


if __name__ == "__main__":
    main()
