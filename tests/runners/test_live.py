"""Live records leave the output before anybody else sees it, wherever it is cut; nothing else of it is lost."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llem_airflow.protocol.live import LONGEST_BYTES, LivePhase, LivePower, phase_record, power_record
from llem_airflow.runners.output import LiveRecords, LogSink, Watchdog
from tests.protocol.test_live import RECORDS, written

Record = LivePower | LivePhase
TEXT = st.binary(max_size=40).map(lambda data: data.replace(b"\x1e", b""))
OTHERS = st.sampled_from(
    [b"\x1e", b"\x1e\n", b"\x1e{}\n", b"\x1e\x1e[1]\n", b"\x1e" + b"x" * LONGEST_BYTES + b"\n"]
)


@given(st.lists(st.one_of(TEXT, RECORDS, OTHERS), max_size=8), st.lists(st.integers(0, 5000), max_size=6))
def test_a_stream_cut_anywhere_gives_the_same_records_and_the_rest_whole(
    parts: list[bytes | Record], cuts: list[int]
) -> None:
    stream = b"".join(part if isinstance(part, bytes) else written(part) for part in parts)
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    heard: list[Record] = []
    live = LiveRecords(heard.append)
    rest = b"".join(live.taken_out_of(stream[a:b]) for a, b in itertools.pairwise(places))
    assert rest + live.finish() == b"".join(part for part in parts if isinstance(part, bytes))
    assert heard == [part for part in parts if not isinstance(part, bytes)]


def sink(folder: Path, lines: list[str], heard: list[Record]) -> LogSink:
    return LogSink(folder / "container.log", lines.append, [], 1 << 20, heard.append)


def test_records_stand_in_no_log_also_inside_of_a_progress_bar(tmp_path: Path) -> None:
    lines: list[str] = []
    heard: list[Record] = []
    record = LivePhase(5, "load")
    with sink(tmp_path, lines, heard) as made:
        assert made.feed(b"begin\n  10 %" + phase_record(record))
        assert made.feed(b"\r 100 %\nend\n\x1e{not ours}\n")
        made.finish()
    assert lines == ["begin", " 100 %", "end", "\x1e{not ours}"]
    assert heard == [record]
    assert b'"phase"' not in (tmp_path / "container.log").read_bytes()


def test_records_of_a_sampler_do_not_count_as_a_sign_of_life(tmp_path: Path) -> None:
    ended: list[float] = []
    record = power_record(LivePower(1, "measured", {}))
    with (
        sink(tmp_path, [], []) as made,
        Watchdog(lambda: ended.append(1), wall_clock_s=None, silence_s=0.3) as dog,
    ):
        until_s = time.monotonic() + 5
        while not ended and time.monotonic() < until_s:
            if made.feed(record):
                dog.heard()
            time.sleep(0.02)
    assert dog.fired == "silence"


@pytest.mark.parametrize("end", [b"", b"\x1e{", b"\x1e" + b'{"t":1,"phase":"lo'])
def test_a_record_that_was_cut_by_a_kill_is_text(tmp_path: Path, end: bytes) -> None:
    lines: list[str] = []
    with sink(tmp_path, lines, []) as made:
        made.feed(b"last line\n" + end)
        made.finish()
    assert lines == ["last line", *([end.decode()] if end else [])]
