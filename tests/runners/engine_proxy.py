"""A small proxy in front of a Docker engine: it sees every call, can refuse it, and can stop the world at it."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote

_READ_BYTES = 64 * 1024
_VERSION = re.compile(r"^/v\d+\.\d+(?=/)")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the engine's API.

    Attributes:
        method: ``GET``, ``POST`` …
        path: Without the API's version.
        query: What follows the question mark.
        pid: The process that calls.
    """

    method: str
    path: str
    query: str
    pid: int

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


Watch = Callable[[Call], object]


Listen = Callable[[Call, bytes], object]


def _ignore(_call: Call) -> None:
    return None


def _deaf(_call: Call, _data: bytes) -> None:
    return None


class EngineProxy:
    """Listens at a Unix socket and passes each call on.

    Args:
        path: The socket that it makes.
        engine: The engine's socket.
        allowed: Says whether a call may pass; others get 403, as from the proxies that people use.
        before: Called when a call has come in, before the engine sees it.
        after: Called when the engine has answered, before the caller sees it.
        data: Called with each piece of an answer, before the caller sees it.
    """

    def __init__(
        self,
        path: Path,
        engine: Path,
        *,
        allowed: Callable[[Call], bool] = lambda _call: True,
        before: Watch = _ignore,
        after: Watch = _ignore,
        data: Listen = _deaf,
    ) -> None:
        self.path, self._engine = path, engine
        self._allowed, self._before, self._after, self._data = allowed, before, after, data
        self.refused: list[Call] = []
        self.passed: set[str] = set()
        self._listener = socket.socket(socket.AF_UNIX)

    @property
    def url(self) -> str:
        """As ``DOCKER_HOST`` names it."""
        return f"unix://{self.path}"

    def __enter__(self) -> EngineProxy:
        self._listener.bind(str(self.path))
        self._listener.listen(64)
        threading.Thread(target=self._listen, name="engine-proxy", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), name="engine-call", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            head, rest = _head(client)
            if not head:
                return  # somebody only looked whether anybody listens
            call = _call(head, _peer(client))
            if not self._allowed(call):
                self.refused.append(call)
                client.sendall(_FORBIDDEN)
                return
            self.passed.add(str(call))
            self._before(call)
            with socket.socket(socket.AF_UNIX) as engine:
                engine.connect(str(self._engine))
                # One call for each connection: where it ends is then plain in both directions.
                engine.sendall(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + b"\r\n\r\n" + rest)
                self._relay(client, engine, call)

    def _relay(self, client: socket.socket, engine: socket.socket, call: Call) -> None:
        first, open_ends = True, [client, engine]
        while True:
            for ready in select.select(open_ends, [], [])[0]:
                data = ready.recv(_READ_BYTES)
                if ready is engine:
                    if first:
                        self._after(call)
                        first = False
                    if not data:
                        return
                    self._data(call, data)
                    client.sendall(data)
                elif data:
                    engine.sendall(data)
                else:
                    return


_FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def _head(client: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = client.recv(_READ_BYTES)
        if not chunk:
            return b"", b""
        data += chunk
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def _call(head: bytes, pid: int) -> Call:
    method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
    path, _, query = target.partition("?")
    return Call(method, _VERSION.sub("", unquote(path)), unquote(query), pid)


def _peer(client: socket.socket) -> int:
    pid, _uid, _gid = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)
