"""Which experiments nothing beats in energy and speed together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Coordinate = float | tuple[float, float] | None
"""A value, an interval in which it lies, or None for "not known"."""


def pareto(points: Mapping[str, Sequence[Coordinate]], better: Sequence[str]) -> set[str]:
    """Names of the points that no other point dominates, whatever lies in their intervals.

    A point dominates another when it is at least as good in every coordinate and better in one. The best that one's
    intervals allow is held against the worst that the other's allow, so a point whose intervals overlap another's in
    every direction is not among the names.

    Args:
        points: By name, the coordinates.
        better: For each coordinate, ``lower`` or ``higher``.
    """
    costs = {
        name: [_cost(value, direction) for value, direction in zip(values, better, strict=True)]
        for name, values in points.items()
    }
    best = {name: [low for low, _ in mine] for name, mine in costs.items()}
    worst = {name: [high for _, high in mine] for name, mine in costs.items()}
    return {
        name
        for name in points
        if not any(_dominates(best[key], worst[name]) for key in points if key != name)
    }


def _cost(value: Coordinate, direction: str) -> tuple[float, float]:
    """Least and greatest of what a coordinate costs."""
    if value is None:
        return -math.inf, math.inf
    low, high = value if isinstance(value, tuple) else (value, value)
    return (low, high) if direction == "lower" else (-high, -low)


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
