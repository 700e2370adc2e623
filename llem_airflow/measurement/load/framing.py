"""HTTP/1.1 responses, read from bytes as they come (RFC 9112). No sockets here."""

from __future__ import annotations

import re

MAX_HEAD_BYTES = 65_536
_MAX_SIZE_LINE_BYTES = 4_096
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9]\d\d)(?: [^\n]*)?")
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}")


class _FramingError(ValueError):
    """What came is not an HTTP/1.1 response that this client reads; the message shows it."""


class ResponseReader:
    """Takes the bytes of one response and gives those of its body.

    Attributes:
        status: HTTP status; None before the head is complete.
        keep_alive: Whether the connection may carry another request once the response has ended.
        ended: Whether the whole response has been read.
        failure: Why it cannot be read on: no response, or in a coding that was not asked for. None while it can.
    """

    __slots__ = ("_chunks", "_head", "_left_bytes", "ended", "failure", "keep_alive", "status")

    def __init__(self) -> None:
        self.failure: str | None = None
        self.status: int | None = None
        self.keep_alive = False
        self.ended = False
        self._head = bytearray()
        self._chunks: _Chunks | None = None
        self._left_bytes: int | None = None  # None: until the connection is closed

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the connection.

        Returns:
            Bytes of the body among them, up to what made it fail.
        """
        if self.status is None:
            try:
                data = self._read_head(data)
            except _FramingError as error:
                self.failure = str(error)
        if self.status is None or not data:
            return b""
        if self.ended:
            self.keep_alive = False  # nobody asked for what follows
            return b""
        return self._read_body(data)

    def closed(self) -> bool:
        """The connection has been closed by the server: whether that ends the response as it should."""
        if self.status is not None and self._chunks is None and self._left_bytes is None:
            self.ended = True
        return self.ended

    def _read_body(self, data: bytes) -> bytes:
        if self._chunks is not None:
            body, over = self._chunks.feed(data)
            self.ended, self.failure = self._chunks.ended, self._chunks.failure
        elif self._left_bytes is not None:
            body, over = data[: self._left_bytes], data[self._left_bytes :]
            self._left_bytes -= len(body)
            self.ended = self._left_bytes == 0
        else:
            body, over = data, b""
        if over:
            self.keep_alive = False
        return body

    def _read_head(self, data: bytes) -> bytes:
        """Bytes that follow the head. Interim responses (1xx) are passed over."""
        head = self._head
        looked_at = max(len(head) - 3, 0)
        head += data
        while self.status is None:
            end = _END_OF_HEAD.search(head, looked_at)
            if (end.start() if end else len(head)) > MAX_HEAD_BYTES:
                raise _FramingError(f"the head of the response is longer than {MAX_HEAD_BYTES} bytes")
            if end is None:
                return b""
            lines, rest = bytes(head[: end.start()]), head[end.end() :]
            head[:] = rest
            looked_at = 0
            self._understand(lines)
        rest_bytes = bytes(head)
        head.clear()
        return rest_bytes

    def _understand(self, head: bytes) -> None:
        first, *lines = re.split(rb"\r?\n", head)
        found = _STATUS_LINE.fullmatch(first)
        if found is None:
            raise _FramingError(f"not an HTTP/1.1 response: {shown(first)}")
        status = int(found[2])
        if status < 200:
            return
        fields: dict[bytes, bytes] = {}
        for line in lines:
            name, _, value = line.partition(b":")
            name, value = name.lower(), value.strip()
            fields[name] = fields[name] + b"," + value if name in fields else value
        self._frame(status, fields)
        connection = fields.get(b"connection", b"").lower()
        persistent = b"keep-alive" in connection if found[1] == b"0" else b"close" not in connection
        self.keep_alive = persistent and (
            self.ended or self._chunks is not None or self._left_bytes is not None
        )
        self.status = status

    def _frame(self, status: int, fields: dict[bytes, bytes]) -> None:
        """How the body ends (RFC 9112, 6.3)."""
        if fields.get(b"content-encoding", b"identity").lower() != b"identity":
            raise _FramingError(f"content-encoding {shown(fields[b'content-encoding'])} was not asked for")
        if status in (204, 304):
            self.ended = True
        elif b"transfer-encoding" in fields:
            if fields[b"transfer-encoding"].lower() != b"chunked":
                raise _FramingError(
                    f"transfer-encoding {shown(fields[b'transfer-encoding'])}; only chunked is read"
                )
            self._chunks = _Chunks()
        elif b"content-length" in fields:
            lengths = {value.strip() for value in fields[b"content-length"].split(b",")}
            length = lengths.pop()
            if lengths or not (length.isdigit() and len(length) < 16):
                raise _FramingError(f"content-length {shown(fields[b'content-length'])}")
            self._left_bytes = int(length)
            self.ended = self._left_bytes == 0


class _Chunks:
    """A chunked body (RFC 9112, 7.1)."""

    __slots__ = ("_gap", "_left_bytes", "_line", "_trailer_bytes", "ended", "failure")

    def __init__(self) -> None:
        self.failure: str | None = None
        self.ended = False
        self._left_bytes = 0
        self._gap = False  # the line end after a chunk's data is still to come
        self._line = bytearray()
        self._trailer_bytes: int | None = None  # None before the last chunk

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Data of chunks, and bytes that follow the body."""
        pieces: list[bytes] = []
        at, end = 0, len(data)
        while at < end and not self.ended:
            if (stop := self._end_of_whole(data, at)) > at:
                pieces.append(data[data.index(b"\n", at) + 1 : stop - 2])
                at = stop
                continue
            if self._left_bytes:
                piece = data[at : at + self._left_bytes]
                pieces.append(piece)
                at += len(piece)
                self._left_bytes -= len(piece)
                self._gap = self._left_bytes == 0
                continue
            stop = data.find(b"\n", at) + 1 or end
            self._line += data[at:stop]
            at = stop
            try:
                self._between()
            except _FramingError as error:
                self.failure = str(error)
                break
        return b"".join(pieces), data[at:]

    def _end_of_whole(self, data: bytes, at: int) -> int:
        """Where the chunk that begins here ends, if it is whole and has data, as nearly all of a stream are; else 0."""
        if self._left_bytes or self._gap or self._line or self._trailer_bytes is not None:
            return 0
        begin = data.find(b"\r\n", at)
        if _CHUNK_SIZE.fullmatch(data, at, max(begin, at)) is None:
            return 0
        size_bytes = int(data[at:begin], 16)
        stop = begin + 4 + size_bytes
        return stop if size_bytes and data[stop - 2 : stop] == b"\r\n" else 0

    def _between(self) -> None:
        """The size of the next chunk, the line end after one, or a field of the trailer, if it is whole."""
        if len(self._line) > _MAX_SIZE_LINE_BYTES:
            raise _FramingError(f"a line between chunks is longer than {_MAX_SIZE_LINE_BYTES} bytes")
        if not self._line.endswith(b"\n"):
            return
        line = bytes(self._line).rstrip(b"\r\n")
        self._line.clear()
        if self._trailer_bytes is not None:
            self._trailer_bytes += len(line)
            if self._trailer_bytes > MAX_HEAD_BYTES:
                raise _FramingError(f"the trailer is longer than {MAX_HEAD_BYTES} bytes")
            self.ended = not line
        elif self._gap:
            if line:
                raise _FramingError(f"after a chunk, where a line should end: {shown(line)}")
            self._gap = False
        else:
            size = line.partition(b";")[0].strip()
            if _CHUNK_SIZE.fullmatch(size) is None:
                raise _FramingError(f"the size of a chunk: {shown(line)}")
            self._left_bytes = int(size, 16)
            if self._left_bytes == 0:
                self._trailer_bytes = 0


def shown(data: bytes, at_most: int = 80) -> str:
    """Bytes of a message, for a person: the first of them, escaped."""
    return repr(data[:at_most])[1:]
