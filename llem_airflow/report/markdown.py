"""The report of a run as Markdown, for a merge request or a note."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llem_airflow.analysis import formatting
from llem_airflow.analysis.compare import TWO_RUNS
from llem_airflow.analysis.compare_named import PreviousRun
from llem_airflow.analysis.flags import places_text
from llem_airflow.analysis.summary import Summary
from llem_airflow.report.under_load import under_load
from llem_airflow.report.view import Row, Table, View
from llem_airflow.text.wording import counted

PLACES = 12
"""So many places of a flag are listed; of more, the number of the others is told."""


def report_markdown(summary: Summary, previous: PreviousRun | None = None) -> str:
    """Headline table, what changed, what was not measured, the flags, and how reliable the hosts were.

    Args:
        summary: The summary of the run.
        previous: The previous run and what changed against it, if there is one.
    """
    view = View(summary, previous)
    begun = f", {formatting.when(summary.started_epoch_ns)}" if summary.started_epoch_ns else ""
    lines = [
        f"# {summary.study}: energy report",
        "",
        f"Run `{summary.run_id}`{begun}; {summary.valid} of {counted(summary.planned, 'planned cycle')} valid.",
        "",
    ]
    if summary.answer:
        lines += [f"**{_plain(summary.answer)}**", ""]
    if summary.setting:
        lines += [*(f"- {name}: {_plain(value)}" for name, value in view.setup), ""]
    if summary.is_estimate:
        lines += ["**Energy is an estimate** (~): no power meter was read; do not publish it.", ""]
    if any(e.metrics for e in summary.experiments):
        lines += [*_headline(view), *_changes(view)]
    lines += _load(view)
    if view.costs:
        lines += ["## Carbon and cost", "", *_table(view.costs), f"From {_plain('; '.join(view.bases))}.", ""]
    if view.missing:
        lines += ["## Not measured", ""]
        for label, cycle, status, reason, step in view.missing:
            advice = f". Next step: {_plain(step)}" if step else ""
            lines.append(f"- {_plain(label)} cycle {cycle}: {status}: {_plain(reason.rstrip('.'))}{advice}")
        lines.append("")
    if view.flags:
        lines += ["## Flags", ""]
        lines += [
            f"- **{flag.severity}** {_plain(formatting.sentence(flag.message))} "
            f"Next step: {_plain(formatting.sentence(flag.next_step))} ({_plain(places_text(places, PLACES))})"
            for flag, places in view.flags
        ]
        lines.append("")
    if summary.reliability:
        lines += ["## Reliability", "", *_table(view.reliability)]
    return "\n".join(lines)


def _headline(view: View) -> list[str]:
    titles = ("Experiment", *(column.title for column in view.columns), "n")
    rows = tuple((row.label, *_cells(row), _count(row)) for row in view.rows)
    return [
        *_table(Table(titles, rows)),
        "Mean over cycles, in brackets the 95 % t interval of the mean.",
        "",
    ]


def _load(view: View) -> list[str]:
    load = under_load(view.summary.experiments, view.labels, view.summary.searches)
    if load is None:
        return []
    return ["## Under load", "", *_table(load.table), *(f"{_plain(text)}\n" for text in load.said)]


def _cells(row: Row) -> Iterable[str]:
    return (cell.with_interval for cell in row.cells)


def _count(row: Row) -> str:
    return f"{row.valid}/{row.planned}" + (f", {row.note}" if row.note else "")


def _changes(view: View) -> list[str]:
    """What changed against the previous run, the gravest verdict first."""
    found = view.changes
    if view.previous is None or found is None:
        return []
    run = f"run `{found['run_id']}`"
    lines = ["## Changes from the previous run", ""]
    if found["problem"]:
        return [*lines, f"Not compared with {run}: {_plain(formatting.sentence(found['problem']))}", ""]
    counts = f": {', '.join(found['counts'])}" if found["counts"] else ""
    lines += [f"Against {run} of {formatting.when(found['started_epoch_ns'])}{counts}.", ""]
    if found["rows"]:
        titles = ("Experiment", "Verdict", *found["titles"], "Outputs")
        lines += _table(Table(titles, tuple(map(_change, found["rows"]))))
        lines += ["The verdict is about energy per output token. Changes with their 95 % interval.", ""]
        lines += [f"{formatting.sentence(remark)}\n" for remark in found["remarks"]]
    if found["by_history"]:
        titles = ("Experiment", "Runs", "Nightly verdict", "Changes, looking back", "Detects from")
        keys = ("label", "runs", "state", "changes", "detects")
        rows = tuple(tuple(str(row[key]) for key in keys) for row in found["history"])
        lines += ["## History", "", *_table(Table(titles, rows)), found["note"], ""]
    elif any(report.caution for report in view.previous.reports):
        lines += [f"Caution: {TWO_RUNS}.", ""]
    lines += [
        f"{title}: {_plain('; '.join(found[key]))}.\n"
        for title, key in (("New in this run", "new"), ("Only in the previous run", "gone"))
        if found[key]
    ]
    return lines


def _change(row: Mapping[str, Any]) -> tuple[str, ...]:
    name = "; ".join([row["label"], *row["factors"]])
    cells = [
        " ".join(filter(None, [cell["value"], cell["interval"] and f"[{cell['interval']}]", cell["detects"]]))
        for cell in row["cells"]
    ]
    if row["differences"]:
        cells = [
            f"conditions differ: {'; '.join(row['differences'])}",
            *[formatting.ABSENT] * (len(cells) - 1),
        ]
    telling = row["outputs"] in {"suspicious", "differs"}
    outputs = f"{row['outputs']}: {row['outputs_reason']}" if telling else row["outputs"]
    return (name, row["verdict"], *cells, outputs)


def _table(table: Table) -> list[str]:
    lines = [_line(table.titles), "|---" * len(table.titles) + "|"]
    return [*lines, *map(_line, table.rows), ""]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_plain, cells)) + " |"


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
