"""A study over two real Docker engines by Celery: each cycle once, whoever is killed; gc and doctor name both hosts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import pyarrow.parquet as pq
import pytest

from llem_airflow.results import ResultsRoot, StoredRun
from llem_airflow.runners.attempt import LABEL_INSTALLATION, LABEL_KEY
from tests import parts
from tests.airflow.server import PARTS, AirflowServer
from tests.chaos.points import OWN
from tests.chaos.services import Service, redis, worker
from tests.chaos.world import IMPATIENT, copy_image, install_plugin, kill_engine, start_engine, wait_for
from tests.runners.engine_proxy import Call, EngineProxy
from tests.standins.build import Standins

pytestmark = [pytest.mark.airflow, pytest.mark.docker, pytest.mark.timeout(2400)]

DAG_ID = "spread"
HOSTS = ("gpu1", "gpu2")
STUDY = """\
study_name: spread
serving_mode: offline
study_execution: {n_cycles: 2, experiment_gap_seconds: 0, cycle_gap_seconds: 0}
engine: echo
task: {model: none, max_output_tokens: 8, dataset: {source: builtin, n_prompts: 2}}
measurement: {meter: none, min_window_seconds: 2, baseline: {enabled: false}}
offline: {warmup: {enabled: false}}
sweep: {echo.engine_params.step_s: [0.01, 0.02]}
gpus: {count: 1}
runners: {echo: container}
images: {echo: "IMAGE"}
airflow: {hosts: [gpu1, gpu2], retries: 20, retry_delay: 10s}
"""


@contextmanager
def second_engine(image: str) -> Iterator[Path]:
    """An engine of this test's own, with the image; its socket."""
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        parts.missing("an engine of a test's own needs root and dockerd")
    folder = Path(tempfile.mkdtemp(prefix="llem-two-"))
    try:
        start_engine(folder / "e")
        socket = folder / "e" / "docker.sock"
        copy_image(image, socket)
        yield socket
    finally:
        start_engine(folder / "e", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Killer:
    """Kills at the first container of a cycle on one host Redis, on the other its engine, and at the next its worker.

    The engine and the worker are started again at once, Redis when a cycle has succeeded without it.

    Attributes:
        socket: The second engine's.
        redis: The broker.
        worker: The second host's.
        killed: Who was killed.
        back: Whether the engine is there again.
    """

    socket: Path
    redis: Service
    worker: Service | None = None
    killed: list[str] = field(default_factory=list)
    back: threading.Event = field(default_factory=threading.Event)
    _creators: set[int] = field(default_factory=set)
    _lock: Any = field(default_factory=threading.Lock)

    def seen_on_first(self, call: Call) -> None:
        """The first host's engine has answered a call."""
        with self._lock:
            if self._starts_cycle(call) and "redis" not in self.killed:
                self.killed.append("redis")
                self.redis.kill(held=True)

    def seen_on_second(self, call: Call) -> None:
        """The second host's engine has answered a call."""
        with self._lock:
            if not self._starts_cycle(call):
                return
            if "engine" not in self.killed:
                self.killed.append("engine")
                self._kill_engine()
            elif "worker" not in self.killed and self.worker is not None:
                self.killed.append("worker")
                self.worker.kill()

    def _starts_cycle(self, call: Call) -> bool:
        if re.search(OWN, f"{call}?{call.query}"):
            self._creators.add(call.pid)
        return call.pid in self._creators and bool(re.fullmatch(r"POST /containers/\w+/start", str(call)))

    def _kill_engine(self) -> None:
        kill_engine(self.socket.parent)
        threading.Thread(target=self._start_again, name="engine-start", daemon=True).start()

    def _start_again(self) -> None:
        start_engine(self.socket.parent)
        self.back.set()


@dataclass
class Spread:
    """What the run left."""

    airflow: AirflowServer
    engines: dict[str, docker.APIClient]
    killer: Killer
    without_redis: list[str]
    state: str
    run: StoredRun

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`llem-airflow` in this Airflow's environment."""
        return subprocess.run(
            [sys.executable, "-c", "from llem_airflow.cli import main; main()", *words],
            env=self.airflow.environment | {"COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def spread(
    tmp_path_factory: pytest.TempPathFactory,
    docker_api: docker.APIClient,
    python_image: str,
    standin: Standins,
) -> Iterator[Spread]:
    first = parts.ENGINE_SOCKET
    home = tmp_path_factory.mktemp("two")
    with ExitStack() as undo:
        second = undo.enter_context(second_engine(python_image))
        broker, broker_url = redis(home / "redis")
        undo.enter_context(broker)
        broker.wait_until_ready()
        killer = Killer(second, broker)
        proxies = [
            undo.enter_context(EngineProxy(second.with_name(f"{name}.sock"), socket, after=seen))
            for name, socket, seen in zip(
                HOSTS, (first, second), (killer.seen_on_first, killer.seen_on_second), strict=True
            )
        ]
        install_plugin(home / "site", home / "plugin")
        (home / "models" / "none").mkdir(parents=True)
        (home / "models" / "none" / "config.json").write_text("{}")
        connections = {
            f"AIRFLOW_CONN_{name.upper()}": json.dumps(
                {"conn_type": "llem", "host": proxy.url, "extra": {"pool": name, "queue": name}}
            )
            for name, proxy in zip(HOSTS, proxies, strict=True)
        }
        airflow = AirflowServer(
            home / "airflow",
            {"spread.yaml": STUDY.replace("IMAGE", python_image)},
            {
                **connections,
                **IMPATIENT,
                "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
                "AIRFLOW__CELERY__BROKER_URL": broker_url,
                # A database of its own: SQLite has one writer at a time.
                "AIRFLOW__CELERY__RESULT_BACKEND": f"db+sqlite:///{home / 'celery.db'}?timeout=60",
                # No task may be where DOCKER_HOST leads: each has the engine of its host.
                "DOCKER_HOST": "unix:///nowhere/docker.sock",
                "PYTHONPATH": f"{home / 'site'}{os.pathsep}{parts.REPOSITORY}",
                "AIRFLOW__CORE__PARALLELISM": "4",
                "AIRFLOW__LLEM__MODELS_DIR": str(home / "models"),
            },
            PARTS,
        )
        undo.callback(airflow.stop)
        workers = [
            undo.enter_context(worker(queues, tasks, airflow.environment, home / f"{name}.log"))
            for name, queues, tasks in zip(HOSTS, ("gpu1,default", "gpu2"), (2, 1), strict=True)
        ]
        killer.worker = workers[1]
        airflow.start(timeout_s=600)
        for each in workers:
            each.wait_until_ready()
        wait_for(lambda: airflow.get(f"/api/v2/dags/{DAG_ID}").status_code == 200, 240)
        for name in HOSTS:
            airflow.send("POST", "/api/v2/pools", {"name": name, "slots": 1}).raise_for_status()
        engines = {
            name: undo.enter_context(
                docker.APIClient(base_url=f"unix://{socket}", version="auto", timeout=60)
            )
            for name, socket in zip(HOSTS, (first, second), strict=True)
        }
        airflow.unpause(DAG_ID)
        begun = airflow.trigger(DAG_ID)
        begun.raise_for_status()
        run_id = begun.json()["dag_run_id"]
        without_redis = wait_for(lambda: ended_without_redis(airflow, run_id, killer), 600)
        broker.go_on()
        run = airflow.finished(DAG_ID, run_id, timeout_s=900)
        stored = ResultsRoot(airflow.results).run(DAG_ID, run_id)
        yield Spread(airflow, engines, killer, without_redis, str(run["state"]), stored)


def ended_without_redis(airflow: AirflowServer, run_id: str, killer: Killer) -> list[str]:
    """Cycles of the first host that have succeeded since Redis is away."""
    if "redis" not in killer.killed:
        return []
    return [
        each["task_id"]
        for each in airflow.instances(DAG_ID, run_id)
        if (each["queue"], each["state"]) == ("gpu1", "success") and ".cycle_" in each["task_id"]
    ]


def on_host(record: dict[str, Any]) -> tuple[str, int, str]:
    return record["experiment"], record["cycle"], record["host_connection"]


def test_each_cycle_is_measured_once_on_its_host_whoever_is_killed(spread: Spread) -> None:
    assert set(spread.killer.killed) == {"engine", "worker", "redis"}
    assert spread.killer.back.wait(120)
    assert spread.without_redis, "a cycle ends well while the broker is away"
    failed = [each.provenance()["failure"] for each in spread.run.failures()]
    assert spread.state == "success", failed
    found = [on_host(ref.provenance()) for ref in spread.run.cycles(repeats=True)]
    plan = json.loads(spread.run.folder.read("plan.json"))
    planned = Counter(zip(plan["order"], plan["hosts"], strict=True))
    assert len({(experiment, cycle) for experiment, cycle, _ in found}) == len(found) == 4
    assert Counter((experiment, host) for experiment, _, host in found) == planned
    assert set(planned.values()) == {1}, "each experiment on both"


def test_a_further_try_is_where_the_first_one_was_and_takes_over_what_runs_there(spread: Spread) -> None:
    records = [ref.provenance() for ref in spread.run.cycles()]
    host_of = {(record["experiment"], record["cycle"]): record["host_connection"] for record in records}
    taken_over = [record for record in records if record["adopted"]]
    assert "gpu2" in {record["host_connection"] for record in taken_over if record["try_number"] > 1}
    assert "gpu2" in {each.provenance()["host_connection"] for each in spread.run.failures()}
    for failure in spread.run.failures():
        record = failure.provenance()
        assert record["host_connection"] == host_of[record["experiment"], record["cycle"]]


def test_nothing_is_left_on_either_host(spread: Spread) -> None:
    left = {name: parts.left_by(api, spread.airflow.installation) for name, api in spread.engines.items()}
    assert left == {"gpu1": [], "gpu2": []}


def test_the_worker_of_each_host_s_queue_has_measured_there_and_fetches_once_on_each(spread: Spread) -> None:
    instances = spread.airflow.instances(DAG_ID, spread.run.run_id)
    cycles = [each for each in instances if ".cycle_" in each["task_id"]]
    assert Counter((each["queue"], each["pool"], each["hostname"]) for each in cycles) == {
        (name, name, name): 2 for name in HOSTS
    }
    fetched = {each["task_id"]: each["state"] for each in instances if each["task_id"].startswith("prefetch")}
    assert set(fetched.values()) == {"success"}
    assert {name.rpartition("_")[2] for name in fetched} == set(HOSTS)


def test_the_table_of_cycles_has_the_host(spread: Spread) -> None:
    rows = pq.read_table(Path(spread.run.url, "cycles.parquet")).to_pylist()
    assert Counter(row["host"] for row in rows) == {"gpu1": 2, "gpu2": 2}


def test_gc_and_doctor_name_both_hosts(spread: Spread) -> None:
    labels = {LABEL_KEY: "left", LABEL_INSTALLATION: spread.airflow.installation}
    names = {name: f"llem-left-{name}-{spread.airflow.installation}" for name in HOSTS}
    for name, api in spread.engines.items():
        api.create_volume(names[name], labels=labels)
    try:
        listed = spread.command("gc", "--older-than", "0")
        assert [line.split("  ")[0] for line in listed.stdout.splitlines() if "volume" in line] == [
            f"{name}: volume {names[name]}" for name in HOSTS
        ]
        gone = spread.command("gc", "--older-than", "0", "--yes")
        assert "Removed 2." in gone.stdout
        test_nothing_is_left_on_either_host(spread)
    finally:
        for name, api in spread.engines.items():
            with suppress(docker.errors.NotFound):
                api.remove_volume(names[name])
    told = json.loads(spread.command("doctor", "--json").stdout)
    engines = {each["host"]: each["status"] for each in told if each["name"] == "engine"}
    assert engines == {"gpu1": "ok", "gpu2": "ok"}
    assert {each["host"] for each in told if each["name"] == "clock"} == set(HOSTS)
