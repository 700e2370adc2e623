"""Where it breaks first: a night of 10,000 experiments on 100 GPU hosts, with a simulated clock.

    python -m benchmarks.scale [--hosts 100] [--gpus 4] [--experiments 10000] [--cycles 3] [--airflow-home DIR]

Measured with the product's own code: loading and building the DAGs of all studies, their serialized sizes, listing the
results store, merging power series; with ``--airflow-home``, rows of Airflow's database after a real ``llem-airflow
run``. Simulated are time and hosts only: what runs next is decided by the tasks' own pools, slots and priorities, the
plan's order and gaps (``operators/waits.thermal_gap``) and the GPU queue (``runners/leases.choose``). Airflow itself is
a server that queues a task every so often (``--queue-s``; 0.5 s is what ``benchmarks/airflow.py gap`` measures with the
settings that ship). A host has two studies: one for single GPUs, one for pairs.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from typing import cast

import numpy as np
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization

from benchmarks.aggregate import make
from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.factory import study_dag
from llem_airflow.operators import LLEMExperimentOperator, waits
from llem_airflow.results import ResultsRoot, StoredRun
from llem_airflow.runners.gpus import Gpu, Inventory, candidates
from llem_airflow.runners.holders import Holder
from llem_airflow.runners.leases import Demand, choose, held_by_ours
from llem_airflow.study import Study, load_study
from llem_airflow.study.plan.model import GpuRequest

STUDY = """\
study_name: {name}
serving_mode: offline
study_execution:
  {{n_cycles: {cycles}, experiment_order: shuffle, cycle_gap_seconds: {gap_s}, experiment_gap_seconds: {gap_s}}}
engine: vllm
task: {{model: m, dataset: {{source: builtin, n_prompts: 64}}}}
measurement: {{meter: nvml}}
gpus: {{count: {gpus}}}
runners: {{vllm: container}}
airflow: {{pool: {pool}, max_active_cycles: {active}, priority: {gpus}}}
sweep: {{task.random_seed: {seeds}}}
"""
CYCLE_S = (120.0, 0.3)
"""Median length of a cycle with its container, in seconds, and the standard deviation of its logarithm."""

SERIALIZED = 10
"""DAGs that are serialized; all are alike."""

FAILS_RATIO = 0.01
"""Tries that fail and are made again at once."""


@dataclass
class DagRun:
    """A run of one study, with what a pause asks of a stored run.

    Attributes:
        url: Names it.
        tasks: Tasks that are ready, the next one last.
        request: GPUs of each.
        limit: Tasks that may be active.
        active: Tasks that are.
        ended_s: When its last cycle ended.
    """

    url: str
    tasks: list[LLEMExperimentOperator]
    request: GpuRequest
    limit: int
    active: int = 0
    ended_s: float | None = None

    def last_finished_epoch_ns(self, _host: str | None = None) -> int | None:
        """As of a stored run."""
        return None if self.ended_s is None else int(self.ended_s * 1e9)


class Gap(waits.GapTrigger):
    """The trigger of a thermal gap, which looks at a simulated run."""

    def __init__(self, pause: waits.GapTrigger, run: DagRun) -> None:
        super().__init__(
            until_epoch_s=pause.until_epoch_s, run_url=pause.run_url, gap_s=pause.gap_s, rank=pause.rank
        )
        self._run = run
        self._waiting.setdefault(self.run_url, {})[id(self)] = self.rank

    def seen(self) -> int | None:
        """When the run's last cycle ended."""
        return self._run.last_finished_epoch_ns()

    def is_over(self) -> bool:
        """As in the triggerer, which takes a trigger that has fired out of the line."""
        over = super().is_over()
        if over:
            self._waiting[self.run_url].pop(id(self))
        return over


@dataclass
class Host:
    """A GPU host: its GPUs, its pool, its queue.

    Attributes:
        known: Its GPUs.
        runs: Runs of its studies.
        slots: Slots of its pool, which deferred tasks keep; None for no pool.
        used: Slots that are taken.
        held: Who holds which GPUs, by ticket.
        queue: Waiting claims: ticket, run, task, since when, and how often each looks, in seconds.
    """

    known: Inventory
    runs: list[DagRun]
    slots: int | None
    used: int = 0
    held: dict[int, Holder] = field(default_factory=dict)
    queue: list[tuple[int, DagRun, LLEMExperimentOperator, float, float]] = field(default_factory=list)


