from __future__ import annotations

import asyncio
import json
import resource
import socket
import time
from itertools import pairwise
from typing import Any

import pytest

from llem_airflow.measurement.load.client import (
    AFTER_FAILURE_S,
    Conversations,
    Endpoint,
    closed_loop,
    open_loop,
)
from llem_airflow.measurement.load.exchange import RequestRow
from tests.measurement.load.stub import (
    BODY,
    Script,
    Wire,
    always,
    answer,
    ask,
    chunked,
    event,
    head,
    http_chunk,
    run,
    serving,
    until_closed,
    with_length,
)

GOOD = chunked(answer([1, 1, 1]))

HICCUP_S = 1.5
"""How far a busy machine may be late; what must not come early is bounded exactly."""


def test_an_answer_is_timed_from_its_due_time_and_counted_by_the_servers_usage() -> None:
    async def slowly(wire: Wire, _: int) -> None:
        first, second, *rest = answer([1, 3])
        await asyncio.sleep(0.05)
        await wire.say(head(transfer_encoding="chunked") + http_chunk(first))
        await asyncio.sleep(0.1)
        await wire.say(http_chunk(second) + b"".join(map(http_chunk, rest)) + b"0\r\n\r\n")

    seen = ask(slowly, [0.05])
    row = seen.one
    assert (row.status, row.error_class, row.http_status, row.finish_reason) == ("ok", None, 200, "length")
    assert (row.input_tokens, row.output_tokens, row.chunk_tokens) == (3, 4, (1, 3))
    assert row.t_due_mono_ns == seen.start_ns + 50_000_000
    assert row.t_submit_mono_ns is not None
    assert row.t_first_mono_ns is not None
    assert row.t_last_mono_ns is not None
    late_s = (row.t_submit_mono_ns - row.t_due_mono_ns) / 1e9
    assert 0 <= late_s < HICCUP_S
    assert late_s * 1e3 == pytest.approx(seen.facts.lateness_max_ms, abs=1.0)
    assert 0.05 <= (row.t_first_mono_ns - row.t_submit_mono_ns) / 1e9 < 0.05 + HICCUP_S
    # However late the client hears of the first tokens, the last ones come both pauses after the request.
    assert (row.t_last_mono_ns - row.t_submit_mono_ns) / 1e9 >= 0.149
    assert 0 < (row.t_last_mono_ns - row.t_first_mono_ns) / 1e9 < 0.1 + HICCUP_S
    assert row.token_mono_ns == (row.t_first_mono_ns, *(row.t_last_mono_ns,) * 3)
    assert row.t_end_mono_ns >= row.t_last_mono_ns
    assert seen.stub.bodies == [BODY]


@pytest.mark.parametrize(
    "data",
    [
        GOOD,
        with_length(answer([1, 1, 1])),
        until_closed(answer([1, 1, 1])),
        chunked(answer([1, 1, 1], line_end="\r\n")),
        chunked([b"".join(answer([1, 1, 1]))[at : at + 7] for at in range(0, 900, 7)]),
        head("100 Continue") + GOOD,
        with_length(answer([1, 1, 1], told=False)),
    ],
    ids=["chunked", "content-length", "until closed", "CRLF", "odd chunks", "after 100", "counts at the end"],
)
@pytest.mark.parametrize("pieces_of", [None, 1, 2, 3, 17])
def test_bodies_of_every_kind_in_segments_of_every_size_give_the_same_row(
    data: bytes, pieces_of: int | None
) -> None:
    row = ask(always(data, pieces_of=pieces_of, close=b"connection: close" in data)).one
    assert (row.status, row.output_tokens, row.chunk_tokens) == ("ok", 3, (1, 1, 1)), row.error_text


def test_connections_are_kept_and_used_again() -> None:
    seen = ask(always(GOOD), [0.0, 0.1, 0.2, 0.3], cap=1)
    assert [row.status for row in seen.rows] == ["ok"] * 4
    assert (seen.stub.connections, seen.facts.peak_connections) == (1, 1)


