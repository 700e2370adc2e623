"""Cells of the report's tables: a value, its unit, its interval, and whether it is an estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llem_airflow.analysis import quantity
from llem_airflow.analysis.metrics import BY_NAME
from llem_airflow.analysis.summary import ExperimentSummary

TPOT, ITL = "tpot_mean_s", "itl_mean_s"


@dataclass(frozen=True, slots=True)
class Cell:
    """A value for people.

    Attributes:
        value: Three significant digits, or a dash.
        unit: The unit that fits.
        interval: The 95 % interval, or that there is none.
        estimate: Whether it has to be marked as an estimate.
        tag: Whether with the word, not with the sign alone.
    """

    value: str = quantity.ABSENT
    unit: str = ""
    interval: str = ""
    estimate: bool = False
    tag: bool = True


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table of metrics.

    Attributes:
        name: Name of the metric.
        title: Its label; of two metrics where they are equal.
        meaning: Its definition.
        estimate: Whether every value in it is an estimate; then the header says so, and the cells have the sign ``~``.
    """

    name: str
    title: str
    meaning: str
    estimate: bool


def columns(experiments: Sequence[ExperimentSummary], names: Sequence[str]) -> list[Column]:
    """The columns of a table; ITL is not shown beside TPOT where both are equal in every experiment.

    They are whenever all answers are of one length.
    """
    all_estimates = only_estimates(experiments)
    same = itl_is_tpot(experiments)
    return [
        Column(
            name,
            "TPOT and ITL mean" if name == TPOT and same and ITL in names else BY_NAME[name].label,
            BY_NAME[name].meaning,
            BY_NAME[name].energy and all_estimates,
        )
        for name in names
        if not (name == ITL and same and TPOT in names)
    ]


def itl_is_tpot(experiments: Sequence[ExperimentSummary]) -> bool:
    """Whether both are shown as the same number in every experiment: they are, when all answers are of one length."""
    return all(metric_cell(e, TPOT).value == metric_cell(e, ITL).value for e in experiments)


def only_estimates(experiments: Sequence[ExperimentSummary]) -> bool:
    """Whether every energy is an estimate, so that a column can say so for all of its values."""
    return {e.energy_kind for e in experiments if e.energy_kind != "none"} == {"estimate"}


def metric_cell(e: ExperimentSummary, name: str, *, tag: bool = True) -> Cell:
    """A metric of an experiment: mean over cycles.

    Args:
        e: The experiment.
        name: The metric.
        tag: Whether the cell itself says that it is an estimate; where its column does, the sign is enough.
    """
    found = e.metric(name)
    if found is None:
        return Cell()
    unit, factor = quantity.scale(BY_NAME[name], found.all.mean)
    return Cell(
        quantity.number(found.all.mean * factor),
        unit,
        quantity.interval(found.all, factor),
        estimate=e.energy_kind == "estimate" and BY_NAME[name].energy,
        tag=tag,
    )


def derived_cell(e: ExperimentSummary, name: str) -> Cell:
    """CO2e or cost of an experiment: always an estimate, as its column says."""
    found = next((each for each in e.derived if each.name == name), None)
    if found is None:
        return Cell()
    known = found.low is not None and found.high is not None
    interval = f"{quantity.number(found.low)} to {quantity.number(found.high)}" if known else "no interval"
    return Cell(quantity.number(found.mean), found.unit, interval, estimate=True, tag=False)
