"""What an attempt prints, followed to its end and kept in bounded space; and what ends it when it falls silent.

The watchdog's limits are of time: of the whole life, of silence, and of GPUs that compute nothing, by the word of this
machine's NVIDIA driver.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

import docker
import requests
from docker.errors import NotFound

from llem_airflow.protocol.live import LONGEST_BYTES, MARK, LivePhase, LivePower, parse
from llem_airflow.protocol.redaction import Redactor
from llem_airflow.runners.engine import patiently

LOG_BYTES = 64 * 1024 * 1024
"""Most bytes of output that are kept in container.log."""
LONGEST_LINE_BYTES = 8 * 1024
TAIL_LINES = 400
"""An engine may print its reason, then the tracebacks of everybody who waited for it."""
PROGRESS_EVERY_S = 5.0
"""A progress bar redraws its line many times a second; this often it is shown, in seconds."""


class LineAssembler:
    """Cuts a stream into lines.

    A carriage return starts its line anew, as on a terminal: of a progress bar only the last state stays.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._line = b""
        self._shown_mono_s = time.monotonic()

    def feed(self, data: bytes) -> Iterator[str]:
        """The lines that ``data`` completes, and now and then the state of a progress bar."""
        *complete, rest = (self._line + data).split(b"\n")
        for line in complete:
            yield from self._pieces(_after_return(line))
        if b"\r" in rest:
            state = _after_return(rest)
            if state and time.monotonic() - self._shown_mono_s >= PROGRESS_EVERY_S:
                self._shown_mono_s = time.monotonic()
                yield from self._pieces(state)
            rest = state + b"\r" if rest.endswith(b"\r") else state
        # Not cut before what follows is known: a secret may lie over the cut.
        while len(rest) > LONGEST_LINE_BYTES + self._redactor.reach_bytes:
            rest = self._redactor.data(rest)
            yield _text(rest[:LONGEST_LINE_BYTES])
            rest = rest[LONGEST_LINE_BYTES:]
        self._line = rest

    def finish(self) -> Iterator[str]:
        """What came after the last line end."""
        rest, self._line = self._line, b""
        if rest:
            yield from self._pieces(_after_return(rest))

    def _pieces(self, line: bytes) -> Iterator[str]:
        line = self._redactor.data(line)
        yield _text(line[:LONGEST_LINE_BYTES])
        for begin in range(LONGEST_LINE_BYTES, len(line), LONGEST_LINE_BYTES):
            yield _text(line[begin : begin + LONGEST_LINE_BYTES])


def _after_return(line: bytes) -> bytes:
    return line.rstrip(b"\r").rpartition(b"\r")[2]


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace")


OnLive = Callable[[LivePower | LivePhase], None]


class LiveRecords:
    """Takes live records out of a stream that comes in pieces, so that no log and no watchdog sees them.

    What only looks like one stays where it is.

    Args:
        on_live: Called with every record.
    """

    def __init__(self, on_live: OnLive | None) -> None:
        self._on_live = on_live
        self._held = b""

    def taken_out_of(self, data: bytes) -> bytes:
        """What is left of the output; the begin of a record is kept until its end comes."""
        rest, self._held = self._held + data, b""
        left = []
        while (begin := rest.find(MARK)) >= 0:
            left.append(rest[:begin])
            end = rest.find(b"\n", begin, begin + LONGEST_BYTES)
            if end < 0 and len(rest) - begin < LONGEST_BYTES:
                self._held = rest[begin:]
                return b"".join(left)
            record = parse(rest[begin + 1 : end]) if end >= 0 else None
            if record is None:
                end = begin  # a mark of somebody else
                left.append(MARK)
            elif self._on_live is not None:
                self._on_live(record)
            rest = rest[end + 1 :]
        return b"".join((*left, rest))

    def finish(self) -> bytes:
        """The begin of a record whose end never came: somebody else's text, or cut when its writer was killed."""
        held, self._held = self._held, b""
        return held


