"""The search for the highest rate that meets an SLO: its candidates and their order.

The candidates are a fixed geometric grid, each an experiment like one that is written with that rate. So the search has
no state of its own: which of them are measured follows from the stored results, whoever restarts what.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ENDS = 2
"""Probes that every search begins with: its lowest and its highest rate."""

_DIGITS = 4
"""Significant digits of a rate between the ends."""


@dataclass(frozen=True, slots=True)
class RateSearch:
    """One search: a configuration of a server whose highest rate is looked for.

    Attributes:
        experiments: Ids of the candidates, by rate.
        rates_per_s: Their rates, ascending: the first and the last are the bounds of the study.
        max_probes: Most candidates that are measured.
        percentile: Share of the requests that has to meet the bounds.
    """

    experiments: tuple[str, ...]
    rates_per_s: tuple[float, ...]
    max_probes: int
    percentile: float


def grid(lowest: float, highest: float, tolerance: float, max_probes: int) -> list[float]:
    """Candidate rates, in requests/s: so many halvings as the tolerance needs and the probes leave.

    The tolerance is how far two neighbours may lie apart, as a share.
    """
    needed = math.ceil(math.log2(math.log(highest / lowest) / math.log1p(tolerance)) - 1e-9)
    steps = 2 ** max(0, min(needed, max_probes - ENDS))
    between = (lowest * (highest / lowest) ** (step / steps) for step in range(1, steps))
    return [lowest, *(float(f"{rate:.{_DIGITS}g}") for rate in between), highest]


def probe_order(count: int) -> list[int]:
    """Every candidate behind all that decide whether it is asked for: the ends, then the bisection by its steps."""
    order, step = [0, count - 1], count - 1
    while step > 1:
        order += range(step // 2, count - 1, step)
        step //= 2
    return order


def most_probes(count: int) -> int:
    """Probes of the longest way through ``count`` candidates."""
    return ENDS + round(math.log2(count - 1))