@pytest.mark.parametrize(
    "data",
    [
        with_length(answer([1, 1]), connection="close"),
        until_closed(answer([1, 1])),
        with_length(answer([1, 1])) + b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
    ],
    ids=["Connection: close", "no framing", "more than was asked for"],
)
def test_a_connection_that_cannot_be_kept_is_not_used_again(data: bytes) -> None:
    seen = ask(always(data, close=True), [0.0, 0.1, 0.2], cap=1)
    assert [row.status for row in seen.rows] == ["ok"] * 3
    assert seen.stub.connections == 3


def test_a_request_over_an_idle_connection_that_was_just_closed_is_sent_again() -> None:
    async def close_when_asked_again(wire: Wire, _: int) -> None:
        if wire.requests:
            wire.close()
        else:
            await wire.say(GOOD)

    seen = ask(close_when_asked_again, [0.0, 0.1], cap=1)
    assert [row.status for row in seen.rows] == ["ok", "ok"]
    assert seen.stub.connections == 2


def test_a_stall_shows_in_the_latency_of_every_request_that_was_due_meanwhile() -> None:
    """No coordinated omission: 20 requests a second meet a server that stands still for 2 s."""

    async def script(wire: Wire, number: int) -> None:
        await asyncio.sleep(max(free_s[0] - time.monotonic(), 0.0))
        if number == 10:
            free_s[0] = time.monotonic() + 2.0
            await asyncio.sleep(2.0)
        await wire.say(GOOD)

    free_s = [0.0]
    seen = ask(script, [index * 0.05 for index in range(60)])
    first_s = [((row.t_first_mono_ns or 0) - row.t_due_mono_ns) / 1e9 for row in seen.rows]
    assert [row.status for row in seen.rows] == ["ok"] * 60
    assert max(first_s[:10]) < HICCUP_S
    for index in range(10, 50):  # due during the stall, which ends 2 s after request 10 came
        left_s = 2.0 - (index - 10) * 0.05
        assert left_s <= first_s[index] < left_s + HICCUP_S
    assert max(first_s[51:]) < HICCUP_S
    assert [row.t_due_mono_ns for row in seen.rows] == [
        seen.start_ns + index * 50_000_000 for index in range(60)
    ]
    for row in seen.rows:  # each was sent when it was due, not when the server was free again
        assert row.t_submit_mono_ns is not None
        assert 0 <= row.t_submit_mono_ns - row.t_due_mono_ns < HICCUP_S * 1e9


