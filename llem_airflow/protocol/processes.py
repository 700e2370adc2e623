"""Processes: a child of ours, what it inherits and says; CPU time; what the kernel ended for want of memory."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any


def child_environment() -> dict[str, str]:
    """Our environment, with the bundle or package that we run from in front, and without the current folder."""
    root = Path(__file__).parents[2]  # llem.pyz itself, or the folder that holds the package
    inherited = os.environ.get("PYTHONPATH")
    path = f"{root}{os.pathsep}{inherited}" if inherited else str(root)
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


class MessagePipe:
    """The end of a pipe at which JSON messages arrive, one a line.

    Args:
        pipe: What the other process writes to; nobody else reads from it.

    Attributes:
        ended: Whether the other end was found to be gone.
    """

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._heard = b""
        self.ended = False

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message; None when there is none in time, or the other end is gone.

        Args:
            timeout_s: How long to wait, in seconds; what is there already is taken at 0, too.
        """
        deadline_s = time.monotonic() + timeout_s
        while b"\n" not in self._heard:
            ready, _, _ = select.select([self._pipe], [], [], max(deadline_s - time.monotonic(), 0))
            more = os.read(self._pipe.fileno(), 65536) if ready else b""
            if not more:
                self.ended = bool(ready)
                return None
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message


class Child:
    """A module of ours that runs as a process of its own, hears lines and says JSON messages.

    The end of its standard input tells it that we have died.

    Args:
        module: Its name.
        *arguments: What it is told.
        environment: More variables, or others.
        quiet: Whether what it writes to standard error is nobody's.
        own_session: Whether it has a session of its own, with what it starts.

    Attributes:
        process: The process.
        messages: What it says.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        quiet: bool = False,
        own_session: bool = False,
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
            env={**child_environment(), **(environment or {})},
            start_new_session=own_session,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._stdin, self._stdout = self.process.stdin, self.process.stdout
        self.messages = MessagePipe(self._stdout)

    def send(self, line: str) -> bool:
        """Say a line; whether it could be said: it cannot to a process that is gone."""
        try:
            self._stdin.write(f"{line}\n".encode("ascii"))
            self._stdin.flush()
        except (OSError, ValueError):  # ValueError: its pipes have been closed here
            return False
        return True

    def end(self, patience_s: float) -> None:
        """Close the pipes and see it end, by force if it does not by itself in this time. May be called twice."""
        with contextlib.suppress(OSError):  # a line that could not be sent is still in the buffer
            self._stdin.close()
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._stdout.close()


def own_cpu_s() -> float:
    """CPU time of this process, user and system, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


_CGROUPS = Path("/sys/fs/cgroup")
_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def oom_kills(pid: int | str = "self", proc: Path = Path("/proc"), cgroups: Path = _CGROUPS) -> int | None:
    """How many processes of its cgroup the kernel has killed for want of memory so far; None when it does not tell.

    Only its own counter says so: a SIGKILL alone does not.

    Args:
        pid: A process of the cgroup.
        proc: Where the kernel tells about processes.
        cgroups: Where the cgroups are mounted.
    """
    try:
        lines = (proc / str(pid) / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        number, controllers, path = line.split(":", 2)
        # In a container its own cgroup is the root of what it sees, whatever the path says.
        if number == "0":
            files = [cgroups / path.lstrip("/") / "memory.events", cgroups / "memory.events"]
        elif "memory" in controllers.split(","):
            base = cgroups / "memory"
            files = [base / path.lstrip("/") / "memory.oom_control", base / "memory.oom_control"]
        else:
            continue
        for file in files:
            if (count := _count(file)) is not None:
                return count
    return None


def host_oom_kills(proc: Path = Path("/proc")) -> int | None:
    """How many processes of the whole host the kernel has killed for want of memory since its boot."""
    return _count(proc / "vmstat")


def _count(file: Path) -> int | None:
    try:
        found = _COUNT.search(file.read_text(encoding="utf-8"))
    except OSError:
        return None
    return int(found[1]) if found else None
