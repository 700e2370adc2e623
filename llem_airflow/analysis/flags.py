"""What a flag is, what the checks look at, and the flags of an experiment: each kind once, with its range."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem_airflow.analysis import formatting
from llem_airflow.analysis.energy import EnergyOfWindow
from llem_airflow.analysis.series import GpuSeries, rows_between
from llem_airflow.protocol.result import CycleResult


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
        code: Its stable name.
        message: What was seen, with the numbers.
        next_step: What to do about it.
        threshold: The limit that was crossed, and where that limit comes from.
        severity: ``info`` (how to read the number), ``warning`` (it may be off), ``error`` (do not use it as it is),
            ``withheld`` (there is no number because of it).
    """

    code: str
    message: str
    next_step: str
    threshold: str
    severity: str


@dataclass(frozen=True)
class Seen:
    """Everything that the checks look at."""

    result: CycleResult
    energy: EnergyOfWindow
    series: Mapping[str, GpuSeries]
    events: Sequence[Mapping[str, Any]]
    gpus: Sequence[Mapping[str, Any]]
    host: Mapping[str, Any]

    @cached_property
    def event_reasons(self) -> list[NDArray[np.int64]]:
        """Clock event bits of each device's samples in the window, where it tells any."""
        found = []
        for one in self.series.values():
            inside = one.event_reasons[rows_between(one.t_s, 0, self.energy.duration_s)]
            known = inside[~np.isnan(inside)]
            if len(known):
                found.append(known.astype(np.int64))
        return found

    @property
    def known(self) -> bool:
        """Whether the energy is known."""
        return self.energy.energy_j is not None


@dataclass(frozen=True)
class Check:
    """One row of a table of checks: what it looks for, and what is said when it is there.

    Attributes:
        code: As in Flag.
        severity: As in Flag.
        says: The message when there is a flag, else None.
        next_step: As in Flag.
        threshold: As in Flag.
    """

    code: str
    severity: str
    says: Callable[[Seen], str | None]
    next_step: str
    threshold: str

    def __call__(self, seen: Seen) -> Flag | None:
        """The flag, or None."""
        message = self.says(seen)
        if message is None:
            return None
        return Flag(self.code, message, self.next_step, self.threshold, self.severity)


Says = Callable[[Seen], str | None]


def add_check(
    table: list[Check], code: str, severity: str, next_step: str, threshold: str
) -> Callable[[Says], Says]:
    """Put the function below it into a table of checks; arguments as the attributes of ``Check``."""

    def add(says: Says) -> Says:
        table.append(Check(code, severity, says, next_step, threshold))
        return says

    return add


GRAVEST_FIRST = ("withheld", "error", "warning", "info")

_UNITS = (
    r"%|J/token|token/s|tok/s|[munkMG]?[sWJ]|Wh|min|h|[kM]?Hz|[KMG]i?B|bytes|degrees|iterations|readings|reads|"
    r"(?:output |power )?(?:tokens|samples)|requests|cycles|times?\b|CPUs|cores|devices"
)
_OF = r"\s?|\sof\s(?:the\s(?:host's\s)?)?\d[\d,.]*\s"
_QUANTITY = re.compile(
    rf"(?<![\w.:/#-])([+\-\N{{MINUS SIGN}}]?\d[\d,]*(?:\.\d+)?)(?=(?:{_OF})({_UNITS})(?!\w))"
)
"""A number with a unit behind it, as both of ``3 of 24 requests``.

A number without one may be a name: a process id, a device, a port."""

_LESS_IS_WORSE = {"short_window", "few_samples", "baseline_above_load"}
_UNRANKED = {"requests_disagree", "warmup_not_converged"}
_WORDINGS = 3
"""So many wordings are quoted; of more, the number is told."""


@dataclass(frozen=True)
class FlagSummary:
    """A flag of an experiment, over its cycles.

    Attributes:
        code: Name of the flag.
        severity: info | warning | error | withheld: the gravest of its cycles.
        message: What was seen; where it stands for several cycles, the range and the worst.
        next_step: What to do about it.
        threshold: The limit that was passed and where it comes from.
        cycles: Cycles that show it; empty when it is about the experiment as a whole.
        messages: What each of ``cycles`` said, where they did not say the same; else empty.
    """

    code: str
    severity: str
    message: str
    next_step: str
    threshold: str = ""
    cycles: tuple[int, ...] = ()
    messages: tuple[str, ...] = ()


