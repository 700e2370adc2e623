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


class HandMeter(ScriptedMeter):
    """A meter whose counter is what the test says."""

    energy_mj = 5

    def counters(self) -> tuple[Reading, ...]:
        now_ns = time.monotonic_ns()
        return (Reading(now_ns, now_ns, "GPU-0", energy_mj=self.energy_mj),)


def still(**meter: Any) -> tuple[Sampling, HandMeter, io.StringIO, list[dict[str, Any]]]:
    """A loop that does not run: each step is called by the test."""
    rows, said, by_hand = io.StringIO(), list[dict[str, Any]](), HandMeter(**meter)
    return Sampling(by_hand, rows, 10.0, 0, said.append), by_hand, rows, said


def seconds_from(now_ns: int, at_ns: int | None) -> float:
    assert at_ns is not None
    return (at_ns - now_ns) / 1e9


def test_it_looks_for_the_register_s_moves_at_its_start_and_after_one_four_and_every_twenty_seconds() -> None:
    sampling, *_ = still()
    for number, (moves, next_s) in enumerate([(2, 1.0), (1, 4.0), (1, 20.0), (1, 20.0)], 1):
        sampling.tally.sweeps = number
        now_ns = time.monotonic_ns()
        sampling._watch_now_and_then()
        watch = sampling._watch
        assert watch is not None
        assert (watch._wanted, watch._tries) == ({"GPU-0": moves}, {"GPU-0": moves + 2})
        assert next_s <= seconds_from(now_ns, sampling._own_watch_ns) < next_s + BUSY_S
        sampling._own_watch_ns = 0
        sampling._watch_now_and_then()  # one at a time
        assert sampling._watch is watch
        sampling._watch, sampling._own_watch_ns = None, now_ns + 10**12
        sampling._watch_now_and_then()  # it is not time yet
        assert sampling._watch is None
        sampling._own_watch_ns = 0
    flowing, *_ = still(ticks=False)
    flowing._watch_now_and_then()
    assert flowing._watch is None


def test_who_asked_is_told_once_and_the_watch_goes_on_until_its_end() -> None:
    sampling, meter, rows, said = still()
    far_ns = time.monotonic_ns() + 10**12
    watch = TickWatch(meter.counters(), far_ns, request="7", patience_s=0.1, moves=2)
    sampling._watch = watch
    sampling._look_for_tick(watch)
    assert (said, rows.getvalue()) == ([], "")
    meter.energy_mj = 6
    watch._last["GPU-0"] = reading(far_ns, 5)  # sharp, however long this machine stands still
    sampling._look_for_tick(watch)
    assert said == [{"id": "7", "tick": watch.tick_ns}]
    assert watch.tick_ns is not None
    assert len(rows.getvalue().splitlines()) == 2
    assert (watch.request, sampling._watch) == (None, watch)
    sampling._look_for_tick(watch)
    assert len(said) == 1
    watch.until_ns = time.monotonic_ns() - 1
    sampling._look_for_tick(watch)
    assert sampling._watch is None


def test_who_asked_in_vain_is_told_when_the_patience_is_over() -> None:
    sampling, meter, rows, said = still()
    watch = TickWatch(meter.counters(), time.monotonic_ns() + 10**12, request="7", patience_s=0.1)
    watch.answer_by_ns = time.monotonic_ns() - 1
    sampling._look_for_tick(watch)
    assert (said, rows.getvalue()) == ([{"id": "7", "tick": None}], "")


def test_it_ends_a_little_over_a_second_after_the_first_word_to_do_so() -> None:
    sampling, *_ = still()
    now_ns = time.monotonic_ns()
    sampling._end_soon()
    first_ns = sampling._end_ns
    assert 1.05 <= seconds_from(now_ns, first_ns) < 1.05 + BUSY_S
    sampling._end_soon()
    assert sampling._end_ns == first_ns


def test_words_are_heard_however_they_are_cut() -> None:
    sampling, _, _, said = still(ticks=False)
    for piece in (b"desc", b"ribe 1\ndescribe 2", b"\nti", b"ck 3 0.3\nstop 4\n"):
        sampling._hear(piece)
    assert said == [
        {"id": "1", "gpus": [{"uuid": "GPU-0"}]},
        {"id": "2", "gpus": [{"uuid": "GPU-0"}]},
        {"id": "3", "tick": None},
    ]
    assert (sampling._stop_request, sampling._end_ns is not None) == ("4", True)
    assert sampling.tally.rows == 1  # a counter that flows was read where it was wanted
    asked, *_ = still()
    asked._hear(b"tick 5 2.5\n")
    assert asked._watch is not None
    assert asked._watch.answer_by_ns == asked._watch.until_ns
    assert asked._watch.request == "5"


def test_sweeps_are_counted_and_the_first_sets_the_begin() -> None:
    sampling, *_ = still()
    sampling._count_sweep()
    first_ns = sampling.tally.first_ns
    assert (sampling.tally.sweeps, sampling.tally.last_ns) == (1, first_ns)
    assert 0 < sampling.tally.cpu_before_s <= sum(os.times()[:2]) + 0.1
    before_s = sampling.tally.cpu_before_s
    sampling._count_sweep()
    assert (sampling.tally.sweeps, sampling.tally.first_ns) == (2, first_ns)
    assert (sampling.tally.last_ns >= first_ns, sampling.tally.cpu_before_s) == (True, before_s)


def test_every_reading_of_a_sweep_counts_with_its_duration() -> None:
    sampling, _, rows, _ = still(fails=True)
    sampling._sample()
    sampling._sample()
    assert (sampling.tally.rows, sampling.tally.failed_reads) == (2, 2)
    assert sampling.tally.call_s.tolist() == [0.002, 0.002]
    assert len(rows.getvalue().splitlines()) == 2
    sampling._write(())
    assert len(rows.getvalue().splitlines()) == 2
