"""Cells of the report's tables: a value, its unit, its interval, and whether it is an estimate."""

from __future__ import annotations

from dataclasses import dataclass

from llem_airflow.analysis import quantity
from llem_airflow.analysis.metrics import BY_NAME
from llem_airflow.analysis.summary import ExperimentSummary


@dataclass(frozen=True, slots=True)
class Cell:
    """A value for people.

    Attributes:
        value: Three significant digits, or a dash.
        unit: The unit that fits.
        interval: The 95 % interval, or that there is none.
        estimate: Whether it has to be marked as an estimate.
    """

    value: str = quantity.ABSENT
    unit: str = ""
    interval: str = ""
    estimate: bool = False


def metric_cell(e: ExperimentSummary, name: str) -> Cell:
    """A metric of an experiment: mean over cycles."""
    found = e.metric(name)
    if found is None:
        return Cell()
    unit, factor = quantity.scale(BY_NAME[name], found.all.mean)
    return Cell(
        quantity.number(found.all.mean * factor),
        unit,
        quantity.interval(found.all, factor),
        estimate=e.energy_kind == "estimate" and BY_NAME[name].energy,
    )


def derived_cell(e: ExperimentSummary, name: str) -> Cell:
    """CO2e or cost of an experiment: always an estimate."""
    found = next((each for each in e.derived if each.name == name), None)
    if found is None:
        return Cell()
    known = found.low is not None and found.high is not None
    interval = f"{quantity.number(found.low)} to {quantity.number(found.high)}" if known else "no interval"
    return Cell(quantity.number(found.mean), found.unit, interval, estimate=True)
