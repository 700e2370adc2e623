"""A study over two real Docker engines by Celery, one of them behind ssh: each cycle once, whoever is killed.

Beside it a cycle in a pod: that and one of the hosts' wait in a triggerer that is killed, too.
"""

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
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import docker
import pyarrow.parquet as pq
import pytest
from docker.types import DeviceRequest

from llem_airflow.results import ResultsRoot, StoredRun
from llem_airflow.runners.attempt import LABEL_INSTALLATION, LABEL_KEY
from llem_airflow.runners.engine import ENGINE_ERRORS
from tests import parts
from tests.airflow.server import PARTS, AirflowServer
from tests.chaos.services import Service, redis, triggerer, worker
from tests.chaos.world import IMPATIENT, copy_image, install_plugin, kill_engine, start_engine, wait_for
from tests.kubernetes.cluster import StandInCluster
from tests.kubernetes.tasks import write_kubeconfig
from tests.runners.engine_proxy import Call, EngineProxy
from tests.runners.sshd import SSHServer
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
POD = "pod"
POD_STUDY = """\
study_name: pod
serving_mode: offline
study_execution: {n_cycles: 1}
engine: echo
task: {model: none, max_output_tokens: 8, dataset: {source: builtin, n_prompts: 2}}
measurement: {meter: none, min_window_seconds: 2, baseline: {enabled: false}}
offline: {warmup: {enabled: false}}
gpus: {count: 0}
runners: {echo: kubernetes}
images: {echo: "registry.lab/echo:1"}
"""
POD_DAG = """\
from datetime import timedelta
from pathlib import Path
from airflow.sdk import DAG
from llem_airflow.operators import LLEMKubernetesExperimentOperator
from llem_airflow.study import load_study

study = load_study(Path(__file__).with_suffix(".yaml"))
with DAG("pod", schedule=None, is_paused_upon_creation=False):
    LLEMKubernetesExperimentOperator(
        task_id="cycle_1", study=study, experiment=study.experiments[0].id, models_volume="MODELS",
        gpu_wait_s=1800, retries=20, retry_delay=timedelta(seconds=10),
    )
"""
NO_NODE = "0/1 nodes are available: 1 Insufficient cpu."


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
        sockets: Of the two engines.
        redis: The broker.
        worker: The second host's.
        killed: Who was killed.
        back: Whether the engine is there again.
    """

    sockets: tuple[Path, Path]
    redis: Service
    worker: Service | None = None
    killed: list[str] = field(default_factory=list)
    back: threading.Event = field(default_factory=threading.Event)
    _lock: Any = field(default_factory=threading.Lock)

    def seen_on_first(self, call: Call) -> None:
        """The first host's engine has answered a call."""
        if not _starts_cycle(call, self.sockets[0]):
            return
        with self._lock:
            if "redis" not in self.killed:
                self.killed.append("redis")
                self.redis.kill(held=True)

    def seen_on_second(self, call: Call) -> None:
        """The second host's engine has answered a call."""
        if not _starts_cycle(call, self.sockets[1]):
            return
        with self._lock:
            if "engine" not in self.killed:
                self.killed.append("engine")
                self._kill_engine()
            elif "worker" not in self.killed and self.worker is not None:
                self.killed.append("worker")
                self.worker.kill()

    def _kill_engine(self) -> None:
        kill_engine(self.sockets[1].parent)
        threading.Thread(target=self._start_again, name="engine-start", daemon=True).start()

    def _start_again(self) -> None:
        start_engine(self.sockets[1].parent)
        self.back.set()


def _starts_cycle(call: Call, socket: Path) -> bool:
    """Whether a call has started a cycle's container; who calls over ssh has another process for each call."""
    found = re.fullmatch(r"POST /containers/(\w+)/start", str(call))
    if found is None:
        return False
    try:
        with docker.APIClient(base_url=f"unix://{socket}", version="auto") as api:
            labels = api.inspect_container(found[1])["Config"]["Labels"] or {}
    except ENGINE_ERRORS:  # it has been killed meanwhile
        return False
    return ".cycle_" in labels.get("llem.task_id", "")


