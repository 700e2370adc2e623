"""The inside of a session, without a container: whose turn it is, what is healthy, when the guard ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.measurement.session import folder as folders
from llem_airflow.measurement.session.attempt import turn
from llem_airflow.measurement.session.command import _idle, _why
from llem_airflow.measurement.session.folder import SessionFolder
from llem_airflow.measurement.session.health import BASELINE, judge
from llem_airflow.measurement.session.work import engine_problem, living_engine
from llem_airflow.protocol.files import write_json
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


def line_of(session: SessionFolder, name: str, text: str) -> None:
    with (session.state / name).open("a") as file:
        file.write(text)


def test_what_was_cut_off_of_a_file_of_the_state_is_passed_over(session: SessionFolder) -> None:
    session.append(HEALTH, {"ended": "it was stopped"})
    line_of(session, HEALTH, '{"ended": "no')
    assert session.read_lines(HEALTH) == [{"ended": "it was stopped"}]
    assert session.read_lines("none.jsonl") == []
    assert session.lives() == []
    session.append(LIVES, {"t_mono_ns": 1})
    assert session.lives() == [{"t_mono_ns": 1}]


def test_a_turn_is_kept_for_a_minute_and_given_back_by_its_own_attempt_alone(session: SessionFolder) -> None:
    session.give_turn("a", "attempt a")
    session.end_turn("b")
    assert (session.turn() or {})["key"] == "a"
    begun_s = (session.turn() or {})["t_mono_s"]
    for ago_s, held in ((0.0, True), (20.0, True), (60.0, False), (-60.0, False)):  # before its own boot
        write_json(session.state / "turn", {"key": "a", "what": "attempt a", "t_mono_s": begun_s - ago_s})
        assert (session.holder() is not None) == held
    session.end_turn("a")
    session.end_turn("a")
    assert session.turn() is None
    assert (folders.PLACED_S, folders.READY_S) == (60.0, 60.0)


def test_a_session_is_idle_since_the_last_cycle_was_about(session: SessionFolder) -> None:
    assert session.idle_s() == pytest.approx(time.monotonic(), abs=60)  # never renewed: since the boot
    session.renew()
    assert 0 <= session.idle_s() < 60
    (session.state / "renewed").write_text(str(time.monotonic() - 1000))
    assert 1000 <= session.idle_s() < 1060


def test_how_many_attempts_have_run_is_their_position(session: SessionFolder) -> None:
    assert session.position() == 0
    for number in range(3):
        session.append("positions.jsonl", {"key": f"{number}"})
    assert session.position() == 3


def test_the_guard_of_another_life_of_the_container_is_not_ready(
    session: SessionFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "READY_S", 0.0)
    session.ready()
    assert (session.state / "ready").read_text() == folders.init_started()
    assert not session.wait_until_ready()  # no time to look
    monkeypatch.setattr(folders, "READY_S", 0.2)
    assert session.wait_until_ready()
    (session.state / "ready").write_text("another")
    assert not session.wait_until_ready()


def test_an_engine_is_known_in_the_life_of_the_container_that_started_it(session: SessionFolder) -> None:
    assert session.engine() is None
    session.note_engine(os.getpid())
    told = session.engine() or {}
    assert (told["pid"], told["began"]) == (os.getpid(), folders.start_of(os.getpid()))
    assert living_engine(session) == os.getpid()
    assert engine_problem(session) == ""
    session.forget_engine(os.getpid() + 1)
    assert living_engine(session) == os.getpid()
    write_json(session.state / "engine", {**told, "init": "another"})
    assert (session.engine(), living_engine(session)) == (None, None)
    write_json(session.state / "engine", told)
    session.forget_engine(os.getpid())
    assert session.engine() is None


@pytest.mark.parametrize(
    ("code", "how"), [(-9, "by signal SIGKILL"), (0, "with exit code 0"), (3, "with exit code 3")]
)
def test_an_engine_that_has_ended_is_told_with_its_end(session: SessionFolder, code: int, how: str) -> None:
    pid = 2**22 + 1  # no such process
    write_json(session.state / "engine", {"pid": pid, "began": "1", "init": folders.init_started()})
    write_json(session.state / "engine-ended", {"pid": pid, "exit_code": code})
    assert living_engine(session) is None
    assert engine_problem(session) == f"the engine's process {pid} has ended {how}"


def test_when_a_process_started_tells_it_from_a_later_one_of_its_number() -> None:
    began = folders.start_of(os.getpid())
    assert began is not None
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    assert began == fields[19]  # field 22 of proc(5), the name being the second
    assert folders.start_of(2**22 + 1) is None
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert folders.start_of(ended.pid) is None  # it only waits for its parent to look
    ended.wait()
    assert int(folders.processes()[os.getpid()][3]) == os.getsid(0)


def test_a_signal_goes_to_the_processes_of_one_session_alone() -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        for _ in range(2)
    ]
    try:
        folders.signal_session(started[0].pid, signal.SIGTERM)
        assert started[0].wait(60) == -signal.SIGTERM
        assert started[1].poll() is None
    finally:
        for one in started:
            one.kill()
            one.wait()


def test_what_an_idle_gpu_may_not_have_is_told_against_the_start_that_counts() -> None:
    for bit, text in (
        (0x08, "hardware slowdown"),
        (0x20, "software thermal slowdown"),
        (0x40, "hardware thermal slowdown"),
        (0x80, "hardware power brake"),
    ):
        assert judge(seen(gpu(event_reasons=bit)), seen(gpu())) == [
            f"GPU GPU-0: slowed down while idle: {text}"
        ]
    since = {**seen(gpu(processes=[7])), "since": "the end of the engine's first cycle"}
    assert judge(seen(gpu(processes=[7])), since) == []
    found = judge(seen(gpu(memory_used_bytes=3 << 30, processes=[9, 8, 7])), since)
    assert found == [
        "GPU GPU-0: 2048 MiB more are in use than at the end of the engine's first cycle; allowed: 512",
        "GPU GPU-0: processes of others compute on it: 8, 9",
    ]
    assert judge(seen(gpu(), gpu(uuid="GPU-1", event_reasons=0x80)), seen(gpu())) == []  # not ours
    lost = {**seen(), "driver": "NVMLError_GpuIsLost"}
    assert judge(lost, seen(gpu())) == ["GPU GPU-0 is not there any more: NVMLError_GpuIsLost"]
    unknown = gpu(memory_used_bytes=None, error="NotSupported")
    assert judge(seen(unknown), seen(unknown)) == []


@pytest.mark.parametrize(
    ("owner", "asks", "taken"), [("llem-a-try2", "llem-a-try3", True), ("llem-a-try2", "other", False)]
)
def test_tries_are_ordered_by_their_number(
    session: SessionFolder, owner: str, asks: str, taken: bool
) -> None:
    session.ready()
    attempt = session.attempt("a")
    attempt.give_to(owner)
    attempt.path.mkdir()
    attempt.note_start(2**22 + 1, 5)
    told = turn(attempt, asks, "attempt a")
    assert (told.state == ENDED) == taken
    assert (told.position, 0 <= told.age_s < 60) == (5 if taken else 0, True)


def test_why_the_container_before_ended_is_what_was_said_last(session: SessionFolder) -> None:
    assert _why(session) == "its container was killed"
    session.append(HEALTH, {"problems": ["GPU lost", "left running"]})
    assert _why(session) == "its container was killed"
    session.append(HEALTH, {"ended": "it was stopped"})
    assert _why(session) == "GPU lost; left running"
    session.append(HEALTH, {"problems": []})
    session.append(HEALTH, {"ended": "no cycle for 60 s"})
    assert _why(session) == "no cycle for 60 s"


def test_the_guard_ends_when_its_time_is_over_or_nobody_has_come(session: SessionFolder) -> None:
    assert _idle(session, time.monotonic_ns(), 600.0) == "it has lived for max_runtime"
    (session.state / "renewed").write_text(str(time.monotonic() - 50.0))
    assert _idle(session, time.monotonic_ns() + 10**12, 50.0) == "no cycle for 50 s"


def test_the_life_of_a_session_goes_on_over_those_of_its_container(session: SessionFolder) -> None:
    """A session that began an hour ago has ended, however young its container."""
    session.append(LIVES, {"t_mono_ns": time.monotonic_ns() - 3600 * 10**9})
    session.append(LIVES, {"t_mono_ns": time.monotonic_ns()})
    session.append(HEALTH, {"ended": "it was stopped"})
    code = (
        "import sys; from pathlib import Path; from llem_airflow.measurement.session.command import guard; "
        "from llem_airflow.measurement.session.folder import SessionFolder; "
        f"sys.exit(guard(SessionFolder(Path({str(session.root)!r})), 3599.0, 600.0))"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    assert session.read_lines(HEALTH)[-1]["ended"] == "it has lived for max_runtime"
    assert [one.get("after") for one in session.lives()] == [None, None, "it was stopped"]
    assert not (session.state / "ready").exists()
    assert session.idle_s() < 600


def test_the_guard_beats_until_nobody_has_come_for_long_enough_or_it_is_stopped(
    session: SessionFolder,
) -> None:
    code = (
        "import sys; from pathlib import Path; from llem_airflow.measurement.session import command; "
        "from llem_airflow.measurement.session.folder import SessionFolder; command.BEAT_S = 0.02; "
        f"sys.exit(command.guard(SessionFolder(Path({str(session.root)!r})), 3600.0, float(sys.argv[1])))"
    )

    def started(idle_s: float) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen([sys.executable, "-c", code, f"{idle_s}"], env=environment)

    assert started(0.2).wait(120) == 0
    assert session.read_lines(HEALTH)[-1]["ended"] == "no cycle for 0.2 s"
    (session.state / "ready").unlink()
    stopped = started(3600.0)
    while not (session.state / "ready").exists():
        time.sleep(0.02)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(120) == 0
    assert session.read_lines(HEALTH)[-1]["ended"] == "it was stopped"
    assert (session.state / "ready").read_text() == folders.init_started()
