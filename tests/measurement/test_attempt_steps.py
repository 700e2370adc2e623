"""An attempt in this process, with a third party's engine and no meter: its numbers against what was written."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import llem_airflow
from llem_airflow.measurement import attempt as steps
from llem_airflow.measurement.attempt import COOLDOWN_S, Attempt
from llem_airflow.measurement.engines.contract import Prompt
from llem_airflow.measurement.failure import MeasurementError
from llem_airflow.measurement.output import EventLog
from llem_airflow.measurement.prompts import batches
from llem_airflow.measurement.warmup import coefficient_of_variation
from llem_airflow.protocol.result import CycleResult
from llem_airflow.protocol.spec import Limits
from tests.measurement.running import FAST_GPU, HASH, PLUGIN, spec_of

SECOND_NS = 10**9


@dataclass(frozen=True)
class Seen:
    """A finished attempt and what it wrote."""

    result: CycleResult
    events: list[dict[str, Any]]
    requests: list[dict[str, Any]]
    environment: dict[str, Any]
    said: str

    def of(self, phase: str) -> list[dict[str, Any]]:
        return [row for row in self.requests if row["phase"] == phase]

    def marks(self, event: str) -> dict[str, int]:
        return {row["phase"]: row["t_mono_ns"] for row in self.events if row["event"] == event}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Four prompts in batches of three, so that the last batch is another; a window of 50 ms."""
    section = {"engine_params": {"step_s": 0.001, "batch_size": 3}}
    warmup = {"offline": {"warmup": {"convergence_detection": False, "n_prompts": 5, "window_size": 4}}}
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(PLUGIN)
        said = out / "said"
        with said.open("w") as file:
            patched.setattr("sys.stdout", file)
            log = EventLog(out / "events.jsonl")
            attempt = Attempt(
                spec_of("scripted", section, config=warmup, power="none", min_window_s=0.05), out, log
            )
            try:
                result = attempt.run()
            finally:
                attempt.close()
                log.close()
    return Seen(
        result,
        lines(out / "events.jsonl"),
        lines(out / "requests.jsonl"),
        json.loads((out / "environment.json").read_text()),
        said.read_text(),
    )


def test_the_result_is_that_of_its_experiment_engine_and_bundle(seen: Seen) -> None:
    told = seen.result
    assert (told.schema_version, told.experiment_hash, told.cycle) == (1, HASH, 1)
    assert (told.engine, told.engine_version, told.model["name"]) == ("scripted", "1.0", "script")
    assert (told.bundle_version, told.served) == (llem_airflow.__version__, None)
    assert (told.meter.kind, told.meter.samples) == ("none", 0)
    assert told.memory["gpu_peak_bytes"] is None
    assert (told.memory["peak_rss_bytes"] or 0) > 1 << 20
    assert told.cpu is not None
    assert (told.cpu.own_s >= 0, told.cpu.cores) == (True, os.cpu_count())


