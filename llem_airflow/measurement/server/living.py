"""A server that lives on over the experiments of a session: what makes it ready for the next one, and its log."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from llem_airflow.measurement.engines.contract import EngineFacts
from llem_airflow.measurement.failure import MeasurementError
from llem_airflow.measurement.server.command import ServerCommand
from llem_airflow.measurement.server.process import HEALTH, ServerProcess, json_object, server_error
from llem_airflow.measurement.server.scrape import METRICS, samples
from llem_airflow.protocol.files import SERVER_LOG
from llem_airflow.protocol.spec import ExperimentSpec

DEVELOPER = {"VLLM_SERVER_DEV_MODE": "1"}
"""With it vLLM's server has the page that resets its prefix cache."""

_LOG = "server-log"
_RESET = "/reset_prefix_cache"
_AT_WORK = ("vllm:num_requests_running", "vllm:num_requests_waiting")
_READY_S = 60.0
_LOOK_EVERY_S = 0.25


def check_lives_on(spec: ExperimentSpec) -> None:
    """Make sure that the engine's server can serve several experiments.

    Raises:
        MeasurementError: It cannot.
    """
    if spec.engine != "vllm":
        raise MeasurementError(
            f"the server of {spec.engine} cannot be made ready for a second experiment: use "
            "study_execution.isolation: process",
            category="bad_parameter",
        )


def environment_of(command: ServerCommand) -> dict[str, str]:
    """What a server that lives on needs in its environment: with the prefix cache off there is nothing to reset."""
    return DEVELOPER if command.settings.get("enable_prefix_caching") else {}


class LivingServer:
    """A server that has been started, as a session keeps it.

    Args:
        server: It.
        command: How it was started.
        facts: What it told of itself.
        home: A folder of the session, on the file system of the attempts' folders.
        out: Folder of the attempt that has started it; what the server prints goes there.
    """

    def __init__(
        self, server: ServerProcess, command: ServerCommand, facts: EngineFacts, home: Path, out: Path
    ) -> None:
        self.server, self.command = server, command
        self._facts, self._log = facts, home / _LOG
        self._log.unlink(missing_ok=True)
        self._log.hardlink_to(out / SERVER_LOG)

    def describe(self) -> EngineFacts:
        """What it told of itself when it had started."""
        return self._facts

    def died(self) -> str:
        """How it ended by itself; empty while it runs."""
        return self.server.how_it_ended()

    def reset(self, spec: ExperimentSpec) -> None:
        """Wait until it is well and has nothing to do, and empty its prefix cache.

        Raises:
            MeasurementError: It has ended, or does not come to rest.
        """
        self.server.check("before the next experiment")
        patience_s = min(_READY_S, float(spec.config["server"]["startup_timeout_seconds"]))
        deadline_s = time.monotonic() + patience_s
        while what := self._not_ready():
            self.server.check("before the next experiment")
            if time.monotonic() >= deadline_s:
                raise server_error(
                    f"the server of the session is not ready for the next experiment after {patience_s:g} s: {what}",
                    self._log,
                    "server_not_ready",
                )
            time.sleep(_LOOK_EVERY_S)

    def take_log(self, out: Path) -> None:
        """From now on what it prints goes into this attempt's folder, with what it has printed since the last."""
        (out / SERVER_LOG).hardlink_to(self._log)
        self.server.log = out / SERVER_LOG

    def leave_log(self, out: Path) -> None:
        """The attempt is over: its log is a file of its own."""
        own = out / SERVER_LOG
        copy = own.with_suffix(".copy")
        shutil.copyfile(self._log, copy)
        with self._log.open("r+b") as log:
            log.truncate()  # the server appends
        copy.replace(own)
        self.server.log = self._log

    def close(self) -> None:
        """End it."""
        self.server.stop()

    def _not_ready(self) -> str:
        """Why it cannot take the next experiment; empty when it can."""
        if self.server.get(HEALTH) is None:
            return f"{HEALTH} does not answer"
        told = samples((self.server.get(METRICS) or b"").decode(errors="replace"))
        if asked := sum(sum(told.get(name, ())) for name in _AT_WORK):
            return f"it still works on {asked:g} requests"
        if environment_of(self.command) and json_object(self.server.post(_RESET)).get("success") is not True:
            return f"{_RESET} does not say that the prefix cache is empty"
        return ""
