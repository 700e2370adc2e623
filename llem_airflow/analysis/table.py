"""The summary as a table for a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from llem_airflow.analysis import quantity
from llem_airflow.analysis.metrics import BY_NAME
from llem_airflow.analysis.report import experiment_labels, grouped_doubts
from llem_airflow.analysis.summary import ExperimentSummary, Summary

_COLUMNS = (
    ("energy_per_output_token_j", "Energy per output token"),
    ("output_tokens_per_s", "Output tokens/s"),
    ("ttft_mean_s", "TTFT"),
    ("tpot_mean_s", "TPOT"),
    ("e2el_mean_s", "E2EL"),
    ("average_power_w", "Power"),
)


def render_summary(summary: Summary) -> RenderableType:
    """The headline table, what is missing, and the reasons to doubt."""
    table = Table(
        show_lines=True,
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        title=f"{escape(summary.study)} · {escape(summary.run_id)}",
        title_justify="left",
    )
    table.add_column("Experiment", overflow="fold")
    for _, label in _COLUMNS:
        table.add_column(label, justify="right", overflow="fold")
    table.add_column("n", justify="right")
    for label, experiment in zip(experiment_labels(summary), summary.experiments, strict=True):
        cells = [_cell(experiment, name) for name, _ in _COLUMNS]
        table.add_row(escape(label), *cells, f"{experiment.valid}/{experiment.planned}")
    parts: list[RenderableType] = [table]
    if summary.is_estimate:
        parts.append(
            Text("~ … estimate: no power meter was read; do not publish these joules.", style="yellow")
        )
    parts += [
        Text(f"{item['status']}: {item['experiment']} cycle {item['cycle']}: {item['reason']}", style="red")
        for item in summary.missing
    ]
    for doubt, places in grouped_doubts(summary):
        if doubt.severity != "info":
            where = f" ({places[0]}{f' and {len(places) - 1} more' if len(places) > 1 else ''})"
            parts.append(
                Text(
                    f"{doubt.severity}: {quantity.sentence(doubt.message)[:-1]}{where}. "
                    f"Next step: {quantity.sentence(doubt.next_step)}",
                    style="dim",
                )
            )
    return Group(*parts)


def _cell(experiment: ExperimentSummary, name: str) -> str:
    found = experiment.metric(name)
    if found is None:
        return quantity.ABSENT
    unit, factor = quantity.scale(BY_NAME[name], found.all.mean)
    estimate = BY_NAME[name].energy and experiment.energy_kind == "estimate"
    text = ("~ " if estimate else "") + quantity.number(found.all.mean * factor)
    if found.all.interval:
        half = (found.all.interval.high - found.all.interval.low) / 2
        text += f"\n± {quantity.number(half * factor, 2)}"
    return f"{text}\n[dim]{unit}[/dim]" + ("\n[dim]estimate[/dim]" if estimate else "")
