"""Output of a box: lines from bytes, into a file of bounded size and to a callback, in bounded memory."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

from llem_airflow.protocol.redaction import Redactor

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


class LogSink:
    """Where output goes: the file, the callback, and the last lines for an error's text.

    Args:
        path: The log file.
        on_line: Called with every line.
        secrets: Values that are blanked.
        max_bytes: Most bytes in the file; the callback gets all.
    """

    def __init__(
        self, path: Path, on_line: Callable[[str], None], secrets: Iterable[str], max_bytes: int
    ) -> None:
        self.path = path
        self._on_line = on_line
        self.redactor = Redactor(secrets)
        self._left_bytes = max_bytes
        self._assembler = LineAssembler(self.redactor)
        self._file: IO[bytes] | None = None
        self._tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)

    def __enter__(self) -> LogSink:
        self._file = self.path.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def tail(self) -> tuple[str, ...]:
        """The last lines."""
        return tuple(self._tail)

    def feed(self, data: bytes) -> None:
        """Take bytes of output."""
        for line in self._assembler.feed(data):
            self.line(line)

    def finish(self) -> None:
        """The output has ended."""
        for line in self._assembler.finish():
            self.line(line)
        if self._file is not None:
            self._file.flush()

    def line(self, line: str) -> None:
        """Take one line, ours or the box's."""
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
