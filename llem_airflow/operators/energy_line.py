"""What a cycle came to, in one line: joules and their source, or why there are none; tokens; joules per token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llem_airflow.text.wording import counted

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
    """The line of a cycle that was read: ``Energy 12.3 J (counter, board), 384 output tokens, 32 mJ/token``."""
    if row.status == "damaged":
        return f"The stored result cannot be read: {row.reason}"
    said = [_energy(row), counted(round(row.measures.get("output_tokens") or 0), "output token")]
    per_token_j = row.measures.get("energy_per_output_token_j")
    if per_token_j is not None:
        said.append(_per_token(per_token_j))
    return ", ".join(said)


def _energy(row: Cycle) -> str:
    joules = row.measures.get("energy_j")
    if joules is None:
        return f"No energy ({row.reason or 'the study asks for no meter'})"
    uncertainty = f" ± {_number(row.energy_uncertainty_j)}" if row.energy_uncertainty_j else ""
    # An estimate has no other source than its meter; what is measured need not say so.
    kind = None if row.energy_kind == "measured" else row.energy_kind
    sources = [kind, row.energy_source, row.energy_boundary]
    if row.energy_kind == "estimate":
        sources = [kind, row.fingerprint.get("meter")]
    return f"Energy {_number(joules)}{uncertainty} J ({', '.join(str(each) for each in sources if each)})"


def _per_token(joules: float) -> str:
    return f"{_number(joules)} J/token" if joules >= 0.1 else f"{_number(joules * 1000)} mJ/token"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
