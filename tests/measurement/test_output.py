"""What an attempt writes: events line by line, files whole."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from llem_airflow.measurement.output import EventLog, anchor, seconds_since
from llem_airflow.protocol.files import write_json, write_whole


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_event_is_on_disk_before_the_next_line_of_code(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.emit("note", text="one")
    assert rows(tmp_path / "events.jsonl")[0]["text"] == "one"
    log.close()


def test_a_phase_is_a_begin_and_an_end_in_order(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    with log.phase("load"):
        log.emit("note", text="inside")
    found = rows(tmp_path / "events.jsonl")
    assert [(row["event"], row["phase"]) for row in found] == [
        ("phase_begin", "load"),
        ("note", "load"),
        ("phase_end", "load"),
    ]
    times = [int(str(row["t_mono_ns"])) for row in found]
    assert times == sorted(times)
    log.close()


def test_a_phase_that_fails_has_no_end_and_stays_the_current_one(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    with pytest.raises(KeyError), log.phase("load"):
        raise KeyError("x")
    assert [row["event"] for row in rows(tmp_path / "events.jsonl")] == ["phase_begin"]
    assert log.phase_name == "load"
    log.close()


def test_a_phase_that_the_protocol_does_not_know_is_refused(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    with pytest.raises(ValueError, match="'wramup' is not a phase"), log.phase("wramup"):
        pass
    log.close()


def test_progress_is_said_to_people_and_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.progress(1.5, 3.0, "pass 2: 1.5 of 3 s, 12.0 tok/s")
    assert "pass 2: 1.5 of 3 s, 12.0 tok/s" in capsys.readouterr().out
    assert rows(tmp_path / "events.jsonl")[0]["done"] == 1.5
    log.close()


def test_a_file_appears_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write_whole(tmp_path / "result.json", "x" * 100_000)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert (tmp_path / "result.json").stat().st_size == 100_000


def test_a_number_that_json_does_not_know_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    write_json(tmp_path / "environment.json", {"a": 1})
    with pytest.raises(ValueError, match="Out of range float values"):
        write_json(tmp_path / "environment.json", {"a": float("nan")})
    assert (tmp_path / "environment.json").read_text() == '{\n "a": 1\n}\n'


def test_a_line_for_people_has_the_time_the_phase_and_the_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    assert log.phase_name == "start"
    monkeypatch.setattr("llem_airflow.measurement.output.seconds_since", lambda since_ns: 12.34)
    log.say("hello")
    log.note("kept")
    log.close()
    said = capsys.readouterr().out.splitlines()
    assert said == ["[   12.3 s] start           hello", "[   12.3 s] start           kept"]
    assert [(row["event"], row["text"]) for row in rows(tmp_path / "events.jsonl")] == [("note", "kept")]


def test_an_event_is_now_or_when_it_is_said_to_be(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    before_ns = time.monotonic_ns()
    at_ns = log.emit("note")
    assert before_ns <= at_ns <= time.monotonic_ns()
    assert log.emit("counter_tick", t_mono_ns=0, x=1.5) == 0
    log.close()
    assert rows(tmp_path / "events.jsonl")[1] == {
        "t_mono_ns": 0,
        "event": "counter_tick",
        "phase": "start",
        "x": 1.5,
    }


def test_progress_is_rounded_to_thousandths(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.progress(1.23456, 9.87654, "x")
    log.close()
    (row,) = rows(tmp_path / "events.jsonl")
    assert (row["done"], row["total"], row["event"]) == (1.235, 9.877, "progress")


def test_seconds_since_an_instant() -> None:
    assert seconds_since(time.monotonic_ns() - 2 * 10**9) == pytest.approx(2.0, abs=0.1)


def test_an_anchor_is_the_closest_of_five_tries() -> None:
    for _ in range(3):
        before_ns, found, after_ns = time.monotonic_ns(), anchor(), time.monotonic_ns()
        assert before_ns <= found.mono_ns <= after_ns
        assert abs(found.epoch_ns - time.time_ns() - (found.mono_ns - time.monotonic_ns())) < 50_000_000


def test_json_is_indented_and_sorted(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"b": [1], "a": None})
    assert (tmp_path / "x.json").read_text() == '{\n "a": null,\n "b": [\n  1\n ]\n}\n'
