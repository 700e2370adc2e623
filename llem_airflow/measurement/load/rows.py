"""What is known of one request when it has ended, and its line in requests.jsonl."""

from __future__ import annotations

import json
from dataclasses import dataclass

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
