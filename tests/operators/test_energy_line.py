"""The last line of a cycle's log: its joules, or why there are none."""

from __future__ import annotations

import re

import pytest

from llem_airflow.analysis.cycle import Cycle
from llem_airflow.operators.outcome import cycle_row, line_of
from tests.analysis.conftest import MakeRun, make_run
from tests.report.test_report import ESTIMATE

__all__ = ["make_run"]


def row(**more: object) -> Cycle:
    measures = {"energy_j": 1234.5, "output_tokens": 20_000.0, "energy_per_output_token_j": 0.0617}
    return Cycle(**{"experiment": "e", "cycle": 2, "status": "valid", "measures": measures, **more})  # type: ignore[arg-type]  # fields by name


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (
            row(
                energy_kind="measured",
                energy_source="counter",
                energy_boundary="board",
                energy_uncertainty_j=2.04,
                characterised="not characterised",
            ),
            "Energy 1,234 ± 2.04 J (counter, board, not characterised), 20,000 output tokens, 61.7 mJ/token",
        ),
        (
            row(energy_kind="attributed", energy_source="counter", energy_boundary="mig"),
            "Energy 1,234 J (attributed, counter, mig), 20,000 output tokens, 61.7 mJ/token",
        ),
        (
            row(
                energy_kind="measured",
                status="invalid_energy",
                reason="sources_disagree: 1 J against 2 J",
                measures={"output_tokens": 16.0},
            ),
            "No energy (sources_disagree: 1 J against 2 J), 16 output tokens",
        ),
        (
            row(measures={"output_tokens": 16.0}),
            "No energy (the study asks for no meter), 16 output tokens",
        ),
        (
            row(status="damaged", reason="result.json: not JSON", measures={}),
            "The stored result cannot be read: result.json: not JSON",
        ),
    ],
)
def test_a_cycle_in_one_line(told: Cycle, line: str) -> None:
    assert line_of(told) == line


def test_a_stored_estimate_is_told_as_one(make_run: MakeRun) -> None:
    (ref,) = make_run({(0, 1): ESTIMATE}, cycles=1).cycles()
    line = line_of(cycle_row(ref))
    assert re.fullmatch(
        r"Energy [\d.,]+ J \(estimate, cpu-estimate\), \d+ output tokens, [\d.]+ m?J/token", line
    )
    assert "\n" not in line
