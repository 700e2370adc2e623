"""What the load client tells of itself and of an answer, by hand: shares, conversations, chunks, rows."""

from __future__ import annotations

import asyncio
import json
import math
import time
from functools import partial

import pytest

from llem_airflow.measurement.load import client
from llem_airflow.measurement.load.answer import Answer
from llem_airflow.measurement.load.client import Conversations, Endpoint, precise_event_loop
from llem_airflow.measurement.load.exchange import CUT, ERROR, OK, TIMEOUT, Exchange, RequestRow, row_line
from llem_airflow.measurement.load.framing import ResponseReader
from llem_airflow.measurement.load.plan import LoadPlan, LoadPrompt
from tests.measurement.load.stub import answer, chunked, event, head, usage


@pytest.mark.parametrize(
    ("ordered", "share", "value"),
    [
        ([], 0.5, None),
        ([7.0], 0.99, 7.0),
        ([1.0, 3.0], 0.5, 2.0),
        ([1.0, 3.0], 0.99, 2.98),
        ([0.0, 10.0, 20.0, 40.0], 0.5, 15.0),
        ([0.0, 10.0, 20.0, 40.0], 1.0, 40.0),
        ([0.0, 10.0, 20.0, 40.0], 0.9, 34.0),
    ],
)
def test_a_share_lies_between_the_closest_ranks(
    ordered: list[float], share: float, value: float | None
) -> None:
    assert client._quantile(ordered, share) == pytest.approx(value)


def row(prompt_index: int = 0, status: str = OK) -> RequestRow:
    return RequestRow(
        4, prompt_index, status, 10, 11, 20, 40, 50, (20, 30, 40), (1, 0, 2), 3, 3, "stop", None, 200, None
    )


def test_turns_follow_each_other_and_conversations_repeat() -> None:
    talks = Conversations([b"a", b"b", b"c", b"d"], (2, 1, 1), 60.0)
    assert [talks.opening() for _ in range(5)] == [0, 2, 3, 0, 2]
    assert talks.following(row(0)) == 1
    assert [talks.following(row(number)) for number in (1, 2, 3)] == [None] * 3
    assert [talks.following(row(0, status)) for status in (ERROR, TIMEOUT, CUT)] == [None] * 3
    assert talks.duration_s == 60.0
    alone = Conversations([b"a", b"b"])
    assert [alone.opening() for _ in range(3)] == [0, 1, 0]
    assert (alone.following(row(0)), alone.duration_s) == (None, math.inf)


def test_an_endpoint_is_its_host_port_and_path() -> None:
    assert Endpoint.of("http://127.0.0.1:8000") == Endpoint("127.0.0.1", 8000, "/v1/completions")
    assert Endpoint.of("http://host/base/") == Endpoint("host", 80, "/base/v1/completions")
    asked = Endpoint.of("http://[::1]:9").request(b"{}")
    assert asked.split(b"\r\n") == [
        b"POST /v1/completions HTTP/1.1",
        b"Host: [::1]:9",
        b"Accept: text/event-stream",
        b"Content-Type: application/json",
        b"Content-Length: 2",
        b"",
        b"{}",
    ]


def test_a_row_has_a_time_for_each_token_and_every_field() -> None:
    assert row().token_mono_ns == (20, 40, 40)
    assert json.loads(row_line(row(), "measure")) == {
        "request_id": "measure-4",
        "phase": "measure",
        "prompt_index": 0,
        "status": "ok",
        "input_tokens": 3,
        "output_tokens": 3,
        "t_due_mono_ns": 10,
        "t_submit_mono_ns": 11,
        "t_first_mono_ns": 20,
        "t_last_mono_ns": 40,
        "t_end_mono_ns": 50,
        "token_mono_ns": [20, 40, 40],
        "chunk_tokens": [1, 0, 2],
        "finish_reason": "stop",
        "error_class": None,
        "http_status": 200,
        "error_text": None,
    }


def said(*counts: int | None, whole: int | None = None) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """The chunks of an answer that comes a chunk each nanosecond, with the tokens so far where they are told."""
    got = Answer()
    for t_ns, total in enumerate(counts, 1):
        told = {} if total is None else {"usage": {"completion_tokens": total}}
        got.take(json.dumps({"choices": [{"text": ""}], **told}).encode(), t_ns)
    if whole is not None:
        got.take(json.dumps({"choices": [], "usage": {"completion_tokens": whole}}).encode(), 99)
    return got.chunks()


@pytest.mark.parametrize(
    ("counts", "whole", "chunks"),
    [
        ((1, 2, 3), 3, ((1, 2, 3), (1, 1, 1))),
        ((1, 1, 4), 4, ((1, 3), (1, 3))),
        ((2, 1), 1, ((1, 2), None)),  # it goes back: not known
        ((1, 2), 5, ((1, 2), None)),  # the whole is more
        ((None, None), 2, ((1, 2), (1, 1))),
        ((None, None), 3, ((1, 2), None)),
        ((None, 2), 2, ((1, 2), (1, 1))),
        ((None, None), 0, ((), ())),
        ((), None, ((), ())),
        ((None,), None, ((1,), None)),
    ],
)
def test_how_many_tokens_each_chunk_held(
    counts: tuple[int | None, ...], whole: int | None, chunks: tuple[tuple[int, ...], tuple[int, ...] | None]
) -> None:
    assert said(*counts, whole=whole) == chunks


