"""Watchdogs: end a box that lives too long, has fallen silent or computes nothing, whatever its reader is doing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

WALL_CLOCK = "wall_clock"
SILENCE = "silence"
GPU_IDLE = "gpu_idle"

_LOOK_EVERY_S = 1.0


class Watchdog:
    """Calls ``end`` once when a limit has passed.

    Args:
        end: Ends the box; runs in the watchdog's thread.
        wall_clock_s: Longest life from now, in seconds, or None.
        silence_s: Longest time between two calls of ``heard``, in seconds, or None.
        gpu_idle_s: Longest time in which ``computes`` says no, in seconds, or None.
        computes: Whether its GPUs compute now, asked every second; None for a box without.
    """

    def __init__(
        self,
        end: Callable[[], None],
        *,
        wall_clock_s: float | None,
        silence_s: float | None,
        gpu_idle_s: float | None = None,
        computes: Callable[[], bool] | None = None,
    ) -> None:
        self._end = end
        self._wall_clock_s = wall_clock_s
        self._silence_s = silence_s
        self._gpu_idle_s = gpu_idle_s if computes is not None else None
        self._computes = computes
        self._begin_s = self._heard_s = self._computed_s = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="llem-watchdog", daemon=True)
        self.fired: str | None = None

    def __enter__(self) -> Watchdog:
        if (self._wall_clock_s, self._silence_s, self._gpu_idle_s) != (None, None, None):
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        # An exception on its way (a task timeout) must not wait for the grace period of a stop in progress.
        if error is None and self._thread.is_alive():
            self._thread.join()

    def heard(self) -> None:
        """The box has said something."""
        self._heard_s = time.monotonic()

    def _watch(self) -> None:
        while not self._done.is_set():
            if self._gpu_idle_s is not None and self._computes is not None and self._computes():
                self._computed_s = time.monotonic()
            left_s, limit = self._next()
            if left_s <= 0:
                self.fired = limit
                self._end()
                return
            self._done.wait(left_s if self._gpu_idle_s is None else min(left_s, _LOOK_EVERY_S))

    def _next(self) -> tuple[float, str]:
        now_s = time.monotonic()
        limits = []
        if self._wall_clock_s is not None:
            limits.append((self._begin_s + self._wall_clock_s - now_s, WALL_CLOCK))
        if self._silence_s is not None:
            limits.append((self._heard_s + self._silence_s - now_s, SILENCE))
        if self._gpu_idle_s is not None:
            limits.append((self._computed_s + self._gpu_idle_s - now_s, GPU_IDLE))
        return min(limits)
