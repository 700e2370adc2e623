"""A real Airflow for tests: ``airflow standalone`` with its own home, port, users and DAG folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from llem_airflow.cli.embedded import sqlite_url
from tests import parts
from tests.measurement.running import PLUGIN

REPOSITORY = Path(__file__).parents[2]
PASSWORDS = {"admin": "admin-pw", "bob": "bob-pw"}
PATIENCE_S = 180.0
"""How long a loaded machine may take to answer a request."""
PLAIN = False
"""The server speaks plain HTTP: no request needs to read the machine's certificates, which takes longer than itself."""
FINISHED = {"success", "failed"}
STANDALONE = (sys.executable, "-m", "airflow", "standalone")
"""All parts of an Airflow with the LocalExecutor: it takes no other."""
_EACH_PART = "for part in scheduler dag-processor api-server; do airflow $part & done"
PARTS = ("sh", "-c", f"airflow db migrate || exit; trap : TERM; {_EACH_PART}; wait; wait")
"""The same parts without the triggerer, with the executor of the settings."""
HICCUPS = 5
"""How often a request is asked again after a 500: SQLite was locked, or a run that an event made has not started yet,
which Airflow's list of events cannot show."""


class AirflowServer:
    """``airflow standalone`` and its REST API.

    Args:
        home: An empty folder: database, logs, DAGs and results go there.
        studies: Study files by name.
        environment: Further variables.
        command: What starts its parts; they end with its process group.
    """

    def __init__(
        self,
        home: Path,
        studies: dict[str, str],
        environment: dict[str, str],
        command: Sequence[str] = STANDALONE,
    ) -> None:
        self.home, self._command = home, command
        self.results = home / "results"
        self.port = parts.free_port()
        self.installation = f"test-{uuid.uuid4().hex[:8]}"
        self.url = f"http://localhost:{self.port}"
        dags = home / "dags"
        (dags / "studies").mkdir(parents=True)
        for file in (REPOSITORY / "dags").glob("*.py"):
            shutil.copy(file, dags)
        for name, text in studies.items():
            (dags / "studies" / name).write_text(text)
        passwords = home / "passwords.json"
        passwords.write_text(json.dumps(PASSWORDS))
        self.environment = {
            **os.environ,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": sqlite_url(home),
            "AIRFLOW__CORE__PARALLELISM": "2",
            # What an Airflow does while nothing happens costs as much as what it does for the tests.
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
            **environment,
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(REPOSITORY), str(PLUGIN), environment.get("PYTHONPATH")])
            ),
            # `airflow standalone` starts its parts as `airflow …`, which must be this environment's.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,bob:viewer",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
            "AIRFLOW__LLEM__INSTALLATION": self.installation,
            "AIRFLOW__LLEM__RESULTS_ROOT": str(self.results),
        }
        self.log = home / "standalone.log"
        self._tokens: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, timeout_s: float = 240.0) -> None:
        """Start it and wait until its DAGs are known."""
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                self._command,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            if self._healthy() and self.get("/api/v2/dags").json()["total_entries"]:
                return
            time.sleep(1)
        raise RuntimeError(
            f"{' '.join(self._command)} did not come up:\n{self.log.read_text(errors='replace')[-4000:]}"
        )

    def stop(self) -> None:
        """End it with everything it started."""
        if self._process is None:
            return
        for stop_signal in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, stop_signal)
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                continue
            except ProcessLookupError:
                return

    def token(self, user: str = "admin") -> str:
        """A bearer token of a user."""
        if user not in self._tokens:
            login = {"username": user, "password": PASSWORDS[user]}
            answer = httpx.post(f"{self.url}/auth/token", json=login, timeout=PATIENCE_S)
            answer.raise_for_status()
            self._tokens[user] = str(answer.json()["access_token"])
        return self._tokens[user]

    def get(self, path: str, *, user: str | None = "admin", **params: str) -> httpx.Response:
        """GET a path; ``user=None`` is an anonymous request."""
        return self._ask("GET", path, user, params=params)

    def send(self, method: str, path: str, body: dict[str, Any], *, user: str = "admin") -> httpx.Response:
        """POST, PATCH or PUT a path."""
        return self._ask(method, path, user, json=body)

    def unpause(self, dag_id: str) -> None:
        """Let the scheduler run a DAG."""
        self.send("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": False}).raise_for_status()

    def trigger(self, dag_id: str, **body: Any) -> httpx.Response:
        """Trigger a DAG, with ``conf``, ``partition_key`` or ``note``."""
        return self.send("POST", f"/api/v2/dags/{dag_id}/dagRuns", {"logical_date": None, **body})

    def run(self, dag_id: str, timeout_s: float = 420.0, **body: Any) -> dict[str, Any]:
        """Unpause and trigger a DAG and wait for the end of the run; returns the run as the API gives it."""
        self.unpause(dag_id)
        answer = self.trigger(dag_id, **body)
        answer.raise_for_status()
        return self.finished(dag_id, answer.json()["dag_run_id"], timeout_s)

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Every run of a DAG."""
        runs: list[dict[str, Any]] = self.get(f"/api/v2/dags/{dag_id}/dagRuns", limit="100").json()[
            "dag_runs"
        ]
        return runs

    def backfill(
        self, dag_id: str, first: str, last: str, timeout_s: float = 600.0, **body: Any
    ) -> dict[str, dict[str, Any]]:
        """Backfill a DAG over dates and wait for its end; returns the newest run of each partition."""
        self.unpause(dag_id)
        known = {run["dag_run_id"] for run in self.runs(dag_id)}
        request = {"dag_id": dag_id, "from_date": first, "to_date": last, "max_active_runs": 1, **body}
        answer = self.send("POST", "/api/v2/backfills", request)
        assert answer.status_code == 200, answer.text
        backfill_id = answer.json()["id"]
        deadline = time.monotonic() + timeout_s
        while not self.get(f"/api/v2/backfills/{backfill_id}").json()["completed_at"]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"backfill {backfill_id} of {dag_id} did not end within {timeout_s} s")
            time.sleep(1)
        return {run["partition_key"]: run for run in self.runs(dag_id) if run["dag_run_id"] not in known}

    def runs_of_partitions(
        self, dag_id: str, keys: set[str], timeout_s: float = 300.0
    ) -> dict[str, dict[str, Any]]:
        """Wait until there is a run of each partition, and for the end of each; the newest of each by its key."""
        deadline = time.monotonic() + timeout_s
        found: dict[str, dict[str, Any]] = {}
        while set(found) < keys:
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{dag_id} ran for {sorted(found)} within {timeout_s} s, not for {sorted(keys)}"
                )
            time.sleep(1)
            found = {run["partition_key"]: run for run in self.runs(dag_id)}
        return {key: self.finished(dag_id, run["dag_run_id"]) for key, run in found.items()}

    def finished(self, dag_id: str, run_id: str, timeout_s: float = 420.0) -> dict[str, Any]:
        """Wait for the end of a run."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            run: dict[str, Any] = self.get(f"/api/v2/dags/{dag_id}/dagRuns/{run_id}").json()
            if run["state"] in FINISHED:
                return run
            time.sleep(1)
        raise RuntimeError(f"run {run_id} of {dag_id} did not end within {timeout_s} s")

    def task_log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1) -> str:
        """The log of a task as the UI shows it."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        return self.get(path, full_content="true").text

    def first_run(self, dag_id: str, *, run_type: str, timeout_s: float = 300.0) -> dict[str, Any]:
        """Wait for a run of this type, which nobody triggered, and for its end."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = sorted(run["dag_run_id"] for run in self.runs(dag_id) if run["run_type"] == run_type)
            if found:
                return self.finished(dag_id, found[0])
            time.sleep(1)
        raise RuntimeError(f"no {run_type} run of {dag_id} within {timeout_s} s")

    def instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Every task instance of a run."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances"
        found: list[dict[str, Any]] = self.get(path).json()["task_instances"]
        return found

    def states(self, dag_id: str, run_id: str) -> dict[str, str]:
        """State of every task of a run."""
        return {ti["task_id"]: ti["state"] for ti in self.instances(dag_id, run_id)}

    def _ask(self, method: str, path: str, user: str | None, **content: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token(user)}"} if user else {}
        tries = 1 if method == "POST" else HICCUPS
        while True:
            answer = httpx.request(
                method, f"{self.url}{path}", headers=headers, timeout=PATIENCE_S, verify=PLAIN, **content
            )
            tries -= 1
            if answer.status_code != 500 or not tries:
                return answer
            time.sleep(1)

    def _healthy(self) -> bool:
        try:
            health = httpx.get(f"{self.url}/api/v2/monitor/health", timeout=10, verify=PLAIN)
        except httpx.HTTPError:
            return False
        return health.status_code == 200 and health.json()["scheduler"]["status"] == "healthy"


