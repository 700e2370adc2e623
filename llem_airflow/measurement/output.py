"""What an attempt writes: events.jsonl line by line with what a person reads, JSON files whole, and its instants."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llem_airflow.measurement.whole import write_whole
from llem_airflow.protocol.files import error_name, result_name
from llem_airflow.protocol.live import ENV_LIVE, LivePhase, phase_record
from llem_airflow.protocol.records import PHASES
from llem_airflow.protocol.result import Anchor, AttemptError, CycleResult


class EventLog:
    """Writes events.jsonl and says the same on stdout.

    Attributes:
        phase_name: The phase that is open, or the last one; ``start`` before the first.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()
        self._begin_ns = time.monotonic_ns()
        self.phase_name = "start"

    def emit(self, event: str, t_mono_ns: int | None = None, **fields: Any) -> int:
        """Append one event and flush it.

        Args:
            event: One of ``protocol.records.EVENTS``.
            t_mono_ns: When it happened, in nanoseconds of the monotonic clock; None is now.
            **fields: What else belongs to it.

        Returns:
            When it happened, in nanoseconds of the monotonic clock.
        """
        at = time.monotonic_ns() if t_mono_ns is None else t_mono_ns
        row = {"t_mono_ns": at, "event": event, "phase": self.phase_name, **fields}
        with self._lock:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
        return at

    def say(self, text: str) -> None:
        """One line for people: the time since the start, the phase, the text."""
        elapsed_s = (time.monotonic_ns() - self._begin_ns) / 1e9
        # Whoever listened may be gone; what was measured is worth more than that line.
        with contextlib.suppress(OSError):
            print(f"[{elapsed_s:7.1f} s] {self.phase_name:<15} {text}", flush=True)

    def progress(self, done: float, total: float, text: str) -> None:
        """Say how far the phase is, and note it.

        Args:
            done: How much is done, in the unit that the text names.
            total: How much there is to do.
            text: For people.
        """
        self.emit("progress", done=round(done, 3), total=round(total, 3), text=text)
        self.say(text)

    def note(self, text: str) -> None:
        """Something worth keeping that is neither progress nor failure."""
        self.emit("note", text=text)
        self.say(text)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Mark a phase. A phase that fails has a begin and no end.

        Args:
            name: One of ``protocol.records.PHASES``.
        """
        if name not in PHASES:
            raise ValueError(f"{name!r} is not a phase; phases: {', '.join(PHASES)}")
        self.phase_name = name
        self._tell_live(LivePhase(self.emit("phase_begin"), name))
        yield
        self._tell_live(LivePhase(self.emit("phase_end"), None))

    def _tell_live(self, record: LivePhase) -> None:
        if os.environ.get(ENV_LIVE):
            with contextlib.suppress(OSError):
                print(phase_record(record).decode(), end="", flush=True)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()


def write_result(out: Path, result: CycleResult) -> None:
    """Write the result: the attempt has succeeded from here on."""
    write_whole(out / result_name(result.experiment_hash), result.dumps() + "\n")


def write_error(out: Path, experiment_hash: str, error: AttemptError) -> None:
    """Write why the attempt failed."""
    write_whole(out / error_name(experiment_hash), error.dumps() + "\n")


def anchor() -> Anchor:
    """One instant on the monotonic and the wall clock, read closest to each other of five tries."""
    best: tuple[int, Anchor] | None = None
    for _ in range(5):
        before_ns = time.monotonic_ns()
        epoch_ns = time.time_ns()
        after_ns = time.monotonic_ns()
        if best is None or after_ns - before_ns < best[0]:
            best = (after_ns - before_ns, Anchor(mono_ns=(before_ns + after_ns) // 2, epoch_ns=epoch_ns))
    assert best is not None
    return best[1]


def seconds_since(t_mono_ns: int) -> float:
    """Time since an instant of the monotonic clock, in seconds."""
    return (time.monotonic_ns() - t_mono_ns) / 1e9
