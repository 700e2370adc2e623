"""The search for the highest rate that meets an SLO: its candidates, their order, and what follows from answers.

The candidates are a fixed geometric grid, each an experiment like one that is written with that rate. So the search has
no state of its own: which of them are measured follows from the stored results, whoever restarts what.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a search has come. Candidates are named by their place in the grid, from 0.

    Attributes:
        met: The highest one that met the SLO; None where none did.
        missed: The lowest one that missed it; None where none did.
        asks: The one that decides what follows, and has no answer yet; None when the search is over.
        probes: Those with an answer, in the order in which the search asked.
    """

    met: int | None
    missed: int | None
    asks: int | None
    probes: tuple[int, ...]

    def rules_out(self, place: int) -> bool:
        """Whether the search will not ask for a candidate any more."""
        if self.asks is None or place in self.probes:
            return place not in self.probes
        low = -1 if self.met is None else self.met
        high = math.inf if self.missed is None else self.missed
        return not low < place < high


def progress(count: int, answer: Callable[[int], bool | None]) -> Progress:
    """Follow a bisection of ``count`` candidates, a power of two and one, through the answers that are known.

    An answer is whether a candidate met the SLO; None where that is not known.
    """
    met: int | None = None
    missed: int | None = None
    probes: list[int] = []
    while (asks := _next(count, met, missed)) is not None and (said := answer(asks)) is not None:
        probes.append(asks)
        met, missed = (asks, missed) if said else (met, asks)
    return Progress(met, missed, asks, tuple(probes))


def _next(count: int, met: int | None, missed: int | None) -> int | None:
    """The lowest candidate, the highest, then the middle of what is left; None when nothing is."""
    if missed == 0 or met == count - 1:
        return None
    if met is None:
        return 0
    if missed is None:
        return count - 1
    return None if missed - met == 1 else (met + missed) // 2


def grid(lowest: float, highest: float, tolerance: float, max_probes: int) -> list[float]:
    """Candidate rates in requests/s, in as many halvings of the logarithm as neighbours within ``tolerance`` need.

    There are no more than ``max_probes`` leaves.
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


def at_most(searches: Sequence[RateSearch], planned: int, cycles: int) -> int:
    """Of so many planned cycles, all candidates with them, those that are measured at most."""
    return planned - sum(len(one.experiments) - one.max_probes for one in searches) * cycles