@dataclass
class Night:
    """What a night came to.

    Attributes:
        wall_s: Its length, in seconds.
        busy_gpu_s: Seconds that GPUs worked, over all of them.
        cycles: Cycles that have a result.
        tries: Tries that were made.
        waited_s: Longest wait in a host's GPU queue, in seconds.
        looks: Looks of the triggerer at engines, at the least: each claim as often as at the begin of its wait.
        most_waiting: Claims that waited at the same time at most, over all hosts.
        scheduler_s: Seconds in which Airflow's scheduler was busy.
    """

    wall_s: float = 0.0
    busy_gpu_s: float = 0.0
    cycles: int = 0
    tries: int = 0
    waited_s: float = 0.0
    looks: int = 0
    most_waiting: int = 0
    scheduler_s: float = 0.0


class Simulation:
    """A night: hosts and a scheduler on one clock.

    Args:
        hosts: The hosts.
        queue_s: How long Airflow's scheduler takes to queue a task, in seconds.
        held: Called with a host whenever GPUs are given, for a test.
    """

    def __init__(
        self, hosts: Sequence[Host], queue_s: float, held: Callable[[Host], None] = lambda _: None
    ) -> None:
        self.hosts, self.queue_s, self.night = hosts, queue_s, Night()
        self._held = held
        self._now_s = self._free_s = 0.0
        self._rng = np.random.default_rng(7)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._waiting = 0

    def run(self) -> Night:
        """Let the night go by."""
        clock, waits.now_epoch_s = waits.now_epoch_s, lambda: self._now_s
        try:
            for host in self.hosts:
                self._schedule(host)
            while self._events:
                self._now_s, _, happens = heappop(self._events)
                happens()
        finally:
            waits.now_epoch_s = clock
        self.night.wall_s = self._now_s
        return self.night

    def _at(self, moment_s: float, happens: Callable[[], None]) -> None:
        heappush(self._events, (moment_s, next(self._numbers), happens))

    def _queued_s(self) -> float:
        """When the scheduler has queued one more task."""
        self._free_s = max(self._free_s, self._now_s) + self.queue_s
        self.night.scheduler_s += self.queue_s
        return self._free_s

    def _schedule(self, host: Host) -> None:
        """Queue what pool and DAGs have room for, by priority: what the tasks tell Airflow."""
        while True:
            ready = [
                run
                for run in host.runs
                if run.tasks
                and run.active < run.limit
                and (host.slots is None or host.used + run.tasks[-1].pool_slots <= host.slots)
            ]
            if not ready:
                return
            run = max(ready, key=lambda each: each.tasks[-1].priority_weight)
            task = run.tasks.pop()
            run.active += 1
            host.used += task.pool_slots
            self._at(self._queued_s(), partial(self._begin, host, run, task))

    def _begin(self, host: Host, run: DagRun, task: LLEMExperimentOperator) -> None:
        """A worker has the task: the gap first, as in the operator."""
        pause = waits.thermal_gap(cast("StoredRun", run), task.gap_before_s, [-task.priority_weight, -1])
        if pause is None:
            self._claim(host, run, task)
        elif isinstance(pause.trigger, waits.GapTrigger):
            self._defer(host, run)
            self._at(
                self._now_s + waits.LOOK_EVERY_S,
                partial(self._look, Gap(pause.trigger, run), host, run, task),
            )
        else:
            self._at(pause.until_epoch_s, partial(self._begin, host, run, task))

    def _defer(self, host: Host, run: DagRun) -> None:
        run.active -= 1
        self._schedule(host)

    def _look(self, gap: Gap, host: Host, run: DagRun, task: LLEMExperimentOperator) -> None:
        if not gap.is_over():
            self._at(self._now_s + waits.LOOK_EVERY_S, partial(self._look, gap, host, run, task))
            return
        run.active += 1
        self._at(self._queued_s(), partial(self._claim, host, run, task))

    def _claim(self, host: Host, run: DagRun, task: LLEMExperimentOperator) -> None:
        """Ask for GPUs; a claim that waits is deferred."""
        self.night.tries += 1
        ticket = next(self._numbers)
        host.queue.append((ticket, run, task, self._now_s, waits.look_every_s(len(host.queue))))
        self._waiting += 1
        self._serve(host)
        if any(claim[0] == ticket for claim in host.queue):
            self._defer(host, run)
        self.night.most_waiting = max(self.night.most_waiting, self._waiting)

    def _serve(self, host: Host) -> None:
        """Give GPUs to the claims whose turn it is, by the rules of the queue."""
        ahead: list[Demand] = []
        for claim in list(host.queue):
            ticket, run, task, since_s, every_s = claim
            demand = Demand(run.request.asked, candidates(run.request, host.known))
            gpus = choose(demand, host.held.values(), ahead, host.known)
            if gpus is None:
                ahead.append(demand)
                if sum(each.count for each in ahead) + held_by_ours(host.held.values()) >= len(
                    host.known.gpus
                ):
                    return  # all of them are held, or kept for those ahead
                continue
            host.queue.remove(claim)
            self._waiting -= 1
            host.held[ticket] = Holder("c", "c", gpus, "running", f"{ticket:020d}", False, "")
            self._held(host)
            begin_s = self._now_s
            if waited_s := self._now_s - since_s:
                run.active += 1
                begin_s = self._queued_s() + waits.look_every_s(len(ahead)) / 2
                self.night.waited_s = max(self.night.waited_s, waited_s)
                self.night.looks += int(waited_s / every_s)
            length_s = float(CYCLE_S[0] * np.exp(CYCLE_S[1] * self._rng.standard_normal()))
            self._at(begin_s + length_s, partial(self._end, host, run, task, ticket, length_s))

    def _end(
        self, host: Host, run: DagRun, task: LLEMExperimentOperator, ticket: int, length_s: float
    ) -> None:
        self.night.busy_gpu_s += len(host.held.pop(ticket).gpus) * length_s
        run.active -= 1
        run.ended_s = self._now_s
        host.used -= task.pool_slots
        if self._rng.random() < FAILS_RATIO:
            run.tasks.append(task)
        else:
            self.night.cycles += 1
        self._serve(host)
        self._schedule(host)


