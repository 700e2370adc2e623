"""The load client: open-loop and closed-loop traffic of streamed completions over HTTP/1.1 (standard library only)."""

from __future__ import annotations

import asyncio
import math
import select
import selectors
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple
from urllib.parse import urlsplit

from llem_airflow.measurement.load.exchange import CUT, ERROR, OK, TIMEOUT, Exchange, RequestRow
from llem_airflow.protocol.processes import own_cpu_s

IDLE_CONNECTION_S = 4.0
"""Older idle connections are not used again: uvicorn, which vLLM and TensorRT-LLM serve with, closes them after 5 s."""

AFTER_FAILURE_S = 0.1
"""How long a user of a closed loop waits after a failure, so that a server that refuses everything is not flooded."""


READ_BYTES = 65_536
"""Most that is read of a connection at a time."""


class Endpoint(NamedTuple):
    """Where completions are asked for.

    Attributes:
        host: Name or address.
        port: TCP port.
        path: Path of the completions endpoint.
    """

    host: str
    port: int
    path: str = "/v1/completions"

    @classmethod
    def of(cls, url: str) -> Endpoint:
        """The endpoint of a server's root, such as ``http://127.0.0.1:8000``.

        Raises:
            ValueError: It is not such a URL.
        """
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"endpoint {url!r}: it must be http://HOST:PORT")
        return cls(parts.hostname, parts.port or 80, f"{parts.path.rstrip('/')}/v1/completions")

    def request(self, body: bytes) -> bytes:
        """The bytes of a request with this JSON body."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: {host}:{self.port}\r\nAccept: text/event-stream\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode("ascii") + body


@dataclass(frozen=True)
class ClientFacts:
    """What the client did, and whether it kept up: a slow client makes a fast server look slow.

    Attributes:
        requests: Requests that were begun.
        lateness_p50_ms: Median of how long after its due time the client turned to a request, in milliseconds; a wait
            for the concurrency cap is not in it. None without requests.
        lateness_p99_ms: Its 99th percentile.
        lateness_max_ms: The worst.
        held_by_cap: Requests that waited for the concurrency cap.
        peak_connections: Most connections open at a time.
        out_of_file_handles: Requests that failed because no connection may be opened any more.
        cpu_s: CPU time of this process during the traffic, in seconds.
        duration_s: How long the traffic took, in seconds.
    """

    requests: int
    lateness_p50_ms: float | None
    lateness_p99_ms: float | None
    lateness_max_ms: float | None
    held_by_cap: int
    peak_connections: int
    out_of_file_handles: int
    cpu_s: float
    duration_s: float


class Conversations:
    """What is asked, and which request follows which: the turns of a conversation, one after the other."""

    def __init__(
        self, requests: Sequence[bytes], turns: Sequence[int] = (), duration_s: float = math.inf
    ) -> None:
        """Lay them out.

        Args:
            requests: JSON bodies of one pass.
            turns: How many of them each conversation has, in their order; empty where each is one of its own.
            duration_s: No further turn is begun later than this, in seconds from the start.
        """
        lengths = turns or (1,) * len(requests)
        self.requests, self.duration_s = requests, duration_s
        self._first = [0, *accumulate(lengths)][: len(lengths)]
        self._last = {first + length - 1 for first, length in zip(self._first, lengths, strict=True)}
        self._opened = 0

    def opening(self) -> int:
        """The first request of the next conversation; they repeat."""
        self._opened += 1
        return self._first[(self._opened - 1) % len(self._first)]

    def following(self, row: RequestRow) -> int | None:
        """The next request of its conversation; None at its end, and when it was not answered."""
        return row.prompt_index + 1 if row.status == OK and row.prompt_index not in self._last else None


async def open_loop(
    endpoint: Endpoint,
    conversations: Conversations,
    due_s: Sequence[float],
    *,
    start_mono_ns: int,
    timeout_s: float,
    on_row: Callable[[RequestRow], None],
    concurrency_cap: int | None = None,
    stop: asyncio.Event | None = None,
) -> ClientFacts:
    """Send each request at its due time, however the server fares (no coordinated omission).

    The next turn of a conversation is due when the answer to the one before has come; a turn that fails ends its
    conversation. Such traffic is open between conversations and closed within one ("partly open": Schroeder,
    Wierman, Harchol-Balter, NSDI 2006).

    Args:
        endpoint: Where to.
        conversations: What is asked; they repeat.
        due_s: When each request, or the first turn of each conversation, is due, in seconds from the start, ascending.
        start_mono_ns: The start, in nanoseconds of the monotonic clock.
        timeout_s: How long after its due time a request is given up, in seconds.
        on_row: Gets the row of each request as it ends.
        concurrency_cap: Most requests in flight. Those over it wait in their order; their latency still counts from
            their due time.
        stop: What is still open is cut when it is set; requests that are not due yet get no row. None waits for all.
    """
    last_ns = start_mono_ns + conversations.duration_s * 1e9

    def ended(row: RequestRow) -> None:
        on_row(row)
        following = conversations.following(row)
        if following is not None and row.t_end_mono_ns < last_ns:
            traffic.expect(1)
            loop.call_soon(go_on, following, row.t_end_mono_ns)

    def go_on(prompt_index: int, due_ns: int) -> None:
        if traffic.closed:
            traffic.expect(-1)
        else:
            traffic.begin(prompt_index, due_ns)

    traffic = _Traffic(endpoint, conversations.requests, ended, timeout_s, concurrency_cap)
    coming = iter([start_mono_ns + round(at_s * 1e9) for at_s in due_s])
    traffic.expect(len(due_s))
    entry_ns: int | None = next(coming, None)

    def dispatch() -> None:
        nonlocal entry_ns
        now_ns = time.monotonic_ns()
        while entry_ns is not None and entry_ns <= now_ns and not traffic.closed:
            traffic.begin(conversations.opening(), entry_ns)
            entry_ns = next(coming, None)
        if entry_ns is not None and not traffic.closed:
            loop.call_at(entry_ns / 1e9, dispatch)

    loop = asyncio.get_running_loop()
    dispatch()
    return await traffic.run(start_mono_ns, stop)


async def closed_loop(
    endpoint: Endpoint,
    conversations: Conversations,
    *,
    users: int,
    duration_s: float,
    start_mono_ns: int,
    timeout_s: float,
    on_row: Callable[[RequestRow], None],
    stop: asyncio.Event | None = None,
) -> ClientFacts:
    """``users`` users, each of whom asks again when the answer has come. What it offers depends on the server.

    A request is due when its user turns to it. After a failure a user waits ``AFTER_FAILURE_S``.

    Args:
        endpoint: Where to.
        conversations: What is asked; a user goes through one before the next.
        users: How many.
        duration_s: For how long new requests are sent, in seconds from the start.
        start_mono_ns: As in ``open_loop``.
        timeout_s: As there.
        on_row: As there.
        stop: As there.
    """
    begin_s = start_mono_ns / 1e9
    loop = asyncio.get_running_loop()

    def ask(due_s: float, following: int | None = None) -> None:
        if traffic.closed or due_s >= begin_s + duration_s:
            traffic.expect(-1)
            return
        traffic.expect(1)
        traffic.begin(conversations.opening() if following is None else following, round(due_s * 1e9))

    def ended(row: RequestRow) -> None:
        on_row(row)
        pause_s = AFTER_FAILURE_S if row.status == ERROR else 0.0
        due_s = max(row.t_end_mono_ns / 1e9 + pause_s, begin_s)
        loop.call_at(due_s, ask, due_s, conversations.following(row))

    traffic = _Traffic(endpoint, conversations.requests, ended, timeout_s, None)
    traffic.expect(users)  # each of them is one more to wait for until it stops asking
    for _ in range(users):
        loop.call_at(begin_s, ask, begin_s)
    return await traffic.run(start_mono_ns, stop)


class _Traffic:
    """Requests in flight, those that wait for the cap, and the connections."""

    def __init__(
        self,
        endpoint: Endpoint,
        requests: Sequence[bytes],
        on_row: Callable[[RequestRow], None],
        timeout_s: float,
        concurrency_cap: int | None,
    ) -> None:
        if not requests:
            raise ValueError("there is no request to send")
        self.closed = False
        self.buffer = memoryview(bytearray(READ_BYTES))
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_future()
        self._endpoint, self._timeout_s, self._on_row = endpoint, timeout_s, on_row
        self._messages = [endpoint.request(body) for body in requests]
        self._cap = concurrency_cap or None
        self._expected = 0
        self._open: dict[int, Exchange] = {}
        self._waiting: deque[Exchange] = deque()
        self._in_flight = 0
        self._idle: list[_Connection] = []
        self._connections: dict[_Connection, None] = {}
        self._peak = self._held = self._no_handles = 0
        self._lateness_ns = array("q")
        self._cpu_s = own_cpu_s()

    def expect(self, more: int) -> None:
        """So many more rows are to come before it is over."""
        self._expected += more
        if self._expected <= 0 and not self._over.done():
            self._over.set_result(None)

    def begin(self, prompt_index: int, due_ns: int) -> None:
        """A request is due."""
        index = len(self._lateness_ns)
        exchange = Exchange(index, prompt_index, due_ns)
        self._lateness_ns.append(max(time.monotonic_ns() - due_ns, 0))
        self._open[index] = exchange
        exchange.timer = self._loop.call_at(due_ns / 1e9 + self._timeout_s, self._end, exchange, TIMEOUT)
        if self._cap is not None and self._in_flight >= self._cap:
            self._held += 1
            self._waiting.append(exchange)
        else:
            self._send(exchange)

    async def run(self, start_ns: int, stop: asyncio.Event | None) -> ClientFacts:
        """Wait until every expected row has been given, or cut."""
        self.expect(0)
        waits: set[asyncio.Future[None]] = {self._over}
        stopped = self._loop.create_task(_set(stop)) if stop is not None else None
        if stopped is not None:
            waits.add(stopped)
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if stopped is not None:
                stopped.cancel()
            self._cut()
        if self._over.done():
            self._over.result()  # a row that could not be handed over is no end like another
        await asyncio.sleep(0)  # transports that were closed say so
        return self._facts((time.monotonic_ns() - start_ns) / 1e9)

    def answered(self, exchange: Exchange) -> None:
        """Its response has ended, or its connection is gone."""
        self._end(exchange, None)

    def send_again(self, exchange: Exchange) -> None:
        """The idle connection that it went over had been closed by the server before it got there (RFC 9112, 9.3.1)."""
        exchange.again = True
        self._connect(exchange)

    def opened(self, connection: _Connection) -> None:
        """A connection is open."""
        self._connections[connection] = None
        self._peak = max(self._peak, len(self._connections))

    def gone(self, connection: _Connection) -> None:
        """A connection is closed."""
        self._connections.pop(connection, None)

    def free(self, connection: _Connection) -> None:
        """A connection can carry another request."""
        connection.idle_since_s = self._loop.time()
        self._idle.append(connection)

    def _send(self, exchange: Exchange) -> None:
        self._in_flight += 1
        exchange.sent_ns = time.monotonic_ns()
        oldest_s = self._loop.time() - IDLE_CONNECTION_S
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since_s >= oldest_s:
                connection.send(exchange, self._messages[exchange.prompt_index])
                return
            connection.close()
        self._connect(exchange)

    def _connect(self, exchange: Exchange) -> None:
        exchange.connecting = self._loop.create_task(self._open_connection(exchange))

    async def _open_connection(self, exchange: Exchange) -> None:
        try:
            _, connection = await self._loop.create_connection(
                lambda: _Connection(self), self._endpoint.host, self._endpoint.port
            )
        except OSError as error:
            exchange.not_connected(error)
            self.answered(exchange)
            return
        exchange.connecting = None
        connection.send(exchange, self._messages[exchange.prompt_index])

    def _end(self, exchange: Exchange, status: str | None) -> None:
        if self._open.pop(exchange.index, None) is None:
            return
        row = exchange.row(status, time.monotonic_ns())
        if exchange.timer is not None:
            exchange.timer.cancel()
        if status is not None:
            self._abandon(exchange)
        if exchange.sent_ns is not None:
            self._in_flight -= 1
        self._no_handles += row.error_class == "out_of_file_handles"
        try:
            self._on_row(row)
        except Exception as error:  # noqa: BLE001 - in a callback of the loop it would be logged and forgotten
            if not self._over.done():
                self._over.set_exception(error)
        while self._waiting and not self.closed and (self._cap is None or self._in_flight < self._cap):
            following = self._waiting.popleft()
            in_time = following.due_ns + self._timeout_s * 1e9 > row.t_end_mono_ns
            if following.index in self._open and in_time:  # else its timer ends it
                self._send(following)
        self.expect(-1)

    def _abandon(self, exchange: Exchange) -> None:
        """Tell the server that nobody waits for this answer any more: it ends the generation."""
        if exchange.connecting is not None:
            exchange.connecting.cancel()
        if exchange.connection is not None:
            exchange.connection.drop()

    def _cut(self) -> None:
        self.closed = True
        for exchange in list(self._open.values()):
            self._end(exchange, CUT)
        for connection in list(self._connections):
            connection.drop()

    def _facts(self, duration_s: float) -> ClientFacts:
        late_ms = [ns / 1e6 for ns in sorted(self._lateness_ns)]
        return ClientFacts(
            requests=len(late_ms),
            lateness_p50_ms=_quantile(late_ms, 0.5),
            lateness_p99_ms=_quantile(late_ms, 0.99),
            lateness_max_ms=_quantile(late_ms, 1.0),
            held_by_cap=self._held,
            peak_connections=self._peak,
            out_of_file_handles=self._no_handles,
            cpu_s=own_cpu_s() - self._cpu_s,
            duration_s=duration_s,
        )


class _Connection(asyncio.BufferedProtocol):
    """One connection: carries one request at a time.

    It reads into a buffer that is there: ``asyncio.Protocol`` makes room for 256 KiB at every read, for which the C
    library goes to the kernel, and that cost more than all else of a read (17 us against 1.5 us of the whole ``recv``).
    """

    def __init__(self, traffic: _Traffic) -> None:
        self.idle_since_s = 0.0
        self._traffic = traffic
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._used = False

    @property
    def usable(self) -> bool:
        """Whether it is still open."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, exchange: Exchange, message: bytes) -> None:
        """Send a request."""
        assert self._transport is not None
        self._exchange = exchange
        exchange.connection = self
        self._transport.write(message)

    def close(self) -> None:
        """Close it."""
        if self._transport is not None:
            self._transport.close()

    def drop(self) -> None:
        """Close it at once, and hear nothing of its request any more."""
        self._exchange = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._traffic.opened(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio asks so
        """Where the next bytes go: they are taken out again before any other connection is read."""
        return self._traffic.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes of a response; what comes without a request closes the connection."""
        data = bytes(self._traffic.buffer[:nbytes])
        exchange = self._exchange
        if exchange is None:
            self.close()
        elif exchange.feed(data, time.monotonic_ns):
            self._exchange = exchange.connection = None
            self._used = True
            if exchange.reusable:
                self._traffic.free(self)
            else:
                self.close()
            self._traffic.answered(exchange)

    def connection_lost(self, error: Exception | None) -> None:
        """It is closed."""
        exchange, self._exchange = self._exchange, None
        self._traffic.gone(self)
        if exchange is None:
            return
        exchange.connection = None
        if self._used and not exchange.heard and not exchange.again:
            self._traffic.send_again(exchange)
        else:
            exchange.lost(error)
            self._traffic.answered(exchange)


async def _set(event: asyncio.Event) -> None:
    await event.wait()


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    """Linear between the closest ranks, as numpy's default."""
    if not ordered:
        return None
    place = (len(ordered) - 1) * share
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def precise_event_loop() -> asyncio.AbstractEventLoop:
    """A new event loop for sending at due times.

    epoll waits in whole milliseconds, and asyncio rounds up: a timer is late by half a millisecond in the mean, which a
    latency counted from the due time would show. ``select`` waits in microseconds, and an epoll descriptor can be
    waited for like any other.
    """
    if not hasattr(selectors, "EpollSelector"):
        return asyncio.new_event_loop()

    class _Selector(selectors.EpollSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is not None and timeout > 0:
                select.select([self.fileno()], [], [], timeout)
                timeout = 0
            return super().select(timeout)

    return asyncio.SelectorEventLoop(_Selector())
