"""The loop of the sampling process, run here on a meter whose counter moves as the test says."""

from __future__ import annotations

import io
import os
import threading
import time
from array import array
from collections.abc import Callable
from typing import Any

import pytest

from llem_airflow.measurement.meters.contract import MeterFacts, Reading
from llem_airflow.measurement.sampling import SHARP_NS, TAIL_S, Sampling, Tally, TickWatch, say_to

BUSY_S = 20.0
"""How much later than it should a busy host may do something."""


class ScriptedMeter:
    """A meter whose counter rises by one at every period; power is known or fails."""

    def __init__(self, *, period_ns: int = 50_000_000, ticks: bool = True, fails: bool = False) -> None:
        self.facts = MeterFacts("scripted", "measured", "board", ("GPU-0",), "")
        self.ticks, self._period_ns, self._fails = ticks, period_ns, fails
        self.looks = 0

    def read(self) -> tuple[Reading, ...]:
        now_ns = time.monotonic_ns()
        power_mw = None if self._fails else 100_000
        return (Reading(now_ns, now_ns + 2_000_000, "GPU-0", power_mw, energy_mj=now_ns // self._period_ns),)

    def counters(self) -> tuple[Reading, ...]:
        self.looks += 1
        now_ns = time.monotonic_ns()
        return (Reading(now_ns, now_ns, "GPU-0", energy_mj=now_ns // self._period_ns),)

    def describe(self) -> list[dict[str, Any]]:
        return [{"uuid": "GPU-0"}]

    def close(self) -> None:
        """Nothing to let go of."""


def run(
    meter: ScriptedMeter,
    hz: float,
    script: Callable[[Callable[[str], None]], None],
    said: list[dict[str, Any]] | None = None,
) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """What the loop says (in ``said``, at once) and the rows that it writes while somebody speaks to it."""
    control, mouth = os.pipe()
    said = [] if said is None else said
    rows = io.StringIO()
    sampling = Sampling(meter, rows, hz, control, said.append)
    speaker = threading.Thread(
        target=script, args=(lambda text: os.write(mouth, f"{text}\n".encode()) and None,)
    )
    speaker.start()
    sampling.run()
    speaker.join()
    os.close(mouth)
    os.close(control)
    return said, [line.split(",") for line in rows.getvalue().splitlines()]


def test_it_samples_at_its_rate_until_a_second_after_it_is_told_to_stop() -> None:
    told_ns = 0

    def script(say: Callable[[str], None]) -> None:
        nonlocal told_ns
        time.sleep(0.3)
        told_ns = time.monotonic_ns()
        say("describe 7\nstop 8")

    said, rows = run(ScriptedMeter(ticks=False), 20.0, script)
    assert said[0] == {"sampling": True}
    assert said[1] == {"id": "7", "gpus": [{"uuid": "GPU-0"}]}
    report = said[-1]["stopped"]
    assert said[-1]["id"] == "8"
    assert report["samples"] == len(rows)
    assert report["failed_reads"] == 0
    assert report["call_p50_s"] == pytest.approx(0.002)
    span_s = (int(rows[-1][0]) - int(rows[0][0])) / 1e9
    assert report["achieved_hz"] == pytest.approx((len(rows) - 1) / span_s, rel=0.1)
    # A busy host misses deadlines; those are counted, so that the rate is known all the same.
    assert len(rows) - 1 <= 20.0 * span_s + 1
    assert len(rows) - 1 + report["missed_deadlines"] >= 20.0 * span_s - 1
    assert 1.0 < TAIL_S < 1.2
    assert TAIL_S - 0.1 <= (int(rows[-1][0]) - told_ns) / 1e9 <= TAIL_S + BUSY_S


def test_it_ends_a_second_after_the_other_end_of_its_pipe_is_gone() -> None:
    control, mouth = os.pipe()
    os.close(mouth)
    said: list[dict[str, Any]] = []
    begin_s = time.monotonic()
    Sampling(ScriptedMeter(ticks=False), io.StringIO(), 20.0, control, said.append).run()
    os.close(control)
    assert TAIL_S <= time.monotonic() - begin_s <= TAIL_S + BUSY_S
    assert said[-1]["id"] is None


def test_who_asks_for_a_move_of_the_counter_is_told_when_it_was_and_finds_sharp_rows_around_it() -> None:
    said: list[dict[str, Any]] = []

    def told() -> list[Any]:
        return [one["tick"] for one in list(said) if "tick" in one]

    def script(say: Callable[[str], None]) -> None:
        time.sleep(0.6)  # the watches of its own have ended
        for number in range(1, 50):  # a busy host may hide some moves
            say(f"tick {number} 0.3")
            while len(told()) < number:
                time.sleep(0.01)
            if told()[-1] is not None:
                break
        time.sleep(0.3)
        say("stop last")

    said, rows = run(ScriptedMeter(), 10.0, script, said)
    tick_ns = told()[-1]
    off_ns = tick_ns % 50_000_000
    assert min(off_ns, 50_000_000 - off_ns) <= SHARP_NS
    around = [int(row[0]) for row in rows if abs(int(row[0]) - tick_ns) <= SHARP_NS]
    assert len(around) >= 2
    assert around[0] < tick_ns < around[-1]


def test_a_counter_that_does_not_move_is_told_in_time() -> None:
    def script(say: Callable[[str], None]) -> None:
        time.sleep(0.6)
        say("tick 1 0.1")
        time.sleep(0.4)
        say("stop 2")

    begin_s = time.monotonic()
    said, _ = run(ScriptedMeter(period_ns=10**18), 10.0, script)
    assert next(one for one in said if one.get("id") == "1")["tick"] is None
    assert time.monotonic() - begin_s < 0.6 + 0.4 + TAIL_S + BUSY_S


def test_a_counter_that_flows_is_read_at_once() -> None:
    def script(say: Callable[[str], None]) -> None:
        time.sleep(0.05)
        say("tick 1 0.3\nstop 2")

    meter = ScriptedMeter(ticks=False)
    said, rows = run(meter, 1.0, script)
    assert {"id": "1", "tick": None} in said
    assert meter.looks == 0
    assert len(rows) >= 2


def test_readings_that_tell_no_power_are_counted() -> None:
    said, rows = run(ScriptedMeter(ticks=False, fails=True), 10.0, lambda say: say("stop 1"))
    assert said[-1]["stopped"]["failed_reads"] == len(rows) > 0


def test_deadlines_that_have_passed_are_counted_and_not_caught_up_with() -> None:
    sampling = Sampling(ScriptedMeter(), io.StringIO(), 0.1, 0, lambda _: None)
    period_ns = 10_000_000_000
    due_ns = time.monotonic_ns() - period_ns // 2
    assert sampling._next_deadline(due_ns) == due_ns + period_ns
    assert sampling.tally.missed == 0
    due_ns = time.monotonic_ns() - 3 * period_ns - period_ns // 2
    assert sampling._next_deadline(due_ns) == due_ns + 4 * period_ns
    assert sampling.tally.missed == 3


def test_the_report_of_a_tally() -> None:
    tally = Tally(rows=12, failed_reads=1, sweeps=6, missed=2, first_ns=10**9, last_ns=3 * 10**9)
    tally.call_s = array("d", [0.1, 0.3, 0.2])
    report = tally.report()
    assert {name: report[name] for name in ("samples", "failed_reads", "missed_deadlines")} == {
        "samples": 12,
        "failed_reads": 1,
        "missed_deadlines": 2,
    }
    assert (report["achieved_hz"], report["call_p50_s"]) == (2.5, 0.2)
    assert report["sampler_cpu_s"] == pytest.approx(sum(os.times()[:2]), abs=0.1)
    for empty in (Tally(), Tally(rows=1, sweeps=1), Tally(rows=0, sweeps=5, last_ns=9)):
        assert (empty.report()["achieved_hz"], empty.report()["call_p50_s"]) == (None, None)
    later = Tally(cpu_before_s=sum(os.times()[:2]))
    assert later.report()["sampler_cpu_s"] == pytest.approx(0.0, abs=0.1)


def reading(t_ns: int, energy_mj: int | None, gpu: str = "GPU-0") -> Reading:
    return Reading(t_ns, t_ns + 1000, gpu, energy_mj=energy_mj)


def test_a_move_is_sharp_within_five_milliseconds() -> None:
    for apart_ns, sharp in ((SHARP_NS - 1000, True), (SHARP_NS - 999, False)):
        watch = TickWatch([reading(0, 5)], 0)
        assert watch.look([reading(apart_ns, 6)]) == [reading(0, 5), reading(apart_ns, 6)]
        assert (watch.tick_ns is not None, watch.waiting) == (sharp, not sharp)
    assert SHARP_NS == 5_000_000


def test_the_move_lies_in_the_middle_and_the_first_one_is_told() -> None:
    watch = TickWatch([reading(0, 5)], 0, moves=2)
    watch.look([reading(2000, 6)])
    assert watch.tick_ns == 1500
    watch.look([reading(4000, 7)])
    assert (watch.tick_ns, watch.waiting) == (1500, False)


def test_how_long_a_watch_looks_and_how_often() -> None:
    own = TickWatch([reading(0, 5)], 10, moves=1)
    assert (own.request, own.answer_by_ns, own.until_ns, own.poll_s) == (None, 10, 10 + 500_000_000, 0.002)
    asked = TickWatch([reading(0, 5)], 10, request="3", patience_s=0.3)
    assert (asked.answer_by_ns, asked.until_ns, asked.poll_s) == (10 + 300_000_000, 10 + 500_000_000, 0.0005)
    patient = TickWatch([reading(0, 5)], 10, request="3", patience_s=2.0)
    assert (patient.answer_by_ns, patient.until_ns) == (10 + 2 * 10**9, 10 + 2 * 10**9)


def test_a_device_without_a_counter_is_not_waited_for() -> None:
    assert not TickWatch([reading(0, None)], 0).waiting
    watch = TickWatch([reading(0, 5), reading(0, None, "GPU-1")], 0)
    assert watch.look([reading(1, None), reading(1, 8, "GPU-1")]) == []
    assert watch.look([reading(2000, 6), reading(2000, 9, "GPU-1")]) == [reading(0, 5), reading(2000, 6)]
    assert not watch.waiting


def test_what_nobody_reads_is_not_said() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="ascii") as stream:
        say = say_to(stream)
        say({"a": 1})
        assert os.read(reader, 100) == b'{"a": 1}\n'
        os.close(reader)
        say({"a": 2})
        with pytest.raises(BrokenPipeError):
            stream.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)
