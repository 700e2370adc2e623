"""One request and what has come back for it so far. No sockets here: bytes and times go in, a row comes out."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from llem_airflow.measurement.load.answer import Answer, AnswerError, EventStream, error_text
from llem_airflow.measurement.load.framing import ResponseReader

_KEPT_BODY_BYTES = 4_096
_TEXT_CHARACTERS = 200


class Carrier(Protocol):
    """A connection, as far as the request knows it."""

    def drop(self) -> None:
        """Close it at once."""


class Exchange:
    """A request from its due time to its end.

    Attributes:
        index: Its place in the schedule.
        prompt_index: Which of the requests it repeats.
        due_ns: When it should be sent, in nanoseconds of the monotonic clock.
        sent_ns: When the client began to send it; None before.
        heard: Whether any byte has come back.
        again: Whether it was sent a second time, as the first connection had been closed before.
        timer: Ends it when its time is over.
        connecting: Opens its connection, where none was free.
        connection: Carries it now.
    """

    __slots__ = (
        "_answer",
        "_body",
        "_events",
        "_failure",
        "_reader",
        "_streams",
        "again",
        "connecting",
        "connection",
        "due_ns",
        "heard",
        "index",
        "prompt_index",
        "sent_ns",
        "timer",
    )

    def __init__(self, index: int, prompt_index: int, due_ns: int) -> None:
        self.index, self.prompt_index, self.due_ns = index, prompt_index, due_ns
        self.sent_ns: int | None = None
        self.heard = False
        self.again = False
        self.timer: asyncio.TimerHandle | None = None
        self.connecting: asyncio.Task[None] | None = None
        self.connection: Carrier | None = None
        self._reader = ResponseReader()
        self._events = EventStream()
        self._answer = Answer()
        self._body = b""  # the first bytes of what is no stream of events
        self._streams = False
        self._failure: tuple[str, str] | None = None

    @property
    def reusable(self) -> bool:
        """Whether its connection can carry another request."""
        return self._failure is None and self._reader.ended and self._reader.keep_alive

    def feed(self, data: bytes, clock_ns: Callable[[], int]) -> bool:
        """Take bytes of the response.

        Args:
            data: The next bytes of the connection, cut anywhere.
            clock_ns: The monotonic clock, in nanoseconds. It is read for each event, so that two chunks of one segment
                are two, as in vLLM's client.

        Returns:
            Whether the response has ended.
        """
        self.heard = True
        body = self._reader.feed(data)
        try:
            if body:
                self._read(body, clock_ns)
        except AnswerError as error:
            self._failure = ("malformed", str(error))
        failure = self._events.failure or self._reader.failure
        if failure and self._failure is None:
            self._failure = ("malformed", failure)
        return self._reader.ended or self._failure is not None

    def _read(self, body: bytes, clock_ns: Callable[[], int]) -> None:
        if self._reader.status == 200:
            for event in self._events.feed(body):
                self._streams = True
                self._answer.take(event, clock_ns())
        if not self._streams and len(self._body) < _KEPT_BODY_BYTES:
            self._body += body[:_KEPT_BODY_BYTES]

    def lost(self, error: Exception | None) -> None:
        """The connection is closed, by an error or by the server's will."""
        if not self._reader.closed() and not self._answer.done and self._failure is None:
            when = "in the middle of the answer" if self.heard else "before any answer"
            self._failure = (
                "connection_lost",
                f"the connection was closed {when}" + (f": {error}" if error else ""),
            )

    def not_connected(self, error: OSError) -> None:
        """There is no connection to send it on."""
        handles = error.errno in (errno.EMFILE, errno.ENFILE)
        self._failure = ("out_of_file_handles" if handles else "connect", str(error))

    def row(self, status: str | None, end_ns: int) -> RequestRow:
        """What is known of it now that it has ended.

        Args:
            status: ``timeout`` or ``cut``; None when the response or a failure ended it.
            end_ns: Now, in nanoseconds of the monotonic clock.
        """
        if self._answer.done:  # whatever happened to the connection afterwards
            status = None
        failure = None if status else self._verdict()
        answer = self._answer
        times_ns, tokens = answer.chunks()
        return RequestRow(
            index=self.index,
            prompt_index=self.prompt_index,
            status=status or (ERROR if failure else OK),
            t_due_mono_ns=self.due_ns,
            t_submit_mono_ns=self.sent_ns,
            t_first_mono_ns=times_ns[0] if times_ns else None,
            t_last_mono_ns=times_ns[-1] if times_ns else None,
            t_end_mono_ns=end_ns,
            chunk_mono_ns=times_ns,
            chunk_tokens=tokens,
            input_tokens=answer.input_tokens,
            output_tokens=answer.output_tokens,
            finish_reason=answer.finish_reason,
            error_class=failure[0] if failure else None,
            http_status=self._reader.status,
            error_text=" ".join(failure[1].split())[:_TEXT_CHARACTERS] if failure else None,
        )

    def _verdict(self) -> tuple[str, str] | None:
        """Why it failed, if it did."""
        answer, status = self._answer, self._reader.status
        if status not in (None, 200):
            return "http_status", _said(self._body)
        if answer.error is not None:
            return "server_error", answer.error
        if self._failure is not None:
            return self._failure
        if not self._streams:
            return "malformed", f"no events in the answer: {_said(self._body)}"
        if not answer.done and answer.finish_reason is None:
            return "connection_lost", "the stream ended in the middle of the answer"
        if answer.output_tokens is None:
            return "no_usage", "the answer ended without the token counts that were asked for"
        return None


