"""The load process as the measurement sees it: started, waited for, cut.

A process of its own: beside the measurement's other threads a due time would be missed by up to a switch interval.
"""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from llem_airflow.measurement.load.client import ClientFacts
from llem_airflow.measurement.load.plan import LoadPlan, write_plan
from llem_airflow.protocol.processes import Child
from llem_airflow.protocol.typed_json import from_json


class LoadError(RuntimeError):
    """The load process could not do its work; the message says why."""


class LoadProcess:
    """A running load process."""

    def __init__(self, plan: LoadPlan, plan_json: Path, rows_jsonl: Path) -> None:
        """Write the plan and start the process.

        Args:
            plan: The traffic. Its start should be some seconds ahead: see ``wait_until_ready``.
            plan_json: Where the plan is written, as evidence.
            rows_jsonl: Where a row is appended for each request.
        """
        write_plan(plan.checked(), plan_json)
        self._child = Child("llem_airflow.measurement.load", str(plan_json), str(rows_jsonl))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.process.pid

    @property
    def broken_off(self) -> bool:
        """Whether the process has ended before its plan: after the last answer it ends by itself, however early."""
        return self._child.process.poll() not in {None, 0}

    def wait_until_ready(self, timeout_s: float = 60.0) -> int:
        """Wait until it has read its plan and waits for the start.

        Returns:
            When it was, in nanoseconds of the monotonic clock; after the plan's start the first requests are late.

        Raises:
            LoadError: It failed, or not in this time.
        """
        self._receive("ready", time.monotonic() + timeout_s)
        return time.monotonic_ns()

    def wait(self, timeout_s: float) -> ClientFacts:
        """Wait until the traffic has ended.

        Raises:
            LoadError: It failed, or not in this time; then it has been killed.
        """
        try:
            facts = self._receive("facts", time.monotonic() + timeout_s)
        finally:
            self.close()
        return from_json(ClientFacts, facts, "load")

    def cut(self) -> None:
        """End the traffic now; ``wait`` then returns in a moment."""
        self._child.process.terminate()

    def close(self) -> None:
        """See the process end, by force if it does not by itself."""
        self._child.end(1.0)

    def how_it_ended(self) -> str:
        """Signal or exit code of a process that has ended."""
        try:
            code = self._child.process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "says nothing any more"
        return f"ended with {f'signal {signal.Signals(-code).name}' if code < 0 else f'exit code {code}'}"

    def _receive(self, wanted: str, deadline_s: float) -> Any:
        while True:
            message = self._child.messages.receive(deadline_s - time.monotonic())
            if message is None:
                state = self.how_it_ended() if self._child.messages.ended else "has not answered in time"
                raise LoadError(f"the load process {state} (waited for: {wanted}); see the log above")
            if "error" in message:
                raise LoadError(message["error"])
            if wanted in message:
                return message[wanted]
