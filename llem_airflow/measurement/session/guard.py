"""The guard: the program of a session's container. It idles, and ends the container when its time is over.

Nothing outside has to live for that: not the worker that started it, nor Airflow.
"""

from __future__ import annotations

import signal
import time

from llem_airflow.measurement.session.folder import SessionFolder
from llem_airflow.measurement.session.health import BASELINE, look
from llem_airflow.protocol.session import BEAT, BEAT_S, HEALTH, LIVES, MAX_RUNTIME

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
