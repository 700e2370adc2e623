"""How long the routes of the pages' API take: cold, and warm (95th percentile).

    python -m benchmarks.web [--nights 365] [--experiments 100] [--cycles 3] [--samples 1000000] [--browser]

Measured on a year of nights x 100 experiments, on a cycle of 10^6 power samples, and on the check of a small study.
Targets, each of CPU time as of wall time on an idle machine: 1 s cold, 200 ms warm.

``--browser`` also draws the page of that cycle in a headless Chromium, with the React, Router and Chakra of Airflow's
bundle and this API behind a real server; target: the first plot stands after 1.5 s. The floor is
Airflow's bundle alone.

The runs are written by the tables' own writers, without raw cycles; Airflow's database is an empty SQLite one.
"""

from __future__ import annotations

import argparse
import gc
import logging
import mimetypes
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import uvicorn
from airflow.api_fastapi.common.db.common import _get_session
from airflow.api_fastapi.core_api.security import get_user
from fastapi import FastAPI, Response
from fastapi.testclient import TestClient
from sqlalchemy import Engine, StaticPool, create_engine
from sqlalchemy.orm import Session

from llem_airflow.analysis.cycle import Cycle
from llem_airflow.analysis.metrics import METRICS
from llem_airflow.analysis.plan import planned
from llem_airflow.analysis.summary import summarise
from llem_airflow.analysis.tables import cycles_table, experiments_table
from llem_airflow.results import ResultsRoot, layout
from llem_airflow.results.folder import json_bytes
from llem_airflow.web import access, app, new_study
from tests import parts
from tests.analysis.conftest import IDS, run_maker
from tests.browser import chromium_page
from tests.results.recorded import Recording
from tests.web.airflow_rows import add_run, make_tables
from tests.web.drawn import READY, SHOW, bundled
from tests.web.test_cycle_view import samples

DAY_NS = 86_400 * 10**9
BEGAN_NS = 1_760_000_000 * 10**9
RUN = "scheduled__2026-{:03d}"
METRIC = "energy_per_output_token_j"
"""The metric of the trend, and the one in which the nights differ."""
_FRAMES = """while (!({})) {{
    if (performance.now() - began > 60000) throw new Error(document.body.innerText.slice(0, 1000));
    await new Promise(requestAnimationFrame);
  }}
  await new Promise(requestAnimationFrame);"""
_POWER = "document.querySelector('[data-testid=llem-power]')"
DRAWN = f"""async (asked) => {{
  const began = performance.now();
  await ({SHOW})(asked);
  {_FRAMES.format(_POWER + "?.querySelector('polyline')")}
  return [began, performance.now()];
}}"""
"""Shows a page until its plot stands: when that began and ended, in milliseconds since the page was asked for."""
ZOOMED = f"""async () => {{
  const [began, before] = [performance.now(), {_POWER}.dataset.end];
  document.querySelector('[aria-label="Zoom in"]').click();
  {_FRAMES.format(_POWER + "?.dataset.end !== before")}
  return performance.now() - began;
}}"""


def write_runs(root: ResultsRoot, nights: int, experiments: int, cycles: int) -> None:
    """A study of so many nights: the first is made whole, the others are copies with energies of their own."""
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
            shutil.copyfile(f"{first.folder.path}/{layout.SUMMARY}", f"{run.folder.path}/{layout.SUMMARY}")
            for name in (layout.CYCLES_TABLE, layout.EXPERIMENTS_TABLE):
                table = pq.read_table(f"{first.folder.path}/{name}")
                place = table.column_names.index(METRIC)
                values = table[METRIC].to_numpy() * random.lognormal(0, 0.02, len(table))
                table = table.set_column(place, table.schema.field(place), [values])
                pq.write_table(table, f"{run.folder.path}/{name}", compression="zstd")
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


def api(root: ResultsRoot) -> FastAPI:
    """The API with a user who may read everything; Airflow itself is not measured."""
    found, state = app.create_app(), app.Server(root.url)

    def anybody() -> None:
        """No user: every dependency that asks for one is content."""

    found.dependency_overrides |= {
        get_user: anybody,
        app.server: lambda: state,
        access.readable_dags: lambda: {"nightly"},
        access.reads_runs: lambda: lambda dag_id: dag_id == "nightly",
        access.may_read_logs: lambda: True,
    }
    for dependency in (*access.READS_RUN, *access.READS_DAG):
        found.dependency_overrides[dependency.dependency] = anybody
    return found


def client(root: ResultsRoot) -> TestClient:
    """Asks the API, without a server between."""
    return TestClient(api(root))


def timed(ask: Callable[[], Any]) -> tuple[float, float]:
    """Wall time and CPU time of a request, in seconds; a busy machine stretches the first alone."""
    begin_s, cpu_s = time.perf_counter(), time.process_time()
    answer = ask()
    assert answer.status_code == 200, answer.text
    return time.perf_counter() - begin_s, time.process_time() - cpu_s


def write_long_cycle(root: ResultsRoot, folder: Path, count: int) -> None:
    """A run of one cycle with so many power samples."""
    run = run_maker(root, folder)({(0, 1): Recording(requests=200)}, cycles=1)
    ref = run.cycle(IDS[0], 1)
    assert ref is not None
    samples(ref, count, np.random.default_rng(0).normal(200, 5, count))


def measure(ask: Callable[[], Any]) -> tuple[list[float], int]:
    """Cold wall and CPU time, the same warm (95th percentile of 40), in seconds; and the answer's bytes."""
    gc.collect()
    cold = timed(ask)
    warm = [timed(ask) for _ in range(40)]
    p95 = [statistics.quantiles([one[place] for one in warm], n=20)[-1] for place in (0, 1)]
    return [*cold, *p95], len(ask().content)


