"""The world of the chaos test: a real Airflow whose calls of a real Docker engine pass through our proxy."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import docker

from llem_airflow.runners.attempt import LABEL_KEY, Attempt
from llem_airflow.runners.engine import ENGINE_ERRORS
from llem_airflow.runners.gc import find_leftovers, remove_leftovers
from llem_airflow.runners.session_container import session_of
from tests.airflow.server import AirflowServer
from tests.chaos.points import Point
from tests.runners.engine_proxy import Call, EngineProxy

log = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parents[2]
PLUGIN = REPOSITORY / "tests" / "engines" / "plugin_example"
DAG_ID, TASK_ID = "chaos", "cycle_1"
STOP_TASK_ID = "stop_session"
DAGS = {"container": DAG_ID, "process": "chaos-process", "engine": "chaos-engine"}
"""By isolation."""
STUDY = """\
study_name: chaos
serving_mode: offline
study_execution: {n_cycles: 1}
engine: echo
task: {model: none, max_output_tokens: 8, dataset: {source: builtin, n_prompts: 2}}
measurement: {meter: none, min_window_seconds: 5, baseline: {enabled: false}}
offline: {warmup: {enabled: false}}
echo: {engine_params: {step_s: 0.01}}
gpus: {count: 1}
runners: {echo: container}
images: {echo: "IMAGE"}
"""
DAG = """\
from datetime import timedelta
from pathlib import Path
from airflow.sdk import DAG
from llem_airflow.operators import LLEMExperimentOperator
from llem_airflow.study import load_study

study = load_study(Path(__file__).with_name("chaos.yaml"))
with DAG("chaos", schedule=None, max_active_runs=8, is_paused_upon_creation=False):
    LLEMExperimentOperator(
        task_id="cycle_1",
        study=study,
        experiment=study.experiments[0],
        retries=8,
        retry_delay=timedelta(seconds=1),
        retry_exponential_backoff=2,
        max_retry_delay=timedelta(seconds=20),
    )
"""
"""The operator alone: a plan and a summary around it would only take time.

After a kill of everything the scheduler begins before the API server answers, and each task that it starts meanwhile
costs a try: the pauses between tries must reach over that start, as a study's of a minute do.
"""

SESSION_STUDY = (
    STUDY.replace("study_name: chaos", "study_name: NAME")
    .replace("n_cycles: 1", "n_cycles: 1, isolation: ISOLATION")
    .replace("max_output_tokens: 8, ", "")
    + "sweep: {task.max_output_tokens: [8, 9]}\n"
)
SESSION_DAG = """\
from datetime import timedelta
from pathlib import Path
from airflow.sdk import DAG
from llem_airflow.factory.sessions import session_tasks
from llem_airflow.operators import LLEMExperimentOperator
from llem_airflow.study import load_study

study = load_study(Path(__file__).with_suffix(".yaml"))
tries = dict(
    retries=8, retry_delay=timedelta(seconds=1), retry_exponential_backoff=2, max_retry_delay=timedelta(seconds=20)
)
with DAG(Path(__file__).stem, schedule=None, max_active_runs=8, is_paused_upon_creation=False):
    cycles = [
        LLEMExperimentOperator(
            task_id=f"cycle_{place}", study=study, experiment=run.experiment_id, session=run.session, **tries
        )
        for place, run in enumerate(study.plan.planned_cycles, start=1)
    ]
    session_tasks(study, tries, cycles, lanes=1)
"""
"""A session of two cycles between its start and its stop."""

INDISCREET = """

import os


