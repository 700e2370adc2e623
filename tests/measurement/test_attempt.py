"""Whole attempts, in a process as in the container, with an engine that a third party's package brings."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from llem_airflow.protocol.files import EVENTS, POWER, REQUESTS
from llem_airflow.protocol.spec import Limits
from tests.measurement.running import Ran, run, spec_of, start

FAST = {"engine_params": {"step_s": 0.001, "batch_size": 2}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(spec_of("scripted", FAST), tmp_path_factory.mktemp("finished"))


def test_a_third_party_s_engine_runs_to_a_result(finished: Ran) -> None:
    assert finished.code == 0, finished.stdout
    assert (finished.result.engine, finished.result.engine_version) == ("scripted", "1.0")


def test_phases_are_marked_in_order_and_each_ends(finished: Ran) -> None:
    marks = [(row["event"], row["phase"]) for row in finished.events if row["event"].startswith("phase_")]
    names = ["import", "load", "warmup", "measure", "cooldown"]
    assert marks == [(kind, name) for name in names for kind in ("phase_begin", "phase_end")]


def test_the_window_repeats_whole_passes_until_it_is_long_enough(finished: Ran) -> None:
    window = finished.result.window
    assert window.t_end_mono_ns - window.t_begin_mono_ns >= 0.2e9
    assert window.requests % 4 == 0
    assert window.iterations == window.requests // 2
    assert window.output_tokens == window.requests * 8


def test_every_measured_request_lies_in_the_window_and_counts_agree(finished: Ran) -> None:
    window = finished.result.window
    measured = [row for row in finished.requests if row["phase"] == "measure"]
    assert len(measured) == window.requests
    assert sum(row["output_tokens"] for row in measured) == window.output_tokens
    assert sum(row["input_tokens"] for row in measured) == window.input_tokens
    assert all(window.t_begin_mono_ns <= row["t_submit_mono_ns"] for row in measured)
    assert all(row["t_last_mono_ns"] <= window.t_end_mono_ns for row in measured)


def test_power_is_sampled_from_before_to_a_second_after_the_window(finished: Ran) -> None:
    times_ns = [int(line.split(",")[0]) for line in (finished.out / "power.csv").read_text().splitlines()[1:]]
    window = finished.result.window
    assert times_ns[0] < window.t_begin_mono_ns
    assert times_ns[-1] >= window.t_end_mono_ns + 1_000_000_000


def test_an_estimate_is_called_one_and_has_no_baseline_phase(finished: Ran) -> None:
    assert (finished.result.meter.kind, finished.result.meter.energy_kind) == ("cpu-estimate", "estimate")
    assert not [row for row in finished.events if row["phase"].startswith("baseline")]


def test_warm_up_uses_different_prompts_and_is_labelled(finished: Ran) -> None:
    used = {row["prompt_index"] for row in finished.requests if row["phase"] == "warmup"}
    assert used == {0, 1, 2, 3}
    assert finished.result.warmup.outcome == "fixed"
    assert finished.result.warmup.iterations == 3


def test_progress_reads_like_a_story(finished: Ran) -> None:
    for words in ("importing scripted", "iteration 3: ", "pass ", "tok/s", "done: "):
        assert words in finished.stdout


def test_two_anchors_bracket_the_attempt(finished: Ran) -> None:
    first, last = finished.result.anchors
    assert first.mono_ns < finished.result.window.t_begin_mono_ns < last.mono_ns


def test_baselines_that_the_study_asks_for_are_phases_around_the_load(tmp_path: Path) -> None:
    config = {"measurement": {"baseline": {"enabled": True, "duration_seconds": 0.2}}}
    ran = run(spec_of("scripted", FAST, config=config), tmp_path)
    begun = [row["phase"] for row in ran.events if row["event"] == "phase_begin"]
    assert begun[:4] == ["baseline_bare", "import", "load", "baseline_loaded"]


def test_disabled_warm_up_is_labelled_disabled(tmp_path: Path) -> None:
    ran = run(spec_of("scripted", FAST, config={"offline": {"warmup": {"enabled": False}}}), tmp_path)
    assert ran.result.warmup.outcome == "disabled"
    assert {row["phase"] for row in ran.requests} == {"measure"}


def test_an_engine_that_raises_leaves_the_structured_error_and_what_was_seen(tmp_path: Path) -> None:
    section = {
        "engine_params": {**FAST["engine_params"], "fail": "generate", "message": "CUDA out of memory"}
    }
    ran = run(spec_of("scripted", section), tmp_path)
    assert ran.code == 1
    assert not ran.has_result
    assert (ran.error.type, ran.error.phase, ran.error.category) == (
        "RuntimeError",
        "warmup",
        "out_of_memory_gpu",
    )
    assert ran.error.message.startswith("CUDA out of memory")
    assert "Lower the batch size" in ran.error.message
    assert "scripted_engine.py" in ran.error.traceback
    assert ran.power_rows > 0
    assert "FAILED: RuntimeError: CUDA out of memory" in ran.stdout


def test_an_unknown_engine_names_those_that_are_known(tmp_path: Path) -> None:
    ran = run(spec_of("scriptd", {}), tmp_path)
    assert ran.error.category == "engine_missing"
    assert (
        ran.error.message
        == "engine 'scriptd' is not known; engines here: transformers, vllm, tensorrt, scripted"
    )


def test_an_engine_that_the_image_lacks_is_said_with_its_module(tmp_path: Path) -> None:
    ran = run(spec_of("tensorrt", {}), tmp_path)
    assert ran.error.category == "engine_missing"
    assert "the module 'tensorrt_llm' is not in this image" in ran.error.message


def test_the_attempt_ends_itself_before_its_wall_clock_limit(tmp_path: Path) -> None:

    def ran_for(wall_clock_s: float) -> Ran:
        folder = tmp_path / f"{wall_clock_s}"
        folder.mkdir()
        limits = Limits(wall_clock_s=wall_clock_s)
        return run(spec_of("scripted", FAST, min_window_s=3600, limits=limits), folder)

    ran = ran_for(2.0)
    if ran.error.phase != "measure":  # a busy host may not have begun to measure after 2 s
        ran = ran_for(40.0)
    assert (ran.error.category, ran.error.phase) == ("timeout", "measure")
    assert "experiment_timeout_seconds" in ran.error.message


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_killed_attempt_keeps_events_requests_and_power(tmp_path: Path, number: int, code: int) -> None:
    process = start(spec_of("scripted", FAST, min_window_s=3600), tmp_path)
    ran = Ran(0, "", tmp_path / "out")
    deadline_s = time.monotonic() + 60

    def seen(name: str) -> str:
        return (ran.out / name).read_text() if (ran.out / name).exists() else ""

    while not ('"measure"' in seen(EVENTS) and seen(REQUESTS) and seen(POWER).count("\n") > 1):
        assert time.monotonic() < deadline_s, "the window never opened"
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert not ran.has_result
    assert ran.requests
    assert ran.power_rows > 0
    assert ran.events[-1]["phase"] == "measure"


def test_an_attempt_whose_listener_died_still_writes_its_result(tmp_path: Path) -> None:
    process = start(spec_of("scripted", FAST), tmp_path)
    assert process.stdout is not None
    process.stdout.close()
    process.wait(timeout=60)
    assert Ran(0, "", tmp_path / "out").has_result


def test_a_main_thread_that_does_not_come_back_does_not_hold_the_end(tmp_path: Path) -> None:
    process = start(spec_of("scripted", {"engine_params": {"step_s": 600.0}}), tmp_path)
    assert process.stdout is not None
    while "loading" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_a_spec_of_another_version_is_refused_with_its_name(tmp_path: Path) -> None:
    spec = spec_of("scripted", FAST)
    object.__setattr__(spec, "schema_version", 99)
    ran = run(spec, tmp_path)
    assert ran.code == 2
    assert "0123456789abcdef_config.json: schema_version 99; this side speaks 1" in ran.stdout
