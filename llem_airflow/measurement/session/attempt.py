"""One attempt in a session: its turn, its start, its output, and its end.

``keep`` sees to the attempt's work and outlives whoever asked for it: output and exit code go into files,
so that any number of followers, one after the other, read the same.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

from llem_airflow.measurement.session.folder import AttemptFolder
from llem_airflow.measurement.session.health import check
from llem_airflow.measurement.session.work import LOOK_EVERY_S, Work, follow, start_work
from llem_airflow.protocol.files import write_json
from llem_airflow.protocol.processes import oom_kills
from llem_airflow.protocol.session import (
    BUSY,
    COMMAND,
    ENDED,
    ENV_SESSION,
    EVIDENCE,
    HEALTH,
    RUNNING,
    TAKEN,
    UNHEALTHY,
    Exit,
    Turn,
)

_START_S = 60.0
_NOT_FOUND = 127


def turn(attempt: AttemptFolder, owner: str, what: str) -> Turn:
    """Take the turn of an attempt, or what an earlier try of it left.

    Args:
        attempt: Which.
        owner: The try that asks.
        what: The attempt, for people.
    """
    session = attempt.session
    if not session.wait_until_ready():
        return Turn(UNHEALTHY, "its guard did not come up")
    session.renew()
    with session.lock():
        holder = session.holder()
        if holder is not None and holder["key"] != attempt.key:
            return Turn(BUSY, str(holder["what"]))
        if _try_number(attempt.owner()) > _try_number(owner):
            return Turn(BUSY, f"a later try of {what}")  # the question of a worker that was killed meanwhile
        if (said := attempt.started()) is not None:
            attempt.give_to(owner)
            state = RUNNING if attempt.runs() else ENDED
            age_s = max(0.0, time.monotonic() - float(said["t_mono_s"]))
            return Turn(state, position=int(said["position"]), age_s=age_s)
        attempt.remove()
        position = session.position()
        if problems := check(session, position):
            return Turn(UNHEALTHY, "; ".join(problems), position)
        attempt.give_to(owner)
        session.give_turn(attempt.key, what)
        return Turn(TAKEN, position=position)


def _try_number(owner: str) -> int:
    """Of a name that ends in ``-try<n>``; 0 for none."""
    number = owner.rpartition("-try")[2]
    return int(number) if number.isdecimal() else 0


def run(attempt: AttemptFolder, owner: str, offset: int, start_kind: str, command: list[str]) -> int:
    """Start the attempt unless it has been, write its output to stdout, and how it ended to stderr.

    Args:
        attempt: Which.
        owner: The try that asks.
        offset: From which byte of the output on.
        start_kind: ``exec`` for a process of its own, ``warm`` for the engine that lives on.
        command: What the attempt is.
    """
    with attempt.session.lock():
        if attempt.owner() == owner and attempt.started() is None:
            _start(attempt, start_kind, command)
    with contextlib.suppress(BrokenPipeError):  # whoever listened has gone; the attempt goes on
        ended = _follow(attempt, offset)
        sys.stderr.write(Exit(ended.exit_code, ended.oom_killed, attempt.owner()).dumps() + "\n")
        sys.stderr.flush()
    return 0


def _start(attempt: AttemptFolder, start_kind: str, command: list[str]) -> None:
    keeper = subprocess.Popen(
        [sys.executable, sys.argv[0], COMMAND, "keep", attempt.key, start_kind, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # open, it would hold the connection of whoever asked
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline_s = time.monotonic() + _START_S
    while attempt.started() is None and keeper.poll() is None and time.monotonic() < deadline_s:
        time.sleep(LOOK_EVERY_S / 5)


def _follow(attempt: AttemptFolder, offset: int) -> Exit:
    try:
        file = attempt.output.open("rb", buffering=0)
    except OSError:
        return attempt.exit() or Exit(128 + signal.SIGKILL, oom_killed=False)
    with file:
        file.seek(offset)
        return follow(file, _say, attempt.ended)


def _say(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def keep(attempt: AttemptFolder, start_kind: str, command: list[str]) -> int:
    """See the attempt through to its end, look whether the session is healthy, and say how it ended.

    Args:
        attempt: Which.
        start_kind: ``exec`` for a process of its own, ``warm`` for the engine that lives on.
        command: What the attempt is.
    """
    session = attempt.session
    held = attempt.hold()
    position, kills = session.position(), oom_kills() or 0
    work: Work | None = None
    try:
        try:
            with attempt.output.open("ab", buffering=0) as output:
                try:
                    work = start_work(start_kind, attempt, command, output)
                except OSError as error:
                    output.write(f"llem: {command[0]} cannot be started: {error}\n".encode())
                session.append("positions.jsonl", {"key": attempt.key, "t_mono_ns": time.monotonic_ns()})
                attempt.note_start(work.pid if work else os.getpid(), position)
                code = _NOT_FOUND if work is None else work.wait()
        finally:
            if work is not None:
                work.close()  # once, and before the turn is free: the next attempt may then be at work
        check(session, position + 1)
        _write_evidence(attempt, start_kind, position)
        session.renew()
        attempt.note_exit(code if code >= 0 else 128 - code, oom_killed=(oom_kills() or 0) > kills)
    except FileNotFoundError:
        pass  # it was removed meanwhile
    finally:
        os.close(held)
    if work is not None:
        work.linger()
    return 0


def _write_evidence(attempt: AttemptFolder, start_kind: str, position: int) -> None:
    session = attempt.session
    write_json(
        attempt.out / EVIDENCE,
        {
            "session": os.environ.get(ENV_SESSION),
            "start_kind": start_kind,
            "position_in_session": position,
            "lives": session.lives(),
            "health": session.read_lines(HEALTH),
        },
    )


def end(attempt: AttemptFolder, owner: str, grace_s: float) -> int:
    """End the attempt's processes, if it still is this try's: SIGTERM, and after a while SIGKILL.

    Args:
        attempt: Which.
        owner: The try that asks.
        grace_s: How long it may take after SIGTERM, in seconds.
    """
    if attempt.owner() != owner:
        return 0
    attempt.signal(signal.SIGTERM)
    deadline_s = time.monotonic() + grace_s
    while attempt.ended() is None and time.monotonic() < deadline_s:
        time.sleep(LOOK_EVERY_S)
    if attempt.exit() is None:
        attempt.signal(signal.SIGKILL)
    return 0


def forget(attempt: AttemptFolder, owner: str) -> int:
    """End the attempt at once and remove it, unless it is a later try's.

    Args:
        attempt: Which.
        owner: The try that asks; empty for all tries.
    """
    if not owner or attempt.owner() in ("", owner):
        attempt.remove()
    return 0
