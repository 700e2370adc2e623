"""What a server did at each of its rates, and what that comes to, as texts for every renderer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llem_airflow.analysis import formatting
from llem_airflow.analysis.across_rates import ENERGY, KNEE_FROM, RATE, Ladder, Level, ladders
from llem_airflow.analysis.metrics import BY_NAME
from llem_airflow.analysis.rate_search import FoundRate, Probe, found_rate
from llem_airflow.analysis.summary import ExperimentSummary
from llem_airflow.report.view import Cell, Table, columns, metric_cell
from llem_airflow.study.plan.model import RateSearch

RATES = ("concurrency_users", "offered_requests_per_s", "requests_per_s", "ttft_p50_s")
COSTS = (
    "slo_attainment_ratio",
    "energy_per_output_token_j",
    "energy_per_good_request_j",
    "idle_share_ratio",
)
"""Columns of the table of rates; between them stands the tail of the latency that all rates have."""


@dataclass(frozen=True)
class UnderLoad:
    """The rates of a run's servers.

    Attributes:
        table: One row a rate.
        said: What they come to, a sentence each.
        ladders: The servers, to draw them.
    """

    table: Table
    said: tuple[str, ...]
    ladders: tuple[Ladder, ...]


def under_load(
    experiments: Sequence[ExperimentSummary], labels: Mapping[str, str], searches: Sequence[RateSearch] = ()
) -> UnderLoad | None:
    """The rates of a run's servers; None for a run of batches.

    Args:
        experiments: Of the run.
        labels: What each is called, by its id.
        searches: Searches of the run.
    """
    servers = ladders(experiments)
    if not servers:
        return None
    levels = [level for one in servers for level in one.levels]
    served = [level.experiment for level in levels]
    names = (*RATES, *dict.fromkeys(one.tail for one in servers if one.tail), *COSTS)
    shown = [one for one in columns(served, names) if any(e.metric(one.name) for e in served)]
    rows = [
        (
            labels[level.experiment.id],
            *(_text(metric_cell(level.experiment, one.name, tag=not one.estimate)) for one in shown),
            _state(level),
        )
        for level in levels
    ]
    table = Table(("Experiment", *(one.title for one in shown), "State"), tuple(rows))
    by_id = {one.id: one for one in experiments}
    texts = [
        text for one in searches for text in _searched(found_rate(one, by_id), several=len(searches) > 1)
    ]
    texts += [text for one in servers for text in _said(one)]
    return UnderLoad(table, tuple(map(formatting.sentence, texts)), servers)


def _text(cell: Cell) -> str:
    return cell.text if cell.interval.startswith("no interval") else cell.with_interval


def _state(level: Level) -> str:
    met = {True: "meets the SLO", False: "misses the SLO", None: ""}[level.meets_slo]
    if level.saturated and level.meets_slo:
        met = "met the SLO in this window only"
    return ", ".join(filter(None, ["saturated" if level.saturated else "", met])) or "sustained"


def _said(server: Ladder) -> Iterator[str]:
    name = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in server.factors)
    before = f"{name}: " if name else ""
    cheapest, knee = server.cheapest, server.knee
    if cheapest is not None:
        joules = _text(metric_cell(cheapest.experiment, ENERGY))
        near = ", ".join(load_text(server, one) for one in server.as_cheap)
        beside = f"; the interval of {near} meets it: they are not told apart" if near else ""
        if cheapest.interval(ENERGY) is None and sum(one.holds_slo for one in server.levels) > 1:
            beside = "; it has no interval (from 3 cycles on), so others may be as cheap"
        yield f"{before}the cheapest that meets the SLO is {load_text(server, cheapest)}, at {joules}{beside}"
    elif any(one.meets_slo is not None for one in server.levels):
        what = "number of users" if server.closed else "rate"
        yield f"{before}no {what} meets the SLO in every cycle"
    if knee is not None and server.tail is not None:
        yield f"{before}{BY_NAME[server.tail].label} turns up from {load_text(server, knee)} on (the knee)"
    elif 1 < len(server.levels) < KNEE_FROM:
        yield f"{before}no knee is looked for among fewer than {KNEE_FROM} of them"
    if saturated := [load_text(server, one) for one in server.levels if one.saturated]:
        yield f"{before}saturated at {', '.join(saturated)}: these latencies are not those of a steady state"
    if server.closed:
        yield (
            f"{before}closed loop: who waits for an answer asks nothing meanwhile, so a slower server is asked less. "
            "Its latencies are not those of arrivals at the same throughput, and no saturation is tested for"
        )


def _searched(found: FoundRate, *, several: bool) -> Iterator[str]:
    """What a search has found, in sentences."""
    if not found.probes:
        return
    first, rates = found.probes[0].experiment, found.search.rates_per_s
    others = [f"{key.rpartition('.')[2]} {value}" for key, value in first.factors.items() if key != RATE]
    before = f"find_rate ({', '.join(others)}): " if several and others else "find_rate: "
    asked = f"{len(found.probes)} of at most {found.search.max_probes} rates measured"
    met, missed = (
        None if one is None else f"{one.rate_per_s:g}/s" for one in (found.highest_met, found.lowest_missed)
    )
    energy = "" if found.highest_met is None else _energy_at(found.highest_met)
    if found.state == "open":
        bracket = ", ".join(filter(None, [met and f"met at {met}", missed and f"missed at {missed}"]))
        yield f"{before}not over: {found.asks_per_s:g}/s has no answer; {bracket} ({asked})"
    elif found.state == "below":
        yield f"{before}the SLO is missed at {rates[0]:g}/s, the lowest rate: set from lower, or the bounds wider"
    elif found.state == "above":
        yield f"{before}the SLO is met at {rates[-1]:g}/s, the highest rate{energy}: set to higher"
    else:
        yield f"{before}the highest rate that meets the SLO is {met}{energy}; {missed} misses it ({asked})"
    if close := [f"{one.rate_per_s:g}/s" for one in found.probes if one.close]:
        yield (
            f"{before}close at {', '.join(close)}: cycles disagree, or the interval of the attainment holds "
            f"{found.search.percentile:g}. Another measurement may find a neighbouring rate"
        )


def _energy_at(probe: Probe) -> str:
    known = probe.experiment.metric("energy_per_output_token_j")
    return f", at {_text(metric_cell(probe.experiment, 'energy_per_output_token_j'))}" if known else ""


def load_text(server: Ladder, level: Level) -> str:
    """The load of a level, with its unit."""
    number = formatting.number(level.load)
    return f"{number} user{'s' * (level.load != 1)}" if server.closed else f"rate {number}/s"