def new_run(airflow: AirflowServer, dag_id: str, known: set[str], run_type: str) -> dict[str, Any]:
    """The run that a page has started; a release that is out may start one of another type by itself."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for run in airflow.runs(dag_id):
            if run["dag_run_id"] not in known and run["run_type"] == run_type:
                return run
        time.sleep(1)
    raise AssertionError(f"{dag_id} was not started from the page")


def parsed(airflow: AirflowServer, known: Callable[[], bool]) -> None:
    """Have Airflow parse the folder of studies now instead of within 30 s, and wait until it shows."""
    token = airflow.get("/api/v2/dags/choice").json()["file_token"]
    deadline = time.monotonic() + 120
    while not known():
        assert time.monotonic() < deadline, airflow.log.read_text(errors="replace")[-3000:]
        airflow.send("PUT", f"/api/v2/parseDagFile/{token}", {})
        time.sleep(2)


@contextmanager
def more_studies(airflow: AirflowServer, texts: dict[str, str]) -> Iterator[None]:
    """Further studies of a running Airflow, by name, which are known inside."""
    files = [airflow.home / "dags" / "studies" / f"{name}.yaml" for name in texts]
    for file, text in zip(files, texts.values(), strict=True):
        file.write_text(text)
    try:
        parsed(airflow, lambda: all(airflow.get(f"/api/v2/dags/{name}").status_code == 200 for name in texts))
        yield
    finally:
        for file in files:
            file.unlink()
