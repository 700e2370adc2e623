"""A server as a child process: started, waited for, watched, ended. What it prints goes to server.log."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llem_airflow.measurement.failure import MeasurementError, from_output
from llem_airflow.measurement.output import seconds_since
from llem_airflow.measurement.server.command import HOST

HEALTH = "/health"
_LOOK_EVERY_S = 0.25
_ANSWER_S = 5.0
_TERMINATE_S = 15.0
_TAIL_LINES = 15
_END_BYTES = 64 * 1024


def free_port(wanted: int | None = None) -> int:
    """A port of loopback on which nothing listens.

    Args:
        wanted: The one that the study pins; None for any.

    Raises:
        MeasurementError: Something listens on the wanted one.
    """
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # a port in TIME_WAIT is free for a server
        try:
            probe.bind((HOST, wanted or 0))
        except OSError as error:
            raise MeasurementError(
                f"port {wanted} of {HOST} is taken ({error.strerror}): leave engine_params.port out, and a free one is "
                "chosen",
                category="port_taken",
            ) from error
        return int(probe.getsockname()[1])


class ServerProcess:
    """A running server. It stays in the session of the attempt, whose CPU time and end are its own, too.

    Attributes:
        port: Where it listens.
        log: What it prints.
        ready_s: From its start until it was ready, in seconds; None before.
    """

    def __init__(
        self, argv: tuple[str, ...], port: int, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log, self.port = log, port
        self.ready_s: float | None = None
        self._begin_ns = time.monotonic_ns()
        with log.open("ab") as output:
            try:
                self._process = subprocess.Popen(
                    argv,
                    env={**os.environ, **(environment or {})},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            except FileNotFoundError as error:
                raise MeasurementError(
                    f"the server's command {argv[0]!r} is not in this image: choose an image that holds the server",
                    category="engine_missing",
                ) from error

    def wait_ready(self, timeout_s: float, on_wait: Callable[[], None]) -> None:
        """Return when the health endpoint answers.

        Args:
            timeout_s: Longest wait since the start, in seconds.
            on_wait: Called at every look, to show that it lives.

        Raises:
            MeasurementError: It ended, or took longer.
        """
        while not self._healthy():
            self.check()
            if seconds_since(self._begin_ns) > timeout_s:
                raise self._failed(
                    f"the server did not answer {HEALTH} within {timeout_s:g} s", "server_not_ready"
                )
            on_wait()
            time.sleep(_LOOK_EVERY_S)
        self.ready_s = seconds_since(self._begin_ns)

    def check(self, when: str = "while it was measured") -> None:
        """Make sure that it runs.

        Args:
            when: When that is, of one that was ready.

        Raises:
            MeasurementError: It has ended.
        """
        if how := self.how_it_ended():
            when = "before it was ready" if self.ready_s is None else when
            raise self._failed(f"the server ended by itself {when}, with {how}", "server_died")

    def how_it_ended(self) -> str:
        """By which signal or with which exit code; empty while it runs."""
        code = self._process.poll()
        if code is None:
            return ""
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def get(self, path: str) -> bytes | None:
        """The body of one of its pages; None when it does not answer or does not have it."""
        return self._ask("GET", path)

    def post(self, path: str) -> bytes | None:
        """What it answers to an order without a body; None when it does not answer or does not have it."""
        return self._ask("POST", path)

    def _ask(self, method: str, path: str) -> bytes | None:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=_ANSWER_S)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            body = answer.read()
            return body if answer.status == http.HTTPStatus.OK else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def stop(self) -> None:
        """End it, in good order if it lets us. May be called twice."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_TERMINATE_S)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _healthy(self) -> bool:
        return self.get(HEALTH) is not None

    def _failed(self, what: str, category: str) -> MeasurementError:
        return server_error(what, self.log, category)


def json_object(body: bytes | None) -> dict[str, Any]:
    """The object of a page's body; empty where that is none."""
    try:
        found = json.loads(body or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def server_error(what: str, log: Path, category: str) -> MeasurementError:
    """A failure of a server with the end of its log, and the reason that the log tells where it is a known one.

    Args:
        what: What was seen from here.
        log: What it printed.
        category: The kind of failure where the log tells none.
    """
    said, advice = from_output(_end_of(log)) or (category, "")
    return MeasurementError("\n".join(filter(None, (f"{what}.", advice, _last_lines(log)))), category=said)


def client_error(what: str, log: Path, category: str) -> MeasurementError:
    """A failure of the load client, with the end of the server's log as evidence: no reason is looked for in it.

    Args:
        what: What was seen from here.
        log: What the server printed.
        category: The kind of failure.
    """
    return MeasurementError(f"{what}.\n{_last_lines(log)}", category=category)


def _last_lines(log: Path) -> str:
    lines = [line for line in _end_of(log).splitlines() if line.strip()][-_TAIL_LINES:]
    return "\n  ".join(["The end of the server's log (server.log):", *(lines or ["(nothing)"])])


def _end_of(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _END_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