def _said(body: bytes) -> str:
    """What a body that is no stream of events says: the message of its error, or its text."""
    text = body.decode(errors="replace")
    try:
        return error_text(json.loads(text))
    except (ValueError, RecursionError):
        return text


OK = "ok"
ERROR = "error"
TIMEOUT = "timeout"
CUT = "cut"
STATUSES = (OK, ERROR, TIMEOUT, CUT)
"""How a request ended: answered whole; failed; not answered in time; still open when the traffic was ended."""

ERROR_CLASSES = (
    "connect",
    "connection_lost",
    "http_status",
    "malformed",
    "no_usage",
    "out_of_file_handles",
    "server_error",
)
"""Why a request failed.

``connect``: no connection (refused, unreachable). ``connection_lost``: closed or reset before the answer was whole.
``http_status``: another status than 200. ``malformed``: not HTTP, not server-sent events or not JSON. ``no_usage``:
the answer ended without the token counts that were asked for. ``out_of_file_handles``: this client (or the host) may
open no more connections, which says nothing about the server. ``server_error``: an error object within the stream.
"""


@dataclass(frozen=True)
class RequestRow:
    """One request. Times are nanoseconds of the monotonic clock; latencies count from ``t_due_mono_ns``.

    Attributes:
        index: Its place in the schedule, from 0.
        prompt_index: Which of the requests it repeats.
        status: One of ``STATUSES``.
        t_due_mono_ns: When it should have been sent.
        t_submit_mono_ns: When this client began to send it; opening a connection comes after. None when it never did.
        t_first_mono_ns: When its first token came; None when none did.
        t_last_mono_ns: When its last token came; None likewise.
        t_end_mono_ns: When the request was over, whichever way.
        chunk_mono_ns: When each chunk with tokens came.
        chunk_tokens: How many tokens each held; None when the server did not say and it cannot be told.
        input_tokens: Tokens of the prompt, by the server's usage; None when it did not say.
        output_tokens: Generated tokens, by the server's usage (what it had said by then); None when it did not say.
        finish_reason: Why the answer ended, in the server's words.
        error_class: One of ``ERROR_CLASSES`` where the status is ``error``, else None.
        http_status: Status of the response, None without one.
        error_text: What went wrong, short; None where nothing did.
    """

    index: int
    prompt_index: int
    status: str
    t_due_mono_ns: int
    t_submit_mono_ns: int | None
    t_first_mono_ns: int | None
    t_last_mono_ns: int | None
    t_end_mono_ns: int
    chunk_mono_ns: tuple[int, ...]
    chunk_tokens: tuple[int, ...] | None
    input_tokens: int | None
    output_tokens: int | None
    finish_reason: str | None
    error_class: str | None
    http_status: int | None
    error_text: str | None

    @property
    def token_mono_ns(self) -> tuple[int, ...]:
        """A time for each generated token, the same for those of a chunk; for each chunk where these are not known."""
        if self.chunk_tokens is None:
            return self.chunk_mono_ns
        pairs = zip(self.chunk_mono_ns, self.chunk_tokens, strict=True)
        return tuple([t_ns for t_ns, tokens in pairs for _ in range(tokens)])


def row_line(row: RequestRow, phase: str) -> str:
    """The row as a line of requests.jsonl: the protocol's fields, and those that only an online request has."""
    return (
        json.dumps(
            {
                "request_id": f"{phase}-{row.index}",
                "phase": phase,
                "prompt_index": row.prompt_index,
                "status": row.status,
                "input_tokens": row.input_tokens,
                "output_tokens": row.output_tokens,
                "t_due_mono_ns": row.t_due_mono_ns,
                "t_submit_mono_ns": row.t_submit_mono_ns,
                "t_first_mono_ns": row.t_first_mono_ns,
                "t_last_mono_ns": row.t_last_mono_ns,
                "t_end_mono_ns": row.t_end_mono_ns,
                "token_mono_ns": row.token_mono_ns,
                "chunk_tokens": row.chunk_tokens,
                "finish_reason": row.finish_reason,
                "error_class": row.error_class,
                "http_status": row.http_status,
                "error_text": row.error_text,
            },
            separators=(",", ":"),
        )
        + "\n"
    )
