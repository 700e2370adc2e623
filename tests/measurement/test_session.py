"""The inside of a session, without a container: whose turn it is, what is healthy, when the guard ends it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.measurement.session import folder as folders
from llem_airflow.measurement.session.attempt import turn
from llem_airflow.measurement.session.folder import SessionFolder
from llem_airflow.measurement.session.health import BASELINE, judge
from llem_airflow.protocol.session import BUSY, ENDED, HEALTH, LIVES, TAKEN, Exit, Turn
from llem_airflow.protocol.typed_json import ProtocolError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def session(tmp_path: Path) -> SessionFolder:
    for name in ("state", "attempts"):
        (tmp_path / name).mkdir()
    made = SessionFolder(tmp_path)
    made.append(BASELINE, {"gpus": []})
    return made


def gpu(**changed: Any) -> dict[str, Any]:
    as_at_start = {
        "uuid": "GPU-0",
        "memory_used_bytes": 1 << 30,
        "error": None,
        "temperature_c": 40,
        "event_reasons": 0x1,  # idle
        "processes": [],
    }
    return {**as_at_start, **changed}


def seen(*gpus: dict[str, Any], left: tuple[str, ...] = (), zombies: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"gpus": list(gpus), "driver": "", "left": list(left), "zombies": list(zombies)}


@pytest.mark.parametrize(
    ("now", "wrong"),
    [
        (seen(gpu()), []),
        (seen(gpu(memory_used_bytes=(1 << 30) + (512 << 20))), []),
        (
            seen(gpu(memory_used_bytes=(1 << 30) + (513 << 20))),
            ["GPU GPU-0: 513 MiB more are in use than at the session's start; allowed: 512"],
        ),
        (
            seen(gpu(memory_used_bytes=None, error="NVMLError_GpuIsLost")),
            ["GPU GPU-0: its memory cannot be read: NVMLError_GpuIsLost"],
        ),
        (seen(), ["GPU GPU-0 is not there any more: not listed"]),
        (seen(gpu(event_reasons=0x1 | 0x4)), []),  # the power cap is no fault
        (seen(gpu(event_reasons=0x40)), ["GPU GPU-0: slowed down while idle: hardware thermal slowdown"]),
        (seen(gpu(event_reasons=None, processes=None, temperature_c=None)), []),  # not told
        (seen(gpu(processes=[7])), ["GPU GPU-0: processes of others compute on it: 7"]),
        (seen(gpu(), left=("9 sleep 600",)), ["a process was left running: 9 sleep 600"]),
        (seen(gpu(), zombies=("9 (ended)",)), ["a process was left unreaped: 9 (ended)"]),
    ],
)
def test_what_is_not_as_it_was_at_the_session_s_start_is_told(now: dict[str, Any], wrong: list[str]) -> None:
    assert judge(now, seen(gpu())) == wrong


def test_a_turn_is_free_when_its_attempt_has_ended_or_has_not_started_for_a_minute(
    session: SessionFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert session.holder() is None
    session.give_turn("a", "attempt a")
    assert (session.holder() or {})["what"] == "attempt a"
    monkeypatch.setattr(folders, "PLACED_S", 0.0)
    assert session.holder() is None
    attempt = session.attempt("a")
    attempt.path.mkdir()
    held = attempt.hold()
    attempt.note_start(2**22 + 1, 0)  # no such process
    assert (session.holder() or {})["key"] == "a"
    assert attempt.ended() is None
    os.close(held)
    assert session.holder() is None
    assert attempt.ended() == Exit(137, oom_killed=False)  # its parent was killed before it could say more
    attempt.note_exit(3, oom_killed=True)
    assert attempt.ended() == Exit(3, oom_killed=True)
    attempt.give_to("try-1")
    attempt.remove()
    assert (attempt.owner(), attempt.started(), session.turn(), list((session.root / "attempts").iterdir())) == (
        "", None, None, [],
    )  # fmt: skip


def test_a_late_question_of_an_earlier_try_takes_nothing_from_a_later_one(session: SessionFolder) -> None:
    session.ready()
    attempt = session.attempt("a")
    attempt.give_to("llem-a-try2")
    assert turn(attempt, "llem-a-try1", "attempt a") == Turn(BUSY, "a later try of attempt a")
    assert attempt.owner() == "llem-a-try2"
    attempt.path.mkdir()
    attempt.note_start(2**22 + 1, 5)
    assert turn(attempt, "llem-a-try10", "attempt a").state == ENDED
    assert attempt.owner() == "llem-a-try10"


def test_an_answer_is_read_as_it_was_written_and_nothing_else_is() -> None:
    for answer in (Turn(TAKEN, position=3), Turn(BUSY, "attempt a", 1, 2.5)):
        assert Turn.loads(answer.dumps()) == answer
    for text in ("", "Traceback", "{}", '{"state": 1}'):
        with pytest.raises(ProtocolError):
            Turn.loads(text)


@pytest.mark.parametrize(
    ("max_runtime_s", "idle_s", "why"),
    [(0, 600, "it has lived for max_runtime"), (600, 0, "no cycle for 0 s")],
)
def test_the_guard_ends_by_itself(session: SessionFolder, max_runtime_s: int, idle_s: int, why: str) -> None:
    code = (
        "import sys; from pathlib import Path; from llem_airflow.measurement.session.command import command; "
        f"sys.exit(command(Path({str(session.root)!r}), ['guard', '{max_runtime_s}', '{idle_s}']))"
    )
    began_ns = time.monotonic_ns()
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
    )
    assert ran.stdout.decode() == f"llem: the session ends: {why}\n"
    assert session.read_lines(HEALTH)[-1]["ended"] == why
    (life,) = session.read_lines(LIVES)
    assert life["t_mono_ns"] >= began_ns
    assert life["after"] is None
