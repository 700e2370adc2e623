"""Has the kernel ended processes for want of memory? Only its own counter says so: a SIGKILL alone does not."""

from __future__ import annotations

import re
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def oom_kills(pid: int | str = "self", proc: Path = Path("/proc"), cgroups: Path = _CGROUPS) -> int | None:
    """How many processes of its cgroup the kernel has killed for want of memory so far; None when it does not tell.

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
