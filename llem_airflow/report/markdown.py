"""The summary as Markdown, for a merge request or a note."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llem_airflow.analysis import formatting
from llem_airflow.analysis.compare import TWO_RUNS
from llem_airflow.analysis.compare_named import Since
from llem_airflow.analysis.flags import places_text
from llem_airflow.analysis.metrics import HEADLINE
from llem_airflow.analysis.summary import ExperimentSummary, Summary, missing_text, setting_texts
from llem_airflow.report.view import Column, columns, grouped_doubts, metric_cell, since_section
from llem_airflow.text.wording import counted

PLACES = 12
"""So many places of a doubt are listed; of more, the number of the others is told."""


def report_markdown(summary: Summary, since: Since | None = None) -> str:
    """Headline table, what changed, what was not measured, the reasons to doubt, and how reliable the hosts were.

    Args:
        summary: The summary of the run.
        since: The comparison with the run before, if there is one.
    """
    begun = f", {formatting.when(summary.started_epoch_ns)}" if summary.started_epoch_ns else ""
    lines = [
        f"# {summary.study}: energy report",
        "",
        (
            f"Run `{summary.run_id}`{begun}; {summary.valid} of {counted(summary.planned, 'planned cycle')} valid."
        ),
        "",
    ]
    if summary.answer:
        lines += [f"**{_plain(summary.answer)}**", ""]
    if summary.setting:
        lines += [f"- {name}: {_plain(value)}" for name, value in setting_texts(summary.setting)] + [""]
    if summary.is_estimate:
        lines += ["**Energy is an estimate** (~): no power meter was read; do not publish it.", ""]
    labels = summary.labels
    if any(e.metrics for e in summary.experiments):
        lines += [*_headline(summary), *_since_lines(since, summary)]
    lines += _derived_lines(summary)
    if summary.missing:
        lines += ["## Not measured", ""]
        lines += [
            f"- {_plain(labels.get(item['experiment'], item['experiment']))} cycle {item['cycle']}: "
            f"{item['status']}: {_plain(missing_text(item))}"
            for item in summary.missing
        ]
        lines.append("")
    doubts = grouped_doubts(summary)
    if doubts:
        lines += ["## Reasons to doubt", ""]
        lines += [
            f"- **{doubt.severity}** {_plain(formatting.sentence(doubt.message))} "
            f"Next step: {_plain(formatting.sentence(doubt.next_step))} ({_plain(places_text(places, PLACES))})"
            for doubt, places in doubts
        ]
        lines.append("")
    lines += _reliability_lines(summary)
    return "\n".join(lines)


def _headline(summary: Summary) -> list[str]:
    shown = columns(summary.experiments, HEADLINE)
    labels = summary.labels
    titles = ("Experiment", *(c.title + " (estimate)" * c.estimate for c in shown), "n")
    rows = [
        [labels[e.id], *(_cell(e, c) for c in shown), f"{e.valid}/{e.planned}"] for e in summary.experiments
    ]
    return [*_table(titles, rows), "Mean over cycles, in brackets the 95 % t interval of the mean.", ""]


def _since_lines(since: Since | None, summary: Summary) -> list[str]:
    """What changed since the run before, the gravest verdict first."""
    found = since_section(since, summary.labels)
    if since is None or found is None:
        return []
    before = f"run `{found['run_id']}`"
    lines = ["## Since the run before", ""]
    if found["problem"]:
        return [*lines, f"Not compared with {before}: {_plain(formatting.sentence(found['problem']))}", ""]
    counts = f": {', '.join(found['counts'])}" if found["counts"] else ""
    lines += [f"Against {before} of {formatting.when(found['started_epoch_ns'])}{counts}.", ""]
    if found["rows"]:
        titles = ("Experiment", "Verdict", *found["titles"], "Answers")
        lines += _table(titles, [_since_row(row) for row in found["rows"]])
        lines += ["The verdict is about energy per output token. Changes with their 95 % interval.", ""]
    if found["by_history"]:
        titles = ("Experiment", "Runs", "Nightly verdict", "Changes, looking back", "Would be told from")
        keys = ("label", "runs", "state", "changes", "shows")
        lines += [
            "## History",
            "",
            *_table(titles, [[str(row[k]) for k in keys] for row in found["history"]]),
        ]
        lines += [found["note"], ""]
    elif any(report.caution for report in since.reports):
        lines += [f"Caution: {TWO_RUNS}.", ""]
    lines += [
        f"{title}: {_plain('; '.join(found[key]))}.\n"
        for title, key in (("New in this run", "new"), ("Only in the run before", "gone"))
        if found[key]
    ]
    return lines


def _since_row(row: Mapping[str, Any]) -> list[str]:
    name = "; ".join([row["label"], *row["factors"]])
    cells = [
        " ".join(filter(None, [cell["value"], cell["interval"] and f"[{cell['interval']}]", cell["power"]]))
        for cell in row["cells"]
    ]
    if row["differences"]:
        cells = [
            f"conditions differ: {'; '.join(row['differences'])}",
            *[formatting.ABSENT] * (len(cells) - 1),
        ]
    telling = row["answers"] in {"suspicious", "differs"}
    answers = f"{row['answers']}: {row['answers_reason']}" if telling else row["answers"]
    return [name, row["verdict"], *cells, answers]


def _reliability_lines(summary: Summary) -> list[str]:
    """Per host and engine: how many cycles, how they ended, and why."""
    if not summary.reliability:
        return []
    rows = [
        [
            item["host"] or "not known",
            item["engine"] or formatting.ABSENT,
            *(str(item.get(key, 0)) for key in ("cycles", "valid", "missed", "failed_attempts")),
            ", ".join(f"{reason} ({count})" for reason, count in item["reasons"].items())
            or formatting.ABSENT,
        ]
        for item in summary.reliability
    ]
    titles = ("Host", "Engine", "Cycles", "Valid", "No GPU came", "Failed attempts", "Why not valid")
    return ["## Reliability", "", *_table(titles, rows)]


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    return [*lines, *("| " + " | ".join(map(_plain, row)) + " |" for row in rows), ""]


def _derived_lines(summary: Summary) -> list[str]:
    """CO2e and cost, where the study states an intensity or a price."""
    labels = summary.labels
    found = [(labels[e.id], one) for e in summary.experiments for one in e.derived]
    if not found:
        return []
    rows = [
        [
            label,
            one.label,
            formatting.labelled(f"{formatting.number(one.mean)} {one.unit}", estimate=True),
            one.basis,
        ]
        for label, one in found
    ]
    return ["## Estimates", "", *_table(("Experiment", "What", "Estimate", "From"), rows)]


def _cell(experiment: ExperimentSummary, column: Column) -> str:
    found = metric_cell(experiment, column.name)
    if found.value == formatting.ABSENT:
        return formatting.ABSENT
    text = formatting.labelled(
        f"{found.value} {found.unit}", estimate=found.estimate, tag=not column.estimate
    )
    return f"{text} [{found.interval}]"


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
