"""How a board is read while its plan is played: every two milliseconds, and no longer than its driver answers."""

from __future__ import annotations

import io
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.measurement.board import __main__ as reading
from llem_airflow.measurement.board.__main__ import ask_everything
from llem_airflow.measurement.board.load import BoardLoad, ScriptedLoad
from llem_airflow.measurement.board.plan import Phase
from llem_airflow.measurement.meters.contract import Reading

MS_NS = 1_000_000


class Board:
    """A meter of one board that fails from one reading on, and answers again from another on."""

    def __init__(self, fails_from: int = 10**9, again_from: int = 10**9) -> None:
        self.read_at_ns: list[int] = []
        self._fails = range(fails_from, again_from)

    def read(self) -> tuple[Reading, ...]:
        now_ns = time.monotonic_ns()
        number = len(self.read_at_ns)
        self.read_at_ns.append(now_ns)
        if number in self._fails:
            return (Reading(now_ns, now_ns, "GPU-0", error="GpuIsLost"),)
        return (Reading(now_ns, now_ns, "GPU-0", 1000, energy_mj=number),)


def read(board: Any, begin_ns: int, end_ns: int) -> tuple[str, list[str]]:
    rows = io.StringIO()
    return reading._read_until(board, begin_ns, end_ns, rows), rows.getvalue().splitlines()


def test_a_board_is_read_from_begin_to_end_with_two_milliseconds_between() -> None:
    board = Board()
    begin_ns = time.monotonic_ns() + 20 * MS_NS
    end_ns = begin_ns + 100 * MS_NS
    lost, rows = read(board, begin_ns, end_ns)
    assert (lost, len(rows)) == ("", len(board.read_at_ns))
    assert begin_ns <= board.read_at_ns[0]
    assert 1 <= len(rows) <= 50
    apart_ns = [after - before for before, after in pairwise(board.read_at_ns)]
    assert min(apart_ns, default=2 * MS_NS) >= 2 * MS_NS
    assert time.monotonic_ns() >= end_ns


def test_a_board_whose_time_is_over_is_not_read() -> None:
    now_ns = time.monotonic_ns()
    assert read(Board(), now_ns - 10, now_ns) == ("", [])


def test_a_driver_is_given_up_after_more_than_fifty_failures_in_a_row() -> None:
    now_ns = time.monotonic_ns()
    lost, rows = read(Board(fails_from=3), now_ns, now_ns + 600 * 10**9)
    assert (lost, len(rows)) == ("GpuIsLost", 3 + 51)
    now_ns = time.monotonic_ns()
    lost, rows = read(Board(fails_from=1, again_from=51), now_ns, now_ns + 300 * MS_NS)
    assert lost == ""  # fifty failures, and then it answers again


class Told(BoardLoad):
    """A load that notes what it was asked, and tells one edge a phase."""

    kind = "torch"

    def __init__(self) -> None:
        super().__init__("")
        self.asked: list[tuple[str, int]] = []

    def context(self) -> None:
        self.asked.append(("make a context", 0))

    def start(self, phase: Phase, origin_ns: int) -> None:
        self.asked.append((phase.name, origin_ns))

    def done(self) -> list[tuple[int, int]]:
        return [(1, 2)]


