"""Peaks of host memory."""

from __future__ import annotations

import resource
from pathlib import Path

_CGROUP_PEAKS = ("/sys/fs/cgroup/memory.peak", "/sys/fs/cgroup/memory/memory.max_usage_in_bytes")


def host_memory() -> dict[str, int | None]:
    """Peak resident size of this process, and of its cgroup with page cache, in bytes; null where unknown."""
    return {
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "cgroup_peak_bytes": next(
            (peak for path in _CGROUP_PEAKS if (peak := _number(path)) is not None), None
        ),
    }


def _number(path: str) -> int | None:
    try:
        text = Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