def studies(options: argparse.Namespace, folder: Path) -> list[Path]:
    """The study files: of each host one for single GPUs and one for pairs, with as many experiments."""
    numbers = np.array_split(np.arange(options.experiments), 2 * options.hosts)
    paths = []
    for index, seeds in enumerate(numbers):
        host, pairs = divmod(index, 2)
        path = folder / f"host-{host:04d}-{'pairs' if pairs else 'singles'}.yaml"
        path.write_text(
            STUDY.format(
                name=path.stem,
                cycles=options.cycles,
                gpus=1 + pairs,
                pool=f"gpu{host}",
                active=options.gpus,
                gap_s=options.gap_s,
                seeds=[int(seed) for seed in seeds],
            )
        )
        paths.append(path)
    return paths


def hosts_of(dags: Sequence[tuple[Study, DAG]], gpus: int, *, pool: bool) -> list[Host]:
    """The hosts of a night, with the runs of the DAGs' tasks in their order."""
    runs = []
    for study, dag in dags:
        tasks = [task for task in dag.tasks if type(task) is LLEMExperimentOperator]
        tasks.sort(key=lambda task: task.priority_weight)
        assert dag.max_active_tasks
        runs.append(DagRun(f"memory://{study.name}", tasks, study.experiments[0].gpus, dag.max_active_tasks))
    known = Inventory(tuple(Gpu(f"GPU-{index}", str(index)) for index in range(gpus)))
    return [Host(known, runs[at : at + 2], gpus if pool else None) for at in range(0, len(runs), 2)]


def factory(options: argparse.Namespace, folder: Path) -> list[tuple[Study, DAG]]:
    """Load and build all DAGs; print what that costs the DAG processor and Airflow's database."""
    paths = studies(options, folder)
    begin_s = time.process_time()
    loaded = [load_study(path) for path in paths]
    load_s = time.process_time() - begin_s
    begin_s = time.process_time()
    dags = [(study, study_dag(study)) for study in loaded]
    build_s = time.process_time() - begin_s
    begin_s = time.process_time()
    some = [len(json.dumps(DagSerialization.to_dict(dag))) for _, dag in dags[:SERIALIZED]]
    store_s = (time.process_time() - begin_s) * len(dags) / len(some)
    tasks = sum(len(dag.tasks) for _, dag in dags)
    row("study files, DAGs, tasks", f"{len(paths):,}, {len(dags):,}, {tasks:,}")
    row("one parse of all: load, build, serialize", f"{load_s:.1f} + {build_s:.1f} + {store_s:.1f} s CPU")
    row("one serialized DAG", f"{np.mean(some) / 1e3:,.0f} kB ({len(dags[0][1].tasks)} tasks)")
    row("all serialized DAGs, one version", f"{np.mean(some) * len(dags) / 1e6:,.1f} MB")
    return dags


