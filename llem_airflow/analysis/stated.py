"""What the joules would cost and emit, from an intensity and a price that the study states: always an estimate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llem_airflow.analysis.efficiency import co2e_g, cost
from llem_airflow.analysis.statistics import Description

TOKENS = 1_000_000
"""Output tokens that a derived number is about."""


@dataclass(frozen=True, slots=True)
class Derived:
    """A number that follows from energy and something the study states. Every one is an estimate.

    Attributes:
        name: ``co2e_g_per_million_output_tokens`` or ``cost_per_million_output_tokens``.
        label: Name for people.
        unit: ``g CO2e`` or the currency.
        mean: Of the mean energy per output token.
        low: Of the lower end of its 95 % t interval; the uncertainty of what is stated is not in it. None below 3
            cycles.
        high: Of its upper end.
        basis: What is stated, with source and year.
    """

    name: str
    label: str
    unit: str
    mean: float
    low: float | None
    high: float | None
    basis: str


def derived(stated: Mapping[str, Any], energy_per_output_token_j: Description | None) -> tuple[Derived, ...]:
    """CO2e and cost of a million output tokens.

    Args:
        stated: ``stated`` of plan.json: ``carbon`` with g_per_kwh, ``price`` with per_kwh and currency, both with
            source and year.
        energy_per_output_token_j: Over the cycles of one experiment.
    """
    energy = energy_per_output_token_j
    if energy is None:
        return ()
    shown = energy.shown_interval
    ends = (energy.mean, *((shown.low, shown.high) if shown else (None, None)))
    found = []
    if carbon := stated.get("carbon"):
        values = [None if e is None else co2e_g(e * TOKENS, float(carbon["g_per_kwh"])) for e in ends]
        name, label = "co2e_g_per_million_output_tokens", "CO2e per million output tokens"
        found.append(_derived(name, label, "g CO2e", values, basis_of("carbon", carbon)))
    if price := stated.get("price"):
        values = [None if e is None else cost(e * TOKENS, float(price["per_kwh"])) for e in ends]
        name, label = "cost_per_million_output_tokens", "Electricity per million output tokens"
        found.append(_derived(name, label, str(price["currency"]), values, basis_of("price", price)))
    return tuple(found)


def basis_of(kind: str, stated: Mapping[str, Any]) -> str:
    """What is stated, with source and year."""
    source = f"{stated['source']}, {stated['year']}"
    if kind == "carbon":
        return f"{stated['g_per_kwh']:g} g CO2e/kWh ({source})"
    return f"{stated['per_kwh']:g} {stated['currency']}/kWh ({source})"


def _derived(name: str, label: str, unit: str, values: list[float | None], basis: str) -> Derived:
    mean, low, high = values
    return Derived(name, label, unit, mean or 0.0, low, high, basis)
