"""The summary as Markdown, for a merge request or a note."""

from __future__ import annotations

from llem_airflow.analysis import quantity
from llem_airflow.analysis.metrics import BY_NAME, HEADLINE
from llem_airflow.analysis.report import experiment_labels, grouped_doubts
from llem_airflow.analysis.summary import ExperimentSummary, Summary


def report_markdown(summary: Summary) -> str:
    """Headline table, what was not measured, and the reasons to doubt."""
    lines = [
        f"# {summary.study}: energy report",
        "",
        (
            f"Run `{summary.run_id}`, {quantity.when(summary.started_epoch_ns)}; "
            f"{summary.valid} of {summary.planned} planned cycles valid."
        ),
        "",
    ]
    if summary.is_estimate:
        lines += ["**Energy is an estimate** (~ … estimate): no power meter was read; do not publish it.", ""]
    lines += [
        "| Experiment | " + " | ".join(BY_NAME[name].label for name in HEADLINE) + " | n |",
        "|---" * (len(HEADLINE) + 2) + "|",
    ]
    for label, experiment in zip(experiment_labels(summary), summary.experiments, strict=True):
        cells = [_cell(experiment, name) for name in HEADLINE]
        lines.append(
            f"| {_plain(label)} | " + " | ".join(cells) + f" | {experiment.valid}/{experiment.planned} |"
        )
    lines += ["", "Mean over cycles, in brackets the 95 % t interval of the mean.", ""]
    lines += _derived_lines(summary)
    if summary.missing:
        lines += ["## Not measured", ""]
        lines += [
            f"- {item['experiment']} cycle {item['cycle']}: {item['status']}: {_plain(item['reason'])}"
            for item in summary.missing
        ]
        lines.append("")
    doubts = grouped_doubts(summary)
    if doubts:
        lines += ["## Reasons to doubt", ""]
        lines += [
            f"- **{doubt.severity}** {_plain(quantity.sentence(doubt.message))} "
            f"Next step: {_plain(quantity.sentence(doubt.next_step))} ({_plain('; '.join(places[:4]))})"
            for doubt, places in doubts
        ]
        lines.append("")
    return "\n".join(lines)


def _derived_lines(summary: Summary) -> list[str]:
    """CO2e and cost, where the study states an intensity or a price."""
    found = [
        (label, one)
        for label, e in zip(experiment_labels(summary), summary.experiments, strict=True)
        for one in e.derived
    ]
    if not found:
        return []
    rows = []
    for label, one in found:
        value = quantity.labelled(f"{quantity.number(one.mean)} {one.unit}", estimate=True)
        rows.append(f"| {_plain(label)} | {one.label} | {value} | {_plain(one.basis)} |")
    return ["## Estimates", "", "| Experiment | What | Estimate | From |", "|---" * 4 + "|", *rows, ""]


def _cell(experiment: ExperimentSummary, name: str) -> str:
    found = experiment.metric(name)
    if found is None:
        return quantity.ABSENT
    metric = BY_NAME[name]
    unit, factor = quantity.scale(metric, found.all.mean)
    estimate = metric.energy and experiment.energy_kind == "estimate"
    mean = quantity.labelled(f"{quantity.number(found.all.mean * factor)} {unit}", estimate=estimate)
    return f"{mean} [{quantity.interval(found.all, factor)}]"


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
