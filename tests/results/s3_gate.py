"""Before an S3 server: counts what it is asked for, and answers in its place as one does that is away or throttles."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import fsspec

from tests.results.swift import KEY, SECRET, swift

SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)


NO_CONDITION = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>PreconditionFailed</Code>'
    b"<Message>At least one of the preconditions you specified did not hold.</Message></Error>"
)
"""As OpenStack Swift says it; others name the condition."""


class Gate:
    """What passes, and what was asked for.

    Attributes:
        url: Where it answers.
        asked: Method and path of each request, in order.
        away: Which requests find nobody: their connection ends without an answer.
        throttled: Which are answered with 503.
        unmet: Which are answered as if their condition did not hold.
    """

    def __init__(self, server_url: str) -> None:
        self.url = ""
        self.asked: list[tuple[str, str]] = []
        self.away: Callable[[str, str], bool] = _none
        self.throttled: Callable[[str, str], bool] = _none
        self.unmet: Callable[[str, str], bool] = _none
        self._server = urlsplit(server_url).netloc

    def open(self) -> None:
        """Let everything pass."""
        self.away = self.throttled = self.unmet = _none

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Pass a request on, or answer it here."""
        length = int(request.headers.get("Content-Length") or 0)
        body = request.rfile.read(length)
        what = request.command, request.path
        self.asked.append(what)
        if self.away(*what):
            request.close_connection = True
            return
        if self.throttled(*what):
            _send(request, 503, [("Content-Type", "application/xml")], SLOW_DOWN)
            return
        if self.unmet(*what):
            _send(request, 412, [("Content-Type", "application/xml")], NO_CONDITION)
            return
        connection = http.client.HTTPConnection(self._server, timeout=60)
        try:
            # With the headers as they came: the host is part of what was signed.
            connection.putrequest(*what, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in _OF_THE_CONNECTION]
            _send(request, answer.status, kept, answer.read(), answer.getheader("Content-Length"))
        finally:
            connection.close()


@contextmanager
def gate_before(server_url: str) -> Iterator[Gate]:
    """A gate before an S3 server."""
    gate = Gate(server_url)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            gate.answer(self)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        gate.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield gate
        finally:
            server.shutdown()


_OF_THE_CONNECTION = {"connection", "transfer-encoding", "content-length", "server", "date"}


def _send(
    request: BaseHTTPRequestHandler,
    status: int,
    headers: list[tuple[str, str]],
    body: bytes,
    length: str | None = None,
) -> None:
    request.send_response(status)
    for name, value in headers:
        request.send_header(name, value)
    # What HEAD tells is the length of what GET would send.
    request.send_header("Content-Length", length if request.command == "HEAD" and length else str(len(body)))
    request.end_headers()
    request.wfile.write(body)


@contextmanager
def gated_lab() -> Iterator[tuple[Gate, str, str]]:
    """A gate before a server that knows one key and has the bucket ``lab``, and the key."""
    with swift() as url, gate_before(url) as gate:
        store = fsspec.filesystem("s3", endpoint_url=url, key=KEY, secret=SECRET, skip_instance_cache=True)
        store.mkdir("lab")
        yield gate, KEY, SECRET


def _none(method: str, path: str) -> bool:
    return False
