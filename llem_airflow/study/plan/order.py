"""In which order the cycles of the experiments run, which go first as canaries, and where the machine rests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

from llem_airflow.study.plan.model import Experiment

Run = tuple[int, int]
"""Index of the experiment and its cycle, from 1."""


def ordered(count: int, cycles: int, order: str, seed: int) -> list[Run]:
    """Every cycle of every experiment in the order in which they run.

    ``sequential`` AAABBB, ``interleave`` ABABAB, ``shuffle`` a seeded permutation per pass,
    ``reverse`` ABBAAB, ``latin_square`` the rows of a Williams design, over and over.
    """
    if order == "sequential":
        return [(index, cycle) for index in range(count) for cycle in range(1, cycles + 1)]
    rows = _rows(count, order, seed)
    return [(index, cycle) for cycle in range(1, cycles + 1) for index in next(rows)]


def gaps_s(runs: list[Run], order: str, short_s: float, long_s: float) -> list[float]:
    """The pause before each run, in seconds: none before the first, the long one between blocks or passes.

    A block is all cycles of one experiment in ``sequential``; a pass is one cycle of every experiment
    otherwise. A sequential study of one experiment has passes, since it has nothing else to separate.
    Without repetition there is nothing to tell apart, and every pause is the short one.
    """
    if all(cycle == 1 for _, cycle in runs):
        long_s = short_s
    which = 0 if order == "sequential" and runs and runs[-1][0] > 0 else 1
    gaps = [0.0] * min(1, len(runs))
    gaps += [long_s if now[which] != before[which] else short_s for before, now in pairwise(runs)]
    return gaps


def balanced(count: int, cycles: int, order: str) -> bool:
    """Whether each experiment follows each other one equally often within the passes.

    Williams' designs need ``count`` passes (twice as many when ``count`` is odd), or a multiple of it.
    """
    rows = count if count % 2 == 0 else 2 * count
    return order == "latin_square" and (count < 2 or cycles % rows == 0)


def williams(count: int) -> list[list[int]]:
    """Williams' design: a Latin square in which everything follows everything else equally often.

    The first row is 0, 1, n-1, 2, n-2, ...; the others shift it by one. With an odd count one square cannot
    be balanced, and its mirror image is added (E. J. Williams 1949, Aust. J. Sci. Res. A 2, 149-168).
    """
    first = [(step + 1) // 2 if step % 2 else (count - step // 2) % count for step in range(count)]
    rows = [[(item + shift) % count for item in first] for shift in range(count)]
    return rows if count % 2 == 0 else [*rows, *[row[::-1] for row in rows]]


def _rows(count: int, order: str, seed: int) -> Iterator[list[int]]:
    forward = list(range(count))
    number = 0
    from random import Random  # noqa: PLC0415  # with its hashes as slow to import as YAML; only a shuffle needs it

    generator = Random(seed)  # noqa: S311  # an order, not a secret
    while True:
        if order == "shuffle":
            row = forward.copy()
            generator.shuffle(row)
        elif order == "reverse":
            row = forward[::-1] if number % 2 else forward
        elif order == "latin_square":
            row = _williams_row(count, number)
        else:
            row = forward
        yield row
        number += 1


def _williams_row(count: int, number: int) -> list[int]:
    """Row ``number`` of the design without building the others: they would take count**2 of memory."""
    period = count if count % 2 == 0 else 2 * count
    number %= period
    shift = number % count
    row = [((step + 1) // 2 if step % 2 else (count - step // 2) % count) + shift for step in range(count)]
    row = [item % count for item in row]
    return row if number < count else row[::-1]


CANARY_CYCLE = 1
"""Canaries run in the first cycle."""


def canaries(experiments: Iterable[Experiment]) -> dict[str, str]:
    """Id of the canary of each experiment: of its engine and model the one that handles the fewest tokens."""
    groups: dict[tuple[str, str], list[Experiment]] = {}
    for experiment in experiments:
        groups.setdefault((experiment.engine, experiment.model), []).append(experiment)
    return {each.id: min(group, key=_tokens).id for group in groups.values() for each in group}


def _tokens(experiment: Experiment) -> float:
    """Tokens of one pass over the prompts, at most; endless where the study sets no bound."""
    task: dict[str, Any] = experiment.config["task"]
    read, written = task.get("max_input_tokens"), task.get("max_output_tokens")
    prompts = task["dataset"].get("n_prompts")
    if read is None or written is None or prompts is None:
        return float("inf")
    return float(prompts * (read + written))
