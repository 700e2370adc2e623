"""Processes that are started again when they end, as a service manager does: Redis, workers, a triggerer."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tests import parts
from tests.chaos.world import kill_sessions, wait_for
from tests.push.servers import program

_PAUSE_S = 0.5


class Service:
    """A command that runs until it is stopped; the next one starts once it has ended.

    Args:
        command: What runs.
        log: Where its output goes.
        environment: Its variables; None for those of this process.
        ready: Says whether it does its work.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self._command, self._log, self._environment, self._ready = command, log, environment, ready
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._may_run = threading.Event()
        self._may_run.set()
        self._keeper = threading.Thread(target=self._keep, name=f"keep {log.stem}", daemon=True)

    def __enter__(self) -> Service:
        self._keeper.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def wait_until_ready(self) -> None:
        """Wait until it does its work."""
        try:
            wait_for(self._ready, 600)
        except TimeoutError:
            said = self._log.read_text(errors="replace")[-4000:]
            raise RuntimeError(f"{self._command} did not come up:\n{said}") from None

    def kill(self, *, held: bool = False) -> None:
        """SIGKILL it with all that it has started; ``held``: the next one starts at ``go_on``."""
        if held:
            self._may_run.clear()
        if self._process is not None:
            kill_sessions({self._process.pid})

    def go_on(self) -> None:
        """Let the next one start."""
        self._may_run.set()

    def _keep(self) -> None:
        with self._log.open("ab") as log:
            while self._may_run.wait() and not self._stopping.wait(_PAUSE_S):
                self._process = subprocess.Popen(
                    self._command,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                self._process.wait()

    def _stop(self) -> None:
        self._stopping.set()
        self._may_run.set()
        while self._keeper.is_alive():
            self.kill()
            self._keeper.join(1)


def redis(folder: Path) -> tuple[Service, str]:
    """A Redis that forgets nothing at its end, as docker-compose.airflow.yml has it, and its URL."""
    port = parts.free_port()
    command = [program("redis-server", "redis-server"), "--bind", "127.0.0.1", "--port", str(port)]
    folder.mkdir()
    keeps = ["--dir", str(folder), "--appendonly", "yes", "--save", ""]
    url = f"redis://127.0.0.1:{port}/0"
    return Service([*command, *keeps], folder / "redis.log", ready=lambda: _answers(port)), url


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(64).startswith(b"+PONG")
    return False


WORKER_NAME = "LLEM_TEST_WORKER"


def worker(queues: str, tasks: int, environment: Mapping[str, str], log: Path) -> Service:
    """A worker of Celery, which tells Airflow the name of its log as its machine's."""
    command = [sys.executable, "-m", "airflow", "celery", "worker", "--queues", queues]
    options = ["--concurrency", str(tasks), "--celery-hostname", log.stem, "--skip-serve-logs"]
    named = {
        WORKER_NAME: log.stem,
        "AIRFLOW__CORE__HOSTNAME_CALLABLE": f"{worker_name.__module__}.{worker_name.__name__}",
    }
    return Service(
        [*command, *options],
        log,
        {**environment, **named},
        ready=lambda: log.exists() and " ready." in log.read_text(errors="replace"),
    )


def triggerer(environment: Mapping[str, str], log: Path) -> Service:
    """A triggerer whose end is noticed soon."""
    quick = {
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "3",
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "15",
    }
    command = [sys.executable, "-m", "airflow", "triggerer", "--skip-serve-logs"]
    return Service(command, log, {**environment, **quick})


def worker_name() -> str:
    """What a worker calls its machine: here all are on one."""
    return os.environ[WORKER_NAME]
