"""Server-sent events, read from bytes as they come (WHATWG HTML, 9.2.6). Only the ``data`` field counts here."""

from __future__ import annotations

MAX_EVENT_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventStream:
    """Takes the bytes of a stream and gives the data of each event that is complete.

    Bytes, not text: a line may be cut anywhere, in the middle of a character too.

    Attributes:
        failure: Why nothing after the events given so far can be read; None while it can.
    """

    __slots__ = ("_after_cr", "_data", "_data_bytes", "_first", "_part", "_part_bytes", "failure")

    def __init__(self) -> None:
        self.failure: str | None = None
        self._part: list[bytes] = []  # of a line that has no end yet
        self._part_bytes = 0
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._after_cr = False
        self._first = True

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the stream.

        Returns:
            The data of events that ended among them; lines of one event are joined by a newline.
        """
        if self._after_cr or b"\r" in data:
            data = self._one_line_end(data)
        if self._is_one_event(data):
            return [data[6:-2]]
        if b"\n" not in data:
            self._keep(data)
            return []
        *lines, rest = (b"".join(self._part) + data).split(b"\n")
        self._part, self._part_bytes = [], 0
        events = []
        for line in lines:
            self._bound(len(line))
            if self._first:
                self._first = False
                line = line.removeprefix(_BYTE_ORDER_MARK)  # noqa: PLW2901 - only ever before the first line
            if line:
                self._take(line)
            elif self._data:
                joined = b"\n".join(self._data)
                self._data, self._data_bytes = [], 0
                if joined:  # without any data there is no event
                    events.append(joined)
            if self.failure:
                return events
        self._keep(rest)
        return events

    def _is_one_event(self, data: bytes) -> bool:
        """Whether these are exactly one event of one line: nearly every segment of a stream is."""
        return (
            data.startswith(b"data: ")
            and data.find(b"\n") == len(data) - 2
            and data.endswith(b"\n\n")
            and not (self._part or self._data or self._first)
            and 8 < len(data) <= MAX_EVENT_BYTES
        )

    def _one_line_end(self, data: bytes) -> bytes:
        """Line ends are CRLF, LF or CR: make them LF. A CR at the end may be half of a CRLF."""
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
        elif not data:
            return data
        self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _keep(self, part: bytes) -> None:
        if part:
            self._part.append(part)
            self._part_bytes += len(part)
            self._bound(self._part_bytes)

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._data_bytes += len(line)
            self._bound(self._data_bytes)

    def _bound(self, size_bytes: int) -> None:
        if size_bytes > MAX_EVENT_BYTES:
            self.failure = f"an event of the stream is longer than {MAX_EVENT_BYTES} bytes"