class Indiscreet(EchoEngine):
    def load(self, spec):
        super().load(spec)
        self.tokens = [os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")]
        print("tokens:", *self.tokens, flush=True)

    def reset(self, spec):
        pass

    def describe(self):
        return EngineFacts("1.0", {"name": f"echo {self.tokens}", "dtype": None}, (), {"tokens": self.tokens})


EchoEngine = Indiscreet
"""
"""Added to the example engine: one that tells its secrets to whoever listens."""

IMPATIENT = {
    # Airflow notices dead schedulers and workers after minutes; a test need not wait so long. Nor so short that the
    # living ones of a loaded machine are taken for dead.
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "20",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "3",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
    # Processes that outlive a scheduler must be known to the next one.
    "AIRFLOW__API_AUTH__JWT_SECRET": "chaos-" + "x" * 64,
}
"""For kills of what all tasks share."""


def start_engine(folder: Path, word: str = "start") -> None:
    """Start or stop an engine that nobody else uses; its socket is docker.sock in the folder."""
    environment = {**os.environ, "ENGINE_DIR": str(folder), "ENGINE_WAIT_S": "120"}
    command = [str(REPOSITORY / ".ci" / "start-engine"), word]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def copy_image(image: str, socket: Path) -> None:
    """Bring an image from the usual engine to such a one."""
    with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saved:
        load = ["docker", "-H", f"unix://{socket}", "load", "-q"]
        subprocess.run(load, stdin=saved.stdout, check=True, stdout=subprocess.DEVNULL)


class Watch:
    """Whoever waits for a call of the engine, or for a piece of its answer."""

    def seen(self, call: Call, *, answered: bool) -> None:
        """A call has come in, or has been answered."""

    def heard(self, call: Call, data: bytes) -> None:
        """A piece of an answer comes."""


class World:
    """Airflow, engine and proxy.

    Args:
        home: An empty folder.
        engine: The Docker engine's socket.
        image: An image with Python.
        environment: Further variables of Airflow.
        start_engine: Starts the engine again after a kill; None when it is not ours to kill.
        allowed: Which calls of the engine may pass.
    """

    def __init__(
        self,
        home: Path,
        engine: Path,
        image: str,
        environment: dict[str, str],
        start_engine: Callable[[], None] | None = None,
        allowed: Callable[[Call], bool] = lambda _call: True,
    ) -> None:
        self.home = home
        self.engine, self.image, self.start_engine = engine, image, start_engine
        self.watches: list[Watch] = []
        self.api = self.client()
        self._triggering = threading.Lock()
        self._started: list[subprocess.Popen[bytes]] = []
        self.proxy = EngineProxy(
            home / "engine.sock",
            engine,
            allowed=allowed,
            before=lambda call: self._seen(call, answered=False),
            after=lambda call: self._seen(call, answered=True),
            data=self._heard,
        )
        site, temporary = home / "site", home / "tmp"
        install_plugin(site, home / "plugin")
        temporary.mkdir()
        self.temporary = temporary
        self.airflow = AirflowServer(
            home / "airflow",
            {},
            {
                **environment,
                "DOCKER_HOST": self.proxy.url,
                "PYTHONPATH": f"{site}{os.pathsep}{REPOSITORY}",
                "TMPDIR": str(temporary),
            },
        )
        dags = self.airflow.home / "dags"
        for shipped in dags.glob("*.py"):
            shipped.unlink()  # parsing them again and again would only take time
        for isolation, dag_id in DAGS.items():
            dag, study = (DAG, STUDY) if isolation == "container" else (SESSION_DAG, SESSION_STUDY)
            told = {"NAME": dag_id, "ISOLATION": isolation, "IMAGE": image}
            for word, meant in told.items():
                study = study.replace(word, meant)
            (dags / f"{dag_id}.py").write_text(dag)
            (dags / f"{dag_id}.yaml").write_text(study)
        self._made_of = {dag_id: self._planned(dags / f"{dag_id}.yaml") for dag_id in DAGS.values()}
        self.airflow.environment["AIRFLOW__CORE__PARALLELISM"] = "4"

    def __enter__(self) -> World:
        with ExitStack() as undo:
            undo.callback(self.api.close)
            undo.enter_context(self.proxy)
            undo.callback(self._sweep)
            undo.callback(self.kill_airflow)
            self.airflow.start()
            for dag_id in self._made_of:
                wait_for(partial(self._known, dag_id), 120)
                self.airflow.unpause(dag_id)
            self.foreign = self._foreign()
            undo.callback(self.api.remove_container, self.foreign, force=True)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def _sweep(self) -> None:
        """Remove what a failed test left of this Airflow's tries."""
        installation = self.airflow.installation
        left = find_leftovers(self.api, older_than_s=-60, installation=installation, running="any")
        remove_leftovers(self.api, left)

    def client(self) -> docker.APIClient:
        """A client of the engine itself, past the proxy."""
        return docker.APIClient(base_url=f"unix://{self.engine}", version="auto", timeout=60)

    def trigger(self, dag_id: str) -> str:
        """Begin a run; its id. SQLite, and a scheduler that was killed just now, may refuse at first."""
        with self._triggering:
            return str(wait_for(lambda: self._triggered(dag_id), 180)["dag_run_id"])

    def _triggered(self, dag_id: str) -> dict[str, Any] | None:
        answer = self.airflow.trigger(dag_id)
        if answer.status_code == 200:
            begun: dict[str, Any] = answer.json()
            return begun
        log.warning("no run yet: %s %s", answer.status_code, answer.text[:300])
        time.sleep(1)
        return None

    def _seen(self, call: Call, *, answered: bool) -> None:
        for watch in list(self.watches):
            watch.seen(call, answered=answered)

    def _heard(self, call: Call, data: bytes) -> None:
        for watch in list(self.watches):
            watch.heard(call, data)

    def key_of(self, dag_id: str, run_id: str) -> str:
        """Key of what a run has on the engine: the attempts of its only cycle, or its session."""
        session, slug_and_hash8, whole_hash = self._made_of[dag_id]
        attempt = Attempt(
            dag_id, run_id, TASK_ID, -1, slug_and_hash8, whole_hash, 1, 1, self.airflow.installation
        )
        return (session_of(attempt, session) if session else attempt).key

    def _planned(self, study: Path) -> tuple[str, str, str]:
        """Session, id and hash of the study's first cycle; read where the engine is installed."""
        code = (
            "import sys; from llem_airflow.study import load_study\n"
            "study = load_study(sys.argv[1]); run = study.plan.planned_cycles[0]\n"
            "print(run.session or '', run.experiment_id, study.experiment(run.experiment_id).hash, sep='\\n')"
        )
        command = [sys.executable, "-c", code, str(study)]
        said = subprocess.run(
            command, env=self.airflow.environment, check=True, capture_output=True, text=True
        )
        session, identity, digest = said.stdout.splitlines()
        return session, identity, digest

    def _known(self, dag_id: str) -> bool:
        return self.airflow.get(f"/api/v2/dags/{dag_id}").status_code == 200

    def _foreign(self) -> str:
        """A container that is none of ours: it must survive everything but its engine's death."""
        made = self.api.create_container(
            self.image,
            ["python3", "-c", "import time; time.sleep(36000)"],
            host_config=self.api.create_host_config(
                network_mode="none", init=True, restart_policy={"Name": "always"}
            ),
        )
        self.api.start(made["Id"])
        return str(made["Id"])

    def foreign_lives(self) -> bool:
        """Whether the container that is none of ours runs."""
        return bool(self.api.inspect_container(self.foreign)["State"]["Running"])

    def left(self, dag_id: str, run_id: str) -> list[str]:
        """Containers (which are the leases) and volumes of a run's tries."""
        label = {"label": f"llem.run_id={run_id}"}
        found = [f"container {c['Names'][0]}" for c in self.api.containers(all=True, filters=label)]
        found += [f"volume {v['Name']}" for v in self.api.volumes(filters=label)["Volumes"] or []]
        probes = self.api.containers(all=True, filters={"name": f"llem-probe-{self.key_of(dag_id, run_id)}"})
        return found + [f"container {c['Names'][0]}" for c in probes]

    def left_on_worker(self) -> list[str]:
        """Folders of attempts in the worker's temporary folder, when no run is under way."""
        return [path.name for path in self.temporary.glob("*llem-*")]

    def container_of(self, run_id: str) -> dict[str, Any] | None:
        """Inspection of the run's container, if there is one at the moment."""
        with contextlib.suppress(*ENGINE_ERRORS):
            for found in self.api.containers(
                all=True, filters={"label": [LABEL_KEY, f"llem.run_id={run_id}"]}
            ):
                inspection: dict[str, Any] = self.api.inspect_container(found["Id"])
                return inspection
        return None

    def kill_scheduler(self) -> None:
        """SIGKILL the scheduler; its tasks go on."""
        for pid, command in self._processes():
            if "airflow scheduler" in command:
                kill(pid)

    def restart_scheduler(self) -> None:
        """What its service manager would do."""
        with (self.airflow.home / "scheduler.log").open("ab") as log:
            self._started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "airflow", "scheduler"],
                    env=self.airflow.environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def kill_airflow(self) -> None:
        """SIGKILL every process of this Airflow, the tasks' too."""
        kill_sessions({process.pid for process in self._roots()})
        for process in self._roots():
            process.wait()
        self._started.clear()

    def _roots(self) -> list[subprocess.Popen[bytes]]:
        """What we have started, each in a session of its own."""
        return [*self._started, *([self.airflow._process] if self.airflow._process else [])]

    def kill_engine(self) -> None:
        """SIGKILL the Docker engine (dockerd and its containerd)."""
        kill_engine(self.engine.parent)

    def _processes(self) -> Iterator[tuple[int, str]]:
        return processes_of({process.pid for process in self._roots()})


