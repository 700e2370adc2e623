"""Who does the work of an attempt: a process of its own, or the engine that lives on over the attempts of a session.

The engine's process is started by the keeper of its first attempt, as any attempt's process is. It does not end with
that, but takes the next from the file ``state/engine-next``. Where it ends, the next attempt starts another.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from llem_airflow.measurement.session.folder import (
    AttemptFolder,
    SessionFolder,
    read_json,
    signal_session,
    start_of,
)
from llem_airflow.protocol.files import ENV_CONFIG_PATH, ENV_OUTPUT_DIR, write_json
from llem_airflow.protocol.session import COMMAND, WARM

ENGINE_COMMAND = "engine"
NEXT, ANSWER, ENDED, LOG, BUNDLE = "engine-next", "engine-answer", "engine-ended", "engine-log", "engine.pyz"
LOOK_EVERY_S = 0.1
_ENDED_S = 5.0
T = TypeVar("T")
_READ_BYTES = 1 << 16


class Work(ABC):
    """What does an attempt.

    Attributes:
        pid: Leader of the Unix session of its processes.
    """

    pid: int

    @abstractmethod
    def wait(self) -> int:
        """Return when the attempt is done: the exit code, or minus the number of the signal that ended it."""

    @abstractmethod
    def close(self) -> None:
        """End what the attempt may not leave behind."""

    def linger(self) -> None:  # noqa: B027  # nothing, for most
        """Stay, the attempt being over, for as long as a child lives on."""


def start_work(start_kind: str, attempt: AttemptFolder, command: list[str], output: BinaryIO) -> Work:
    """Start the attempt.

    Args:
        start_kind: ``exec`` or ``warm``.
        attempt: Which.
        command: What the attempt is when it is a process of its own.
        output: Where what it prints goes.

    Raises:
        OSError: The command cannot be started.
    """
    if start_kind == WARM:
        return EngineWork(attempt, command, output)
    return OwnProcess(command, output)


class OwnProcess(Work):
    """A process of the attempt's own."""

    def __init__(self, command: list[str], output: BinaryIO) -> None:
        self._process = _popen(command, output)
        self.pid = self._process.pid

    def wait(self) -> int:
        """As of every work."""
        return self._process.wait()

    def close(self) -> None:
        """As of every work."""
        signal_session(self.pid, signal.SIGKILL)


class EngineWork(Work):
    """An attempt that is handed to the engine of the session; the engine is started where none lives that is free.

    Args:
        attempt: Which.
        command: What runs a bundle, and the attempt's bundle.
        output: Where what the engine prints goes for as long as it is at this attempt.
    """

    def __init__(self, attempt: AttemptFolder, command: list[str], output: BinaryIO) -> None:
        self._session, self._output = attempt.session, output
        self._number = time.time_ns()
        self._process: subprocess.Popen[bytes] | None = None
        state = self._session.state
        job = {
            "number": self._number,
            "config": os.environ[ENV_CONFIG_PATH],
            "out": os.environ[ENV_OUTPUT_DIR],
        }
        living = living_engine(self._session)
        if living is not None and not _is_free(
            state
        ):  # whoever handed it that was killed before it could say so
            end_engine(self._session, living)
            living = None
        log = state / LOG
        self._begin = log.stat().st_size if log.exists() else 0
        if living is None:
            self._begin_engine(state, command, job)
        else:
            self.pid = living
            write_json(state / NEXT, job)
        self._began = start_of(self.pid)

    def _begin_engine(self, state: Path, command: list[str], job: dict[str, Any]) -> None:
        """Its bundle is a copy: the attempt's own goes with the attempt."""
        for name in (ANSWER, ENDED):
            (state / name).unlink(missing_ok=True)
        shutil.copyfile(command[-1], state / BUNDLE)
        write_json(state / NEXT, job)
        with (state / LOG).open("ab", buffering=0) as log:
            self._process = _popen([*command[:-1], str(state / BUNDLE), COMMAND, ENGINE_COMMAND], log)
        self.pid = self._process.pid
        self._session.note_engine(self.pid)

    def wait(self) -> int:
        """As of every work; what the engine prints meanwhile goes to the attempt's output."""
        with (self._session.state / LOG).open("rb", buffering=0) as log:
            log.seek(self._begin)
            return follow(log, self._output.write, self._code)

    def _code(self) -> int | None:
        answer = read_json(self._session.state / ANSWER)
        if answer.get("number") == self._number:
            return int(answer["exit_code"])
        if self._process is not None:
            return self._process.poll()
        if start_of(self.pid) == self._began is not None:
            return None
        return _exit_code(self._session, self.pid)

    def close(self) -> None:
        """The engine lives on when it has answered; else it has ended, or is ended with the attempt."""
        if _is_free(self._session.state) and living_engine(self._session) == self.pid:
            return
        signal_session(self.pid, signal.SIGKILL)
        self.linger()
        if 0 <= _exit_code(self._session, self.pid) < 128:  # it said why and ended by itself
            self._session.forget_engine(self.pid)  # the next attempt starts another

    def linger(self) -> None:
        """Wait for the engine as its parent, which alone is told how it ends, and note that once."""
        process, self._process = self._process, None
        if process is not None:
            code = process.wait()
            with contextlib.suppress(OSError):
                write_json(self._session.state / ENDED, {"pid": self.pid, "exit_code": code})


def follow(file: BinaryIO, write: Callable[[bytes], object], ended: Callable[[], T | None]) -> T:
    """Pass on what is written to a file for as long as ``ended`` says nothing; what it said then."""
    while True:
        said = ended()  # asked before reading: what came before the end is read
        while data := file.read(_READ_BYTES):
            write(data)
        if said is not None:
            return said
        time.sleep(LOOK_EVERY_S)


def living_engine(session: SessionFolder) -> int | None:
    """The process of the session's engine; None where none lives."""
    engine = session.engine()
    return None if engine is None or start_of(engine["pid"]) != engine["began"] else int(engine["pid"])


def end_engine(session: SessionFolder, pid: int) -> None:
    """End the engine and all its processes; it is nobody's fault."""
    session.forget_engine(pid)
    signal_session(pid, signal.SIGKILL)


def engine_problem(session: SessionFolder) -> str:
    """What became of an engine that ended without anyone's wish; empty where it lives, or none was started."""
    engine = session.engine()
    if engine is None or living_engine(session) is not None:
        return ""
    code = _exit_code(session, int(engine["pid"]))
    how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return f"the engine's process {engine['pid']} has ended {how}"


def _is_free(state: Path) -> bool:
    """Whether the engine has answered all that it was handed."""
    return bool(read_json(state / NEXT).get("number") == read_json(state / ANSWER).get("number"))


def _exit_code(session: SessionFolder, pid: int) -> int:
    """Of an engine that has ended: as its parent noted, which it does at once; SIGKILL where that was killed, too."""
    deadline_s = time.monotonic() + _ENDED_S
    while True:
        said = read_json(session.state / ENDED)
        if said.get("pid") == pid:
            return int(said["exit_code"])
        if time.monotonic() >= deadline_s:
            return -signal.SIGKILL
        time.sleep(LOOK_EVERY_S)


def _popen(command: list[str], output: BinaryIO) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    )
