"""The session's folders in the exchange volume: whose turn it is, and each attempt's own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llem_airflow.protocol.files import OUT_DIR, write_json, write_whole
from llem_airflow.protocol.session import ATTEMPTS, LIVES, STATE, Exit
from llem_airflow.protocol.typed_json import ProtocolError

READY_S = 60.0
"""How long a guard may take to be ready, in seconds."""

PLACED_S = 60.0
"""How long a turn is kept for an attempt that has not started yet, in seconds."""

_LOOK_EVERY_S = 0.05


class SessionFolder:
    """The whole session's.

    Args:
        root: Where the exchange volume is mounted.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / STATE

    def attempt(self, key: str) -> AttemptFolder:
        """An attempt's folder, there or not."""
        return AttemptFolder(self, key)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One at a time changes whose turn it is; the lock goes with whoever is killed."""
        with (self.state / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def lives(self) -> list[dict[str, Any]]:
        """The starts of the container so far."""
        return _lines(self.state / LIVES)

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Add one line to a file of the state."""
        with (self.state / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """The records of a file of the state; none when it is not there."""
        return _lines(self.state / name)

    def ready(self) -> None:
        """The guard of this life of the container is up."""
        write_whole(self.state / "ready", init_started() or "")

    def wait_until_ready(self) -> bool:
        """Whether the guard of this life of the container came up in time."""
        deadline_s = time.monotonic() + READY_S
        while time.monotonic() < deadline_s:
            if _text(self.state / "ready") == init_started():
                return True
            time.sleep(_LOOK_EVERY_S)
        return False

    def renew(self) -> None:
        """A cycle is about: the session is not idle."""
        write_whole(self.state / "renewed", str(time.monotonic()))

    def idle_s(self) -> float:
        """How long no cycle was about, in seconds."""
        return time.monotonic() - float(_text(self.state / "renewed") or 0.0)

    def position(self) -> int:
        """How many attempts have run so far."""
        return len(_lines(self.state / "positions.jsonl"))

    def turn(self) -> dict[str, Any] | None:
        """Whose turn it is, or None."""
        return read_json(self.state / "turn") or None

    def give_turn(self, key: str, what: str) -> None:
        """It is the turn of this attempt."""
        write_json(self.state / "turn", {"key": key, "what": what, "t_mono_s": time.monotonic()})

    def end_turn(self, key: str) -> None:
        """It is not the turn of this attempt any more."""
        if (self.turn() or {}).get("key") == key:
            (self.state / "turn").unlink(missing_ok=True)

    def engine(self) -> dict[str, Any] | None:
        """The process of the engine that was started in this life of the container, living or not."""
        found = read_json(self.state / "engine")
        return found if found and found["init"] == init_started() else None

    def note_engine(self, pid: int) -> None:
        """The engine has started."""
        write_json(self.state / "engine", {"pid": pid, "began": start_of(pid), "init": init_started()})

    def forget_engine(self, pid: int) -> None:
        """The engine, if it is this process, ends as it should: the next attempt starts another."""
        if (self.engine() or {}).get("pid") == pid:
            (self.state / "engine").unlink(missing_ok=True)

    def holder(self) -> dict[str, Any] | None:
        """The attempt whose turn it is and that runs or is about to; None where the turn is free."""
        found = self.turn()
        if found is None:
            return None
        attempt = self.attempt(str(found["key"]))
        if attempt.started() is not None:
            return found if attempt.runs() else None
        return found if 0 <= time.monotonic() - float(found["t_mono_s"]) < PLACED_S else None


class AttemptFolder:
    """One attempt's.

    Args:
        session: Of the session.
        key: What names the attempt over its tries.
    """

    def __init__(self, session: SessionFolder, key: str) -> None:
        self.session, self.key = session, key
        self.path = session.root / ATTEMPTS / key
        self.out = self.path / OUT_DIR
        self.output = self.path / "output"
        self._owner = session.state / f"owner-{key}"

    def owner(self) -> str:
        """The try that it belongs to; empty for none."""
        return _text(self._owner)

    def give_to(self, owner: str) -> None:
        """It belongs to this try from here on; an earlier one cannot end it any more."""
        write_whole(self._owner, owner)

    def started(self) -> dict[str, Any] | None:
        """What was noted when it started, or None."""
        return read_json(self.path / "started") or None

    def note_start(self, pid: int, position: int) -> None:
        """Its process has started."""
        said = {"pid": pid, "init": init_started(), "t_mono_s": time.monotonic(), "position": position}
        write_json(self.path / "started", said)

    def hold(self) -> int:
        """Say that it runs for as long as the returned descriptor is open."""
        descriptor = os.open(self.path / "keeper", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return descriptor

    def runs(self) -> bool:
        """Whether its keeper lives; what a keeper that was killed left running is ended."""
        try:
            with (self.path / "keeper").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.signal(signal.SIGKILL)
        return False

    def exit(self) -> Exit | None:
        """How it ended, or None while it runs."""
        try:
            return Exit.loads(_text(self.path / "exit.json"))
        except ProtocolError:
            return None

    def note_exit(self, exit_code: int, *, oom_killed: bool) -> None:
        """It has ended; written last of all."""
        write_whole(self.path / "exit.json", Exit(exit_code, oom_killed).dumps())

    def ended(self) -> Exit | None:
        """How it ended, also where its keeper was killed and could not say; None while it runs."""
        if (found := self.exit()) is not None:
            return found
        if self.runs():
            return None
        return self.exit() or Exit(128 + signal.SIGKILL, oom_killed=False)

    def signal(self, number: int) -> None:
        """Send a signal to every process of its group and session, and to nothing else; none when it has ended.

        An engine that was at it ends with it, and when it has ended goes on.
        """
        if self.exit() is None:
            self._signal(self.started(), number)

    def _signal(self, said: dict[str, Any] | None, number: int) -> None:
        if said is not None and said["init"] == init_started():  # else the container was restarted meanwhile
            self.session.forget_engine(int(said["pid"]))
            signal_session(int(said["pid"]), number)

    def remove(self) -> None:
        """End it and remove what there is of it."""
        aside = self.path.with_name(f".{self.key}-{os.getpid()}")
        said = self.started() if self.exit() is None else None
        self._owner.unlink(
            missing_ok=True
        )  # first: who follows it and sees the end must see that it was removed
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(aside)  # its keeper finds nothing any more where it would write
        self._signal(said, signal.SIGKILL)
        shutil.rmtree(aside, ignore_errors=True)
        self.session.end_turn(self.key)


def signal_session(leader: int, number: int) -> None:
    """Send a signal to every process of a session: its leader's group, and groups that were made in it."""
    for pid, fields in processes().items():
        if int(fields[3]) == leader:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)


def processes() -> dict[int, list[str]]:
    """The fields of /proc/PID/stat from the third on (proc(5)): state, parent, group, session and so on."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        # The name may hold spaces and brackets; what has ended meanwhile has no fields.
        if fields := _text(path).rpartition(")")[2].split():
            found[int(path.parent.name)] = fields
    return found


def init_started() -> str | None:
    """Tells one life of a container from another: when its process 1 started, in clock ticks since boot."""
    return start_of(1)


def start_of(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; None where there is none that runs."""
    fields = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return fields[19] if fields and fields[0] not in "ZX" else None


def read_json(path: Path) -> dict[str, Any]:
    """The object of a file; empty where there is none."""
    try:
        found: dict[str, Any] = json.loads(_text(path))
    except ValueError:
        return {}
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _lines(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in _text(path).splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found
