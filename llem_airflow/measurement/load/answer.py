"""The events of a streamed completion (OpenAI's ``/v1/completions``, as vLLM and TensorRT-LLM serve it)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

_DONE = b"[DONE]"
_scan: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().raw_decode


class AnswerError(ValueError):
    """An event is not one of a completion; the message shows it."""


class Answer:
    """What the events of one answer have told so far.

    A chunk is an event with a choice, whether its text is empty or not, as vLLM's ``benchmarks/serve.py`` counts it;
    one that the server says holds no token is none.

    Attributes:
        input_tokens: Tokens of the prompt, by the server's usage.
        output_tokens: Generated tokens so far, by the server's usage; None while it has not said.
        finish_reason: Why it ended, in the server's words.
        error: What the server says went wrong, or None.
        done: Whether the stream has said that it is over.
    """

    __slots__ = ("_chunk_ns", "_totals", "done", "error", "finish_reason", "input_tokens", "output_tokens")

    def __init__(self) -> None:
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.finish_reason: str | None = None
        self.error: str | None = None
        self.done = False
        self._chunk_ns: list[int] = []
        self._totals: list[int | None] = []  # generated tokens up to and with each chunk

    def take(self, data: bytes, t_ns: int) -> None:
        """Take the data of one event.

        Args:
            data: JSON of a completion's chunk, or ``[DONE]``.
            t_ns: When it came, in nanoseconds of the monotonic clock.

        Raises:
            AnswerError: It is neither.
        """
        if data == _DONE:
            self.done = True
            return
        if self.done:
            return
        event = _event(data)
        if event.get("error") or event.get("object") == "error":
            self.error = error_text(event)
            return
        usage = event.get("usage")
        if usage is not None:
            self._count(usage)
        choices = event.get("choices")
        if choices:
            self._chunk(choices)
            self._chunk_ns.append(t_ns)
            self._totals.append(None if usage is None else self.output_tokens)

    def chunks(self) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """When chunks came, in monotonic nanoseconds, and how many tokens each held.

        None instead of the numbers when the server told the whole only and there are not as many chunks as tokens.
        """
        times_ns, totals, whole = self._chunk_ns, self._totals, self.output_tokens
        if whole == 0:
            return (), ()
        told = [total for total in totals if total is not None]
        if len(told) == len(totals):
            counts = [after - before for before, after in zip([0, *told], told)]  # noqa: B905 - one longer on purpose
            kept = [(t_ns, count) for t_ns, count in zip(times_ns, counts, strict=True) if count]
            known = sum(counts) == (whole or 0) and min(counts, default=0) >= 0
            return tuple(t_ns for t_ns, _ in kept), tuple(count for _, count in kept) if known else None
        return tuple(times_ns), (1,) * len(times_ns) if len(times_ns) == whole else None

    def _count(self, usage: object) -> None:
        if not isinstance(usage, dict):
            raise AnswerError(f"usage is no object: {_short(usage)}")
        self.input_tokens = _tokens(usage, "prompt_tokens", self.input_tokens)
        self.output_tokens = _tokens(usage, "completion_tokens", self.output_tokens)

    def _chunk(self, choices: object) -> None:
        choice = choices[0] if isinstance(choices, list) else None
        if not isinstance(choice, dict):
            raise AnswerError(f"choices is no list of objects: {_short(choices)}")
        reason = choice.get("finish_reason")
        if reason is not None:
            self.finish_reason = str(reason)


def error_text(event: object) -> str:
    """The message of an error, as OpenAI's API and its copies lay it out."""
    inner = event.get("error", event) if isinstance(event, dict) else event
    message = inner.get("message", inner) if isinstance(inner, dict) else inner
    return message if isinstance(message, str) else _short(message)


def _event(data: bytes) -> dict[str, Any]:
    try:
        text = data.decode().strip(" \t\r\n")
        event, end = _scan(text, 0)
        if end != len(text):
            event = json.loads(text)  # says what is wrong
    except (ValueError, RecursionError) as error:
        raise AnswerError(f"an event is not JSON ({error}): {data[:80]!r}") from error
    if not isinstance(event, dict):
        raise AnswerError(f"an event is no JSON object: {data[:80]!r}")
    return event


def _tokens(usage: dict[str, Any], name: str, otherwise: int | None) -> int | None:
    count = usage.get(name)
    if count is None:
        return otherwise
    if type(count) is not int or count < 0:
        raise AnswerError(f"usage.{name} is no number of tokens: {_short(count)}")
    return count


def _short(value: object) -> str:
    return json.dumps(value)[:80]


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
