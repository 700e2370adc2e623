"""An event loop whose timers are exact to some 0.1 ms."""

from __future__ import annotations

import asyncio
import select
import selectors


def precise_event_loop() -> asyncio.AbstractEventLoop:
    """A new event loop for sending at due times.

    epoll waits in whole milliseconds, and asyncio rounds up: a timer is late by half a millisecond in the mean, which a
    latency counted from the due time would show. ``select`` waits in microseconds, and an epoll descriptor can be
    waited for like any other.
    """
    if not hasattr(selectors, "EpollSelector"):
        return asyncio.new_event_loop()

    class _Selector(selectors.EpollSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is not None and timeout > 0:
                select.select([self.fileno()], [], [], timeout)
                timeout = 0
            return super().select(timeout)

    return asyncio.SelectorEventLoop(_Selector())
