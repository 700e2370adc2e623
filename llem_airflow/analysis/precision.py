"""Have enough cycles of an experiment been measured?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llem_airflow.analysis.cycle import read_cycle
from llem_airflow.analysis.statistics import describe
from llem_airflow.results import StoredRun
from llem_airflow.text.wording import counted


@dataclass(frozen=True, slots=True)
class Precision:
    """How narrow the interval of an experiment is.

    Attributes:
        n: Cycles with a value.
        half_width_ratio: Half of the length of the 95 % t interval / |mean|; None below two cycles.
        met: Whether it is as narrow as asked for.
        reason: One sentence.
    """

    n: int
    half_width_ratio: float | None
    met: bool
    reason: str


def precision(values: Sequence[float], *, relative_half_width: float, min_cycles: int) -> Precision:
    """Judge the values of the cycles measured so far.

    Looking after every cycle lowers the coverage of the interval a little, hence the smallest number of cycles.

    Args:
        values: One value a cycle.
        relative_half_width: Half width / mean that is wanted.
        min_cycles: Cycles before it may be met.
    """
    found = describe(values)
    n = found.n if found else 0
    ratio = found.half_width_ratio if found else None
    if n < max(min_cycles, 2) or ratio is None:
        return Precision(n, ratio, met=False, reason=f"{n} of at least {max(min_cycles, 2)} cycles")
    met = ratio <= relative_half_width
    word = "reached" if met else "not reached"
    reason = (
        f"half width {ratio:.2%} of the mean after {counted(n, 'cycle')}; {relative_half_width:.2%} {word}"
    )
    return Precision(n, ratio, met, reason)


def precision_of(
    run: StoredRun, experiment_id: str, *, relative_half_width: float, min_cycles: int
) -> Precision:
    """Judge the committed cycles of an experiment by energy per output token, or by tokens/s without a meter."""
    rows = [
        read_cycle(ref, position=None, failed_attempts=0)[0]
        for ref in run.cycles()
        if ref.experiment_id == experiment_id
    ]
    for name in ("energy_per_output_token_j", "output_tokens_per_s"):
        values = [value for row in rows if (value := row.measures.get(name)) is not None]
        if values:
            return precision(values, relative_half_width=relative_half_width, min_cycles=min_cycles)
    return Precision(0, None, met=False, reason="no cycle was measured yet")
