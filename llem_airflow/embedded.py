"""An Airflow of one's own: run a study once without a server, or start the UI on its results.

Airflow is started as a command, with its settings in the environment, so that nothing here imports it: settings must
stand before the first import.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llem_airflow import terminal
from llem_airflow.study import Study

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
        """From AIRFLOW_HOME, LLEM_RESULTS_ROOT and LLEM_MODELS_DIR; else below the current folder."""
        results = os.environ.get("LLEM_RESULTS_ROOT") or "results"
        return cls(
            airflow=Path(os.environ.get("AIRFLOW_HOME") or "build/airflow").resolve(),
            results=results if "://" in results else str(Path(results).resolve()),
            models=Path(os.environ.get("LLEM_MODELS_DIR") or "build/models").resolve(),
        )

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


def run_and_show(study: Study, home: Home, runner: str | None) -> int:
    """Run a study once, with progress; at the end show the table, where the report lies and how to open the UI.

    Returns:
        0 when every planned cycle has a result, else 1.

    Raises:
        EmbeddedRunError: Airflow could not be started.
    """
    from llem_airflow.analysis.summary import Summary
    from llem_airflow.analysis.table import render_summary
    from llem_airflow.progress import RunProgress
    from llem_airflow.results import ResultsRoot

    console = terminal.console()
    log = home.airflow / "run.log"
    home.airflow.mkdir(parents=True, exist_ok=True)
    n_runs = len(study.plan.runs)
    console.print(
        f"{study.name}: {len(study.experiments)} experiments x {study.cycles} cycles = {n_runs} cycles to run"
    )
    console.print(f"Airflow's log: {log}", soft_wrap=True, highlight=False)
    root = ResultsRoot(home.results)
    earlier = {run.url for run in root.runs(study.name)}
    with RunProgress(console, n_runs, log) as progress:
        code = run_study(study, home, runner, progress.line)
    new = [run for run in root.runs(study.name) if run.url not in earlier]
    if new and (summary := new[-1].summary()):
        console.print(render_summary(Summary.from_json(summary)))
        console.print(f"Report:  {new[-1].url}/report.html", soft_wrap=True, highlight=False)
        console.print("Open it: llem-airflow report latest --open", highlight=False)
        console.print("See it in Airflow's UI: llem-airflow ui (or: make airflow)", highlight=False)
    elif code:
        console.print(
            f"Airflow ended with {code} and there is no summary; its log is {log}",
            style="red",
            soft_wrap=True,
        )
    return 1 if code else 0


def run_study(study: Study, home: Home, runner: str | None, on_line: Callable[[str], None]) -> int:
    """Run a study once through ``airflow dags test``: SQLite, one process, the plan's order.

    Args:
        study: A study loaded from a file.
        home: Where to keep things.
        runner: ``process`` or ``container``, or None for what the study says.
        on_line: Called with every line of Airflow's output, without colours.

    Returns:
        Exit code of Airflow: 0 when every planned cycle has a result.

    Raises:
        EmbeddedRunError: The database could not be made.
    """
    if study.path is None:
        raise EmbeddedRunError("a study that runs through Airflow must lie in a file")
    dags = home.airflow / "run-once"
    dags.mkdir(parents=True, exist_ok=True)
    for earlier in dags.glob("*.py"):
        earlier.unlink()
    operator_args = {"runner": runner} if runner else {}
    (dags / "study.py").write_text(
        '"""The Airflow DAG of one study, made by `llem-airflow run`."""\n\n'
        "from llem_airflow.factory import study_dag\n\n"
        f"dag = study_dag({str(study.path.resolve())!r}, chain=True, **{operator_args!r})\n"
    )
    environment = home.environment(dags)
    migrate(home, environment)
    command = airflow_command("dags", "test", study.dag_id)
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                on_line(_COLOUR.sub("", line.rstrip("\n")))
        except BaseException:
            process.terminate()
            raise
        return process.wait()


def migrate(home: Home, environment: dict[str, str]) -> None:
    """Make or upgrade the database.

    Raises:
        EmbeddedRunError: Airflow could not.
    """
    home.airflow.mkdir(parents=True, exist_ok=True)
    log = home.airflow / "migrate.log"
    with log.open("w") as output:
        code = subprocess.call(
            airflow_command("db", "migrate"), env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    if code:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise EmbeddedRunError(f"airflow db migrate failed (exit {code}); its log is {log} and ends:\n{tail}")


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
    before = {number: signal.signal(number, signal.default_int_handler) for number in _ENDS}
    try:
        # A session of its own: what ends it is told to it once, by us.
        with subprocess.Popen(
            airflow_command("standalone"), env=environment, start_new_session=True
        ) as process:
            threading.Thread(target=_say_when_ready, args=(home, url, process), daemon=True).start()
            try:
                return process.wait()
            except KeyboardInterrupt:
                return _end(process)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGINT)  # at SIGTERM `airflow standalone` leaves its parts behind
    try:
        return process.wait(_END_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


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
    text = f"\nAirflow's UI is ready: {url}{users}\n"
    terminal.console().print(text, style="bold", soft_wrap=True, markup=False, highlight=False)


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
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
