"""An Airflow of one's own: where it keeps its things, its settings, its UI.

Airflow is started as a command, with its settings in the environment, so that nothing here imports it: settings must
stand before the first import.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llem_airflow.cli.names import results_root
from llem_airflow.text.terminal import say

SETTINGS = {
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    # 32 workers are forked eagerly by default; one host with a few GPUs never needs them.
    "AIRFLOW__CORE__PARALLELISM": "4",
    # The gap between two cycles shrinks from 1 s to 0.2 s.
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",
    # An API server that is away for a minute must not kill a GPU experiment (the default gives up after about 50 s).
    "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "120",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "900",
    # On a busy host the API server may take long to answer: after 5 s, five times, a task would fail.
    "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
    # A new study file appears within half a minute, not five.
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
}
"""Airflow settings that matter for long GPU tasks, each with its reason."""


class EmbeddedRunError(RuntimeError):
    """The embedded Airflow could not do its work; the message says where its log lies."""

    exit_code = 1


class CannotStartError(ValueError):
    """What was asked for cannot be started here; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Home:
    """Where an embedded Airflow keeps its things.

    Attributes:
        airflow: AIRFLOW_HOME: database, logs, the generated DAG files.
        results: Root of the results.
        models: Folder of model directories.
    """

    airflow: Path
    results: str
    models: Path

    @classmethod
    def here(cls) -> Home:
        """From AIRFLOW_HOME, the variables of the results root and LLEM_MODELS_DIR; else below the current folder."""
        results = results_root()
        return cls(
            airflow=Path(os.environ.get("AIRFLOW_HOME") or "build/airflow").resolve(),
            results=results if "://" in results else str(Path(results).resolve()),
            models=Path(os.environ.get("LLEM_MODELS_DIR") or "build/models").resolve(),
        )

    def make(self) -> None:
        """Make AIRFLOW_HOME.

        Raises:
            CannotStartError: It cannot be made or written.
        """
        try:
            self.airflow.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.airflow):
                pass
        except OSError as error:
            raise CannotStartError(
                f"AIRFLOW_HOME {self.airflow} cannot be used: {error.strerror or error}; set AIRFLOW_HOME to a folder "
                "that can be written"
            ) from error

    def environment(self, dags_folder: Path) -> dict[str, str]:
        """The environment of an Airflow command; what the user has set already stays."""
        defaults = {
            **SETTINGS,
            # PyTorch's threads on a CPU sleep where they wait for each other. Where they spin, as libgomp's do by
            # default, a batch of eight on a busy machine of two cores took 36 s of CPU time and not 6.
            "OMP_WAIT_POLICY": "PASSIVE",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": sqlite_url(self.airflow),
            "AIRFLOW__LLEM__RESULTS_ROOT": self.results,
            "AIRFLOW__LLEM__MODELS_DIR": str(self.models),
        }
        decided = {
            "AIRFLOW_HOME": str(self.airflow),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags_folder),
            # `airflow standalone` starts its parts as `airflow`, by PATH
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }
        return {**defaults, **os.environ, **decided}


def sqlite_url(airflow_home: Path) -> str:
    """Airflow's own SQLite database, with patience: by default a writer gives up after 5 s of another one's work."""
    return f"sqlite:///{airflow_home / 'airflow.db'}?timeout=60"


def airflow_command(*arguments: str) -> list[str]:
    """The Airflow of this very environment, whatever stands on PATH."""
    return [sys.executable, "-m", "airflow", *arguments]


def migrate(home: Home, environment: dict[str, str]) -> None:
    """Make or upgrade the database.

    Raises:
        EmbeddedRunError: Airflow could not.
    """
    log = home.airflow / "migrate.log"
    with log.open("w") as output:
        code = subprocess.call(
            airflow_command("db", "migrate"), env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    if code:
        raise EmbeddedRunError(f"airflow db migrate failed (exit {code}); its log {log} ends:\n{tail(log)}")


def start_ui(home: Home, dags_folder: Path, port: int) -> int:
    """Start ``airflow standalone`` (scheduler, API server, DAG processor, triggerer) and wait for its end.

    Args:
        home: Where to keep things.
        dags_folder: Folder of DAG files.
        port: Where the UI is served, and where tasks find their API.

    Raises:
        CannotStartError: The port is taken; Airflow itself would go on without its API server.
    """
    _require_free_port(port)
    url = f"http://localhost:{port}"
    # Without these, a task looks for its API at port 8080 whatever the server's port is.
    addresses = {
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
    }
    environment = addresses | home.environment(dags_folder) | {"AIRFLOW__API__PORT": str(port)}
    home.make()
    log = home.airflow / "ui.log"
    say(f"Starting Airflow at {url}; its log is {log}")
    before = {number: signal.signal(number, signal.default_int_handler) for number in _ENDS}
    try:
        # A session of its own: what ends it is told to it once, by us.
        with (
            log.open("w") as output,
            subprocess.Popen(
                airflow_command("standalone"),
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as process,
        ):
            threading.Thread(target=_say_when_ready, args=(home, url, process), daemon=True).start()
            try:
                code = process.wait()
            except KeyboardInterrupt:
                end(process, _END_S)  # at SIGTERM `airflow standalone` leaves its parts behind
                return 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code:
        raise EmbeddedRunError(f"Airflow ended with {code}; its log {log} ends:\n{tail(log)}")
    return 0


def end(process: subprocess.Popen[Any], within_s: float) -> None:
    """Ctrl-C for a process that leads a session of its own; what is left of it after ``within_s`` is killed."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    try:
        process.wait(within_s)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def tail(log: Path) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def _say_when_ready(home: Home, url: str, process: subprocess.Popen[bytes]) -> None:
    """Say where the page is and who may enter: Airflow names the password only when it makes it, far above."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this very host is behind no proxy
    while process.poll() is None:
        time.sleep(0.5)
        try:
            with direct.open(f"{url}/api/v2/version", timeout=5):
                break
        except OSError:
            continue
    else:
        return
    passwords = home.airflow / "simple_auth_manager_passwords.json.generated"
    known = json.loads(passwords.read_text()) if passwords.is_file() else {}
    users = "".join(f", user {user}, password {password}" for user, password in known.items())
    say(f"Airflow's UI is ready: {url}{users}", "bold")


def _require_free_port(port: int) -> None:
    with socket.socket() as probe:
        # As the server does: no waiting after an earlier one.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise CannotStartError(
                f"port {port} cannot be had ({error.strerror}), perhaps because an Airflow runs already: see "
                f"http://localhost:{port}, or choose another: llem-airflow ui --port {port + 1}"
            ) from error


_ENDS = (signal.SIGINT, signal.SIGTERM)
_END_S = 60.0
