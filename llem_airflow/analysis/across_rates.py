"""A server over its rates: the knee, and the cheapest rate that meets the bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llem_airflow.analysis.summary import ExperimentSummary, MetricSummary

RATE = "server.traffic.rate"
TAILS = ("p99", "p95", "p90", "p50")
"""Of the end-to-end latency, the highest first: percentiles need enough requests."""

KNEE_FROM = 4
"""Fewest rates that have a knee: with three it could only be the middle one."""

KNEE_DISTANCE = 0.1
"""How far below the straight line from the first to the last rate the curve has to bend, as a share of its height."""


@dataclass(frozen=True)
class Level:
    """One rate.

    Attributes:
        experiment: What was measured at it.
        rate_per_s: The rate, as the study gives it.
        saturated: Whether the backlog grew through the window in some cycle: its latencies are not steady.
        meets_slo: Whether every cycle met the study's bounds; None where it has none.
    """

    experiment: ExperimentSummary
    rate_per_s: float
    saturated: bool
    meets_slo: bool | None

    def value(self, name: str) -> float | None:
        """The mean of a metric over cycles, where it is known."""
        found = self.experiment.metric(name)
        return None if found is None else found.all.mean


@dataclass(frozen=True)
class Ladder:
    """The rates of one configuration, ascending.

    Attributes:
        factors: What sets the configuration apart from others of the run, without the rate.
        levels: Its rates.
        tail: Name of the latency metric that all of them have: the highest percentile of the end-to-end latency.
    """

    factors: tuple[tuple[str, str], ...]
    levels: tuple[Level, ...]
    tail: str | None

    @property
    def knee(self) -> Level | None:
        """The rate from which the latency's tail turns up; None without one.

        Kneedle (Satopää et al., 2011) without smoothing: both axes from 0 to 1, the point farthest below the diagonal.
        """
        tail = self.tail
        points = [
            (one.rate_per_s, value) for one in self.levels if tail and (value := one.value(tail)) is not None
        ]
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
        """The rate with the least energy per output token among those that meet the bounds; None without one."""
        energy = "energy_per_output_token_j"
        known = [
            (value, one) for one in self.levels if one.meets_slo and (value := one.value(energy)) is not None
        ]
        return min(known, key=lambda each: each[0])[1] if known else None


def ladders(experiments: Sequence[ExperimentSummary]) -> tuple[Ladder, ...]:
    """The servers of a run, each with its rates; empty for a run of batches."""
    groups: dict[tuple[tuple[str, str], ...], list[Level]] = {}
    for one in experiments:
        offered = one.metric("offered_requests_per_s")
        if offered is None:
            continue
        others = tuple(sorted((key, str(value)) for key, value in one.factors.items() if key != RATE))
        groups.setdefault(others, []).append(_level(one, offered))
    return tuple(
        Ladder(factors, tuple(sorted(levels, key=lambda level: level.rate_per_s)), _tail(levels))
        for factors, levels in groups.items()
    )


def _level(one: ExperimentSummary, offered: MetricSummary) -> Level:
    rate = one.factors.get(RATE)
    met = one.metric("slo_met_ratio")
    return Level(
        experiment=one,
        rate_per_s=float(rate) if isinstance(rate, int | float) else offered.all.mean,
        saturated=any(flag.code == "saturated" for flag in one.doubts),
        meets_slo=None if met is None else met.all.mean == 1.0,
    )


def _tail(levels: Sequence[Level]) -> str | None:
    names = (f"e2el_{key}_s" for key in TAILS)
    return next((name for name in names if all(one.value(name) is not None for one in levels)), None)