def test_the_window_is_the_batches_that_were_measured(seen: Seen) -> None:
    window, measured = seen.result.window, seen.of("measure")
    done = [row for row in seen.events if row["event"] == "iteration" and row["phase"] == "measure"]
    assert [row["index"] for row in done] == list(range(window.iterations))
    assert window.iterations % 2 == 0
    assert [row["batch_size"] for row in measured] == [3, 3, 3, 1] * (window.iterations // 2)
    assert [row["prompt_index"] for row in measured] == [0, 1, 2, 3] * (window.iterations // 2)
    assert (window.requests, window.output_tokens) == (len(measured), 8 * len(measured))
    assert window.input_tokens == sum(row["input_tokens"] for row in measured)
    for each in done:
        of_it = [row for row in measured if row["iteration"] == each["index"]]
        assert each["input_tokens"] == sum(row["input_tokens"] for row in of_it)
        assert each["output_tokens"] == 8 * len(of_it)
        assert each["t_submit_mono_ns"] == min(row["t_submit_mono_ns"] for row in of_it)
        assert each["t_first_mono_ns"] == min(row["t_first_mono_ns"] for row in of_it)
        assert each["t_prefill_end_mono_ns"] == max(row["t_first_mono_ns"] for row in of_it)
        assert each["t_last_mono_ns"] == max(row["t_last_mono_ns"] for row in of_it)
        assert each["duration_s"] == (each["t_last_mono_ns"] - each["t_submit_mono_ns"]) / 1e9


def test_the_window_ends_with_the_first_pass_that_makes_it_long_enough(seen: Seen) -> None:
    window, measured = seen.result.window, seen.of("measure")
    assert window.t_begin_mono_ns <= measured[0]["t_submit_mono_ns"]
    assert window.t_end_mono_ns >= measured[-1]["t_last_mono_ns"]
    assert window.t_end_mono_ns - window.t_begin_mono_ns >= 50_000_000
    if window.iterations > 2:  # the pass before the last came to its end too early
        assert measured[-5]["t_last_mono_ns"] - window.t_begin_mono_ns < 50_000_000


def test_a_warm_up_tells_the_scatter_of_its_last_latencies_per_token(seen: Seen) -> None:
    warmup = seen.result.warmup
    done = [row for row in seen.events if row["event"] == "iteration" and row["phase"] == "warmup"]
    latencies_s = [row["duration_s"] / row["output_tokens"] for row in done]
    assert (warmup.outcome, warmup.iterations, len(done)) == ("fixed", 5, 5)
    assert warmup.cv == pytest.approx(coefficient_of_variation(latencies_s[-4:]))
    ended_ns = seen.marks("phase_end")["warmup"]
    assert (ended_ns - done[0]["t_submit_mono_ns"]) / 1e9 <= warmup.duration_s
    assert (
        warmup.duration_s
        <= (seen.marks("phase_begin")["measure"] - seen.marks("phase_begin")["warmup"]) / 1e9
    )
    assert [row["text"] for row in seen.events if row["event"] == "note"] == [f"fixed: {warmup.reason}"]
    assert [row["batch_size"] for row in seen.of("warmup")] == [3, 3, 3, 1, 3, 3, 3, 1, 3, 3, 3]


def test_phases_follow_each_other_and_the_cooldown_lets_the_sampler_see_the_end(seen: Seen) -> None:
    begins, ends = seen.marks("phase_begin"), seen.marks("phase_end")
    assert list(begins) == list(ends) == ["import", "load", "warmup", "measure", "cooldown"]
    assert COOLDOWN_S == 1.5
    assert ends["cooldown"] - begins["cooldown"] >= 1_500_000_000
    first, last = seen.result.anchors
    assert first.mono_ns < begins["import"]
    assert ends["measure"] + 1_500_000_000 <= last.mono_ns <= ends["cooldown"]


def test_the_last_pass_and_the_end_of_the_warm_up_are_said(seen: Seen) -> None:
    told = [row for row in seen.events if row["event"] == "progress"]
    last = {row["phase"]: row for row in told}
    warmup = last["warmup"]
    done = [row for row in seen.events if row["event"] == "iteration"]
    fifth = [row for row in done if row["phase"] == "warmup"][4]
    cv = seen.result.warmup.cv
    assert warmup["text"] == f"iteration 5: {24 / fifth['duration_s']:.1f} tok/s, CV {cv:.1%}"
    assert (warmup["done"], warmup["total"]) == (5, 5)
    passes = len([row for row in done if row["phase"] == "measure"]) // 2
    text, rate = last["measure"]["text"].rsplit(", ", 1)
    assert re.fullmatch(rf"pass {passes}: \d\.\d of 0\.05 s", text)
    tokens, elapsed_s = seen.result.window.output_tokens, last["measure"]["done"]  # to the millisecond
    said_per_s = float(rate.removesuffix(" tok/s"))
    assert tokens / (elapsed_s + 0.0006) - 0.1 <= said_per_s <= tokens / (elapsed_s - 0.0006) + 0.1
    assert elapsed_s >= last["measure"]["total"] == 0.05
    assert "importing scripted" in seen.said
    assert re.search(r"load +loading m\n.*load +dtype unknown, ready after \d+\.\d s\n", seen.said)


def test_the_environment_holds_the_engine_and_both_anchors(seen: Seen) -> None:
    assert (seen.environment["engine"], seen.environment["gpus"]) == ("scripted", [])
    assert len(seen.environment["anchors"]) == 2


class Ticks:
    """Of a sampler what opens a window."""

    def __init__(self, tick_ns: int | None) -> None:
        self.tick_ns = tick_ns

    def wait_for_tick(self) -> int | None:
        return self.tick_ns


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[Attempt]:
    log = EventLog(tmp_path / "events.jsonl")
    made = Attempt(spec_of("scripted", FAST_GPU), tmp_path, log)
    log.phase_name = "measure"
    yield made
    made.close()
    log.close()


def test_a_window_opens_at_the_move_of_the_counter_or_now(attempt: Attempt, tmp_path: Path) -> None:
    ticks: Any = Ticks(77)
    assert attempt._open_window(ticks) == 77
    (told,) = lines(tmp_path / "events.jsonl")
    assert (told["event"], told["t_mono_ns"]) == ("counter_tick", 77)
    before_ns = time.monotonic_ns()
    none: Any = Ticks(None)
    assert before_ns <= attempt._open_window(none) <= time.monotonic_ns()
    assert len(lines(tmp_path / "events.jsonl")) == 1


@pytest.mark.parametrize(
    ("limit_s", "own_s"), [(1000.0, 990.0), (200.0, 190.0), (100.0, 95.0), (40.0, 38.0), (None, None)]
)
def test_an_attempt_ends_itself_a_twentieth_or_ten_seconds_before_its_limit(
    attempt: Attempt, limit_s: float | None, own_s: float | None
) -> None:
    attempt._spec = replace(attempt._spec, limits=Limits(wall_clock_s=limit_s))

    def run_for(seconds: float) -> None:
        attempt._begin_ns = time.monotonic_ns() - round(seconds * 1e9)
        attempt._check_wall_clock()

    run_for(0.0)
    if own_s is None:
        run_for(1e6)
        return
    run_for(own_s / 2)
    with pytest.raises(
        MeasurementError, match=rf"ran {own_s:.0f} s, its wall-clock limit is {limit_s:g} s"
    ) as told:
        run_for(own_s + 0.001)
    assert told.value.category == "timeout"


def test_a_pass_is_said_once_a_second_and_a_batch_every_five(
    attempt: Attempt, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def since_the_last_line(seconds: float, *, last: bool = False) -> int:
        attempt._last_line_ns = time.monotonic_ns() - round(seconds * 1e9)
        before = len(lines(tmp_path / "events.jsonl"))
        attempt._line(1.0, 2.0, "text", last=last)
        return len(lines(tmp_path / "events.jsonl")) - before

    assert [since_the_last_line(seconds) for seconds in (-60.0, 1.001, 30.0)] == [0, 1, 1]
    assert since_the_last_line(-60.0, last=True) == 1
    assert time.monotonic_ns() - attempt._last_line_ns < 30 * SECOND_NS

    capsys.readouterr()
    for seconds, tokens in ((-60.0, 7), (5.001, 1), (6.0, 2)):
        attempt._last_line_ns = time.monotonic_ns() - round(seconds * 1e9)
        attempt._on_step(tokens)
    said = [line.split("measure", 1)[1].strip() for line in capsys.readouterr().out.splitlines()]
    assert said == ["1 token of this batch", "2 tokens of this batch"]
    assert (steps._STEP_LINE_EVERY_NS, steps._PASS_LINE_EVERY_S) == (5 * SECOND_NS, 1.0)


def test_prompts_are_cut_into_batches() -> None:
    prompts = tuple(Prompt(index, (1,), 1) for index in range(5))

    def cut(size: int | None) -> list[list[int]]:
        return [[one.index for one in batch] for batch in batches(prompts, size)]

    assert cut(2) == [[0, 1], [2, 3], [4]]
    assert cut(None) == [[0, 1, 2, 3, 4]]
    assert cut(0) == [[0], [1], [2], [3], [4]]
