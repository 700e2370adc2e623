"""SIGTERM and SIGINT: end quickly, whatever the main thread is doing."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable


def on_termination(act: Callable[[int], None]) -> None:
    """Call ``act`` with the signal's number, in a thread of its own.

    A Python signal handler waits for the main thread to come back from native code, which a model load or a
    long kernel does not for many seconds. The wake-up descriptor is written at once, and children inherit no
    mask. (Native code that keeps the interpreter's lock still holds it up; torch gives the lock away.)

    Args:
        act: What to do; it ends the process.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _ignore)

    def watch() -> None:
        while True:
            for number in os.read(read_end, 16):
                if number in (signal.SIGTERM, signal.SIGINT):
                    act(int(number))

    os.register_at_fork(after_in_child=_forget)
    threading.Thread(target=watch, name="termination", daemon=True).start()


def _forget() -> None:
    # An engine's forked worker shares the descriptor: a signal to the worker would end us.
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def _ignore(number: int, frame: object) -> None:
    """Python needs a handler so that the wake-up descriptor is written; the thread does the work."""