def fed(*pieces: bytes) -> Exchange:
    exchange = Exchange(3, 1, 5)
    exchange.sent_ns = 6
    for t_ns, piece in enumerate(pieces, 10):
        exchange.feed(piece, partial(int, t_ns))
    return exchange


def test_a_row_is_timed_by_its_events() -> None:
    first, second, *rest = answer([1, 2])
    exchange = fed(head() + first, second, b"".join(rest))
    exchange.lost(None)
    found = exchange.row(None, 30)
    assert (found.index, found.prompt_index, found.status) == (3, 1, OK)
    assert (found.t_due_mono_ns, found.t_submit_mono_ns, found.t_end_mono_ns) == (5, 6, 30)
    assert (found.t_first_mono_ns, found.t_last_mono_ns) == (10, 11)
    assert (found.chunk_mono_ns, found.chunk_tokens) == ((10, 11), (1, 2))
    assert (found.input_tokens, found.output_tokens, found.http_status) == (3, 3, 200)


def test_what_was_answered_whole_is_no_timeout_and_what_was_not_keeps_what_came() -> None:
    assert fed(chunked(answer([1, 1]))).row(TIMEOUT, 30).status == OK
    cut = fed(head() + b"".join(answer([1, 1])[:1])).row(CUT, 30)
    assert (cut.status, cut.output_tokens, cut.error_class, cut.error_text) == (CUT, 1, None, None)


def test_an_error_text_is_one_line_of_two_hundred_characters() -> None:
    body = ("word \n" * 100).encode()
    failed = fed(head("500 No", content_length=str(len(body))) + body).row(None, 30)
    assert failed.error_text == ("word " * 100)[:200]
    assert (failed.error_class, failed.http_status) == ("http_status", 500)
    long = fed(head("500 No", content_length="9000") + b"x" * 4096, b"y" * 4904).row(None, 30)
    assert long.error_text == "x" * 200


@pytest.mark.parametrize(
    ("length", "pieces", "bodies", "ended", "kept"),
    [
        (4, [b"ab", b"cd"], [b"ab", b"cd"], True, True),
        (4, [b"ab", b"c"], [b"ab", b"c"], False, True),
        (4, [b"abcdef"], [b"abcd"], True, False),
        (4, [b"abcd", b"e"], [b"abcd", b""], True, False),
        (0, [], [], True, True),
    ],
)
def test_a_body_of_a_length_ends_there(
    length: int, pieces: list[bytes], bodies: list[bytes], ended: bool, kept: bool
) -> None:
    reader = ResponseReader()
    assert reader.feed(head(content_length=str(length))) == b""
    assert [reader.feed(piece) for piece in pieces] == bodies
    assert (reader.ended, reader.keep_alive, reader.status, reader.failure) == (ended, kept, 200, None)
    assert reader.closed() == ended


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    reader = ResponseReader()
    assert reader.feed(head() + b"data") == b"data"
    assert (reader.ended, reader.keep_alive) == (False, False)
    assert reader.closed()
    assert not ResponseReader().closed()


def test_the_last_chunk_may_have_no_choice() -> None:
    got = Answer()
    got.take(event(usage(7))[6:-2], 1)
    assert (got.input_tokens, got.output_tokens, got.chunks()) == (3, 7, ((), None))


PLAN = LoadPlan(
    "http://127.0.0.1:1", "m", (LoadPrompt(4, text="a"), LoadPrompt(5, token_ids=(1,))), 0, 1.0, due_s=(0.0,)
)


def test_a_plan_lays_out_its_conversations() -> None:
    talks = PLAN.conversations()
    assert (len(talks.requests), talks.duration_s) == (2, math.inf)
    assert PLAN.checked() is PLAN
    bodies = [json.loads(body) for body in PLAN.bodies()]
    assert [(one["prompt"], one["max_tokens"]) for one in bodies] == [("a", 4), ([1], 5)]


def test_a_timer_of_less_than_a_millisecond_is_kept() -> None:
    """epoll alone waits in whole milliseconds; the best of many tries, as a busy machine is late."""
    loop = precise_event_loop()
    best_s, until_s = 1.0, time.monotonic() + 30.0
    while best_s >= 0.0009 and time.monotonic() < until_s:
        begun_s = time.monotonic()
        loop.run_until_complete(asyncio.sleep(0.0003))
        best_s = min(best_s, time.monotonic() - begun_s)
    loop.close()
    assert 0.0003 <= best_s < 0.0009
