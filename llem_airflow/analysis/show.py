"""A stored run in a terminal: its experiments, its cycles, or how reliable its hosts and engines were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from llem_airflow.analysis import quantity
from llem_airflow.analysis.summary import Summary


def render_cycles(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Every row of cycles.parquet: what became of it, its headline numbers, and why there are none."""
    table = Table(box=box.SIMPLE)
    for title in (
        "Experiment",
        "Cycle",
        "Status",
        "Energy per output token",
        "Output tokens/s",
        "Reason, flags",
    ):
        table.add_column(title, overflow="fold")
    for row in rows:
        estimate = row["energy_kind"] == "estimate"
        said = "; ".join(filter(None, [row["reason"], ", ".join(row["flags"] or ())]))
        table.add_row(
            escape(row["experiment"] or quantity.ABSENT),
            str(row["cycle"] or quantity.ABSENT),
            row["status"],
            _value("energy_per_output_token_j", row, estimate=estimate),
            _value("output_tokens_per_s", row, estimate=False),
            escape(said),
        )
    return table


def render_reliability(summary: Summary) -> RenderableType:
    """Per host and engine: how many cycles, how they ended, and why."""
    table = Table(box=box.SIMPLE)
    for title in ("Host", "Engine"):
        table.add_column(title, no_wrap=True)
    for title in ("Cycles", "Valid", "No GPU came", "Failed attempts", "Reasons"):
        table.add_column(title, overflow="fold")
    for row in summary.reliability:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in row["reasons"].items())
        counts = (row["cycles"], row["valid"], row.get("missed", 0), row["failed_attempts"])
        names = (escape(row["host"] or "not known"), escape(row["engine"] or quantity.ABSENT))
        table.add_row(*names, *map(str, counts), escape(reasons))
    return table


def _value(name: str, row: Mapping[str, Any], *, estimate: bool) -> str:
    value = row[name]
    return quantity.ABSENT if value is None else quantity.quantity(name, value, estimate=estimate)
