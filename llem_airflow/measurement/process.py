"""The attempt's own process: what it uses of the host, signs that it still works, and how a signal ends it."""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llem_airflow.measurement.meters.cpu_estimate import HostCpuTime
from llem_airflow.measurement.output import seconds_since
from llem_airflow.protocol.processes import own_cpu_s
from llem_airflow.protocol.result import CpuTime

SIGN_EVERY_S = 20.0
LEAST_CPU_S = 0.2
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
    moved = 0
    try:
        for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines():
            name, _, number = line.partition(":")
            moved += int(number) if name in ("rchar", "wchar") else 0
    except OSError:
        pass  # not readable everywhere; CPU time alone then decides
    return Work(cpu_s=own_cpu_s(), io_bytes=moved)


def moved_on(before: Work, now: Work) -> bool:
    """Whether enough was done between two looks to call the process alive."""
    return now.cpu_s - before.cpu_s >= LEAST_CPU_S or now.io_bytes - before.io_bytes >= _LEAST_IO_BYTES


def look_every_s(silence_s: float | None) -> float:
    """How often to look, so that a sign comes well before the limit of silence ends the attempt, in seconds."""
    return SIGN_EVERY_S if silence_s is None else min(SIGN_EVERY_S, silence_s / 3)


@contextmanager
def sign_of_life(say: Callable[[str], None], begin_ns: int, every_s: float = SIGN_EVERY_S) -> Iterator[None]:
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
                say(f"still working after {seconds_since(begin_ns):.0f} s, {now.cpu_s:.0f} s of CPU time")
            before = now

    watcher = threading.Thread(target=watch, name="sign of life", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def cpu_time() -> CpuTime | None:
    """Spent so far; None where the host's is masked.

    The attempt is every process of its session: the engine, its workers, the sampler. A child that has ended is in
    its parent's account.
    """
    host = HostCpuTime().read()
    if host is None:
        return None
    return CpuTime(own_s=_of_session(os.getsid(0)), host_s=host.busy_s, cores=host.cores)


def spent(before: CpuTime | None, after: CpuTime | None) -> CpuTime | None:
    """What was spent between two looks."""
    if before is None or after is None:
        return None
    return CpuTime(max(after.own_s - before.own_s, 0.0), max(after.host_s - before.host_s, 0.0), after.cores)


def _of_session(session: int) -> float:
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name may hold spaces and brackets: what follows the last bracket is fields 3 on (proc(5)).
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if int(fields[3]) == session:
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


_CGROUP_PEAKS = ("/sys/fs/cgroup/memory.peak", "/sys/fs/cgroup/memory/memory.max_usage_in_bytes")


def host_memory(*, since_start: bool = True, since_forgotten: bool = False) -> dict[str, int | None]:
    """Peak resident size of this process, and of its cgroup with page cache, in bytes; null where unknown.

    Args:
        since_start: Whether the attempt began with the process; else the cgroup's peak, which nothing resets, is not
            known.
        since_forgotten: Whether :func:`forget_host_peak` has reset the process's peak as the attempt began.
    """
    peaks = _CGROUP_PEAKS if since_start else ()
    rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "peak_rss_bytes": rss_bytes if since_start or since_forgotten else None,
        "cgroup_peak_bytes": next((peak for path in peaks if (peak := _number(path)) is not None), None),
    }


def forget_host_peak() -> bool:
    """Count the peak resident size of this process anew (proc(5), clear_refs); whether the kernel lets it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _number(path: str) -> int | None:
    try:
        text = Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def on_termination(act: Callable[[int], None]) -> None:
    """Call ``act`` with the signal's number, in a thread of its own.

    A Python signal handler waits for the main thread to come back from native code, which a model load or a
    long kernel does not for many seconds. The wake-up descriptor is written at once, and children inherit no
    mask. (Native code that keeps the interpreter's lock still holds it up; torch gives the lock away.)

    Args:
        act: What to do; it ends the process.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _ignore)

    def watch() -> None:
        while True:
            for number in os.read(read_end, 16):
                if number in (signal.SIGTERM, signal.SIGINT):
                    act(int(number))

    os.register_at_fork(after_in_child=_forget)
    threading.Thread(target=watch, name="termination", daemon=True).start()


def _forget() -> None:
    # An engine's forked worker shares the descriptor: a signal to the worker would end us.
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def _ignore(number: int, frame: object) -> None:
    """Python needs a handler so that the wake-up descriptor is written; the thread does the work."""