@dataclass
class Spread:
    """What the run left."""

    airflow: AirflowServer
    engines: dict[str, docker.APIClient]
    killer: Killer
    without_redis: list[str]
    state: str
    run: StoredRun
    cluster: StandInCluster
    pod_state: str
    pod_run: StoredRun
    waits: str
    triggerer_log: Path

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
        cluster = StandInCluster(home / "cluster", unschedulable=NO_NODE)
        undo.enter_context(cluster.running())
        broker, broker_url = redis(home / "redis")
        undo.enter_context(broker)
        broker.wait_until_ready()
        killer = Killer((first, second), broker)
        proxies = [
            undo.enter_context(EngineProxy(second.with_name(f"{name}.sock"), socket, after=seen))
            for name, socket, seen in zip(
                HOSTS, (first, second), (killer.seen_on_first, killer.seen_on_second), strict=True
            )
        ]
        server = undo.enter_context(SSHServer(home / "ssh"))
        # One login for all calls, as the page about hosts has it.
        shared = f"ControlMaster auto\nControlPath {second.parents[1]}/%C\nControlPersist 10m\n"
        server.client(undo.enter_context(pytest.MonkeyPatch.context()), settings=shared)
        urls = (proxies[0].url, f"{server.address}{proxies[1].path}")
        install_plugin(home / "site", home / "plugin")
        (home / "models" / "none").mkdir(parents=True)
        (home / "models" / "none" / "config.json").write_text("{}")
        connections = {
            f"AIRFLOW_CONN_{name.upper()}": json.dumps(
                {"conn_type": "llem", "host": url, "extra": {"pool": name, "queue": name}}
            )
            for name, url in zip(HOSTS, urls, strict=True)
        }
        kubeconfig = write_kubeconfig(home / "kubeconfig", cluster.url)
        connections["AIRFLOW_CONN_KUBERNETES_DEFAULT"] = json.dumps(
            {"conn_type": "kubernetes", "extra": {"kube_config_path": kubeconfig}}
        )
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
        dags = airflow.home / "dags"
        (dags / f"{POD}.yaml").write_text(POD_STUDY)
        (dags / f"{POD}.py").write_text(POD_DAG.replace("MODELS", str(home / "models")))
        undo.callback(airflow.stop)
        workers = [
            undo.enter_context(worker(queues, tasks, airflow.environment, home / f"{name}.log"))
            for name, queues, tasks in zip(HOSTS, ("gpu1,default", "gpu2"), (2, 1), strict=True)
        ]
        killer.worker = workers[1]
        airflow.start(timeout_s=600)
        waiter = undo.enter_context(triggerer(airflow.environment, home / "triggerer.log"))
        for each in workers:
            each.wait_until_ready()
        for dag_id in (DAG_ID, POD):
            wait_for(partial(known, airflow, dag_id), 240)
        for name in HOSTS:
            airflow.send("POST", "/api/v2/pools", {"name": name, "slots": 1}).raise_for_status()
        engines = {
            name: undo.enter_context(
                docker.APIClient(base_url=f"unix://{socket}", version="auto", timeout=60)
            )
            for name, socket in zip(HOSTS, (first, second), strict=True)
        }
        held = hold_gpus(engines["gpu2"], python_image)
        begun = {}
        for dag_id in (POD, DAG_ID):
            airflow.unpause(dag_id)
            answer = airflow.trigger(dag_id)
            answer.raise_for_status()
            begun[dag_id] = answer.json()["dag_run_id"]

        def kill_triggerer() -> str:
            """When both wait in it; then both get what they wait for."""
            said = wait_for(lambda: both_wait(airflow), 900)
            waiter.kill()
            cluster.unschedulable = ""
            engines["gpu2"].remove_container(held, force=True)
            return str(said)

        beside = undo.enter_context(ThreadPoolExecutor(1))
        waited = beside.submit(kill_triggerer)
        without_redis = wait_for(lambda: ended_without_redis(airflow, begun[DAG_ID], killer), 600)
        broker.go_on()
        waits = waited.result()
        ended = {
            dag_id: airflow.finished(dag_id, run_id, timeout_s=900)["state"]
            for dag_id, run_id in begun.items()
        }
        stored = {
            dag_id: ResultsRoot(airflow.results).run(dag_id, run_id) for dag_id, run_id in begun.items()
        }
        yield Spread(
            airflow, engines, killer, without_redis, ended[DAG_ID], stored[DAG_ID], cluster, ended[POD],
            stored[POD], waits, home / "triggerer.log",
        )  # fmt: skip


def known(airflow: AirflowServer, dag_id: str) -> bool:
    return airflow.get(f"/api/v2/dags/{dag_id}").status_code == 200


def hold_gpus(api: docker.APIClient, image: str) -> str:
    """A container of somebody else's that has all GPUs of a host."""
    every = DeviceRequest(count=-1, capabilities=[["gpu"]])
    host = api.create_host_config(device_requests=[every], init=True)
    made = api.create_container(image, ["sleep", "36000"], host_config=host)["Id"]
    api.start(made)
    return str(made)


def both_wait(airflow: AirflowServer) -> str:
    """What the triggerer has said of its waits, once it has looked at the engine behind ssh and at the cluster."""
    logs = (airflow.home / "logs").rglob("*.trigger.*.log")
    said = "".join(log.read_text(errors="replace") for log in logs)
    return said if "held by: " in said and NO_NODE in said else ""


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


def test_who_waits_goes_on_with_another_triggerer_when_one_is_killed(spread: Spread) -> None:
    assert "Waiting for GPUs, " in spread.waits
    assert spread.triggerer_log.read_text(errors="replace").count("Starting the triggerer") > 1
    assert spread.pod_state == "success"
    (cycle,) = spread.pod_run.cycles(repeats=True)
    assert cycle.provenance()["runner"] == "kubernetes"
    ran = {
        made["metadata"]["uid"]
        for _, _, made in spread.cluster.history
        for each in made["status"].get("containerStatuses") or ()
        if each["name"] == "base" and "running" in each["state"]
    }
    assert len(ran) == 1
    assert spread.cluster.names() == []


def test_a_further_try_is_where_the_first_one_was_and_takes_over_what_runs_there(spread: Spread) -> None:
    records = [ref.provenance() for ref in spread.run.cycles()]
    host_of = {(record["experiment"], record["cycle"]): record["host_connection"] for record in records}
    taken_over = [record for record in records if record["adopted"]]
    assert "gpu2" in {record["host_connection"] for record in taken_over if record["try_number"] > 1}
    # An engine that comes back later than its container has finished costs no try: there may be none of these.
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
