"""The commands of a session. ``llem.pyz session guard`` is the container's program, the others are executed in it.

The guard idles, and ends the container when its time is over. Nothing outside has to live for that: not the worker that
started it, nor Airflow.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from llem_airflow.measurement.session.attempt import end, forget, keep, run, turn
from llem_airflow.measurement.session.folder import SessionFolder
from llem_airflow.measurement.session.health import BASELINE, look
from llem_airflow.measurement.session.work import ENGINE_COMMAND
from llem_airflow.protocol.session import BEAT, BEAT_S, HEALTH, LIVES, MAX_RUNTIME


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


_SIGNALS = {signal.SIGTERM, signal.SIGINT}


def guard(folder: SessionFolder, max_runtime_s: float, idle_s: float) -> int:
    """Idle until a limit has passed or a signal comes; returns the exit code, 0.

    Args:
        folder: Of the session.
        max_runtime_s: Longest life of the session over all lives of its container, in seconds.
        idle_s: Longest time without a cycle, in seconds.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    lives = folder.lives()
    now_ns = time.monotonic_ns()  # of the host's boot: it goes on over the lives of a container
    end_ns = (int(lives[0]["t_mono_ns"]) if lives else now_ns) + int(max_runtime_s * 1e9)
    folder.append(LIVES, {"t_mono_ns": now_ns, "after": _why(folder) if lives else None})
    if not folder.read_lines(BASELINE):
        folder.append(BASELINE, look())
    folder.renew()
    (folder.state / BEAT).touch()
    if now_ns < end_ns:
        folder.ready()
    why = _idle(folder, end_ns, idle_s)
    folder.append(HEALTH, {"t_mono_ns": time.monotonic_ns(), "ended": why})
    print(f"llem: the session ends: {why}", flush=True)
    return 0


def _idle(folder: SessionFolder, end_ns: int, idle_s: float) -> str:
    while True:
        if time.monotonic_ns() >= end_ns:
            return MAX_RUNTIME
        if folder.idle_s() >= idle_s:
            if folder.holder() is None:
                return f"no cycle for {idle_s:g} s"
            folder.renew()
        if signal.sigtimedwait(_SIGNALS, BEAT_S) is not None:
            return "it was stopped"
        (folder.state / BEAT).touch()


def _why(folder: SessionFolder) -> str:
    """What was said last before the container ended."""
    said = folder.read_lines(HEALTH)[-1:]
    if said and said[0].get("ended"):
        problems = [line for line in folder.read_lines(HEALTH)[-2:-1] if line.get("problems")]
        return "; ".join(problems[0]["problems"]) if problems else str(said[0]["ended"])
    return "its container was killed"
