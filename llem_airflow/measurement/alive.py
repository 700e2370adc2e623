"""Says that a long silent step still works: a watchdog of output then tells a slow load from a dead one."""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llem_airflow.measurement.clock import seconds_since

EVERY_S = 20.0
_LEAST_CPU_S = 0.2
_LEAST_IO_BYTES = 1 << 20


@dataclass(frozen=True)
class Work:
    """What this process has done so far.

    Attributes:
        cpu_s: CPU time, in seconds.
        io_bytes: Bytes read and written.
    """

    cpu_s: float
    io_bytes: int


def work_so_far() -> Work:
    """CPU time and bytes moved by this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    moved = 0
    try:
        for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines():
            name, _, number = line.partition(":")
            moved += int(number) if name in ("rchar", "wchar") else 0
    except OSError:
        pass  # not readable everywhere; CPU time alone then decides
    return Work(cpu_s=used.ru_utime + used.ru_stime, io_bytes=moved)


def moved_on(before: Work, now: Work) -> bool:
    """Whether enough was done between two looks to call the process alive."""
    return now.cpu_s - before.cpu_s >= _LEAST_CPU_S or now.io_bytes - before.io_bytes >= _LEAST_IO_BYTES


def look_every_s(silence_s: float | None) -> float:
    """How often to look, so that a sign comes well before the limit of silence ends the attempt, in seconds."""
    return EVERY_S if silence_s is None else min(EVERY_S, silence_s / 3)


@contextmanager
def sign_of_life(say: Callable[[str], None], begin_ns: int, every_s: float = EVERY_S) -> Iterator[None]:
    """While the body runs, say now and then that work is done; say nothing when none is.

    Args:
        say: Writes a line.
        begin_ns: When the step began, in nanoseconds of the monotonic clock.
        every_s: How often to look, in seconds.
    """
    ended = threading.Event()

    def watch() -> None:
        before = work_so_far()
        while not ended.wait(every_s):
            now = work_so_far()
            if moved_on(before, now):
                say(f"still at it after {seconds_since(begin_ns):.0f} s, {now.cpu_s:.0f} s of CPU")
            before = now

    watcher = threading.Thread(target=watch, name="sign of life", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
