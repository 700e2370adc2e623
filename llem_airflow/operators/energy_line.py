"""What a cycle came to, in one line: joules and their source, or why there are none; tokens; joules per token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llem_airflow.analysis.cycle import Cycle
    from llem_airflow.results import CycleRef


def energy_line(ref: CycleRef) -> str:
    """The line of a stored cycle."""
    # NumPy and Arrow only now, after the measurement.
    from llem_airflow.analysis.cycle import read_cycle  # noqa: PLC0415

    row, _ = read_cycle(ref, position=None, failed_attempts=0)
    return line_of(row)


def line_of(row: Cycle) -> str:
    """The line of a cycle that was read: ``… cycle 1: 12.3 J (counter, board), 384 output tokens, 32 mJ/token``."""
    name = f"{row.experiment} cycle {row.cycle}"
    if row.status == "damaged":
        return f"{name}: the stored result cannot be read: {row.reason}"
    said = [_energy(row), f"{row.measures.get('output_tokens') or 0:,.0f} output tokens"]
    per_token_j = row.measures.get("energy_per_output_token_j")
    if per_token_j is not None:
        said.append(f"{_per_token(per_token_j)}{_estimate(row)}")
    return f"{name}: {', '.join(said)}"


def _energy(row: Cycle) -> str:
    joules = row.measures.get("energy_j")
    if joules is None:
        return f"no energy ({row.reason or 'the study asks for no meter'})"
    uncertainty = f" ± {_number(row.energy_uncertainty_j)}" if row.energy_uncertainty_j else ""
    source = ", ".join(filter(None, [row.energy_source, row.energy_boundary]))
    return f"{_number(joules)}{uncertainty} J{_estimate(row)} ({source})"


def _per_token(joules: float) -> str:
    return f"{_number(joules)} J/token" if joules >= 0.1 else f"{_number(joules * 1000)} mJ/token"


def _estimate(row: Cycle) -> str:
    kinds: Mapping[str, str] = {"estimate": " estimate", "attributed": " attributed"}
    return kinds.get(row.energy_kind, "")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
