"""What an attempt writes: events line by line, files whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llem_airflow.measurement.output import EventLog, write_json, write_whole


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
