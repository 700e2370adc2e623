"""A server whose answers are scripted byte for byte, and what an answer of vLLM looks like."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llem_airflow.measurement.load.client import (
    ClientFacts,
    Conversations,
    Endpoint,
    open_loop,
    precise_event_loop,
)
from llem_airflow.measurement.load.exchange import RequestRow

T = TypeVar("T")

BODY = b'{"prompt": "Hello"}'


def chunk(text: str, tokens: int | None, finish_reason: str | None = None) -> dict[str, Any]:
    """A chunk of a completion, with the number of tokens so far where the server tells it."""
    event: dict[str, Any] = {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": "tiny",
        "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}],
    }
    if tokens is not None:
        event["usage"] = {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens}
    return event


def usage(tokens: int) -> dict[str, Any]:
    """The last chunk: no choice, the counts of the whole."""
    return {**chunk("", tokens), "choices": []}


def event(data: dict[str, Any] | str, line_end: str = "\n") -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"data: {text}{line_end}{line_end}".encode()


def answer(counts: Sequence[int], *, told: bool = True, line_end: str = "\n") -> list[bytes]:
    """The events of an answer whose chunks hold so many tokens each."""
    events, total = [], 0
    for index, count in enumerate(counts):
        total += count
        reason = "length" if index == len(counts) - 1 else None
        events.append(event(chunk("grün ☃ " * count, total if told else None, reason), line_end))
    return [*events, event(usage(total), line_end), event("[DONE]", line_end)]


def head(status: str = "200 OK", **fields: str) -> bytes:
    named = {"content-type": "text/event-stream", **{name.replace("_", "-"): v for name, v in fields.items()}}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in named.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def chunked(pieces: Sequence[bytes]) -> bytes:
    return head(transfer_encoding="chunked") + b"".join(map(http_chunk, pieces)) + b"0\r\n\r\n"


def with_length(pieces: Sequence[bytes], status: str = "200 OK", **fields: str) -> bytes:
    body = b"".join(pieces)
    return head(status, content_length=str(len(body)), **fields) + body


def until_closed(pieces: Sequence[bytes]) -> bytes:
    return head(connection="close") + b"".join(pieces)


@dataclass
class Wire:
    """The server's end of a connection, for a script."""

    writer: asyncio.StreamWriter
    requests: int = 0

    async def say(self, data: bytes, *, pieces_of: int | None = None) -> None:
        """Send bytes, as segments of this many where it is given."""
        for at in range(0, len(data), pieces_of or len(data) or 1):
            self.writer.write(data[at : at + (pieces_of or len(data))])
            await self.writer.drain()
            if pieces_of:
                await asyncio.sleep(0)

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Close with a reset instead of an end."""
        self.writer.transport.abort()


Script = Callable[[Wire, int], Awaitable[None]]
"""What the server does with request n (from 0, over all connections)."""


@dataclass
class Stub:
    """A running server.

    Attributes:
        bodies: What it was asked.
        connections: How many were opened to it.
        most_open: The most requests that it worked on at a time.
    """

    endpoint: Endpoint
    bodies: list[bytes] = field(default_factory=list)
    connections: int = 0
    most_open: int = 0
    asked_ns: list[int] = field(default_factory=list)


@contextlib.asynccontextmanager
async def serving(script: Script) -> AsyncIterator[Stub]:
    """A server on a port of its own, which ends with the block."""
    working = 0
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal working
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        stub.connections += 1
        wire = Wire(writer)
        try:
            while not writer.is_closing():
                asked = await reader.readuntil(b"\r\n\r\n")
                length = int(asked.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                stub.bodies.append(await reader.readexactly(length))
                stub.asked_ns.append(time.monotonic_ns())
                working += 1
                stub.most_open = max(stub.most_open, working)
                try:
                    await script(wire, len(stub.bodies) - 1)
                finally:
                    working -= 1
                wire.requests += 1
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    stub = Stub(Endpoint(*server.sockets[0].getsockname()))
    try:
        yield stub
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)


def always(data: bytes, *, pieces_of: int | None = None, close: bool = False) -> Script:
    """Every request gets these bytes."""

    async def script(wire: Wire, _: int) -> None:
        await wire.say(data, pieces_of=pieces_of)
        if close:
            wire.close()

    return script


def run(what: Awaitable[T]) -> T:
    """Run in a loop of its own."""
    loop = precise_event_loop()

    async def whole() -> T:
        return await what

    try:
        return loop.run_until_complete(whole())
    finally:
        loop.close()


@dataclass
class Seen:
    """What traffic against a stub gave; rows in the order of their schedule."""

    rows: list[RequestRow]
    facts: ClientFacts
    stub: Stub
    start_ns: int

    @property
    def one(self) -> RequestRow:
        (row,) = self.rows
        return row


def ask(
    script: Script, due_s: Sequence[float] = (0.0,), *, timeout_s: float = 5.0, cap: int | None = None
) -> Seen:
    """Open-loop traffic against a server of this script."""

    async def traffic() -> Seen:
        async with serving(script) as stub:
            rows: list[RequestRow] = []
            start_ns = time.monotonic_ns() + 20_000_000
            facts = await open_loop(
                stub.endpoint,
                Conversations([BODY]),
                due_s,
                start_mono_ns=start_ns,
                timeout_s=timeout_s,
                on_row=rows.append,
                concurrency_cap=cap,
            )
            return Seen(sorted(rows, key=lambda row: row.index), facts, stub, start_ns)

    return run(traffic())