class LogSink:
    """Where output goes: the file, the callback, and the last lines for an error's text.

    Args:
        path: The log file.
        on_line: Called with every line.
        secrets: Values that are blanked.
        max_bytes: Most bytes in the file; the callback gets all.
        on_live: Called with every live record; they stand in no log.
    """

    def __init__(
        self,
        path: Path,
        on_line: Callable[[str], None],
        secrets: Iterable[str],
        max_bytes: int = LOG_BYTES,
        on_live: OnLive | None = None,
    ) -> None:
        self.path = path
        self._on_line = on_line
        self.redactor = Redactor(secrets)
        self._left_bytes = max_bytes
        self._assembler = LineAssembler(self.redactor)
        self._live = LiveRecords(on_live)
        self._file: IO[bytes] | None = None
        self._tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)

    def __enter__(self) -> LogSink:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> LogSink:
        """Open the file, and make its folder."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("wb")
        return self

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def tail(self) -> tuple[str, ...]:
        """The last lines."""
        return tuple(self._tail)

    def feed(self, data: bytes) -> bool:
        """Take bytes of output.

        Returns:
            Whether there was anything but live records, which the sampler also tells of an attempt that hangs.
        """
        rest = self._live.taken_out_of(data)
        for line in self._assembler.feed(rest):
            self.line(line)
        return bool(rest)

    def finish(self) -> None:
        """The output has ended."""
        for line in (*self._assembler.feed(self._live.finish()), *self._assembler.finish()):
            self.line(line)
        if self._file is not None:
            self._file.flush()

    def line(self, line: str) -> None:
        """Take one line, ours or the attempt's."""
        line = self.redactor.text(line)
        self._tail.append(line)
        self._write(line.encode("utf-8", "replace") + b"\n")
        self._on_line(line)

    def _write(self, line: bytes) -> None:
        if self._file is None or self._left_bytes <= 0:
            return
        self._file.write(line)
        self._left_bytes -= len(line)
        if self._left_bytes <= 0:
            self._file.write(b"[llem: the log was cut here; the task's log has the rest]\n")


# Every message of the log begins with the time when the engine got it; of fixed width, it compares as text.
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(?:Z|[+-]\d\d:\d\d)) ")
_END_TIMEOUT_S = 2


class GoneError(RuntimeError):
    """The container was removed while it was followed."""


def follow(api: docker.APIClient, container: str, sink: LogSink, heard: Callable[[], None]) -> dict[str, Any]:
    """Feed the container's output to ``sink`` until it has ended.

    A connection that ends before the container does (a proxy's idle timeout, an engine's restart) is taken up
    again where it broke: no line is lost and none comes twice. What a container wrote last is read once more
    when it has ended: an engine may end the stream of a container that ends before it has sent everything.

    Args:
        api: The engine.
        container: Id of the container.
        sink: Where the output goes.
        heard: Called when there was output of the attempt itself.

    Returns:
        The inspection of the ended container.

    Raises:
        GoneError: The container is not there any more.
        docker.errors.DockerException: The engine refused.
        requests.exceptions.RequestException: The engine stayed away.
    """
    last = b""
    try:
        while True:
            last = _read(api, container, sink, heard, last)
            inspection = patiently(lambda: _ended(api, container))
            if not inspection["State"]["Running"]:
                if _goes_on(api, container, last):
                    _read(api, container, sink, heard, last, follow=False)
                sink.finish()
                return inspection
    except NotFound as error:
        raise GoneError("the container was removed from outside while the attempt ran") from error