def nights(options: argparse.Namespace, dags: Sequence[tuple[Study, DAG]]) -> None:
    """Print nights with and without pools, and with slower schedulers."""
    for pool, queue_s in [(True, options.queue_s), (False, options.queue_s), (True, 4 * options.queue_s)]:
        hosts = hosts_of(dags, options.gpus, pool=pool)
        night = Simulation(hosts, queue_s).run()
        gpus = options.gpus * len(hosts)
        row(
            f"night, {'a pool per host' if pool else 'no pools, GPU queue alone'}, {queue_s:g} s a task",
            f"{night.wall_s / 3600:.2f} h, GPUs busy {night.busy_gpu_s / gpus / night.wall_s:.0%}, scheduler "
            f"{night.scheduler_s / night.wall_s:.0%}; {night.cycles:,} cycles in {night.tries:,} tries; waiting "
            f"claims at most {night.most_waiting:,}, {night.looks / night.wall_s:.1f} looks/s",
        )


def stored(options: argparse.Namespace, root: Path, experiments: int) -> tuple[StoredRun, int]:
    """A stored run of so many experiments, and its cycles; prints what listing it costs."""
    root.mkdir()
    make(root, experiments, options.cycles, {"gpus": 1, "hz": 10.0, "window_s": 60.0}, naive_too=False)
    run = ResultsRoot(root).run("bench", "r")
    begin_s = time.perf_counter()
    listed = len(list(run.cycles()))
    list_s = time.perf_counter() - begin_s
    row(f"list a run of {listed} cycles", f"{1000 * list_s:.0f} ms, {1e6 * list_s / listed:.0f} us a cycle")
    return run, listed


def store(options: argparse.Namespace, folder: Path) -> None:
    """Print what the results of a night cost: listing them, merging their power series."""
    cycles = options.experiments * options.cycles
    stored(options, folder / "small", 50)
    run, listed = stored(options, folder / "large", 200)
    sizes = [file.stat().st_size for file in next((folder / "large" / "recorded").rglob("cycle-1")).iterdir()]
    row("results of the night", f"{cycles * sum(sizes) / 1e9:.2f} GB, {cycles * len(sizes):,} files")
    begin_s = time.process_time()
    aggregate_run(run)
    each_s = (time.process_time() - begin_s) / listed
    merged = (folder / "large" / "bench" / "r" / "power.parquet").stat().st_size / listed
    row(
        "merged series of 60 s at 10 Hz, all studies",
        f"{cycles * merged / 1e9:.2f} GB ({merged / 1e3:.1f} kB a cycle)",
    )
    row("aggregate, all studies", f"{cycles * each_s:.0f} s CPU ({1e3 * each_s:.0f} ms a cycle)")


GROWING = (
    "task_instance",
    "task_instance_history",
    "xcom",
    "rendered_task_instance_fields",
    "log",
    "trigger",
)
"""Tables of Airflow's database that grow with the tasks that run."""


def database(options: argparse.Namespace) -> None:
    """Print the rows of the database that an Airflow has written for its cycles, if there is one."""
    file = options.airflow_home and Path(options.airflow_home) / "airflow.db"
    if not file:
        return
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as opened:
        (tasks,) = opened.execute("select count(*) from task_instance").fetchone()
        rows = {name: opened.execute(f"select count(*) from {name}").fetchone()[0] for name in GROWING}
        (size,) = opened.execute(
            f"select sum(pgsize) from dbstat where name in ({','.join('?' * len(GROWING))})", GROWING
        ).fetchone()
    said = ", ".join(f"{name} {number / tasks:.1f}" for name, number in rows.items())
    row("rows a task", said)
    night = options.experiments * options.cycles
    row(
        "rows of a night",
        f"{night * sum(rows.values()) / tasks:,.0f}, {night * size / tasks / 1e6:,.0f} MB "
        f"({size / tasks / 1e3:.1f} kB a task)",
    )


def row(name: str, value: str) -> None:
    """Print a row of the table."""
    print(f"{name:<48} {value}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", type=int, default=100)
    parser.add_argument("--gpus", type=int, default=4, help="of each host")
    parser.add_argument("--experiments", type=int, default=10_000)
    parser.add_argument("--cycles", type=int, default=3)
    parser.add_argument("--gap-s", type=int, default=0, help="thermal gap between cycles, in seconds")
    parser.add_argument("--queue-s", type=float, default=0.5, help="Airflow's time for a task, in seconds")
    parser.add_argument("--airflow-home", type=Path, help="of an Airflow on SQLite that has run a study")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        nights(options, factory(options, Path(name)))
        store(options, Path(name))
    database(options)


if __name__ == "__main__":
    main()
