"""What a cycle at work tells those who watch: live records, thinned to a bounded size, in the results store."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from llem_airflow.protocol.live import DevicePower, LivePhase, LivePower
from llem_airflow.results import StoredRun
from llem_airflow.results.folder import ResultsWriteError
from llem_airflow.results.records import Live, LiveGpu, LiveSpan, end_live, write_live

_log = logging.getLogger(__name__)

STRETCHES = 400
"""So many values a device has at most; with more than four devices fewer, so that the file stays below 100 kB."""
LONGEST_PHASES = 100
LONGEST_DEVICES = 64
EVERY_S = 2.0
EVERY_ON_OBJECT_STORE_S = 10.0
"""Each write is a request there: 360 an hour."""
SHARE = 0.004
"""Of a core, at most, that writing takes: after a slow write the next one comes later."""
_STOP_S = 5.0


@dataclass
class _Stretch:
    end_ns: int
    records: int
    devices: dict[str, DevicePower]


@dataclass
class LiveSeries:
    """Records of one attempt, of bounded size however long it takes: neighbours are merged when there are too many."""

    energy_kind: str = "none"
    _stretches: list[_Stretch] = field(default_factory=list)
    _phases: list[tuple[str, int, int | None]] = field(default_factory=list)
    _origin_ns: int | None = None
    _last: dict[str, DevicePower] = field(default_factory=dict)
    _per_stretch: int = 1

    def add(self, record: LivePower | LivePhase) -> None:
        """Take a record; one from before the last is left out."""
        if self._origin_ns is None:
            self._origin_ns = record.t_mono_ns
        if isinstance(record, LivePower):
            self._add_power(record)
        else:
            self._add_phase(record)

    def _add_phase(self, record: LivePhase) -> None:
        if self._phases and self._phases[-1][2] is None:
            self._phases[-1] = (*self._phases[-1][:2], record.t_mono_ns)
        if record.phase is not None:
            self._phases = [*self._phases[-LONGEST_PHASES + 1 :], (record.phase, record.t_mono_ns, None)]

    def _add_power(self, record: LivePower) -> None:
        last = self._stretches[-1] if self._stretches else None
        if last is not None and record.t_mono_ns < last.end_ns:
            return
        self.energy_kind = record.energy_kind
        known = self._last.keys() | record.devices.keys()
        devices = record.devices if len(known) <= LONGEST_DEVICES else {}
        self._last = {**self._last, **devices}
        same = last is not None and record.t_mono_ns == last.end_ns  # a sweep of many devices comes in parts
        if last is not None and (same or last.records < self._per_stretch):
            last.devices = _merged(last.devices, devices)
            last.records += not same
            last.end_ns = record.t_mono_ns
        else:
            self._stretches.append(_Stretch(record.t_mono_ns, 1, devices))
        if len(self._stretches) > min(STRETCHES, 4 * STRETCHES // max(len(self._last), 1)):
            self._halve()

    def _halve(self) -> None:
        pairs = zip(self._stretches[::2], [*self._stretches[1::2], None], strict=False)
        self._stretches = [
            _Stretch(b.end_ns, a.records + b.records, _merged(a.devices, b.devices)) if b else a
            for a, b in pairs
        ]
        self._per_stretch *= 2

    def told(self, try_number: int) -> Live | None:
        """What is known now; None before the first record."""
        if self._origin_ns is None:
            return None
        ends = [self._since(each.end_ns) for each in self._stretches]
        begins = [self._since(begin) for _, begin, _ in self._phases]
        return Live(
            try_number=try_number,
            written_epoch_ns=time.time_ns(),
            last_s=max([*ends[-1:], *begins[-1:], 0.0]),
            energy_kind=self.energy_kind,
            phases=tuple(
                LiveSpan(name, self._since(begin), None if end is None else self._since(end))
                for name, begin, end in self._phases
            ),
            gpus=tuple(self._gpu(name) for name in sorted(self._last)),
        )

    def _gpu(self, name: str) -> LiveGpu:
        rows = [(each.end_ns, each.devices[name]) for each in self._stretches if name in each.devices]
        return LiveGpu(
            gpu=name,
            t_s=tuple(self._since(end) for end, _ in rows),
            low_w=tuple(round(one.low_w, 1) for _, one in rows),
            mean_w=tuple(round(one.mean_w, 1) for _, one in rows),
            high_w=tuple(round(one.high_w, 1) for _, one in rows),
            now_w=self._last[name].mean_w,
        )

    def _since(self, t_mono_ns: int) -> float:
        return round((t_mono_ns - (self._origin_ns or 0)) / 1e9, 2)


def _merged(before: dict[str, DevicePower], after: dict[str, DevicePower]) -> dict[str, DevicePower]:
    found = {**before, **after}
    for name in before.keys() & after.keys():
        a, b = before[name], after[name]
        n = a.samples + b.samples
        mean_w = (a.mean_w * a.samples + b.mean_w * b.samples) / n
        found[name] = DevicePower(min(a.low_w, b.low_w), mean_w, max(a.high_w, b.high_w), n)
    return found


class LiveWriter:
    """Writes what is known every few seconds, in a thread of its own: a store that hangs holds up nobody.

    Args:
        run: The run.
        experiment_id: The experiment of the cycle.
        cycle: Which repetition, from 1.
        try_number: Which try of the task.
    """

    def __init__(self, run: StoredRun, experiment_id: str, cycle: int, try_number: int) -> None:
        self._run, self._experiment_id, self._cycle, self._try = run, experiment_id, cycle, try_number
        self._series = LiveSeries()
        self._lock = threading.Lock()
        self._changed = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="llem-live", daemon=True)

    def take(self, record: LivePower | LivePhase) -> None:
        """Take a record; returns at once."""
        with self._lock:
            self._series.add(record)
            self._changed = True

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def end(self) -> None:
        """Stop, and remove the file."""
        self._wake.set()
        self._thread.join(_STOP_S)

    def _write_on(self) -> None:
        try:
            self._write_now_and_then(EVERY_S if self._run.path is not None else EVERY_ON_OBJECT_STORE_S)
        finally:
            end_live(self._run, self._experiment_id, self._cycle)

    def _write_now_and_then(self, least_s: float) -> None:
        pause_s, failed = least_s, False
        while not self._wake.wait(pause_s):
            begin_s = time.thread_time()
            try:
                self._write()
            except ResultsWriteError as error:
                if not failed:
                    _log.warning("Live power is not shown: %s", error)
                failed = True
            pause_s = max(least_s, (time.thread_time() - begin_s) / SHARE)

    def _write(self) -> None:
        with self._lock:
            live = self._series.told(self._try) if self._changed else None
            self._changed = False
        if live is not None:
            write_live(self._run, self._experiment_id, self._cycle, live)


@contextmanager
def live_power(run: StoredRun, experiment_id: str, cycle: int, try_number: int) -> Iterator[LiveWriter]:
    """A writer that works while the block runs."""
    writer = LiveWriter(run, experiment_id, cycle, try_number)
    writer.start()
    try:
        yield writer
    finally:
        writer.end()
