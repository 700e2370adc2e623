"""The power sampler as the measurement sees it: a process of its own, started, asked and stopped.

A process, because a thread beside a Python inference loop loses samples to the interpreter lock.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llem_airflow.measurement.meters.choose import open_meter
from llem_airflow.measurement.meters.contract import MeterFacts, MeterUnavailableError
from llem_airflow.measurement.sampling import TAIL_S, Sampling, say_to, teller
from llem_airflow.protocol.files import POWER_COLUMNS
from llem_airflow.protocol.processes import Child
from llem_airflow.protocol.result import Meter
from llem_airflow.protocol.spec import MeterSpec
from llem_airflow.protocol.typed_json import from_json, to_json

START_TIMEOUT_S = 60.0
"""A cold start of the driver on a host with many GPUs and no persistence mode takes tens of seconds."""

_ENDS_S = 0.5


def start_sampler(meter: MeterSpec, power_csv: Path) -> Sampler:
    """Start the sampling process and wait for its first row.

    Args:
        meter: What to read; ``auto`` is resolved by the process itself.
        power_csv: Where the rows go.

    Raises:
        MeterUnavailableError: The meter cannot read power here, or the process did not start.
    """
    channel = _Channel("llem_airflow.measurement.sampler", json.dumps(to_json(meter)), str(power_csv))
    opened = channel.messages.receive(START_TIMEOUT_S)
    if opened is None or "facts" not in opened:
        channel.end(_ENDS_S)
        message = (
            opened["error"]
            if opened
            else "the sampling process ended or was silent at its start; see the log above"
        )
        raise MeterUnavailableError(message)
    if channel.messages.receive(START_TIMEOUT_S) is None:
        channel.end(_ENDS_S)
        raise MeterUnavailableError("the sampling process read no first sample; see the log above")
    return Sampler(channel, from_json(MeterFacts, opened["facts"], "sampler"), meter, power_csv)


class Sampler:
    """A running sampling process.

    Attributes:
        facts: What it reads.
    """

    def __init__(self, channel: _Channel, facts: MeterFacts, spec: MeterSpec, power_csv: Path) -> None:
        self._channel, self._spec, self._power_csv = channel, spec, power_csv
        self._lock = threading.Lock()
        self._meter: Meter | None = None
        self.facts = facts

    @property
    def kind(self) -> str:
        """The meter in use, with ``auto`` resolved."""
        return self.facts.kind

    def wait_for_tick(self, timeout_s: float = 0.3) -> int | None:
        """Wait until the energy counter moves, and put sharp rows around that moment into power.csv.

        Call it right before the window opens, and once more right after it has closed.

        Returns:
            Monotonic nanoseconds of the move, or None without such a counter or when it did not move in time.
        """
        answer = self._ask("tick", timeout_s, str(timeout_s))
        tick: int | None = answer.get("tick")
        return tick

    def describe_gpus(self) -> list[dict[str, Any]]:
        """Identity, limits, clocks, modes and processes of the GPUs; empty for meters of the host."""
        gpus: list[dict[str, Any]] = self._ask("describe", 10.0).get("gpus", [])
        return gpus

    @contextmanager
    def resting(self) -> Iterator[None]:
        """While the body runs, nothing is read: for what is compared with a measurement."""
        self._channel.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._channel.process.send_signal(signal.SIGCONT)

    def stop(self) -> Meter:
        """Sample a second more, end the process, tell what it was. May be called twice, from any thread."""
        with self._lock:
            if self._meter is None:
                answer = self._channel.ask("stop", TAIL_S + 0.6)
                self._channel.end(_ENDS_S)
                self._meter = self._summary(answer.get("stopped"))
            return self._meter

    def _ask(self, command: str, timeout_s: float, argument: str = "") -> dict[str, Any]:
        with self._lock:
            return {} if self._meter is not None else self._channel.ask(command, timeout_s + 0.2, argument)

    def _summary(self, report: dict[str, Any] | None) -> Meter:
        facts, note = self.facts, self.facts.note
        if report is None:  # it was killed: what it wrote is still there
            note = f"The sampling process ended before it was told to. {note}"
            report = {"samples": _rows(self._power_csv), "failed_reads": 0}
        return Meter(
            kind=facts.kind,
            energy_kind=facts.energy_kind,
            boundary=facts.boundary,
            devices=facts.devices,
            requested_hz=self._spec.power_hz,
            achieved_hz=report.get("achieved_hz"),
            samples=report["samples"],
            failed_reads=report["failed_reads"],
            call_p50_s=report.get("call_p50_s"),
            sampler_cpu_s=report.get("sampler_cpu_s"),
            note=note,
        )


class _Channel(Child):
    """Requests to the sampling process and its answers, matched by number."""

    _requests = 0

    def ask(self, command: str, timeout_s: float, argument: str = "") -> dict[str, Any]:
        """Send a request and wait for its answer; empty when the process is gone or silent."""
        self._requests += 1
        request = str(self._requests)
        deadline_s = time.monotonic() + timeout_s
        if not self.send(f"{command} {request} {argument}"):
            return {}
        while (answer := self.messages.receive(deadline_s - time.monotonic())) is not None:
            if answer.get("id") == request:
                return answer
        return {}


def sampler_main(argv: list[str]) -> int:
    """The sampling process: ``<MeterSpec as JSON> <power.csv>``.

    Signals that end the inference process do not end this one: it ends a second after its parent, by itself.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    say = say_to(sys.stdout)
    spec = from_json(MeterSpec, json.loads(argv[0]), "meter")
    with Path(argv[1]).open("a", encoding="ascii") as power_csv:
        if power_csv.tell() == 0:
            power_csv.write(",".join(POWER_COLUMNS) + "\n")
            power_csv.flush()
        try:
            meter = open_meter(spec)
        except MeterUnavailableError as error:
            say({"error": str(error)})
            return 1
        say({"facts": asdict(meter.facts)})
        live = teller(meter.facts, sys.stderr.fileno())
        Sampling(meter, power_csv, spec.power_hz, sys.stdin.fileno(), say, live).run()
        meter.close()
    return 0


def _rows(power_csv: Path) -> int:
    with power_csv.open(encoding="ascii") as lines:
        return max(sum(1 for _ in lines) - 1, 0)


if __name__ == "__main__":
    sys.exit(sampler_main(sys.argv[1:]))