def of_nights(root: ResultsRoot, nights: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The routes about runs, each asked of a server that has seen nothing."""
    asked = {"dag_id": "nightly", "run_id": RUN.format(nights - 1), "study": "nightly", "metric": "energy_j"}
    asked |= {"table": "experiments", "format": "csv", "name": "summary.json"}
    paths = ("/api/headline", "/api/runs", "/api/explore", "/api/values", "/download/table", "/download/file")
    for path in paths:
        yield path, partial(client(root).get, path, params=asked)
    across = {"dag_id": "nightly", "study": "nightly", "metric": METRIC}
    for path in ("/api/trend", "/api/verdicts", "/api/compare", "/api/leaderboard"):
        yield path, partial(client(root).get, path, params=across if path != "/api/leaderboard" else None)


def of_a_cycle(root: ResultsRoot) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The routes about one cycle, and the check of a study."""
    asked: dict[str, str | int] = {"dag_id": "nightly", "run_id": "r1", "experiment": IDS[0], "cycle": 1}
    for path in ("/api/cycle", "/api/power", "/api/requests"):
        yield path, partial(client(root).get, path, params=asked)
    yield "/api/check", partial(client(root).post, "/api/check", content=new_study.EXAMPLE.encode())


def database() -> Engine:
    """Airflow's tables with the run of the cycle."""
    found = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    make_tables(found)
    with Session(found) as session:
        add_run(session, "nightly", "r1")
    return found


@contextmanager
def served(root: ResultsRoot) -> Iterator[str]:
    """Airflow's bundle and the API behind a real server; its address."""
    site, ours = FastAPI(), api(root)
    airflow = database()
    ours.dependency_overrides[_get_session] = lambda: Session(airflow)
    site.mount("/llem", ours)

    @site.get("/static/assets/{name}")
    def asset(name: str) -> Response:
        kind, kept = mimetypes.guess_type(name)[0], {"Cache-Control": "max-age=600"}
        return Response(bundled(f"assets/{name}"), media_type=kind, headers=kept)

    @site.get("/{path:path}")
    def page(path: str) -> Response:
        text = b"" if path.startswith(("ui/", "api/")) else bundled("index.html")
        return Response(text, media_type="text/html")

    port = parts.free_port()
    server = uvicorn.Server(uvicorn.Config(site, port=port, log_level="error"))
    running = threading.Thread(target=server.run)
    running.start()
    try:
        yield f"http://localhost:{port}/"
    finally:
        server.should_exit = True
        running.join()


def draw(root: ResultsRoot, times: int = 5) -> None:
    """Print how long it takes until the power of the cycle stands in a Chromium: first, and median of the others."""
    where = f"/dags/nightly/runs/r1/plugin/llem-energy?view=cycle&cell={IDS[0]}.1"
    with served(root) as url, chromium_page() as page:
        alone, drawn, loaded, zoomed = [], [], [], []
        for _ in range(times + 1):
            page.goto(url)
            page.wait_for_function(READY)
            begin, end = page.evaluate(DRAWN, [where, {"dagId": "nightly", "runId": "r1"}])
            alone.append(begin)
            drawn.append(end - begin)
            loaded.append(end)
            zoomed.append(page.evaluate(ZOOMED))
    for title, found in (
        ("Airflow's bundle alone", alone),
        ("first plot in an open Airflow", drawn),
        ("and its bundle loaded before", loaded),
        ("a step of zoom", zoomed),
    ):
        print(
            f"{title:<32}{found[0]:>8.0f} ms at first, {statistics.median(found[1:]):.0f} ms median of {times}"
        )
    ratios = [whole / floor for whole, floor in zip(loaded, alone, strict=True)]
    print(
        f"{'with it over it alone':<32}{ratios[0]:>8.2f} at first, {statistics.median(ratios[1:]):.2f} median"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    defaults = {"--nights": 365, "--experiments": 100, "--cycles": 3, "--samples": 10**6}
    for name, default in defaults.items():
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--browser", action="store_true")
    asked = parser.parse_args()
    logging.disable(logging.INFO)  # the client tells every request
    with tempfile.TemporaryDirectory() as folder:
        root, other = ResultsRoot(Path(folder) / "nights"), ResultsRoot(Path(folder) / "cycle")
        write_long_cycle(other, Path(folder), asked.samples)
        write_runs(root, asked.nights, asked.experiments, asked.cycles)
        small = ResultsRoot(Path(folder) / "small")
        write_long_cycle(small, Path(folder) / "recorded", 100)
        for _, ask in (*of_nights(root, asked.nights), *of_a_cycle(small)):
            ask()  # imports are not what is measured
        print(
            f"{asked.nights} nights x {asked.experiments} experiments x {asked.cycles} cycles; "
            f"a cycle of {asked.samples:,} samples"
        )
        titles = ("cold ms", "its CPU", "warm p95 ms", "its CPU", "answer KB")
        print(f"{'route':<18}" + "".join(f"{title:>13}" for title in titles))
        for path, ask in (*of_nights(root, asked.nights), *of_a_cycle(other)):
            times_s, size = measure(ask)
            numbers = [*(f"{one * 1e3:.0f}" for one in times_s), f"{size / 1e3:.0f}"]
            print(f"{path:<18}" + "".join(f"{one:>13}" for one in numbers))
        if asked.browser:
            draw(other)


if __name__ == "__main__":
    main()
