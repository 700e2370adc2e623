"""A stored run in a terminal: its experiments, its cycles, or how reliable its hosts and engines were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType

from llem_airflow.analysis import quantity
from llem_airflow.analysis.summary import Summary
from llem_airflow.text.terminal import Rows

_CYCLE_TITLES = (
    "Experiment",
    "Cycle",
    "Status",
    "Energy per output token",
    "Output tokens/s",
    "Reason, flags",
)


def render_cycles(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Every row of cycles.parquet: what became of it, its headline numbers, and why there are none."""
    cells = []
    for row in rows:
        estimate = row["energy_kind"] == "estimate"
        cells.append(
            (
                row["experiment"] or quantity.ABSENT,
                str(row["cycle"] or quantity.ABSENT),
                row["status"],
                _value("energy_per_output_token_j", row, estimate=estimate),
                _value("output_tokens_per_s", row, estimate=False),
                "; ".join(filter(None, [row["reason"], ", ".join(row["flags"] or ())])),
            )
        )
    return Rows(_CYCLE_TITLES, cells)


def render_reliability(summary: Summary) -> RenderableType:
    """Per host and engine: how many cycles, how they ended, and why."""
    cells = []
    for row in summary.reliability:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in row["reasons"].items())
        counts = (row["cycles"], row["valid"], row.get("missed", 0), row["failed_attempts"])
        cells.append(
            (row["host"] or "not known", row["engine"] or quantity.ABSENT, *map(str, counts), reasons)
        )
    titles = ("Host", "Engine", "Cycles", "Valid", "No GPU came", "Failed attempts", "Reasons")
    return Rows(titles, cells)


def _value(name: str, row: Mapping[str, Any], *, estimate: bool) -> str:
    value = row[name]
    return quantity.ABSENT if value is None else quantity.quantity(name, value, estimate=estimate)
