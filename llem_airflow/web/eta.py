"""When a run that is at work will have ended, as a range, from how long the same cycles took before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from llem_airflow.study.plan.model import RateSearch
from llem_airflow.text.wording import counted

Key = tuple[str, int]


@dataclass(frozen=True)
class Eta:
    """What is left of a run.

    Attributes:
        low_s: Time left when each remaining cycle takes its shortest known time, in seconds.
        high_s: The same with the longest.
        cycles: Cycles that are left, those at work included.
        basis: What the range comes from, for people.
    """

    low_s: float
    high_s: float
    cycles: int
    basis: str


def time_left(left: Mapping[Key, float], known: Mapping[Key, Sequence[float]], at_a_time: int) -> Eta | None:
    """The range, or None when nothing is left or nothing is known.

    Cycles of an experiment stand for each other; for an experiment that never ran, all that are known do. The shortest
    and the longest times are added up and divided by how many cycles run at a time, but no run ends before its longest
    remaining cycle does.

    Args:
        left: Time since each remaining cycle began, in seconds; 0 for one that has not begun.
        known: Durations of the cycles that were measured, here and in earlier runs, in seconds.
        at_a_time: Cycles that may run at the same time.
    """
    by_experiment: dict[str, list[float]] = {}
    for (experiment, _), found in known.items():
        by_experiment.setdefault(experiment, []).extend(found)
    every = [value for durations in by_experiment.values() for value in durations]
    if not left or not every:
        return None
    ranges = []
    unknown = set()
    for (experiment, _), gone_s in left.items():
        durations = by_experiment.get(experiment)
        if not durations:
            unknown.add(experiment)
        low, high = min(durations or every), max(durations or every)
        ranges.append((max(0.0, low - gone_s), max(0.0, high - gone_s)))
    side_by_side = min(max(1, at_a_time), len(left))
    low_s, high_s = (max(sum(ends) / side_by_side, *ends) for ends in zip(*ranges, strict=True))
    told = f"{len(every)} earlier cycle{'s' * (len(every) != 1)}"
    also = f"; {len(unknown)} experiment{'s' * (len(unknown) != 1)} never measured before" if unknown else ""
    return Eta(low_s, high_s, len(left), f"shortest and longest of {told}{also}")


def time_left_searching(
    left: Mapping[Key, float],
    known: Mapping[Key, Sequence[float]],
    at_a_time: int,
    searches: Iterable[RateSearch],
    asked: Iterable[str],
) -> Eta | None:
    """As ``time_left``, of a run that searches for a rate: most of its candidates are never measured.

    The range is from one more rate of each search to as many as it may still measure.

    Args:
        left: As for ``time_left``, with all candidates that are not ruled out.
        known: As for ``time_left``.
        at_a_time: As for ``time_left``.
        searches: The searches of the run.
        asked: Experiments of which a cycle was measured or is at work.
    """
    least, most = dict(left), dict(left)
    begun, searching = set(asked), False
    for search in searches:
        open_ones = [name for name in search.experiments if any(name == key[0] for key in left)]
        at_work = [name for name in open_ones if name in begun]
        waiting = [name for name in open_ones if name not in begun]
        more = max(0, search.max_probes - sum(name in begun for name in search.experiments))
        searching = searching or bool(waiting)
        _leave_out(most, waiting[more:])
        _leave_out(least, waiting[0 if at_work else 1 :])
    high, low = time_left(most, known, at_a_time), time_left(least, known, at_a_time)
    if high is None or not searching:
        return high
    basis = f"{high.basis}; find_rate measures {counted(len(least), 'more cycle')} to {len(most)}"
    return replace(high, low_s=low.low_s if low else 0.0, basis=basis)


def _leave_out(keys: dict[Key, float], experiments: Sequence[str]) -> None:
    for key in [key for key in keys if key[0] in experiments]:
        del keys[key]
