"""What the load client of a server meets: no file handles, its own death, lost connections, answers of other shapes."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.measurement.load.__main__ import EXIT_CUT
from llem_airflow.measurement.load.arrivals import arrival_times
from llem_airflow.protocol.files import EVENTS
from llem_airflow.protocol.spec import ExperimentSpec
from tests.measurement.running import PLUGIN, ROOT, Ran, start
from tests.measurement.test_server_attempt import STUB, TOKENS, attempt, of_window, served

FILES = 48


def short(*, warmup_s: float = 0.0, **traffic: Any) -> ExperimentSpec:
    """A window of 0.6 s."""
    warmup = {"mode": "fixed", "duration_seconds": warmup_s, "timeout_seconds": 900}
    return served(traffic={"window_seconds": 0.6, "ramp_exclusion_seconds": 0.1} | traffic, warmup=warmup)


def started(spec: ExperimentSpec, folder: Path, mode: str = "") -> subprocess.Popen[str]:
    return start(spec, folder, PYTHONPATH=f"{ROOT}:{PLUGIN}:{STUB}", STUB_SERVER=mode)


def ended(process: subprocess.Popen[str], folder: Path) -> Ran:
    stdout, _ = process.communicate(timeout=120)
    return Ran(process.returncode, stdout, folder / "out")


@pytest.mark.parametrize(("warmup_s", "phase"), [(1.0, "warmup"), (0.0, "drain")])
def test_a_client_out_of_file_handles_is_told_and_the_server_is_not_blamed(
    tmp_path: Path, warmup_s: float, phase: str
) -> None:
    spec = short(warmup_s=warmup_s, rate=150.0, request_timeout_seconds=2.0)
    process = started(spec, tmp_path, "slow")
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (FILES, FILES))
    failed = ended(process, tmp_path)
    assert (failed.error.category, failed.error.phase) == ("client_limit", phase), failed.error.message
    assert "the load client could open no more connections for" in failed.error.message
    assert "ulimit -n" in failed.error.message
    assert "server.log" in failed.error.message


def command_line(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has just ended
        return b""


def load_process_of(process: subprocess.Popen[str], out: Path, phase: str) -> int:
    """The id of the load process, once it has sent something in a phase."""
    rows = out / ("requests.jsonl" if phase == "warmup" else "load.jsonl")
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        begun = f'"phase": "{phase}"' in (out / EVENTS).read_text() if (out / EVENTS).exists() else False
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        found = [pid for pid in children if b"measurement.load" in command_line(pid)]
        if begun and found and rows.exists() and rows.stat().st_size:
            return int(found[-1])
        time.sleep(0.02)
    raise AssertionError(f"no load process in the phase {phase}")


@pytest.mark.parametrize(
    ("phase", "number", "how"),
    [
        ("warmup", signal.SIGKILL, "signal SIGKILL"),
        ("measure", signal.SIGKILL, "signal SIGKILL"),
        ("measure", signal.SIGTERM, f"exit code {EXIT_CUT}"),
    ],
)
def test_a_client_that_is_killed_ends_the_attempt_at_once_and_is_named(
    tmp_path: Path, phase: str, number: signal.Signals, how: str
) -> None:
    process = started(short(warmup_s=600.0 if phase == "warmup" else 0.0, window_seconds=600.0), tmp_path)
    os.kill(load_process_of(process, tmp_path / "out", phase), number)
    failed = ended(process, tmp_path)
    assert failed.error.category == "window_cut", failed.error.message
    assert "the load client ended" in failed.error.message
    assert f"before the end of the phase {phase} (ended with {how})" in failed.error.message


def test_a_client_that_has_nothing_left_to_ask_is_no_failure(tmp_path: Path) -> None:
    """At a low rate the last answer may come long before the end of a phase."""
    ran = attempt(tmp_path, short(warmup_s=2.0, rate=0.6, arrival="constant", window_seconds=2.0))
    assert ran.code == 0, ran.stdout
    plan = json.loads((ran.out / "load.json").read_text())
    assert plan["due_s"][-1] < 2.0 + 0.1  # the window's end
    assert ran.result.warmup.duration_s >= 2.0
    assert ran.result.window.requests == 1


def test_a_server_that_closes_every_connection_is_told(tmp_path: Path) -> None:
    failed = attempt(tmp_path, short(), "hang-up")
    assert failed.error.category == "server_errors"
    assert "connection_lost" in failed.error.message
    rows = [row for row in failed.requests if row["phase"] == "measure"]
    assert {(row["status"], row["error_class"], row["output_tokens"]) for row in rows} == {
        ("error", "connection_lost", 2)
    }


def test_a_server_that_tells_no_token_counts_is_told(tmp_path: Path) -> None:
    failed = attempt(tmp_path, short(warmup_s=1.0), "mute")
    assert failed.error.category == "server_errors"
    # A busy host may answer nothing before the warm-up is over, and all that is left is cut: then the window tells.
    where = {"warmup": "none of ", "drain": " requests of the window failed"}
    assert where[failed.error.phase] in failed.error.message
    assert "no_usage: the answer ended without the token counts that were asked for" in failed.error.message


def test_a_port_that_is_taken_while_the_server_starts_is_told(tmp_path: Path) -> None:
    failed = attempt(tmp_path, short(), "in-use")
    assert failed.error.category == "port_taken"
    assert "Address already in use" in failed.error.message


def test_chunks_with_several_tokens_count_each_of_them(tmp_path: Path) -> None:
    ran = attempt(tmp_path, short(), "chunky")
    assert ran.code == 0, ran.stdout
    for row in of_window(ran):
        assert (row["output_tokens"], row["chunk_tokens"]) == (TOKENS, [3, 3, 2])
        assert len(row["token_mono_ns"]) == TOKENS
        assert len(set(row["token_mono_ns"])) == 3
    window = ran.result.window
    came = [t for row in ran.requests for t in row["token_mono_ns"]]
    assert window.output_tokens == sum(window.t_begin_mono_ns <= t < window.t_end_mono_ns for t in came)
    assert json.loads((ran.out / "load.json").read_text())["phase"] == "measure"


USER, ANSWER = {"role": "user", "content": "one"}, {"role": "assistant", "content": "two three"}
TALK = [
    [USER, ANSWER, {"role": "user", "content": "x"}],
    [{"role": "system", "content": "be brief"}, {"role": "user", "content": "four"}],
]


def talking(max_input_tokens: int | None = 32) -> ExperimentSpec:
    spec = short(rate=30.0)
    task = spec.config["task"] | {"dataset": {"multi_turn": True}, "max_input_tokens": max_input_tokens}
    items = tuple(json.dumps(messages) for messages in TALK)
    prompts = replace(spec.prompts, items=items, n_prompts=2, source="c.jsonl")
    return replace(spec, config=spec.config | {"task": task}, prompts=prompts)


def test_turns_of_a_conversation_follow_each_other_with_the_answers_of_the_file(tmp_path: Path) -> None:
    ran = attempt(tmp_path, talking())
    assert ran.code == 0, ran.stdout
    plan = json.loads((ran.out / "load.json").read_text())
    assert plan["turns"] == [2, 1]
    # A word is a token: <user> one <assistant>, then <user> one <assistant> two three <user> x <assistant>.
    assert [len(prompt["token_ids"]) for prompt in plan["prompts"]] == [3, 8, 6]
    assert plan["due_s"] == list(arrival_times("poisson", rate_per_s=30.0 / 1.5, duration_s=1.7, seed=3))
    ends_ns = {row["t_end_mono_ns"] for row in ran.requests if row["prompt_index"] == 0}
    second = [row for row in ran.requests if row["prompt_index"] == 1]
    assert second
    assert {row["t_due_mono_ns"] for row in second} <= ends_ns
    assert {row["input_tokens"] for row in second} == {8}


def test_a_turn_that_would_have_to_be_cut_is_told_with_its_conversation(tmp_path: Path) -> None:
    failed = attempt(tmp_path, talking(max_input_tokens=7))
    assert failed.error.category == "bad_parameter"
    assert (
        "prompts 'c.jsonl': turn 2 of conversation 1 is 8 tokens with what comes before it, and task.max_input_tokens "
        "is 7: raise it"
    ) in failed.error.message
