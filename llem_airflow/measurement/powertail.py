"""A look at the end of power.csv while the sampler writes it: is power flat yet?"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

_TAIL_BYTES = 256 * 1024


def recent_power_w(path: Path, span_s: float) -> tuple[float, float] | None:
    """Mean power of the last two spans, summed over devices.

    Args:
        path: power.csv.
        span_s: Length of a span, in seconds.

    Returns:
        Mean of the span before the last and of the last, in watts; None when a span has no samples.
    """
    rows = _tail(path)
    if not rows:
        return None
    end_ns = rows[-1][0]
    span_ns = int(span_s * 1e9)
    before = _mean_w([row for row in rows if end_ns - 2 * span_ns < row[0] <= end_ns - span_ns])
    last = _mean_w([row for row in rows if end_ns - span_ns < row[0]])
    if before is None or last is None or rows[0][0] > end_ns - 2 * span_ns:
        return None
    return before, last


def _mean_w(rows: list[tuple[int, str, float]]) -> float | None:
    by_device: dict[str, list[float]] = defaultdict(list)
    for _, device, power_mw in rows:
        by_device[device].append(power_mw)
    if not by_device:
        return None
    return sum(sum(values) / len(values) for values in by_device.values()) / 1e3


def _tail(path: Path) -> list[tuple[int, str, float]]:
    if not path.exists():
        return []
    with path.open("rb") as file:
        header = file.readline().decode().rstrip("\r\n").split(",")
        size = file.seek(0, 2)
        begin = max(len(",".join(header)) + 1, size - _TAIL_BYTES)
        file.seek(begin)
        lines = file.read().decode(errors="replace").split("\n")
    # The first line of the tail may be cut, the last may still be written.
    found = []
    for row in csv.DictReader(lines[1:-1], fieldnames=header):
        power_mw = row.get("power_instant_mw") or row.get("power_average_mw")
        if power_mw and row.get("t_before_mono_ns"):
            found.append((int(row["t_before_mono_ns"]), row["gpu"], float(power_mw)))
    return found