def summed_flags(flags: Iterable[tuple[int, Flag]]) -> list[FlagSummary]:
    """The flags of an experiment's cycles, each code once.

    Args:
        flags: (cycle, flag).
    """
    seen: dict[str, list[tuple[int, Flag]]] = {}
    for cycle, flag in flags:
        seen.setdefault(flag.code, []).append((cycle, flag))
    found = []
    for code, those in seen.items():
        gravest = min((flag for _, flag in those), key=lambda flag: gravity(flag.severity))
        said = [(f"cycle {cycle}", flag.message) for cycle, flag in those]
        told = tuple(flag.message for _, flag in those)
        found.append(
            FlagSummary(
                code,
                gravest.severity,
                summed_up(code, said),
                gravest.next_step,
                gravest.threshold,
                tuple(cycle for cycle, _ in those),
                told if len(set(told)) > 1 else (),
            )
        )
    return found


def grouped_flags(flags: Iterable[tuple[str, FlagSummary]]) -> list[tuple[FlagSummary, list[str]]]:
    """Each kind of flag of a run once, the gravest first, with where it was seen.

    Args:
        flags: (name of the experiment, its flag).
    """
    found: dict[str, list[tuple[str, FlagSummary]]] = {}
    for label, flag in flags:
        found.setdefault(flag.code, []).append((label, flag))
    groups = [
        (_over_experiments(those), [_place(label, one) for label, one in those]) for those in found.values()
    ]
    return sorted(groups, key=lambda item: gravity(item[0].severity))


def places_text(places: Sequence[str], at_most: int) -> str:
    """Where it was seen; how many places are left out, if any are."""
    more = f"; and {len(places) - at_most} more" if len(places) > at_most else ""
    return "; ".join(places[:at_most]) + more


def gravity(severity: str) -> int:
    """Place in the order of severities, the gravest 0."""
    return GRAVEST_FIRST.index(severity) if severity in GRAVEST_FIRST else len(GRAVEST_FIRST)


def summed_up(code: str, said: Sequence[tuple[str, str]]) -> str:
    """One message for many: where only quantities differ their ranges and the worst, else the different wordings.

    Args:
        code: Name of the flag: it tells which end is the worse one.
        said: (place, message).
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for place, message in said:
        groups.setdefault(_QUANTITY.sub("\0", message), []).append((place, message))
    told = [_with_ranges(code, those) for those in groups.values()]
    if len(told) == 1:
        return told[0]
    more = [f"And {len(told) - _WORDINGS} more findings of this kind."] if len(told) > _WORDINGS else []
    return " ".join([*map(formatting.sentence, told[:_WORDINGS]), *more])


def _with_ranges(code: str, said: Sequence[tuple[str, str]]) -> str:
    """Messages that differ in their quantities only."""
    rows = [[(found[1], found[2]) for found in _QUANTITY.finditer(message)] for _, message in said]
    columns = [[_float(number) for number, _ in column] for column in zip(*rows, strict=True)]
    varied = [index for index, column in enumerate(columns) if len(set(column)) > 1]
    if not varied:
        return said[0][1]
    texts = iter([_range([row[index][0] for row in rows]) for index in range(len(columns))])
    message = _QUANTITY.sub(lambda _: next(texts), said[0][1])
    if code in _UNRANKED:
        return message
    first = columns[varied[0]]
    at = first.index(min(first) if code in _LESS_IS_WORSE else max(first, key=abs))
    number, unit = rows[at][varied[0]]
    return f"{formatting.sentence(message)} Worst: {number} {unit} in {said[at][0]}."


def _range(texts: Sequence[str]) -> str:
    low, high = min(texts, key=_float), max(texts, key=_float)
    return low if _float(low) == _float(high) else f"{low} to {high}"


def _float(text: str) -> float:
    return float(text.replace(",", "").replace("\N{MINUS SIGN}", "-"))


def _over_experiments(those: Sequence[tuple[str, FlagSummary]]) -> FlagSummary:
    gravest = min((flag for _, flag in those), key=lambda flag: gravity(flag.severity))
    said = [item for label, flag in those for item in _said(label, flag)]
    return FlagSummary(
        gravest.code,
        gravest.severity,
        summed_up(gravest.code, said),
        gravest.next_step,
        gravest.threshold,
        gravest.cycles,
    )


def _said(label: str, flag: FlagSummary) -> list[tuple[str, str]]:
    """What each cycle said; a summary of an older version has one message for all of them."""
    if len(flag.messages) != len(flag.cycles) or not flag.cycles:
        return [(_place(label, flag), flag.message)]
    return [(f"{label}, cycle {cycle}", text) for cycle, text in zip(flag.cycles, flag.messages, strict=True)]


def _place(label: str, flag: FlagSummary) -> str:
    return f"{label}, cycle {', '.join(map(str, flag.cycles))}" if flag.cycles else label
