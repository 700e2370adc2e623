"""The sampling process: reads the meter at absolute deadlines and appends every row to power.csv.

It is told what to do by lines on its control pipe (``tick ID SECONDS``, ``describe ID``, ``stop ID``) and
answers with JSON lines. It outlives the inference process by at least a second, so that the window is
bracketed by samples even when that process ends badly; then it ends by itself.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from llem_airflow.measurement.meters.contract import Meter, MeterFacts, Reading
from llem_airflow.protocol.live import DEVICES_A_RECORD, ENV_LIVE, DevicePower, LivePower, power_record
from llem_airflow.protocol.processes import own_cpu_s

TAIL_S = 1.05
"""How long it goes on after it was told to stop: a little over the second that the window's end needs."""

TICK_POLL_S = 0.0005
"""Pause between two looks at the counter while waiting for it to move."""

SHARP_NS = 5_000_000
"""Two readings that are at most so far apart show a move sharply; a stalled look waits for the next move."""

_TRIES = 3
"""Moves of a device that a watch sees before it makes do with a blurred one: some drivers answer slowly."""

_WATCH_S = 0.5
"""Longest watch: a few register periods."""

_OWN_POLL_S = 0.002
"""The same for watches that nobody asked for: a fourth of the cost, and sharp enough, as there are many."""

_OWN_WATCHES_S = (1.0, 4.0)
_OWN_WATCH_EVERY_S = 20.0
"""Watches that nobody asked for, by the time to the next: they tell the register's phase and period all along, so
that the window's edges are known even if a busy host hides the moves beside them."""


@dataclass
class Tally:
    """What the sampling did so far.

    Attributes:
        rows: Rows of regular samples.
        failed_reads: Rows that told no power.
        sweeps: Regular samples of all devices.
        missed: Deadlines that had passed before they could be met.
        first_ns: Monotonic time of the first sweep.
        last_ns: Monotonic time of the latest sweep.
        call_s: Duration of each reading, in seconds.
        cpu_before_s: CPU time of this process at the first sweep, in seconds.
    """

    rows: int = 0
    failed_reads: int = 0
    sweeps: int = 0
    missed: int = 0
    first_ns: int = 0
    last_ns: int = 0
    call_s: array[float] = field(default_factory=lambda: array("d"))
    cpu_before_s: float = 0.0

    def report(self) -> dict[str, Any]:
        """The tally as JSON values."""
        span_s = (self.last_ns - self.first_ns) / 1e9
        return {
            "samples": self.rows,
            "failed_reads": self.failed_reads,
            "missed_deadlines": self.missed,
            "achieved_hz": (self.sweeps - 1) / span_s if self.rows and self.sweeps > 1 else None,
            "call_p50_s": statistics.median(self.call_s) if self.call_s else None,
            "sampler_cpu_s": own_cpu_s() - self.cpu_before_s,
        }


class TickWatch:
    """Waits until the energy counter of every device has moved once before its eyes.

    Both rows around a move go into power.csv: the last reading of the old value and the first of the new
    one. They are a millisecond or two apart, which is far finer than the register's own period of about 100
    ms. Where the two came to lie further apart, the next move is waited for as well.

    Args:
        readings: The counters now.
        now_ns: Now.
        request: Who wants to know of the first sharp move, if anybody does.
        patience_s: How long the asker waits, in seconds.
        moves: Sharp moves to see of each device.
    """

    def __init__(
        self,
        readings: Sequence[Reading],
        now_ns: int,
        *,
        request: str | None = None,
        patience_s: float = 0.0,
        moves: int = 1,
    ) -> None:
        self.request = request
        self.answer_by_ns = now_ns + round(patience_s * 1e9)
        self.until_ns = now_ns + round(max(_WATCH_S, patience_s) * 1e9)
        self._last = {reading.gpu: reading for reading in readings if reading.energy_mj is not None}
        self._wanted = dict.fromkeys(self._last, moves)
        self._tries = dict.fromkeys(self._last, moves - 1 + _TRIES)
        self.tick_ns: int | None = None
        self.poll_s = TICK_POLL_S if request else _OWN_POLL_S

    @property
    def waiting(self) -> bool:
        """Whether some device has not moved yet."""
        return bool(self._last)

    def look(self, readings: Sequence[Reading]) -> list[Reading]:
        """Rows to keep, of the devices that moved since the last look."""
        keep: list[Reading] = []
        for now in readings:
            before = self._last.get(now.gpu)
            if before is None or now.energy_mj is None:
                continue
            self._last[now.gpu] = now
            if now.energy_mj != before.energy_mj:
                keep += [before, now]
                self._seen(before, now)
        return keep

    def _seen(self, before: Reading, now: Reading) -> None:
        self._tries[now.gpu] -= 1
        if now.t_after_mono_ns - before.t_before_mono_ns <= SHARP_NS:
            self._wanted[now.gpu] -= 1
            self.tick_ns = self.tick_ns or (before.t_before_mono_ns + now.t_after_mono_ns) // 2
        if self._wanted[now.gpu] == 0 or self._tries[now.gpu] == 0:
            del self._last[now.gpu]


