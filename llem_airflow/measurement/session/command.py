"""The commands of a session: ``llem.pyz session guard`` is the container's program, the others are executed in it."""

from __future__ import annotations

import sys
from pathlib import Path

from llem_airflow.measurement.session.attempt import end, forget, keep, run, turn
from llem_airflow.measurement.session.folder import SessionFolder
from llem_airflow.measurement.session.guard import guard
from llem_airflow.measurement.session.work import ENGINE_COMMAND


def main() -> int:
    """Run the command of this process's arguments; the bundle lies where the exchange volume is mounted."""
    return command(Path(sys.argv[0]).resolve().parent, sys.argv[2:])


def command(root: Path, arguments: list[str]) -> int:
    """Run one command; returns its exit code.

    Args:
        root: Where the exchange volume is mounted.
        arguments: The command and what belongs to it: ``guard MAX_RUNTIME_S IDLE_S``, ``ready``, ``engine``, and of an
            attempt ``turn KEY OWNER WHAT``, ``run KEY OWNER OFFSET START_KIND COMMAND…``,
            ``keep KEY START_KIND COMMAND…``, ``end KEY OWNER GRACE_S``, ``forget KEY OWNER``.
    """
    if arguments[0] == ENGINE_COMMAND:  # it runs from a bundle of its own, which lies in ``state``
        from llem_airflow.measurement.session.engine import serve  # noqa: PLC0415  # all that measures, only there

        return serve(root)
    folder, (name, *rest) = SessionFolder(root), arguments
    if name == "guard":
        return guard(folder, float(rest[0]), float(rest[1]))
    if name == "ready":
        print("" if folder.wait_until_ready() else "its guard did not come up", flush=True)
        return 0
    return _of_attempt(folder, name, rest)


def _of_attempt(folder: SessionFolder, name: str, arguments: list[str]) -> int:
    attempt, rest = folder.attempt(arguments[0]), arguments[1:]
    if name == "turn":
        print(turn(attempt, rest[0], rest[1]).dumps(), flush=True)
        return 0
    if name == "run":
        return run(attempt, rest[0], int(rest[1]), rest[2], rest[3:])
    if name == "keep":
        return keep(attempt, rest[0], rest[1:])
    if name == "end":
        return end(attempt, rest[0], float(rest[1]))
    if name == "forget":
        return forget(attempt, rest[0])
    raise ValueError(
        f"session: found the command {name!r}; allowed: guard, ready, engine, turn, run, keep, end, forget"
    )
