"""What is done to a board, and when: a function of the time that there is, so that a script can play it."""

from __future__ import annotations

from dataclasses import dataclass

Edges = tuple[tuple[float, float], ...]
"""When the load is switched on and off again, in seconds since the plan's begin."""

SHORTEST_S, LONGEST_S = 0.09, 0.7
_GOLDEN = 0.6180339887498949
REPEATS = 5
SAMPLER_S = 0.5
"""How long the sampler is watched at each rate."""


@dataclass(frozen=True)
class Phase:
    """One part of the plan.

    Attributes:
        name: bare | context | square | full | repeat.
        begin_s: When it begins, in seconds since the plan's begin.
        end_s: When it ends.
        edges: When the load is on in it.
    """

    name: str
    begin_s: float
    end_s: float
    edges: Edges = ()


def plan(total_s: float) -> tuple[Phase, ...]:
    """The phases for one board.

    A fifth of the time idles, half without and half with a CUDA context; half switches a load on and off; a seventh is
    full load; a seventh repeats one load.
    """
    shares = {"bare": 0.1, "context": 0.1, "square": 0.5, "full": 0.15, "repeat": 0.15}
    phases: list[Phase] = []
    begin_s = 0.0
    for name, share in shares.items():
        end_s = begin_s + share * total_s
        phases.append(Phase(name, begin_s, end_s, _edges(name, begin_s, end_s)))
        begin_s = end_s
    return tuple(phases)


def _edges(name: str, begin_s: float, end_s: float) -> Edges:
    if name == "square":
        return square_edges(begin_s, end_s - 0.5)
    if name == "full":
        margin_s = min(0.5, 0.2 * (end_s - begin_s))
        return ((begin_s + margin_s, end_s - margin_s),)
    if name == "repeat":
        each_s = (end_s - begin_s) / REPEATS
        return tuple((begin_s + (i + 0.3) * each_s, begin_s + (i + 0.9) * each_s) for i in range(REPEATS))
    return ()


def square_edges(begin_s: float, end_s: float) -> Edges:
    """Edges of a square load whose halves last between 0.09 and 0.7 s, each another time.

    No two edges are alike to a register of any period, and windows of all lengths see some of them. The lengths are
    spread evenly over their logarithm by the golden ratio.
    """
    edges: list[tuple[float, float]] = []
    at_s, number = begin_s + 0.3, 0
    while True:
        on_s, off_s = (
            SHORTEST_S * (LONGEST_S / SHORTEST_S) ** ((number + i) * _GOLDEN % 1.0) for i in range(2)
        )
        if at_s + on_s + off_s > end_s:
            return tuple(edges)
        edges.append((at_s, at_s + on_s))
        at_s += on_s + off_s
        number += 2
