"""Live records: what an attempt tells on its output while it runs, for those who watch; nothing is computed from it.

A record is JSON text between the record separator and a line end (RFC 7464), at most ``LONGEST_BYTES`` long. It may
stand in the middle of a line of somebody else's, such as a progress bar, and whoever reads takes it out.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

ENV_LIVE = "LLEM_LIVE"
"""Set by the runner: it takes live records out of the output. Without it an attempt tells none."""
MARK = b"\x1e"
LONGEST_BYTES = 4096
"""What a pipe takes whole (PIPE_BUF of Linux)."""
DEVICES_A_RECORD = 16
_LONGEST_NAME = 80


@dataclass(frozen=True)
class DevicePower:
    """Power of a device since the record before.

    Attributes:
        low_w: Smallest reading, in watts.
        mean_w: Mean of the readings, in watts.
        high_w: Largest reading, in watts.
        samples: How many readings.
    """

    low_w: float
    mean_w: float
    high_w: float
    samples: int


@dataclass(frozen=True)
class LivePower:
    """Power of some devices up to an instant.

    Attributes:
        t_mono_ns: The instant, in nanoseconds of the attempt's monotonic clock.
        energy_kind: measured | estimate | attributed, as the meter says.
        devices: By name, as in power.csv.
    """

    t_mono_ns: int
    energy_kind: str
    devices: dict[str, DevicePower]


@dataclass(frozen=True)
class LivePhase:
    """A phase has begun, or the one before has ended.

    Attributes:
        t_mono_ns: When, in nanoseconds of the attempt's monotonic clock.
        phase: One of ``protocol.files.PHASES``; None for the end of one.
    """

    t_mono_ns: int
    phase: str | None


def power_record(record: LivePower) -> bytes:
    """The record as it is written, with mark and line end."""
    devices = {
        name: [round(one.low_w, 1), round(one.mean_w, 1), round(one.high_w, 1), one.samples]
        for name, one in record.devices.items()
    }
    return _line({"t": record.t_mono_ns, "kind": record.energy_kind, "power": devices})


def phase_record(record: LivePhase) -> bytes:
    """The record as it is written, with mark and line end."""
    return _line({"t": record.t_mono_ns, "phase": record.phase})


def parse(text: bytes) -> LivePower | LivePhase | None:
    """The record in what stands between mark and line end; None for what is none: anybody may write a mark."""
    try:
        found = json.loads(text)
        if type(found["t"]) is not int or not 0 <= found["t"] < 1 << 63:
            return None
        if found.keys() == {"t", "phase"}:
            return LivePhase(found["t"], None if found["phase"] is None else _name(found["phase"]))
        if found.keys() == {"t", "kind", "power"} and len(found["power"]) <= DEVICES_A_RECORD:
            devices = {_name(name): _device(*values) for name, values in found["power"].items()}
            return LivePower(found["t"], _name(found["kind"]), devices)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        pass
    return None


def _line(value: dict[str, Any]) -> bytes:
    return MARK + json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _name(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME:
        raise ValueError("not a name")
    return value


def _device(low_w: Any, mean_w: Any, high_w: Any, samples: Any) -> DevicePower:
    low, mean, high = (float(value) for value in (low_w, mean_w, high_w))
    if (
        not all(math.isfinite(value) for value in (low, mean, high))
        or type(samples) is not int
        or samples < 1
    ):
        raise ValueError("not power")
    return DevicePower(low, mean, high, samples)
