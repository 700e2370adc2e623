"""A run, a comparison, a history in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from llem_airflow.analysis import formatting
from llem_airflow.analysis.compare import PairReport
from llem_airflow.analysis.flags import places_text
from llem_airflow.analysis.history import Point, Trend
from llem_airflow.analysis.metrics import BY_NAME
from llem_airflow.analysis.plan import factor_changes, short
from llem_airflow.analysis.summary import ExperimentSummary, Summary, missing_text, setting_texts
from llem_airflow.analysis.verdict import Verdict
from llem_airflow.protocol.typed_json import to_json
from llem_airflow.report.view import changes_text, grouped_doubts, only_estimates
from llem_airflow.text.terminal import Folding, Rows, Whole

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
    labels = summary.labels
    estimates = only_estimates(summary.experiments)
    marks = ["\n(estimate)" * (estimates and BY_NAME[name].energy) for name, _ in _COLUMNS]
    titles = ["Experiment", *(label + mark for (_, label), mark in zip(_COLUMNS, marks, strict=True)), "n"]
    rows = [
        (
            labels[experiment.id],
            *(_cell(experiment, name, tag=not estimates) for name, _ in _COLUMNS),
            f"{experiment.valid}/{experiment.planned}",
        )
        for experiment in summary.experiments
        if experiment.valid
    ]
    table = Rows(titles, rows, right=titles[1:], spaced=True)
    said = Text("" if summary.answer else "No cycle has a valid result.", style="red")
    title = Whole(f"{summary.study} · {summary.run_id}", "italic")
    head = [Folding(summary.answer, "bold")] if summary.answer else []
    told = "; ".join(f"{name} {value}" for name, value in setting_texts(summary.setting))
    parts: list[RenderableType] = [
        title,
        *head,
        *([Folding(told, "dim")] if told else []),
        table if rows else said,
    ]
    if summary.is_estimate:
        parts.append(
            Text("~ an estimate: no power meter was read; do not publish these joules.", style="yellow")
        )
    parts += [
        Folding(
            f"{labels[experiment.id]}: {one.label}: ~ {formatting.number(one.mean)} {one.unit} estimate, "
            f"from {one.basis}"
        )
        for experiment in summary.experiments
        for one in experiment.derived
    ]
    parts += [
        Folding(
            f"{item['status']}: {labels.get(item['experiment'], item['experiment'])} cycle {item['cycle']}: "
            f"{missing_text(item)}",
            "red",
        )
        for item in summary.missing
    ]
    for doubt, places in grouped_doubts(summary):
        if doubt.severity != "info":
            where = f" ({places_text(places, 1)})"
            parts.append(
                Folding(
                    f"{doubt.severity}: {formatting.sentence(doubt.message)[:-1]}{where}. "
                    f"Next step: {formatting.sentence(doubt.next_step)}",
                    "dim",
                )
            )
    return Group(*parts)


def render_comparison(report: PairReport) -> RenderableType:
    """One comparison: the verdict, each metric, what differs, and whether the answers are the same."""
    title = f"{report.candidate} against {report.baseline}: {str(report.verdict).upper()}"
    parts: list[RenderableType] = [Folding(title, "bold")]
    for key, (ours, theirs) in report.differences.items():
        parts.append(Folding(f"  not equal: {key}: {short(ours)} against {short(theirs)}", "red"))
    if report.factors:
        parts.append(Folding(f"  under study: {'; '.join(factor_changes(report.factors))}"))
    if report.metrics:
        parts.append(_comparison_table(report))
    if report.caution:
        parts.append(Text(f"  caution: {report.caution}.", style="dim"))
    if report.estimate:
        parts.append(Text("  ~ … estimate: these joules are not measured.", style="yellow"))
    if report.answers:
        style = "red" if report.answers.finding == "suspicious" else ""
        parts.append(Text(f"  answers: {report.answers.finding}: {report.answers.reason}", style=style))
    for name, cycles in report.excluded.items():
        if cycles:
            parts.append(
                Text(f"  left out of the {name} because of warnings: cycles {', '.join(map(str, cycles))}")
            )
    return Group(*parts)


def render_trends(trends: Mapping[str, Trend], metric: str) -> RenderableType:
    """The history of each experiment: its newest value, what it comes to and since when."""
    rows = []
    for name, found in trends.items():
        estimate = '"energy_kind": "estimate"' in found.points[-1].conditions
        newest = formatting.with_unit(metric, found.points[-1].mean, estimate=estimate)
        shows = formatting.percent(found.detectable_ratio)
        began = found.began or formatting.ABSENT
        rows.append((name, str(len(found.points)), newest, found.state, began, changes_text(found), shows))
    title = Text(f"{BY_NAME[metric].label} over runs", style="italic")
    table = Rows(
        ("Experiment", "Runs", "Newest", "Verdict", "Since", "Changes, looking back", "Would show from"), rows
    )
    notes = dict.fromkeys(found.note for found in trends.values())
    return Group(title, table, *(Text(formatting.sentence(note), style="dim") for note in notes))


def _comparison_table(report: PairReport) -> Rows:
    rows = []
    for name, found in report.metrics.items():
        change = formatting.signed(found.difference_ratio)
        if interval := formatting.change_interval(found.low_ratio, found.high_ratio):
            change += f"\n{interval}"
        verdict = str(found.verdict) + (f"\n{found.reason}" if found.reason else "")
        if found.verdict is Verdict.NOT_ENOUGH_EVIDENCE and (
            shows := formatting.detectable(found.detectable_ratio)
        ):
            verdict += f"\n{shows}"
        baseline = _side(name, found.mean_baseline, found.n_baseline, estimate=report.estimate)
        candidate = _side(name, found.mean_candidate, found.n_candidate, estimate=report.estimate)
        rows.append((BY_NAME[name].label, baseline, candidate, change, _p(found.p_adjusted), verdict))
    titles = ("Metric", "Baseline", "Candidate", "Change, 95 % interval", "p (BH)", "Verdict")
    return Rows(titles, rows, right=titles[1:5])


def _p(p: float | None) -> str:
    return "< 0.001" if p is not None and p < 0.001 else formatting.number(p, 2)


def _side(name: str, mean: float | None, n: int, *, estimate: bool) -> str:
    return f"{formatting.with_unit(name, mean, estimate=estimate)}\nn = {n}"


def _cell(experiment: ExperimentSummary, name: str, *, tag: bool) -> str:
    found = experiment.metric(name)
    if found is None:
        return formatting.ABSENT
    unit, factor = formatting.scale(BY_NAME[name], found.all.mean)
    estimate = BY_NAME[name].energy and experiment.energy_kind == "estimate"
    text = ("~ " if estimate else "") + f"{formatting.number(found.all.mean * factor)} {unit}"
    text += " estimate" if estimate and tag else ""
    return f"{text}\n{formatting.interval(found.all, factor)}"


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
                row["experiment"] or formatting.ABSENT,
                str(row["cycle"] or formatting.ABSENT),
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
            (row["host"] or "not known", row["engine"] or formatting.ABSENT, *map(str, counts), reasons)
        )
    titles = ("Host", "Engine", "Cycles", "Valid", "No GPU came", "Failed attempts", "Reasons")
    return Rows(titles, cells)


def _value(name: str, row: Mapping[str, Any], *, estimate: bool) -> str:
    value = row[name]
    return formatting.ABSENT if value is None else formatting.with_unit(name, value, estimate=estimate)


def render_runs(trends: Mapping[str, Trend], metric: str) -> RenderableType:
    """One row a run for each experiment, oldest first, with what changed there."""
    parts: list[RenderableType] = []
    for name, found in trends.items():
        changes = {change.run_id: formatting.signed(change.ratio) for change in found.changes}
        rows = [
            (
                point.run_id,
                formatting.when(point.t_epoch_ns or None),
                formatting.with_unit(metric, point.mean, estimate=_is_estimate(point)),
                str(len(point.values)),
                "other conditions" if point in found.left_out else changes.get(point.run_id, ""),
            )
            for point in sorted((*found.left_out, *found.points), key=lambda point: point.t_epoch_ns)
        ]
        table = Rows(("Run", "Began", "Mean", "n", "Change from here"), rows, whole=True)
        parts += [Folding(name, "bold"), table, Text("")]
    return Group(*parts)


def history_json(trends: Mapping[str, Trend], metric: str, study: str) -> dict[str, Any]:
    """The same with every value, for programs: ``{"study", "metric", "experiments": [{"id", "points", …}]}``."""
    experiments = [{"id": name, **to_json(found)} for name, found in trends.items()]
    return {"format": 1, "study": study, "metric": metric, "experiments": experiments}


def _is_estimate(point: Point) -> bool:
    return '"energy_kind": "estimate"' in point.conditions
