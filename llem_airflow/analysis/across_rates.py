"""A server over its rates, or its numbers of users: the knee, and the cheapest that meets the bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llem_airflow.analysis.summary import ExperimentSummary, MetricSummary

RATE = "server.traffic.rate"
USERS = "server.traffic.concurrency"
_OF_THE_LOOP = (RATE, USERS)
TAILS = ("p99", "p95", "p90", "p50")
"""Of the end-to-end latency, the highest first: percentiles need enough requests."""

ENERGY = "energy_per_output_token_j"

KNEE_FROM = 4
"""Fewest rates that have a knee: with three it could only be the middle one."""

KNEE_DISTANCE = 0.1
"""How far below the straight line from the first to the last rate the curve has to bend, as a share of its height."""


@dataclass(frozen=True)
class Level:
    """One rate of an open loop, or one number of users of a closed one.

    Attributes:
        experiment: What was measured at it.
        load: The rate in requests/s, or the users, as the study gives it.
        saturated: Whether the backlog grew through the window in some cycle: its latencies are not steady.
        meets_slo: Whether every cycle met the study's bounds; None where it has none.
    """

    experiment: ExperimentSummary
    load: float
    saturated: bool
    meets_slo: bool | None

    @property
    def holds_slo(self) -> bool:
        """Whether it meets the bounds in a steady state, as in a search for the highest rate that does."""
        return self.meets_slo is True and not self.saturated

    def value(self, name: str) -> float | None:
        """The mean of a metric over cycles, where it is known."""
        found = self.experiment.metric(name)
        return None if found is None else found.all.mean

    def interval(self, name: str) -> tuple[float, float] | None:
        """The interval of a metric over cycles, where there is one."""
        found = self.experiment.metric(name)
        shown = None if found is None else found.all.shown_interval
        return None if shown is None else (shown.low, shown.high)


@dataclass(frozen=True)
class Ladder:
    """The rates of one configuration, or its numbers of users, ascending.

    Attributes:
        factors: What sets the configuration apart from others of the run, without the rate.
        levels: Its rates, or its numbers of users.
        closed: Whether these are users.
        tail: Name of the latency metric that all of them have: the highest percentile of the end-to-end latency.
    """

    factors: tuple[tuple[str, str], ...]
    levels: tuple[Level, ...]
    closed: bool
    tail: str | None

    @property
    def knee(self) -> Level | None:
        """The load from which the latency's tail turns up; None without one.

        Kneedle (Satopää et al., 2011) without smoothing: both axes from 0 to 1, the point farthest below the diagonal.
        """
        tail = self.tail
        points = [(one.load, value) for one in self.levels if tail and (value := one.value(tail)) is not None]
        if len(points) < max(KNEE_FROM, len(self.levels)):
            return None
        (first_x, first_y), (last_x, last_y) = points[0], points[-1]
        if last_x <= first_x or last_y <= first_y:
            return None
        below = [(x - first_x) / (last_x - first_x) - (y - first_y) / (last_y - first_y) for x, y in points]
        most = max(range(len(points)), key=below.__getitem__)
        return self.levels[most] if below[most] > KNEE_DISTANCE else None

    @property
    def cheapest(self) -> Level | None:
        """The load with the least energy per output token among those that hold the bounds; None without one."""
        known = [
            (value, one) for one in self.levels if one.holds_slo and (value := one.value(ENERGY)) is not None
        ]
        return min(known, key=lambda each: each[0])[1] if known else None

    @property
    def as_cheap(self) -> tuple[Level, ...]:
        """Others that hold the bounds and whose interval of the energy meets that of the cheapest: no telling apart."""
        cheapest = self.cheapest
        best = None if cheapest is None else cheapest.interval(ENERGY)
        if best is None:
            return ()
        return tuple(
            one
            for one in self.levels
            if one is not cheapest and one.holds_slo and (own := one.interval(ENERGY)) and own[0] <= best[1]
        )


def ladders(experiments: Sequence[ExperimentSummary]) -> tuple[Ladder, ...]:
    """The servers of a run, each with its rates; empty for a run of batches."""
    groups: dict[tuple[bool, tuple[tuple[str, str], ...]], list[Level]] = {}
    for one in experiments:
        users, offered = one.metric("concurrency_users"), one.metric("offered_requests_per_s")
        load = users or offered
        if load is None:
            continue
        others = {
            key: str(value)
            for key, value in one.factors.items()
            if key not in _OF_THE_LOOP and value is not None
        }
        groups.setdefault((users is not None, tuple(sorted(others.items()))), []).append(_level(one, load))
    return tuple(
        Ladder(factors, tuple(sorted(levels, key=lambda level: level.load)), closed, _tail(levels))
        for (closed, factors), levels in groups.items()
    )


def _level(one: ExperimentSummary, seen: MetricSummary) -> Level:
    asked = one.factors.get(RATE if seen.name == "offered_requests_per_s" else USERS)
    met = one.metric("slo_met_ratio")
    return Level(
        experiment=one,
        load=float(asked) if isinstance(asked, int | float) else seen.all.mean,
        saturated=any(flag.code == "saturated" for flag in one.doubts),
        meets_slo=None if met is None else met.all.mean == 1.0,
    )


def _tail(levels: Sequence[Level]) -> str | None:
    names = (f"e2el_{key}_s" for key in TAILS)
    return next((name for name in names if all(one.value(name) is not None for one in levels)), None)