def played(load: Any, board: Any, phases: tuple[Phase, ...]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    facts: dict[str, Any] = {"uuid": "GPU-0", "edges": [], "lost": ""}
    return list(reading._played(facts, phases, load, board, io.StringIO())), facts


def test_phases_follow_each_other_and_what_took_longer_moves_the_rest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    load = Told()
    phases = (Phase("bare", 0.0, 0.01), Phase("context", 0.01, 0.03), Phase("square", 0.03, 0.04))
    found, facts = played(load, Board(), phases)
    assert [(one["name"], one["end_ns"] - one["begin_ns"]) for one in found] == [
        ("bare", 10 * MS_NS),
        ("context", 20 * MS_NS),
        ("square", 10 * MS_NS),
    ]
    assert [name for name, _ in load.asked] == ["bare", "make a context", "context", "square"]
    for one, (_, origin_ns), phase in zip(found, [load.asked[0], *load.asked[2:]], phases, strict=True):
        assert one["begin_ns"] == origin_ns + round(phase.begin_s * 1e9)
    for before, after in pairwise(found):
        assert after["begin_ns"] >= before["end_ns"]
    assert facts["edges"] == [
        {"phase": name, "on_ns": 1, "off_ns": 2} for name in ("bare", "context", "square")
    ]
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = [one for one in said if "phase" in one]
    assert [(one["phase"], one["done_ratio"]) for one in told] == [
        ("bare", 0.0),
        ("context", 0.25),
        ("square", 0.75),
    ]
    assert all(0 <= one["within_s"] - reading.ANSWERS_S <= 0.1 for one in told)


def test_a_board_that_is_lost_ends_its_plan() -> None:
    found, facts = played(
        Told(), Board(fails_from=0), (Phase("bare", 0.0, 600.0), Phase("full", 600.0, 700.0))
    )
    assert ([one["name"] for one in found], facts["lost"]) == (["bare"], "GpuIsLost")


def test_a_script_keeps_its_own_time() -> None:
    load = ScriptedLoad(time.time_ns() / 1e9 - 5.0)
    assert 4.99e9 <= time.monotonic_ns() - load.begin_ns() < 65e9
    found, facts = played(load, Board(), (Phase("square", 5.0, 5.01, ((5.001, 5.002), (5.004, 5.008))),))
    assert found[0]["begin_ns"] == load.begin_ns() + 5 * 10**9
    assert [(one["on_ns"] - load.begin_ns(), one["off_ns"] - load.begin_ns()) for one in facts["edges"]] == [
        (5_001_000_000, 5_002_000_000),
        (5_004_000_000, 5_008_000_000),
    ]
    assert load.note.startswith("The power was scripted, not drawn. It had begun ")
    late = ScriptedLoad(time.time_ns() / 1e9 + 600.0)
    assert played(late, Board(), ())[0] == []
    assert late.note == "The power was scripted, not drawn."


def test_the_share_of_a_core_that_reading_takes() -> None:
    board: Any = Board()
    share = reading._core_ratio(board, 20, 0.2)
    assert 1 <= len(board.read_at_ns) <= 4
    assert 0 <= share < 1.1
    slow: Any = Board()
    reading._core_ratio(slow, 1, 0.01)
    assert len(slow.read_at_ns) == 1


class Nvml:
    """A driver whose questions take as long as it is told, and of which some fail."""

    class NVMLError(Exception):
        pass

    class NVMLError_NotSupported(NVMLError):  # noqa: N801, N818  # the library's name
        pass

    NVML_CLOCK_SM = NVML_TEMPERATURE_GPU = 0

    def __init__(self, takes_s: float = 0.0) -> None:
        self.takes_s = takes_s
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def ask(*_: Any) -> Any:
            self.asked.append(name)
            if name == "nvmlDeviceGetMigMode":
                raise self.NVMLError_NotSupported
            if name == "nvmlDeviceGetPowerUsage":
                time.sleep(self.takes_s)
            return [type("Value", (), {"nvmlReturn": 0})]

        return ask


def test_each_question_is_asked_often_enough_for_its_median_and_a_slow_one_less_often() -> None:
    nvml = Nvml(takes_s=0.2)
    told: list[str] = []
    answers, cost_us = ask_everything(nvml, 0, told.append)
    assert told == list(answers)
    assert len(answers) == 14
    assert answers["mig_mode"] == "NotSupported"
    assert [name for name, answer in answers.items() if answer != "ok"] == ["mig_mode"]
    assert sorted(cost_us) == sorted(set(answers) - {"mig_mode"})
    # Once, and then until half a second is over: not more than three times.
    assert 2 <= nvml.asked.count("nvmlDeviceGetPowerUsage") <= 1 + 3
    assert cost_us["power_usage"] >= 200_000
    assert 2 <= nvml.asked.count("nvmlDeviceGetTotalEnergyConsumption") <= 1 + 21
    assert nvml.asked.count("nvmlDeviceGetMigMode") == 1


def test_what_is_known_of_a_board_is_there_whole(tmp_path: Path) -> None:
    reading._keep(tmp_path / "0.json", {"name": "a"})
    reading._keep(tmp_path / "0.json", {"name": "b"})
    assert json.loads((tmp_path / "0.json").read_text()) == {"name": "b"}
    assert [path.name for path in tmp_path.iterdir()] == ["0.json"]