class Sampling:
    """The loop."""

    def __init__(
        self,
        meter: Meter,
        power_csv: TextIO,
        hz: float,
        control: int,
        say: Callable[[dict[str, Any]], None],
        live: LiveTeller | None = None,
    ) -> None:
        self._meter, self._csv, self._control, self._say = meter, power_csv, control, say
        self._live = live
        self._period_ns = round(1e9 / hz)
        self._parent = os.getppid()
        self._end_ns: int | None = None
        self._listening = True
        self._buffer = b""
        self._watch: TickWatch | None = None
        self._own_watches = iter(_OWN_WATCHES_S)
        self._own_watch_ns = time.monotonic_ns()
        self._stop_request: str | None = None
        self.tally = Tally()

    def run(self) -> None:
        """Sample until told to stop, or until the parent is gone, and a little longer."""
        due_ns = time.monotonic_ns() + self._period_ns
        while self._end_ns is None or time.monotonic_ns() < self._end_ns:
            self._attend_until(due_ns)
            self._sample()
            self._count_sweep()
            self._watch_now_and_then()
            if self.tally.sweeps == 1:
                self._say({"sampling": True})
            if os.getppid() != self._parent:
                self._end_soon()
            due_ns = self._next_deadline(due_ns)
        self._say({"id": self._stop_request, "stopped": self.tally.report()})

    def _next_deadline(self, due_ns: int) -> int:
        """The next multiple of the period; deadlines that have passed are counted, not caught up with."""
        due_ns += self._period_ns
        late_ns = time.monotonic_ns() - due_ns
        if late_ns > 0:
            missed = late_ns // self._period_ns + 1
            self.tally.missed += missed
            due_ns += missed * self._period_ns
        return due_ns

    def _count_sweep(self) -> None:
        self.tally.sweeps += 1
        self.tally.last_ns = time.monotonic_ns()
        if self.tally.sweeps == 1:
            self.tally.first_ns, self.tally.cpu_before_s = self.tally.last_ns, own_cpu_s()

    def _sample(self) -> None:
        readings = self._meter.read()
        self._write(readings)
        tally = self.tally
        tally.rows += len(readings)
        tally.failed_reads += sum([not reading.has_power for reading in readings])
        tally.call_s.extend([(r.t_after_mono_ns - r.t_before_mono_ns) / 1e9 for r in readings])
        if self._live is not None:
            self._live.add(readings)

    def _write(self, readings: Sequence[Reading]) -> None:
        if not readings:
            return
        self._csv.write("".join(reading.line() for reading in readings))
        self._csv.flush()  # a killed container keeps what was seen

    def _attend_until(self, due_ns: int) -> None:
        """Serve the control pipe, and a counter watch if there is one, until the next sample is due."""
        while True:
            left_s = (due_ns - time.monotonic_ns()) / 1e9
            if left_s <= 0:
                return
            if (watch := self._watch) is not None:
                self._look_for_tick(watch)
                left_s = min(left_s, watch.poll_s)
            ready, _, _ = select.select([self._control] if self._listening else [], [], [], left_s)
            if ready:
                self._hear(os.read(self._control, 4096))

    def _hear(self, heard: bytes) -> None:
        if not heard:  # the other end is gone
            self._listening = False
            self._end_soon()
            return
        *lines, self._buffer = (self._buffer + heard).split(b"\n")
        for line in lines:
            self._obey(*line.decode("ascii").split())

    def _obey(self, command: str, request: str, argument: str = "") -> None:
        if command == "tick" and self._meter.ticks:
            self._watch = TickWatch(
                self._meter.counters(), time.monotonic_ns(), request=request, patience_s=float(argument)
            )
        elif command == "tick":
            self._sample()  # a counter that flows is simply read where it is wanted
            self._say({"id": request, "tick": None})
        elif command == "describe":
            self._say({"id": request, "gpus": self._meter.describe()})
        elif command == "stop":
            self._stop_request = request
            self._end_soon()

    def _watch_now_and_then(self) -> None:
        if not self._meter.ticks or self._watch is not None or time.monotonic_ns() < self._own_watch_ns:
            return
        first = self.tally.sweeps == 1
        self._watch = TickWatch(self._meter.counters(), time.monotonic_ns(), moves=2 if first else 1)
        wait_s = next(self._own_watches, _OWN_WATCH_EVERY_S)
        self._own_watch_ns = time.monotonic_ns() + round(wait_s * 1e9)

    def _look_for_tick(self, watch: TickWatch) -> None:
        self._write(watch.look(self._meter.counters()))
        now_ns = time.monotonic_ns()
        if watch.request and (watch.tick_ns or not watch.waiting or now_ns > watch.answer_by_ns):
            self._say({"id": watch.request, "tick": watch.tick_ns})
            watch.request = None
        if not watch.waiting or now_ns > watch.until_ns:
            self._watch = None

    def _end_soon(self) -> None:
        if self._end_ns is None:
            self._end_ns = time.monotonic_ns() + round(TAIL_S * 1e9)