def _read(
    api: docker.APIClient,
    container: str,
    sink: LogSink,
    heard: Callable[[], None],
    last: bytes,
    *,
    follow: bool = True,
) -> bytes:
    """Read until the connection ends; returns the time of the last message."""
    resume = last
    try:
        stream = api.logs(container, stream=True, follow=follow, timestamps=True, since=_seconds(last))
        try:
            for message in stream:
                stamped = _STAMP.match(message)
                stamp, data = (stamped[1], message[stamped.end() :]) if stamped else (b"", message)
                if stamp and stamp <= resume:
                    continue
                last = stamp or last
                if sink.feed(data):
                    heard()
        except BaseException:
            stream.close()
            for _ in stream:  # closing only ends the connection; reading its end gives it back
                pass
            raise
    except NotFound:
        raise
    except requests.exceptions.RequestException:
        pass  # whether the container goes on is what the next inspection says
    return last


def _goes_on(api: docker.APIClient, container: str, last: bytes) -> bool:
    """Whether the log has, or may have, messages after ``last``.

    For the last line the engine looks at the log's end; for what came since some time it reads the whole log, which
    takes 20 s for 200 MB.
    """
    try:
        newest = _STAMP.match(api.logs(container, timestamps=True, tail=1))
    except NotFound:
        raise
    except requests.exceptions.RequestException:
        return True
    return newest is not None and newest[1] > last


def _ended(api: docker.APIClient, container: str) -> dict[str, Any]:
    """Inspect a container whose output has ended; its state follows a moment later."""
    inspection: dict[str, Any] = api.inspect_container(container)
    if inspection["State"]["Running"]:
        try:
            api.wait(container, timeout=_END_TIMEOUT_S)
        except requests.exceptions.RequestException:
            return inspection  # it goes on: only the connection had ended
        inspection = api.inspect_container(container)
    return inspection


def _seconds(stamp: bytes) -> float | None:
    """A little before ``stamp``, in seconds since 1970: what is read twice is dropped by comparing times."""
    if not stamp:
        return None
    moment = datetime.datetime.fromisoformat(stamp[:26].decode() + stamp[29:].decode().replace("Z", "+00:00"))
    return moment.timestamp() - 0.001


WALL_CLOCK = "wall_clock"
SILENCE = "silence"
GPU_IDLE = "gpu_idle"

_LOOK_EVERY_S = 1.0


class Watchdog:
    """Calls ``end`` once when a limit has passed.

    Args:
        end: Ends the attempt; runs in the watchdog's thread.
        wall_clock_s: Longest life from now, in seconds, or None.
        silence_s: Longest time between two calls of ``heard``, in seconds, or None.
        gpu_idle_s: Longest time in which ``computes`` says no, in seconds, or None.
        computes: Whether its GPUs compute now, asked every second; None for an attempt without.
    """

    def __init__(
        self,
        end: Callable[[], None],
        *,
        wall_clock_s: float | None,
        silence_s: float | None,
        gpu_idle_s: float | None = None,
        computes: Callable[[], bool] | None = None,
    ) -> None:
        self._end = end
        self._wall_clock_s = wall_clock_s
        self._silence_s = silence_s
        self._gpu_idle_s = gpu_idle_s if computes is not None else None
        self._computes = computes
        self._begin_s = self._heard_s = self._computed_s = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="llem-watchdog", daemon=True)
        self.fired: str | None = None

    def __enter__(self) -> Watchdog:
        if (self._wall_clock_s, self._silence_s, self._gpu_idle_s) != (None, None, None):
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        # An exception on its way (a task timeout) must not wait for the grace period of a stop in progress.
        if error is None and self._thread.is_alive():
            self._thread.join()

    def heard(self) -> None:
        """The attempt has said something."""
        self._heard_s = time.monotonic()

    def _watch(self) -> None:
        while not self._done.is_set():
            if self._gpu_idle_s is not None and self._computes is not None and self._computes():
                self._computed_s = time.monotonic()
            left_s, limit = self._next()
            if left_s <= 0:
                self.fired = limit
                self._end()
                return
            self._done.wait(left_s if self._gpu_idle_s is None else min(left_s, _LOOK_EVERY_S))

    def _next(self) -> tuple[float, str]:
        now_s = time.monotonic()
        limits = []
        if self._wall_clock_s is not None:
            limits.append((self._begin_s + self._wall_clock_s - now_s, WALL_CLOCK))
        if self._silence_s is not None:
            limits.append((self._heard_s + self._silence_s - now_s, SILENCE))
        if self._gpu_idle_s is not None:
            limits.append((self._computed_s + self._gpu_idle_s - now_s, GPU_IDLE))
        return min(limits)


