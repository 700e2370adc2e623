"""What cycles that shared a container mean: how many sessions there were, and whether the later cycles cost more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from llem_airflow.analysis.cycle import Cycle
from llem_airflow.analysis.flags import FlagSummary
from llem_airflow.analysis.statistics import Interval, mean_of, t_interval
from llem_airflow.study.plan.order import load_of
from llem_airflow.text.wording import counted

METRIC = "energy_per_output_token_j"
_NEXT = "measure the doubtful ones with study_execution.isolation: container, and compare"
_FROM = "95 % t interval of the mean log ratio over experiments"


def sessions_text(cycles: Sequence[Cycle]) -> str:
    """How many cycles ran in how many sessions; empty where each had a container of its own."""
    inside = [row for row in cycles if row.session and row.has_result]
    if not inside:
        return ""
    return f"{counted(len(inside), 'cycle')} in {counted(len({row.session for row in inside}), 'session')}"


def session_flags(cycles: Sequence[Cycle]) -> dict[str, list[FlagSummary]]:
    """Flags of the experiments whose sessions get more or less costly from the first cycle to the later ones.

    For each experiment the mean logarithm of its energy per token at later places minus that at the first place of a
    session; over the experiments that load alike their mean with its t interval. Where it leaves 0 out, they have the
    flag. Where each experiment has the same place in every session, nothing can be told, which is said, too.

    Returns:
        Flags by experiment.
    """
    groups: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in cycles:
        value = row.measures.get(METRIC)
        if (
            row.session is None
            or row.position_in_session is None
            or not row.has_result
            or not value
            or value < 0
        ):
            continue
        group = groups.setdefault(load_of(row.session), {})
        group.setdefault(row.experiment, []).append((row.position_in_session, math.log(value)))
    found: dict[str, list[FlagSummary]] = {}
    for name, experiments in groups.items():
        flag = _flag(name, experiments)
        if flag is not None:
            found |= {each: [flag] for each in experiments}
    return found


def leakage(experiments: Mapping[str, Sequence[tuple[int, float]]]) -> tuple[float, Interval | None, int]:
    """Mean log ratio of later places over the first one, its interval, and of how many experiments it is.

    Args:
        experiments: Of each (place in its session, logarithm of the value).
    """
    ratios = []
    for places in experiments.values():
        first = [value for place, value in places if place == 0]
        later = [value for place, value in places if place > 0]
        if first and later:
            ratios.append(mean_of(later) - mean_of(first))
    return (
        mean_of(ratios) if ratios else 0.0,
        t_interval(ratios, signed=True) if ratios else None,
        len(ratios),
    )


def _flag(name: str, experiments: Mapping[str, Sequence[tuple[int, float]]]) -> FlagSummary | None:
    ratio, interval, count = leakage(experiments)
    if count < 2 or interval is None:
        if len(experiments) < 2:
            return None
        return FlagSummary(
            "session_not_checked",
            "info",
            f"whether later cycles of the sessions of {name} cost more is not known: {counted(count, 'experiment')} "
            "had both the first and a later place",
            "study_execution.experiment_order: latin_square or shuffle changes the places from pass to pass",
            _FROM,
        )
    if interval.low <= 0.0 <= interval.high:
        return None
    low, high = (math.expm1(end) for end in (interval.low, interval.high))
    return FlagSummary(
        "session_drift",
        "warning",
        f"energy per output token at later places of the sessions of {name} differs by {math.expm1(ratio):+.1%} "
        f"({low:+.1%} to {high:+.1%}, {counted(count, 'experiment')}) from that at the first",
        _NEXT,
        _FROM,
    )
