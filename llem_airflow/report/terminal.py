"""A run, a comparison, a history in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from llem_airflow.analysis import formatting
from llem_airflow.analysis.compare import PairReport
from llem_airflow.analysis.flags import places_text
from llem_airflow.analysis.history import Trend
from llem_airflow.analysis.metrics import BY_NAME
from llem_airflow.analysis.plan import factor_changes, short
from llem_airflow.analysis.summary import Summary
from llem_airflow.protocol.typed_json import to_json
from llem_airflow.report.under_load import under_load
from llem_airflow.report.view import (
    ITL,
    Row,
    Table,
    View,
    by_runs,
    comparison_table,
    cycles_table,
    pair_label,
    runs_table,
    trends_table,
)
from llem_airflow.text.terminal import Folding, Rows, Whole

_SHORT = {
    "Output tokens per second": "Output tokens/s",
    "TTFT mean": "TTFT",
    "TPOT mean": "TPOT",
    "TPOT and ITL mean": "TPOT",
    "E2EL mean": "E2EL",
    "Mean power": "Power",
}


def render_summary(summary: Summary) -> RenderableType:
    """The headline table, what is missing, and the flags."""
    view = View(summary)
    setup = "; ".join(f"{name} {value}" for name, value in view.setup)
    parts: list[RenderableType] = [Whole(f"{summary.study} · {summary.run_id}", "italic")]
    parts += [Folding(summary.answer, "bold")] if summary.answer else []
    parts += [Folding(setup, "dim")] if setup else []
    if any(row.valid for row in view.rows):
        parts.append(_headline(view))
    elif not summary.answer:
        parts.append(Text("No cycle has a valid result.", style="red"))
    if summary.is_estimate:
        parts.append(
            Text("~ an estimate: no power meter was read; do not publish these joules.", style="yellow")
        )
    if load := under_load(summary.experiments, view.labels, summary.searches):
        parts += [Text(""), _rows(load.table, right=True), *map(Folding, load.said)]
    if view.costs:
        parts += [Text(""), _rows(view.costs, right=True), Folding(f"From {'; '.join(view.bases)}.", "dim")]
    for label, cycle, status, reason, step in view.missing:
        advice = f". Next step: {step}" if step else ""
        parts.append(Folding(f"{status}: {label} cycle {cycle}: {reason.rstrip('.')}{advice}", "red"))
    parts += [
        Folding(
            f"{flag.severity}: {formatting.sentence(flag.message)[:-1]} ({places_text(places, 1)}). "
            f"Next step: {formatting.sentence(flag.next_step)}",
            "dim",
        )
        for flag, places in view.flags
        if flag.severity != "info"
    ]
    return Group(*parts)


def _headline(view: View) -> Rows:
    """The columns that fit a terminal: without ITL, which a page shows beside TPOT."""
    shown = [at for at, column in enumerate(view.columns) if column.name != ITL]
    columns = [view.columns[at] for at in shown]
    titles = [
        "Experiment",
        *(_SHORT.get(one.label, one.label) + "\n(estimate)" * one.estimate for one in columns),
        "n",
    ]
    rows = [
        (row.label, *(_cell(row, at) for at in shown), f"{row.valid}/{row.planned}\n{row.note}".rstrip())
        for row in view.rows
        if row.valid
    ]
    return Rows(titles, rows, right=titles[1:], spaced=True)


def _cell(row: Row, at: int) -> str:
    cell = row.cells[at]
    return f"{cell.text}\n{cell.interval}".rstrip()


def render_comparisons(reports: Sequence[PairReport]) -> RenderableType:
    """Comparisons by their runs: for each experiment the verdict, each metric, what differs, and the outputs."""
    parts: list[RenderableType] = []
    groups = by_runs((one.baseline, one.candidate) for one in reports)
    for (reference, candidate), members in groups.items():
        if reference == candidate:
            parts.append(Whole(f"Within run  {candidate}", "bold"))
        else:
            parts += [
                Whole(f"Reference run  {reference}", "bold"),
                Whole(f"Candidate run  {candidate}", "bold"),
            ]
        for index in members:
            parts += _comparison(reports[index])
    cautions = dict.fromkeys(one.caution for one in reports if one.caution)
    parts += [Folding(f"Caution: {caution}.", "dim") for caution in cautions]
    return Group(*parts)


def _comparison(report: PairReport) -> list[RenderableType]:
    title = f"{pair_label(report.baseline, report.candidate)}: {str(report.verdict).upper()}"
    parts: list[RenderableType] = [Text(""), Folding(title, "bold")]
    for key, (ours, theirs) in report.differences.items():
        parts.append(Folding(f"  not equal: {key}: {short(ours)} against {short(theirs)}", "red"))
    if report.factors:
        parts.append(Folding(f"  under study: {'; '.join(factor_changes(report.factors))}"))
    if report.metrics:
        table, remarks = comparison_table(report)
        parts += [Rows(table.titles, table.rows, right=table.titles[1:5])]
        parts += [Folding(f"  {remark}", "dim") for remark in remarks]
    if report.estimate:
        parts.append(Text("  ~ … estimate: these joules are not measured.", style="yellow"))
    if report.answers:
        style = "red" if report.answers.finding == "suspicious" else ""
        parts.append(Folding(f"  outputs: {report.answers.finding}: {report.answers.reason}", style))
    parts += [
        Folding(
            f"  left out of the {side} because of flags: cycles {', '.join(map(str, report.excluded[key]))}"
        )
        for key, side in (("baseline", "reference"), ("candidate", "candidate"))
        if report.excluded.get(key)
    ]
    return parts


def render_trends(trends: Mapping[str, Trend], metric: str) -> RenderableType:
    """The history of each experiment: run by run, then its newest value, its verdict and its level."""
    parts: list[RenderableType] = []
    for name, found in trends.items():
        parts += [Folding(name, "bold"), _rows(runs_table(found, metric), whole=True), Text("")]
    parts += [
        Text(f"{BY_NAME[metric].label} over runs", style="italic"),
        _rows(trends_table(trends, metric)),
    ]
    notes = dict.fromkeys(found.note for found in trends.values())
    return Group(*parts, *(Text(formatting.sentence(note), style="dim") for note in notes))


def history_json(trends: Mapping[str, Trend], metric: str, study: str) -> dict[str, Any]:
    """The same with every value, for programs: ``{"study", "metric", "experiments": [{"id", "points", …}]}``."""
    experiments = [{"id": name, **to_json(found)} for name, found in trends.items()]
    return {"format": 1, "study": study, "metric": metric, "experiments": experiments}


def render_cycles(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Every row of cycles.parquet: its status, its headline numbers, and why there are none."""
    return _rows(cycles_table(rows))


def render_reliability(summary: Summary) -> RenderableType:
    """Per host and engine: how many cycles, how they ended, and why."""
    return _rows(View(summary).reliability)


def _rows(table: Table, *, whole: bool = False, right: bool = False) -> Rows:
    return Rows(table.titles, table.rows, whole=whole, right=table.titles[1:] if right else ())