@contextlib.contextmanager
def watched(
    gpus: Sequence[str], limit_s: float | None, say: Callable[[str], None], *, elsewhere: bool = False
) -> Iterator[Callable[[], bool] | None]:
    """What a watchdog asks whether GPUs compute; None without a limit or GPU, or where nobody can tell, which is said.

    Args:
        gpus: UUIDs of the attempt's GPUs.
        limit_s: Longest time in which they may compute nothing, in seconds, or None.
        say: Takes a line for people.
        elsewhere: Whether they are another machine's, whose driver does not answer here.
    """
    if limit_s is None or not gpus:
        yield None
        return
    if elsewhere:
        say(f"{_NOT_WATCHED}: the engine is on another machine, whose NVIDIA driver does not answer here")
        yield None
        return
    import pynvml  # noqa: PLC0415  # 8,000 lines, for those who set the limit

    def percent() -> int:
        """The highest utilisation among them, in percent of the driver's last sampling period (1/6 s to 1 s)."""
        handles = [pynvml.nvmlDeviceGetHandleByUUID(gpu) for gpu in gpus]
        return max(int(pynvml.nvmlDeviceGetUtilizationRates(each).gpu) for each in handles)

    def computes() -> bool:
        """Whether any of them computed in that period; what cannot be told counts as computing."""
        try:
            return percent() > 0
        except pynvml.NVMLError:
            return True

    with contextlib.ExitStack() as opened:
        unknown = ""
        try:
            pynvml.nvmlInit()
            opened.callback(pynvml.nvmlShutdown)
        except pynvml.NVMLError as error:
            unknown = f"this machine's NVIDIA driver cannot be asked: {error}"
        else:
            try:
                percent()
            except pynvml.NVMLError as error:  # a MIG slice tells no utilisation
                unknown = f"the driver tells no utilisation of {', '.join(gpus)}: {error}"
        if unknown:
            say(f"{_NOT_WATCHED}: {unknown}")
        yield None if unknown else computes


class TimeLimits(Protocol):
    """The limits of an attempt's time, each in seconds or None."""

    @property
    def wall_clock_s(self) -> float | None:
        """Longest life."""

    @property
    def silence_s(self) -> float | None:
        """Longest time without a word."""

    @property
    def gpu_idle_s(self) -> float | None:
        """Longest time in which its GPUs compute nothing."""


@contextlib.contextmanager
def watchdog(
    end: Callable[[], None],
    limits: TimeLimits,
    gpus: Sequence[str],
    say: Callable[[str], None],
    *,
    age_s: float = 0.0,
    elsewhere: bool = False,
) -> Iterator[Watchdog]:
    """What ends an attempt when its time is over, it falls silent, or its GPUs compute nothing.

    Args:
        end: Ends it.
        limits: Its limits.
        gpus: UUIDs of its GPUs.
        say: Takes a line for people.
        age_s: How long it has run already, in seconds.
        elsewhere: Whether the GPUs are another machine's, whose driver does not answer here.
    """
    left_s = None if limits.wall_clock_s is None else max(0.0, limits.wall_clock_s - age_s)
    with (
        watched(gpus, limits.gpu_idle_s, say, elsewhere=elsewhere) as computes,
        Watchdog(
            end,
            wall_clock_s=left_s,
            silence_s=limits.silence_s,
            gpu_idle_s=limits.gpu_idle_s,
            computes=computes,
        ) as dog,
    ):
        yield dog


_NOT_WATCHED = "max_gpu_idle_s is not watched"
