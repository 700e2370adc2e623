"""A look at the end of power.csv while the sampler writes it: are power and temperature flat yet?"""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

POWER_SPAN_S = 5.0
TEMPERATURE_SPAN_S = 30.0
"""Sensors tell whole degrees: one step in half a minute is the slowest rise that can be told from none."""

_TAIL_BYTES_PER_DEVICE = 64 * 1024  # half a minute at 10 Hz is half of it


@dataclass(frozen=True)
class Recent:
    """What power and temperature did lately.

    Attributes:
        before_w: Mean power of the span before the last, summed over devices, in watts.
        last_w: The same of the last span.
        temperature_moved_c: Highest minus lowest temperature of the last half minute, of the device where that is
            most, in degrees Celsius; None when no device tells.
    """

    before_w: float
    last_w: float
    temperature_moved_c: float | None = None


class DeviceRow(NamedTuple):
    """One sample of a device.

    Attributes:
        t_ns: When, in nanoseconds of the monotonic clock.
        device: Its name in power.csv.
        power_mw: Its power, in milliwatts.
        temperature_c: Its temperature, in degrees Celsius, or None.
        event_reasons: NVML's clock event bits, or None.
    """

    t_ns: int
    device: str
    power_mw: float
    temperature_c: float | None
    event_reasons: int | None = None


def recent(path: Path, devices: int = 1) -> Recent | None:
    """Power of the last two spans and the temperature of the last half minute; None when a span has no samples.

    Args:
        path: power.csv.
        devices: How many devices write into it.
    """
    rows = _tail(path, _TAIL_BYTES_PER_DEVICE * max(devices, 1))
    if not rows:
        return None
    end_ns = rows[-1].t_ns
    span_ns = int(POWER_SPAN_S * 1e9)
    before_w = _mean_w([row for row in rows if end_ns - 2 * span_ns < row.t_ns <= end_ns - span_ns])
    last_w = _mean_w([row for row in rows if end_ns - span_ns < row.t_ns])
    if before_w is None or last_w is None or rows[0].t_ns > end_ns - 2 * span_ns:
        return None
    return Recent(before_w, last_w, _moved_c(rows, end_ns - int(TEMPERATURE_SPAN_S * 1e9)))


def mean_power_w(path: Path, span_s: float, devices: int = 1) -> float | None:
    """Mean power of the last so many seconds, summed over devices, in watts; None where one of them told none."""
    rows = last_rows(path, span_s, devices)
    return _mean_w(rows) if len({row.device for row in rows}) >= devices else None


def last_rows(path: Path, span_s: float, devices: int = 1) -> list[DeviceRow]:
    """The samples of the last so many seconds, all devices, in the order in which they were written.

    Args:
        path: power.csv.
        span_s: How far to look back from the last one, in seconds.
        devices: How many devices write into it.
    """
    share = max(span_s / TEMPERATURE_SPAN_S, 1.0)
    rows = _tail(path, int(_TAIL_BYTES_PER_DEVICE * max(devices, 1) * share))
    return [row for row in rows if row.t_ns > rows[-1].t_ns - int(span_s * 1e9)]


def _moved_c(rows: list[DeviceRow], since_ns: int) -> float | None:
    by_device: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.t_ns >= since_ns and row.temperature_c is not None:
            by_device[row.device].append(row.temperature_c)
    return max((max(values) - min(values) for values in by_device.values()), default=None)


def _mean_w(rows: list[DeviceRow]) -> float | None:
    by_device: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        by_device[row.device].append(row.power_mw)
    if not by_device:
        return None
    return sum(sum(values) / len(values) for values in by_device.values()) / 1e3


def _tail(path: Path, length_bytes: int) -> list[DeviceRow]:
    if not path.exists():
        return []
    with path.open("rb") as file:
        header = file.readline().decode().rstrip("\r\n").split(",")
        first = file.tell()
        if file.seek(0, 2) - length_bytes > first:
            file.seek(-length_bytes, 2)
            file.readline()  # it may be cut
        else:
            file.seek(first)
        lines = file.read().decode(errors="replace").split("\n")[:-1]  # the last may still be written
    found = []
    for row in csv.DictReader(lines, fieldnames=header):
        power_mw = row.get("power_instant_mw") or row.get("power_average_mw")
        if power_mw and row.get("t_before_mono_ns"):
            temperature_c = float(row["temperature_c"]) if row.get("temperature_c") else None
            reasons = int(row["event_reasons"]) if row.get("event_reasons") else None
            at_ns = int(row["t_before_mono_ns"])
            found.append(DeviceRow(at_ns, row["gpu"], float(power_mw), temperature_c, reasons))
    return found
