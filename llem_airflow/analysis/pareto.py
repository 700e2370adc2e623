"""Which experiments nothing beats in energy and speed together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def pareto(points: Mapping[str, Sequence[float]], better: Sequence[str]) -> set[str]:
    """Names of the points that no other point dominates.

    A point dominates another when it is at least as good in every coordinate and better in one.

    Args:
        points: By name, the coordinates.
        better: For each coordinate, ``lower`` or ``higher``.
    """
    signs = [1.0 if direction == "lower" else -1.0 for direction in better]
    costs = {name: [s * v for s, v in zip(signs, values, strict=True)] for name, values in points.items()}
    return {
        name
        for name, mine in costs.items()
        if not any(_dominates(other, mine) for key, other in costs.items() if key != name)
    }


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
