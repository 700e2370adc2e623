"""Instants on both clocks."""

from __future__ import annotations

import time

from llem_airflow.protocol.result import Anchor


def anchor() -> Anchor:
    """One instant on the monotonic and the wall clock, read closest to each other of five tries."""
    best: tuple[int, Anchor] | None = None
    for _ in range(5):
        before_ns = time.monotonic_ns()
        epoch_ns = time.time_ns()
        after_ns = time.monotonic_ns()
        if best is None or after_ns - before_ns < best[0]:
            best = (after_ns - before_ns, Anchor(mono_ns=(before_ns + after_ns) // 2, epoch_ns=epoch_ns))
    assert best is not None
    return best[1]


def seconds_since(t_mono_ns: int) -> float:
    """Time since an instant of the monotonic clock, in seconds."""
    return (time.monotonic_ns() - t_mono_ns) / 1e9