def say_to(stream: TextIO) -> Callable[[dict[str, Any]], None]:
    """A function that writes JSON lines to a stream, and keeps silent when nobody reads it any more."""

    def say(message: dict[str, Any]) -> None:
        try:
            stream.write(json.dumps(message) + "\n")
            stream.flush()
        except BrokenPipeError:
            pass  # the parent died; the rows still go to power.csv

    return say


EVERY_NS = 2_000_000_000


class LiveTeller:
    """Sums up readings and writes a record when one is due.

    Args:
        facts: What the meter reads.
        descriptor: Where records go.
        every_ns: Time between two, in nanoseconds.
    """

    def __init__(self, facts: MeterFacts, descriptor: int, every_ns: int = EVERY_NS) -> None:
        self._kind, self._descriptor, self._every_ns = facts.energy_kind, descriptor, every_ns
        self._due_ns = 0
        self._power_mw: dict[str, list[int]] = {}

    def add(self, readings: Sequence[Reading]) -> None:
        """Take a sweep of all devices."""
        for reading in readings:
            power_mw = reading.power_instant_mw
            if power_mw is None:
                power_mw = reading.power_average_mw
            if power_mw is not None:
                self._power_mw.setdefault(reading.gpu, []).append(power_mw)
        if readings and readings[-1].t_after_mono_ns >= self._due_ns:
            self._tell(readings[-1].t_after_mono_ns)

    def _tell(self, now_ns: int) -> None:
        self._due_ns = now_ns + self._every_ns
        told, self._power_mw = list(self._power_mw.items()), {}
        for begin in range(0, len(told), DEVICES_A_RECORD):
            devices = {
                gpu: DevicePower(min(mw) / 1e3, sum(mw) / len(mw) / 1e3, max(mw) / 1e3, len(mw))
                for gpu, mw in told[begin : begin + DEVICES_A_RECORD]
            }
            self._write(power_record(LivePower(now_ns, self._kind, devices)))

    def _write(self, record: bytes) -> None:
        try:
            if select.select([], [self._descriptor], [], 0)[1]:
                os.write(self._descriptor, record)  # a pipe that can be written takes a record whole
        except OSError:
            self._due_ns = 1 << 63  # nobody reads it any more; the rows still go to power.csv


def teller(facts: MeterFacts, descriptor: int) -> LiveTeller | None:
    """The teller of this process, if its runner wants live records."""
    return LiveTeller(facts, descriptor) if os.environ.get(ENV_LIVE) else None
