"""What a search for the highest rate that meets an SLO has found.

A rate meets the SLO when every cycle of it met the bounds and none was saturated. Bisection asks each rate once: an
answer that chance turned is not seen by the search itself. So an answer is told as close where the cycles of a rate
disagree, or where the 95 % interval of its share of good requests, over cycles, holds the share that is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from llem_airflow.analysis.cycle import Cycle, read_cycle
from llem_airflow.analysis.summary import ExperimentSummary
from llem_airflow.results import StoredRun
from llem_airflow.study.plan.model import RateSearch

_SATURATED = "saturated"


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


def stored_answer(run: StoredRun, experiment_id: str, cycles: Iterable[int]) -> bool | None:
    """Whether the stored cycles of a rate say that it meets the SLO; None where none says anything.

    Args:
        run: The results.
        experiment_id: The rate's experiment.
        cycles: Which repetitions.
    """
    refs = [ref for cycle in cycles if (ref := run.cycle(experiment_id, cycle))]
    return _answer([read_cycle(ref, position=None, failed_attempts=0)[0] for ref in refs])


def _answer(rows: Sequence[Cycle]) -> bool | None:
    known = [(row, met) for row in rows if (met := row.measures.get("slo_met_ratio")) is not None]
    if not known:
        return None
    return all(met == 1.0 and _SATURATED not in {flag.code for flag in row.flags} for row, met in known)


@dataclass(frozen=True)
class Probe:
    """A rate that was measured.

    Attributes:
        experiment: What was measured at it.
        rate_per_s: The rate, in requests/s.
        met: Whether it meets the SLO.
        close: Whether another measurement could well say the opposite.
    """

    experiment: ExperimentSummary
    rate_per_s: float
    met: bool
    close: bool


@dataclass(frozen=True)
class FoundRate:
    """How far a search has come.

    Attributes:
        search: What was searched.
        probes: Its answers, in the order in which it asked.
        highest_met: The highest rate that met the SLO; None where none did.
        lowest_missed: The lowest one that missed it; None where none did.
        asks_per_s: The rate whose answer it lacks, in requests/s; None when it is over.
    """

    search: RateSearch
    probes: tuple[Probe, ...]
    highest_met: Probe | None
    lowest_missed: Probe | None
    asks_per_s: float | None

    @property
    def state(self) -> str:
        """``open``, ``below`` (missed at the lowest rate), ``above`` (met at the highest) or ``found``."""
        if self.asks_per_s is not None:
            return "open"
        return "below" if self.highest_met is None else "above" if self.lowest_missed is None else "found"


def found_rate(search: RateSearch, experiments: Mapping[str, ExperimentSummary]) -> FoundRate:
    """What the summaries of a run say of a search.

    Args:
        search: The search.
        experiments: Of the run, by id.
    """
    probes = [
        _probe(experiments.get(name), rate, search.percentile)
        for name, rate in zip(search.experiments, search.rates_per_s, strict=True)
    ]

    def answer(at: int) -> bool | None:
        probe = probes[at]
        return None if probe is None else probe.met

    now = progress(len(probes), answer)
    return FoundRate(
        search=search,
        probes=tuple(probe for at in now.probes if (probe := probes[at]) is not None),
        highest_met=None if now.met is None else probes[now.met],
        lowest_missed=None if now.missed is None else probes[now.missed],
        asks_per_s=None if now.asks is None else search.rates_per_s[now.asks],
    )


def _probe(one: ExperimentSummary | None, rate_per_s: float, percentile: float) -> Probe | None:
    met = None if one is None else one.metric("slo_met_ratio")
    if one is None or met is None:
        return None
    saturated = any(flag.code == _SATURATED for flag in one.doubts)
    attained = one.metric("slo_attainment_ratio")
    within = attained.all.shown_interval if attained else None
    holds = within is not None and within.low <= percentile <= within.high and within.low < within.high
    return Probe(
        experiment=one,
        rate_per_s=rate_per_s,
        met=met.all.mean == 1.0 and not saturated,
        close=not saturated and (0.0 < met.all.mean < 1.0 or holds),
    )
