"""Monotonic times of one cycle on absolute time, and the phase each moment belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem_airflow.protocol.result import Anchor

OUTSIDE = "between"
"""Phase of a moment that lies in no phase."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of an attempt.

    Attributes:
        name: One of ``protocol.records.PHASES``.
        begin_mono_ns: Its begin, on the monotonic clock, in nanoseconds.
        end_mono_ns: Its end.
    """

    name: str
    begin_mono_ns: int
    end_mono_ns: int

    @property
    def length_s(self) -> float:
        """Its length, in seconds."""
        return (self.end_mono_ns - self.begin_mono_ns) / 1e9


def phases(events: Sequence[Mapping[str, Any]]) -> tuple[Phase, ...]:
    """Phases by their begin and end marks; one without an end (it was killed) ends at the last event."""
    last = max((int(row["t_mono_ns"]) for row in events), default=0)
    begun: dict[str, int] = {}
    found: list[Phase] = []
    for row in events:
        name, at = str(row.get("phase", "")), int(row["t_mono_ns"])
        if row.get("event") == "phase_begin":
            begun[name] = at
        elif row.get("event") == "phase_end" and name in begun:
            found.append(Phase(name, begun.pop(name), at))
    found += [Phase(name, at, last) for name, at in begun.items()]
    return tuple(sorted(found, key=lambda phase: (phase.begin_mono_ns, phase.end_mono_ns)))


def epoch_ns(mono_ns: NDArray[np.int64], anchors: Sequence[Anchor]) -> NDArray[np.int64]:
    """Absolute times of monotonic ones.

    The difference of the two clocks is interpolated between the anchors, so that a slow correction of the
    wall clock (NTP) is followed and a series stays in order; outside them the nearest difference holds.
    """
    ordered = sorted(anchors, key=lambda anchor: anchor.mono_ns)
    first = ordered[0].epoch_ns - ordered[0].mono_ns
    at = np.array([anchor.mono_ns for anchor in ordered], dtype=np.float64)
    drift = np.array([anchor.epoch_ns - anchor.mono_ns - first for anchor in ordered], dtype=np.float64)
    moved: NDArray[np.int64] = mono_ns + first + np.rint(np.interp(mono_ns, at, drift)).astype(np.int64)
    return moved


def phase_codes(mono_ns: NDArray[np.int64], found: Sequence[Phase]) -> tuple[NDArray[np.int32], list[str]]:
    """For each moment the position of its phase in the returned list of names.

    Phases do not overlap, but for measuring inside another: the one that began last holds.
    """
    names = [OUTSIDE, *dict.fromkeys(phase.name for phase in found)]
    codes = np.zeros(len(mono_ns), dtype=np.int32)
    for phase in found:
        codes[(mono_ns >= phase.begin_mono_ns) & (mono_ns <= phase.end_mono_ns)] = names.index(phase.name)
    return codes, names
