"""What a flag is, and everything that the checks look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem_airflow.analysis.energy import EnergyOfWindow
from llem_airflow.analysis.power_series import GpuSeries, rows_between
from llem_airflow.protocol.result import CycleResult


@dataclass(frozen=True)
class Flag:
    """One reason to doubt.

    Attributes:
        code: Its stable name.
        message: What was seen, with the numbers.
        next_step: What to do about it.
        threshold: The limit that was crossed, and where that limit comes from.
        severity: ``info`` (how to read the number), ``warning`` (it may be off), ``error`` (do not use it as
            it
            is), ``withheld`` (there is no number because of it).
    """

    code: str
    message: str
    next_step: str
    threshold: str
    severity: str


@dataclass(frozen=True)
class Seen:
    """Everything that the checks look at."""

    result: CycleResult
    energy: EnergyOfWindow
    series: Mapping[str, GpuSeries]
    events: Sequence[Mapping[str, Any]]
    gpus: Sequence[Mapping[str, Any]]
    host: Mapping[str, Any]

    @cached_property
    def event_reasons(self) -> list[NDArray[np.int64]]:
        """Clock event bits of each device's samples in the window, where it tells any."""
        found = []
        for one in self.series.values():
            inside = one.event_reasons[rows_between(one.t_s, 0, self.energy.duration_s)]
            known = inside[~np.isnan(inside)]
            if len(known):
                found.append(known.astype(np.int64))
        return found

    @property
    def known(self) -> bool:
        """Whether there is an energy to doubt."""
        return self.energy.energy_j is not None


@dataclass(frozen=True)
class Check:
    """One row of a table of checks: what it looks for, and what is said when it is there.

    Attributes:
        code: As in Flag.
        severity: As in Flag.
        says: The message when there is a reason to doubt, else None.
        next_step: As in Flag.
        threshold: As in Flag.
    """

    code: str
    severity: str
    says: Callable[[Seen], str | None]
    next_step: str
    threshold: str

    def __call__(self, seen: Seen) -> Flag | None:
        """The flag, or None."""
        message = self.says(seen)
        if message is None:
            return None
        return Flag(self.code, message, self.next_step, self.threshold, self.severity)
