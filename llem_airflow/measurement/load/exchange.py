"""One request and what has come back for it so far. No sockets here: bytes and times go in, a row comes out."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Callable
from typing import Protocol

from llem_airflow.measurement.load.answer import Answer, AnswerError, error_text
from llem_airflow.measurement.load.framing import ResponseReader
from llem_airflow.measurement.load.rows import ERROR, OK, RequestRow
from llem_airflow.measurement.load.sse import EventStream

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