def kill_engine(folder: Path) -> None:
    """SIGKILL the Docker engine of a folder (dockerd and its containerd)."""
    for name in ("docker.pid", "exec/containerd/containerd.pid"):
        kill(int((folder / name).read_text()))


def kill_sessions(sessions: set[int]) -> None:
    """SIGKILL every process of them."""
    for _ in range(3):  # a process may have started another one meanwhile
        for pid, _command in processes_of(sessions):
            kill(pid)


def processes_of(sessions: set[int]) -> Iterator[tuple[int, str]]:
    """Processes and their commands, by session: some of Airflow's write a title over arguments and environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(folder.name)) in sessions:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                yield int(folder.name), command.decode(errors="replace")


def dag_of(point: Point) -> str:
    """The DAG whose run is for a kill."""
    return DAGS[point.isolation]


def install_plugin(site: Path, work: Path) -> None:
    """Install the example engine: it needs nothing but Python, so an attempt takes few seconds."""
    shutil.copytree(PLUGIN, work)  # building leaves files beside the sources
    with (work / "llem_echo.py").open("a") as source:
        source.write(INDISCREET)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--target", str(site)]
    subprocess.run([*command, *options, str(work)], check=True, capture_output=True, stdin=subprocess.DEVNULL)


def wait_for(what: Callable[[], Any], timeout_s: float) -> Any:
    """The first true answer of ``what``."""
    deadline_s = time.monotonic() + timeout_s
    while not (found := what()):
        if time.monotonic() > deadline_s:
            raise TimeoutError
        time.sleep(0.05)
    return found


def kill(pid: int) -> None:
    """SIGKILL, where the process still lives."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
