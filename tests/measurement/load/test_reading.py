"""However TCP cuts a response, what is read from it is the same."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llem_airflow.measurement.load.answer import MAX_EVENT_BYTES, EventStream
from llem_airflow.measurement.load.exchange import Exchange, RequestRow
from llem_airflow.measurement.load.framing import ResponseReader
from tests.measurement.load.stub import (
    answer,
    chunk,
    chunked,
    event,
    head,
    http_chunk,
    until_closed,
    usage,
    with_length,
)

COMMENTED = b"".join([b"\xef\xbb\xbf: ping\n\n", *answer([2, 0, 3], line_end="\r"), b"id: 7\nretry: 1\n\n"])

RESPONSES = {
    "chunked": chunked(answer([1, 2, 3])),
    "odd chunks": chunked([b"".join(answer([1, 2]))[at : at + 5] for at in range(0, len(b"".join(answer([1, 2]))), 5)]),
    "length": with_length(answer([1, 1], told=False)),
    "until closed": until_closed(answer([4, 1], line_end="\r\n")),
    "CR, comments and other fields": chunked([COMMENTED]),
    "two lines of data": with_length(
        [b'data: {"choices": [{"text": "a",\r\ndata:"finish_reason": "stop"}],\ndata:  "usage": ',
         b'{"prompt_tokens": 1, "completion_tokens": 1}}\r\r\n']),
    "interim responses": head("103 Early Hints") + head("100 Continue") + chunked(answer([1])),
    "trailers and extensions": head(transfer_encoding="Chunked") + b"".join(
        b"%X;name=value\r\n%s\r\n" % (len(piece), piece) for piece in answer([1, 1])) + b"0\r\nx: y\r\n\r\n",
    "bare line feeds": chunked(answer([1])).replace(b"\r\n", b"\n"),
    "an error": with_length([b'{"error": {"message": "n\xc3\xb6"}}'], "500 Oops"),
    "not JSON": chunked([*answer([1, 1])[:1], event('{"choices')]),
    "no HTTP": b"HTTP/3 200\r\n\r\n",
    "bad framing": head(transfer_encoding="chunked") + http_chunk(answer([1])[0]) + b"xyz\r\n",
    "after the end": with_length(answer([1])) + b"HTTP/1.1 200 OK\r\n\r\n",
    "cut off": chunked(answer([1, 1, 1]))[:-500],
    "empty": with_length([]),
}  # fmt: skip


def row_of(pieces: list[bytes]) -> tuple[RequestRow, bool]:
    """The row of a response that comes in these pieces, all at the same instant, and then ends."""
    exchange = Exchange(0, 0, 0)
    exchange.sent_ns = 1
    ended = any(exchange.feed(piece, lambda: 5) for piece in pieces)
    if not ended:
        exchange.lost(None)
    return exchange.row(None, 9), exchange.reusable


def cut(data: bytes, places: set[int]) -> list[bytes]:
    edges = [0, *sorted(places), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(edges) if end > begin]


@pytest.mark.parametrize("name", RESPONSES)
def test_a_cut_at_every_byte_and_between_any_two_gives_the_same_row(name: str) -> None:
    data = RESPONSES[name]
    whole, reusable = row_of([data])
    assert row_of([data[at : at + 1] for at in range(len(data))])[0] == whole
    for at in range(1, len(data)):
        assert row_of([data[:at], data[at:]])[0] == whole
    assert reusable is (name not in UNUSABLE)


UNUSABLE = {"until closed", "not JSON", "no HTTP", "bad framing", "after the end", "cut off"}


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_answer_in_any_segments_gives_its_tokens(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=12))
    told = data.draw(st.booleans())
    line_end = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    events = answer(counts, told=told, line_end=line_end)
    if data.draw(st.booleans()):
        events.insert(data.draw(st.integers(0, len(events))), b": ping" + line_end.encode() * 2)
    response = data.draw(st.sampled_from([chunked, with_length, until_closed]))(events)
    places = data.draw(st.sets(st.integers(1, len(response) - 1), max_size=40))
    row, _ = row_of(cut(response, places))
    assert (row.status, row.output_tokens, row.input_tokens) == ("ok", sum(counts), 3), row.error_text
    if told:
        assert row.chunk_tokens == tuple(count for count in counts if count)
    elif row.chunk_tokens is not None and any(counts):
        assert row.chunk_tokens == (1,) * len(counts)
    if row.chunk_tokens is not None:
        assert sum(row.chunk_tokens) == row.output_tokens


@given(
    st.binary(max_size=400),
    st.sets(st.integers(1, 399), max_size=30),
    st.sampled_from([b"", head()[:-2], head()]),
)
@settings(max_examples=300, deadline=None)
def test_any_bytes_at_all_give_one_row_whatever_their_segments(
    data: bytes, places: set[int], before: bytes
) -> None:
    data = before + data
    row, _ = row_of([data] if data else [])
    again, _ = row_of(cut(data, {place for place in places if place < len(data)}))
    assert row == again
    assert row.status == "error"


@given(st.lists(st.text(alphabet="a\u2603:data \n\r", max_size=8), max_size=8), st.sets(st.integers(1, 200)))
def test_events_of_any_lines_do_not_depend_on_the_segments(lines: list[str], places: set[int]) -> None:
    data = "\ndata:".join(lines).encode() + b"\n\n"
    pieces = cut(data, {place for place in places if place < len(data)})
    whole, stream = EventStream().feed(data), EventStream()
    assert [found for piece in pieces for found in stream.feed(piece)] == whole


@given(
    st.integers(1, 50),
    st.lists(st.integers(0, 5), min_size=1, max_size=8),
)
def test_a_whole_that_contradicts_the_chunks_wins_and_their_tokens_are_not_known(
    more: int, counts: list[int]
) -> None:
    total = sum(counts)
    events = [event(chunk("x", sum(counts[: place + 1]), "stop")) for place in range(len(counts))]
    row, _ = row_of([chunked([*events, event(usage(total + more)), event("[DONE]")])])
    assert (row.status, row.output_tokens, row.chunk_tokens) == ("ok", total + more, None)


@pytest.mark.parametrize(
    ("head_lines", "what"),
    [
        (b"HTTP/1.1 20 OK", "not an HTTP"),
        (b"HTTP/2 200 OK", "not an HTTP"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked", "transfer-encoding"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1", "content-length"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4", "content-length"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1_0", "content-length"),
        (b"HTTP/1.1 200 OK\r\ncontent-encoding: br", "content-encoding"),
    ],
)
def test_a_head_that_cannot_be_trusted_is_refused(head_lines: bytes, what: str) -> None:
    reader = ResponseReader()
    assert reader.feed(head_lines + b"\r\n\r\n") == b""
    assert reader.failure is not None
    assert what in reader.failure


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        (b"HTTP/1.1 204 No Content", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 0", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: Close", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive", True),
    ],
)
def test_whether_a_connection_is_kept(lines: bytes, kept: bool) -> None:
    reader = ResponseReader()
    reader.feed(lines + b"\r\n\r\n")
    assert (reader.ended, reader.keep_alive) == (True, kept)


@pytest.mark.parametrize("piece", [b"x", b"data: x\n", b"\xff" * 7])
def test_an_endless_event_is_refused_at_its_bound(piece: bytes) -> None:
    stream, fed = EventStream(), 0
    while stream.failure is None and fed < 3 * MAX_EVENT_BYTES:
        stream.feed(b"data: " * (not fed) + piece * 1000)
        fed += len(piece) * 1000
    assert stream.failure is not None
    assert fed <= MAX_EVENT_BYTES * 1.2


def test_endless_lines_between_chunks_are_refused() -> None:
    for endless in (b"1;" + b"x" * 10_000, b"0\r\n" + b"a: b\r\n" * 20_000):
        reader = ResponseReader()
        reader.feed(head(transfer_encoding="chunked"))
        reader.feed(endless)
        assert reader.failure is not None
        assert "longer than" in reader.failure


def test_reading_costs_no_more_than_its_length() -> None:
    """A response that comes byte by byte is read in a time that grows with its length, not with its square."""
    many = b"data: " + b"x" * (MAX_EVENT_BYTES - 100)
    stream = EventStream()
    for at in range(0, len(many), 3):
        stream.feed(many[at : at + 3])
    part: Any = stream._part
    assert sum(map(len, part)) == len(many)  # in pieces: they are joined once, when the line ends