def test_the_cap_bounds_what_is_in_flight_and_the_wait_for_it_is_in_the_latency() -> None:
    async def slowly(wire: Wire, _: int) -> None:
        await asyncio.sleep(0.1)
        await wire.say(GOOD)

    seen = ask(slowly, [0.0] * 6, cap=2)
    assert seen.stub.most_open == 2
    assert (seen.facts.held_by_cap, seen.facts.requests) == (4, 6)
    latencies_s = [((row.t_last_mono_ns or 0) - row.t_due_mono_ns) / 1e9 for row in seen.rows]
    sent_s = [((row.t_submit_mono_ns or 0) - row.t_due_mono_ns) / 1e9 for row in seen.rows]
    for turn, (latency_s, begun_s) in enumerate(zip(latencies_s, sent_s, strict=True)):
        assert 0.1 * (turn // 2 + 1) <= latency_s < 0.1 * (turn // 2 + 1) + HICCUP_S
        assert begun_s >= 0.1 * (turn // 2)
    assert seen.facts.lateness_max_ms is not None
    assert seen.facts.lateness_max_ms < min(sent_s[2:]) * 1e3  # the client was there; the cap held them


def test_a_request_that_gets_no_answer_times_out_after_its_due_time() -> None:
    async def never(wire: Wire, number: int) -> None:
        if number == 0:
            first, *_ = answer([2, 2])
            await wire.say(head(transfer_encoding="chunked") + http_chunk(first))
        await asyncio.sleep(30)

    seen = ask(never, [0.0, 0.5], timeout_s=0.5)
    for row in seen.rows:
        assert (row.status, row.error_class) == ("timeout", None)
        assert 0.499 <= (row.t_end_mono_ns - row.t_due_mono_ns) / 1e9 < 0.5 + HICCUP_S
    assert [row.output_tokens for row in seen.rows] == [2, None]  # what had come by then was generated
    assert [row.t_first_mono_ns is None for row in seen.rows] == [False, True]


def test_one_that_waits_for_the_cap_times_out_without_being_sent() -> None:
    async def never(wire: Wire, _: int) -> None:
        await asyncio.sleep(30)

    seen = ask(never, [0.0, 0.0], timeout_s=0.2, cap=1)
    assert [row.status for row in seen.rows] == ["timeout", "timeout"]
    assert seen.rows[1].t_submit_mono_ns is None
    assert len(seen.stub.bodies) == 1


FAILURES: list[tuple[str, bytes, bool, str, int | None, str]] = [
    ("500", with_length([b'{"error": {"message": "KV cache is full", "code": 500}}'], "500 Internal Server Error"),
     False, "http_status", 500, "KV cache is full"),
    ("400 as text", with_length([b"bad   request\r\nindeed"], "400 Bad Request"),
     False, "http_status", 400, "bad request indeed"),
    ("500, cut off", head("503 Busy", content_length="100") + b"busy", True, "http_status", 503, "busy"),
    ("redirect", with_length([], "307 Temporary Redirect", location="/x"), False, "http_status", 307, ""),
    ("sends nothing", b"", True, "connection_lost", None, "before any answer"),
    ("half a head", b"HTTP/1.1 200 OK\r\ncontent-", True, "connection_lost", None, "in the middle"),
    ("closes in the middle", GOOD[:-400], True, "connection_lost", 200, "in the middle"),
    ("ends in the middle", chunked(answer([1, 1, 1])[:1]), False, "connection_lost", 200, "in the middle"),
    ("error in the stream", chunked([*answer([1, 1])[:1], event({"error": {"message": "engine died"}})]),
     False, "server_error", 200, "engine died"),
    ("error, old layout", chunked([event({"object": "error", "message": "no memory", "code": 500})]),
     False, "server_error", 200, "no memory"),
    ("malformed JSON", chunked([event('{"choices": [')]), False, "malformed", 200, "not JSON"),
    ("a number", chunked([event("12")]), False, "malformed", 200, "no JSON object"),
    ("bad UTF-8", chunked([b'data: {"a": "\xff"}\n\n']), False, "malformed", 200, "not JSON"),
    ("deep JSON", chunked([event("[" * 100_000)]), False, "malformed", 200, "not JSON"),
    ("bad choices", chunked([event({"choices": "no"})]), False, "malformed", 200, "choices"),
    ("bad usage", chunked([event({"choices": [], "usage": {"completion_tokens": -1}})]),
     False, "malformed", 200, "completion_tokens"),
    ("no HTTP", b"SSH-2.0-OpenSSH_9.6\r\n\r\n", False, "malformed", None, "SSH-2.0"),
    ("bad chunk", head(transfer_encoding="chunked") + b"zz\r\n", False, "malformed", 200, "chunk"),
    ("gzip", with_length([b"x"], content_encoding="gzip"), False, "malformed", None, "gzip"),
    ("huge head", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000, False, "malformed", None, "longer than"),
    ("huge event", head() + b"data: " + b"x" * 2_000_000, False, "malformed", 200, "longer than"),
    ("plain JSON", with_length([b'{"choices": [], "detail": "not streamed"}']), False, "malformed", 200, "no events"),
    ("empty", with_length([]), False, "malformed", 200, "no events"),
    ("no usage", chunked([*answer([1, 1], told=False)[:2], event("[DONE]")]), False, "no_usage", 200, "token counts"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "close", "error_class", "http_status", "text"),
    [case[1:] for case in FAILURES],
    ids=[case[0] for case in FAILURES],
)
def test_each_failure_has_its_class_and_its_text(
    data: bytes, close: bool, error_class: str, http_status: int | None, text: str
) -> None:
    row = ask(always(data, close=close)).one
    assert (row.status, row.error_class, row.http_status) == ("error", error_class, http_status), row
    assert row.error_text is not None
    assert text in row.error_text
    assert len(row.error_text) <= 200


def test_a_reset_is_a_lost_connection() -> None:
    async def reset(wire: Wire, _: int) -> None:
        await wire.say(GOOD[:-400])
        wire.reset()

    row = ask(reset).one
    assert (row.status, row.error_class, row.http_status) == ("error", "connection_lost", 200)


def test_a_failed_request_does_not_stop_those_after_it() -> None:
    async def every_other(wire: Wire, number: int) -> None:
        await wire.say(with_length([b"no"], "500 No") if number % 2 else GOOD)

    seen = ask(every_other, [index * 0.02 for index in range(10)], cap=1)
    assert sorted(row.status for row in seen.rows) == ["error"] * 5 + ["ok"] * 5
    assert seen.stub.connections == 1  # the answer of an error is an answer like another


def test_an_empty_answer_is_a_request_with_no_tokens() -> None:
    row = ask(always(chunked(answer([0])))).one
    assert (row.status, row.output_tokens, row.input_tokens) == ("ok", 0, 3)
    assert (row.t_first_mono_ns, row.t_last_mono_ns, row.token_mono_ns, row.chunk_tokens) == (
        None,
        None,
        (),
        (),
    )
    assert row.finish_reason == "length"


def test_what_happens_after_done_does_not_matter() -> None:
    whole = GOOD[: GOOD.index(b"[DONE]") + len(b"[DONE]\n\n")]
    assert ask(always(whole, close=True)).one.status == "ok"
    assert ask(always(whole), timeout_s=0.2).one.status == "ok"


def test_chunks_that_come_in_one_segment_have_times_of_their_own() -> None:
    """As in vLLM's client, which takes the time of each message: they are two gaps, not one chunk of two tokens."""
    times_ns = ask(always(chunked(answer([1] * 50)))).one.chunk_mono_ns
    assert len(set(times_ns)) == 50
    assert list(times_ns) == sorted(times_ns)


def test_tokens_of_a_chunk_are_told_or_not_known() -> None:
    told = ask(always(chunked(answer([1, 2, 0, 4])))).one
    assert (told.chunk_tokens, told.output_tokens, len(told.token_mono_ns)) == ((1, 2, 4), 7, 7)
    assert len(told.chunk_mono_ns) == 3
    untold = ask(always(chunked(answer([1, 2, 4], told=False)))).one
    assert (untold.chunk_tokens, untold.output_tokens) == (None, 7)
    assert untold.token_mono_ns == untold.chunk_mono_ns
    assert len(untold.chunk_mono_ns) == 3


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # nobody listens
        rows: list[RequestRow] = []
        run(
            open_loop(
                Endpoint("127.0.0.1", port),
                Conversations([BODY]),
                [0.0, 0.05],
                start_mono_ns=time.monotonic_ns(),
                timeout_s=5,
                on_row=rows.append,
            )
        )
    assert [(row.status, row.error_class, row.http_status) for row in rows] == [
        ("error", "connect", None)
    ] * 2


def test_no_more_file_handles_is_told_apart_and_does_not_end_the_traffic() -> None:
    async def traffic(server: socket.socket) -> tuple[list[RequestRow], int]:
        rows: list[RequestRow] = []
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as probe:
            resource.setrlimit(resource.RLIMIT_NOFILE, (probe.fileno() + 9, hard))
        try:
            facts = await open_loop(
                Endpoint(*server.getsockname()),
                Conversations([BODY]),
                [0.0] * 20 + [0.5],
                start_mono_ns=time.monotonic_ns(),
                timeout_s=0.3,
                on_row=rows.append,
            )
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return sorted(rows, key=lambda row: row.index), facts.out_of_file_handles

    with socket.create_server(("127.0.0.1", 0)) as server:  # it takes connections and never answers
        rows, told = run(traffic(server))
    failed = [row for row in rows if row.status == "error"]
    assert {row.error_class for row in failed} == {"out_of_file_handles"}
    assert len(failed) == told >= 10
    assert rows[-1].status == "timeout"  # it had a connection: those before it had given theirs back


def test_what_is_open_at_the_end_is_cut_and_what_is_not_due_has_no_row() -> None:
    async def one_token(wire: Wire, _: int) -> None:
        first, *_rest = answer([1, 1])
        await wire.say(head(transfer_encoding="chunked") + http_chunk(first))
        await asyncio.sleep(30)

    async def traffic() -> list[RequestRow]:
        async with serving(one_token) as stub:
            stop = asyncio.Event()
            asyncio.get_running_loop().call_later(0.2, stop.set)
            rows: list[RequestRow] = []
            await open_loop(
                stub.endpoint,
                Conversations([BODY]),
                [0.0, 0.01, 9.0],
                start_mono_ns=time.monotonic_ns(),
                timeout_s=30,
                on_row=rows.append,
                concurrency_cap=1,
                stop=stop,
            )
            return rows

    rows = run(traffic())
    assert [(row.index, row.status, row.output_tokens) for row in rows] == [(0, "cut", 1), (1, "cut", None)]
    assert rows[1].t_submit_mono_ns is None


def test_a_row_that_cannot_be_written_ends_the_traffic_with_that_error() -> None:
    def full(row: RequestRow) -> None:
        raise OSError(28, "No space left on device")

    async def traffic() -> None:
        async with serving(always(GOOD)) as stub:
            await open_loop(
                stub.endpoint,
                Conversations([BODY]),
                [0.0, 9.0],
                start_mono_ns=time.monotonic_ns(),
                timeout_s=30,
                on_row=full,
            )

    with pytest.raises(OSError, match="No space left"):
        run(traffic())


@pytest.mark.parametrize("users", [1, 4])
def test_a_closed_loop_has_as_many_requests_in_flight_as_users_and_never_more(users: int) -> None:
    async def slowly(wire: Wire, number: int) -> None:
        await asyncio.sleep(0.02 + 0.01 * (number % 3))
        await wire.say(GOOD)

    async def traffic() -> tuple[list[RequestRow], int, int]:
        async with serving(slowly) as stub:
            rows: list[RequestRow] = []
            start_ns = time.monotonic_ns() + 50_000_000
            await closed_loop(
                stub.endpoint,
                Conversations([b"1", b"2"]),
                users=users,
                duration_s=0.6,
                start_mono_ns=start_ns,
                timeout_s=5,
                on_row=rows.append,
            )
            return rows, stub.most_open, start_ns

    rows, most_open, start_ns = run(traffic())
    assert most_open == users
    assert {row.status for row in rows} == {"ok"}
    assert users * 2 <= len(rows) <= users * 31
    assert sorted(row.index for row in rows) == list(range(len(rows)))
    assert all(row.prompt_index == row.index % 2 for row in rows)
    assert all(start_ns <= row.t_due_mono_ns < start_ns + 600_000_000 for row in rows)
    edges = sorted(
        [(row.t_due_mono_ns, 1) for row in rows] + [(row.t_end_mono_ns, -1) for row in rows],
        key=lambda edge: (edge[0], edge[1]),
    )
    in_flight = 0
    for _, change in edges:
        in_flight += change
        assert in_flight <= users


def test_a_user_waits_a_little_after_a_failure() -> None:
    async def traffic() -> list[RequestRow]:
        async with serving(always(with_length([b"no"], "500 No"))) as stub:
            rows: list[RequestRow] = []
            await closed_loop(
                stub.endpoint,
                Conversations([BODY]),
                users=1,
                duration_s=0.35,
                start_mono_ns=time.monotonic_ns(),
                timeout_s=5,
                on_row=rows.append,
            )
            return rows

    rows = run(traffic())
    assert 2 <= len(rows) <= 4
    for one, following in pairwise(rows):
        assert following.t_due_mono_ns - one.t_end_mono_ns == pytest.approx(AFTER_FAILURE_S * 1e9, abs=1e3)


def test_a_schedule_without_requests_ends_at_once() -> None:
    seen = ask(always(GOOD), [])
    assert (seen.rows, seen.facts.requests, seen.facts.lateness_p99_ms) == ([], 0, None)


@pytest.mark.parametrize("url", ["https://x:1", "127.0.0.1:80", "ftp://x", "http://"])
def test_an_endpoint_that_is_none_is_told(url: str) -> None:
    with pytest.raises(ValueError, match="http://HOST:PORT"):
        Endpoint.of(url)


def test_an_endpoint_writes_its_request() -> None:
    assert Endpoint.of("http://[::1]:8000/") == Endpoint("::1", 8000, "/v1/completions")
    message = Endpoint.of("http://h:1").request(b"{}")
    assert message.startswith(b"POST /v1/completions HTTP/1.1\r\nHost: h:1\r\n")
    assert message.endswith(b"Content-Length: 2\r\n\r\n{}")
    assert json.loads(message.partition(b"\r\n\r\n")[2]) == {}


TALKS = Conversations([b"a1", b"a2", b"a3", b"b1", b"c1", b"c2"], (3, 1, 2))


def talk(
    script: Script, due_s: list[float], duration_s: float = 9.0, **how: Any
) -> tuple[list[RequestRow], list[bytes]]:
    """Conversations of three, one and two turns; the rows as they ended, and what the server was asked."""

    async def traffic() -> tuple[list[RequestRow], list[bytes]]:
        async with serving(script) as stub:
            rows: list[RequestRow] = []
            await open_loop(
                stub.endpoint,
                Conversations(TALKS.requests, (3, 1, 2), duration_s),
                due_s,
                start_mono_ns=time.monotonic_ns(),
                timeout_s=5,
                on_row=rows.append,
                **how,
            )
            return rows, stub.bodies

    return run(traffic())


def test_the_next_turn_is_due_when_the_answer_before_it_has_come() -> None:
    rows, bodies = talk(always(GOOD), [0.0])
    assert bodies == [b"a1", b"a2", b"a3"]
    assert [(row.index, row.prompt_index, row.status) for row in rows] == [(n, n, "ok") for n in range(3)]
    for before, after in pairwise(rows):
        assert after.t_due_mono_ns == before.t_end_mono_ns


def test_conversations_begin_at_their_due_times_and_repeat() -> None:
    rows, bodies = talk(always(GOOD), [0.0, 0.1, 0.2, 0.3])
    assert sorted(bodies) == sorted([*TALKS.requests, b"a1", b"a2", b"a3"])
    begun = [row.t_due_mono_ns for row in rows if row.prompt_index in (0, 3, 4)]
    assert [round((ns - begun[0]) / 1e8) for ns in sorted(begun)] == [0, 1, 2, 3]


def test_a_turn_that_fails_ends_its_conversation_and_no_other() -> None:
    async def second_fails(wire: Wire, number: int) -> None:
        await wire.say(with_length([b"no"], "500 No") if number == 1 else GOOD)

    rows, bodies = talk(second_fails, [0.0, 0.3, 0.6])
    assert bodies == [b"a1", b"a2", b"b1", b"c1", b"c2"]
    assert [row.status for row in rows] == ["ok", "error", "ok", "ok", "ok"]


def test_no_turn_is_begun_after_the_duration() -> None:
    async def slowly(wire: Wire, _: int) -> None:
        await asyncio.sleep(1.0)
        await wire.say(GOOD)

    rows, bodies = talk(slowly, [0.0], duration_s=1.9)
    assert bodies == [b"a1", b"a2"]
    assert {row.status for row in rows} == {"ok"}


def test_turns_wait_for_the_cap_like_any_request() -> None:
    rows, bodies = talk(always(GOOD), [0.0, 0.0, 0.0], concurrency_cap=1)
    assert sorted(bodies) == sorted(TALKS.requests)
    assert {row.status for row in rows} == {"ok"}


def test_a_user_of_a_closed_loop_goes_through_a_conversation_before_the_next() -> None:
    async def traffic() -> list[bytes]:
        async with serving(always(GOOD)) as stub:
            await closed_loop(
                stub.endpoint,
                Conversations(TALKS.requests, (3, 1, 2)),
                users=1,
                duration_s=0.5,
                start_mono_ns=time.monotonic_ns(),
                timeout_s=5,
                on_row=lambda _row: None,
            )
            return stub.bodies

    bodies = run(traffic())
    assert len(bodies) > 7
    assert bodies[:7] == [*TALKS.requests, b"a1"]
