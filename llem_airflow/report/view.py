"""The view model: what every renderer shows of a run, a comparison, a history; renderers only lay it out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from llem_airflow.analysis import formatting
from llem_airflow.analysis.compare import PairReport
from llem_airflow.analysis.compare_named import PreviousRun
from llem_airflow.analysis.flags import FlagSummary, grouped_flags
from llem_airflow.analysis.history import BUDGET, Trend
from llem_airflow.analysis.hosts import on_hosts
from llem_airflow.analysis.metrics import BY_NAME, HEADLINE
from llem_airflow.analysis.plan import factor_changes, short
from llem_airflow.analysis.statistics import pareto
from llem_airflow.analysis.summary import ExperimentSummary, MetricSummary, Summary, setup_texts
from llem_airflow.analysis.verdict import GRAVEST_FIRST, Comparison, Verdict

TPOT, ITL = "tpot_mean_s", "itl_mean_s"
EFFICIENCY = ("output_tokens_per_j", "energy_per_request_j", "energy_delay_product_j_s")
FRONTS = {"throughput": "output_tokens_per_s", "latency": "e2el_mean_s"}
"""What energy per output token is weighed against."""
CHANGES = ("energy_per_output_token_j", "output_tokens_per_s", "ttft_mean_s", "e2el_mean_s")
"""Metrics of the comparison with the previous run."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A value for people.

    Attributes:
        value: Three significant digits, or a dash.
        unit: The unit that fits.
        interval: The 95 % interval, or that there is none; empty where the row says it.
        estimate: Whether it has to be marked as an estimate.
        tag: Whether with the word, not with the sign alone.
    """

    value: str = formatting.ABSENT
    unit: str = ""
    interval: str = ""
    estimate: bool = False
    tag: bool = True

    @property
    def text(self) -> str:
        """Value and unit, marked where it is an estimate."""
        return formatting.labelled(f"{self.value} {self.unit}".strip(), estimate=self.estimate, tag=self.tag)

    @property
    def with_interval(self) -> str:
        """Value, unit and interval on one line."""
        return f"{self.text} [{self.interval}]" if self.interval else self.text


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table of metrics.

    Attributes:
        name: Name of the metric.
        label: Its label; of two metrics where they are equal.
        meaning: Its definition.
        estimate: Whether every value in it is an estimate; then the header says so, and the cells have the sign ``~``.
    """

    name: str
    label: str
    meaning: str
    estimate: bool

    @property
    def title(self) -> str:
        """The label, and that all values are estimates where they are."""
        return self.label + " (estimate)" * self.estimate


@dataclass(frozen=True, slots=True)
class Row:
    """An experiment in a table of metrics.

    Attributes:
        id: Its id.
        label: What sets it apart from the others.
        cells: One for each column.
        valid: Valid cycles.
        planned: Planned cycles.
        note: On how many hosts, where they are several, and that no value has an interval, where that is so.
        precise: Whether the precision target is met; None where there is none.
    """

    id: str
    label: str
    cells: tuple[Cell, ...]
    valid: int
    planned: int
    note: str
    precise: bool | None


@dataclass(frozen=True, slots=True)
class Table:
    """A table of texts."""

    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class View:
    """What a report of a run shows, in the order in which it does.

    Attributes:
        summary: The summary of the run.
        previous: The previous run and what changed against it, where there is one.
    """

    summary: Summary
    previous: PreviousRun | None = None

    @cached_property
    def labels(self) -> dict[str, str]:
        """What each experiment is called, by its id."""
        return self.summary.labels

    def label(self, experiment: str) -> str:
        """What one is called; its id where the summary does not have it."""
        return self.labels.get(experiment, experiment)

    @property
    def setup(self) -> list[tuple[str, str]]:
        """Model, engine, hardware, …: name and values."""
        return setup_texts(self.summary.setting)

    @cached_property
    def all_estimates(self) -> bool:
        """Whether every energy is an estimate, so that a column can say so for all of its values."""
        return only_estimates(self.summary.experiments)

    @cached_property
    def columns(self) -> list[Column]:
        """Columns of the headline table."""
        return columns(self.summary.experiments, HEADLINE)

    @cached_property
    def rows(self) -> list[Row]:
        """The headline table: a row an experiment."""
        return [self._row(each) for each in self.summary.experiments]

    def _row(self, e: ExperimentSummary) -> Row:
        cells = [metric_cell(e, column.name, tag=not column.estimate) for column in self.columns]
        notes = {cell.interval for cell in cells if cell.value != formatting.ABSENT}
        note = notes.pop() if len(notes) == 1 and all(one.startswith("no interval") for one in notes) else ""
        if note:  # said once
            cells = [replace(cell, interval="") for cell in cells]
        note = "; ".join(filter(None, (on_hosts(len(e.hosts)).strip(), note)))
        return Row(e.id, self.label(e.id), tuple(cells), e.valid, e.planned, note, e.precision_met)

    @property
    def missing(self) -> list[tuple[str, Any, str, str, str]]:
        """Cycles without a result: experiment, cycle, status, reason, next step (or empty)."""
        return [
            (
                self.label(item["experiment"]),
                item["cycle"],
                item["status"],
                str(item["reason"]),
                item.get("next_step", ""),
            )
            for item in self.summary.missing
        ]

    @cached_property
    def flags(self) -> list[tuple[FlagSummary, list[str]]]:
        """Each kind of flag once, the gravest first, with where it was seen."""
        return grouped_flags((self.label(e.id), flag) for e in self.summary.experiments for flag in e.doubts)

    @property
    def costs(self) -> Table | None:
        """Carbon and cost of each experiment; None where the study gives no rates. All are estimates."""
        names = {one.name: f"{one.label} (estimate)" for e in self.summary.experiments for one in e.derived}
        if not names:
            return None
        rows = [
            (
                self.label(e.id),
                *(cell.with_interval for cell in cells),
            )
            for e in self.summary.experiments
            if (cells := [derived_cell(e, name) for name in names])
        ]
        return Table(("Experiment", *names.values()), tuple(rows))

    @property
    def bases(self) -> list[str]:
        """The rates that carbon and cost are from."""
        return list(dict.fromkeys(one.basis for e in self.summary.experiments for one in e.derived))

    @property
    def reliability(self) -> Table:
        """Per host and engine: how many cycles, how they ended, and why."""
        titles = ("Host", "Engine", "Cycles", "Valid", "No GPU came", "Failed attempts", "Why not valid")
        rows = [
            (
                item["host"] or "not known",
                item["engine"] or formatting.ABSENT,
                *(str(item.get(key, 0)) for key in ("cycles", "valid", "missed", "failed_attempts")),
                ", ".join(f"{reason} ({count})" for reason, count in item["reasons"].items())
                or formatting.ABSENT,
            )
            for item in self.summary.reliability
        ]
        return Table(titles, tuple(rows))

    @cached_property
    def fronts(self) -> dict[str, set[str]]:
        """By what it is weighed against, the experiments of the Pareto front with energy."""
        return fronts(self.summary.experiments)

    @property
    def efficiency(self) -> dict[str, Any] | None:
        """Tokens per joule, energy-delay product, the fronts, carbon and cost; None when there is no energy."""
        experiments = self.summary.experiments
        if not any(e.metric(name) for e in experiments for name in EFFICIENCY):
            return None
        derived = {each.name: f"{each.label} (estimate)" for e in experiments for each in e.derived}
        shown = columns(experiments, EFFICIENCY)
        return {
            "titles": [c.title for c in shown] + list(derived.values()),
            "rows": [
                {
                    "label": self.label(e.id),
                    "cells": [metric_cell(e, c.name, tag=not c.estimate) for c in shown]
                    + [derived_cell(e, name) for name in derived],
                    "front": [name for name, ids in self.fronts.items() if e.id in ids],
                }
                for e in experiments
            ],
            "boundary": ", ".join(dict.fromkeys(e.energy_boundary for e in experiments if e.energy_boundary)),
        }

    @cached_property
    def changes(self) -> dict[str, Any] | None:
        """What changed against the previous run; the gravest verdict first. None without one."""
        return previous_section(self.previous, self.labels)


def columns(experiments: Sequence[ExperimentSummary], names: Sequence[str]) -> list[Column]:
    """The columns of a table; ITL is not shown beside TPOT where both are equal in every experiment.

    They are whenever all answers are of one length.
    """
    all_estimates = only_estimates(experiments)
    same = itl_is_tpot(experiments)
    return [
        Column(
            name,
            "TPOT and ITL mean" if name == TPOT and same and ITL in names else BY_NAME[name].label,
            BY_NAME[name].meaning,
            BY_NAME[name].energy and all_estimates,
        )
        for name in names
        if not (name == ITL and same and TPOT in names)
    ]


def itl_is_tpot(experiments: Sequence[ExperimentSummary]) -> bool:
    """Whether both are shown as the same number in every experiment: they are, when all answers are of one length."""
    return all(metric_cell(e, TPOT).value == metric_cell(e, ITL).value for e in experiments)


def only_estimates(experiments: Sequence[ExperimentSummary]) -> bool:
    """Whether every energy is an estimate, so that a column can say so for all of its values."""
    return {e.energy_kind for e in experiments if e.energy_kind != "none"} == {"estimate"}


def metric_cell(e: ExperimentSummary, name: str, *, tag: bool = True) -> Cell:
    """A metric of an experiment: mean over cycles.

    Args:
        e: The experiment.
        name: The metric.
        tag: Whether the cell itself says that it is an estimate; where its column does, the sign is enough.
    """
    found = e.metric(name)
    if found is None:
        return Cell()
    unit, factor = formatting.scale(BY_NAME[name], found.all.mean)
    return Cell(
        formatting.number(found.all.mean * factor),
        unit,
        formatting.interval(found.all, factor),
        estimate=e.energy_kind == "estimate" and BY_NAME[name].energy,
        tag=tag,
    )


def derived_cell(e: ExperimentSummary, name: str) -> Cell:
    """CO2e or cost of an experiment: always an estimate, as its column says."""
    found = next((each for each in e.derived if each.name == name), None)
    if found is None:
        return Cell()
    known = found.low is not None and found.high is not None
    interval = (
        f"{formatting.number(found.low)} to {formatting.number(found.high)}" if known else "no interval"
    )
    return Cell(formatting.number(found.mean), found.unit, interval, estimate=True, tag=False)


def fronts(
    experiments: Sequence[ExperimentSummary], against: Mapping[str, str] = FRONTS
) -> dict[str, set[str]]:
    """By what it is weighed against, the Pareto front: what no other experiment beats in that and in energy together.

    Only what the 95 % intervals of both show: where they overlap in both directions, which one is better is not known.
    A front of fewer than two experiments is empty.

    Args:
        experiments: Those of a run.
        against: Names of metrics, by what the front is called.
    """
    return {name: _front(experiments, metric) for name, metric in against.items()}


def _front(experiments: Sequence[ExperimentSummary], metric: str) -> set[str]:
    points = {
        e.id: (_ends(energy), _ends(other))
        for e in experiments
        if (energy := e.metric("energy_per_output_token_j")) and (other := e.metric(metric))
    }
    return pareto(points, ("lower", BY_NAME[metric].better)) if len(points) > 1 else set()


def _ends(metric: MetricSummary) -> tuple[float, float] | None:
    interval = metric.all.interval
    return (interval.low, interval.high) if interval else None


def previous_section(previous: PreviousRun | None, labels: Mapping[str, str]) -> dict[str, Any] | None:
    """What changed against the previous run; the gravest verdict first. None without one."""
    if previous is None:
        return None
    verdicts = {one.candidate: previous.verdict_of(one) for one in previous.reports}
    reports = sorted(previous.reports, key=lambda one: GRAVEST_FIRST.index(verdicts[one.candidate]))
    counted = Counter(map(str, verdicts.values()))
    return {
        "run_id": previous.run_id,
        "started_epoch_ns": previous.started_epoch_ns,
        "problem": previous.problem,
        "counts": [
            f"{counted[verdict]} {verdict}" for verdict in map(str, GRAVEST_FIRST) if counted[verdict]
        ],
        "titles": [BY_NAME[name].label for name in CHANGES],
        "rows": [_row(one, labels) | {"verdict": str(verdicts[one.candidate])} for one in reports],
        "history": [_history_row(name, one, labels) for name, one in previous.history.items()],
        "by_history": any(len(one.points) > 2 for one in previous.history.values()),
        "remarks": _remarks(previous.reports, CHANGES),
        "note": formatting.sentence(BUDGET),
        "new": [labels.get(name, name) for name in previous.new],
        "gone": list(previous.gone),
    }


def _history_row(name: str, found: Trend, labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "label": labels.get(name, name),
        "runs": len(found.points),
        "state": found.state,
        "changes": changes_text(found),
        "detects": formatting.percent(found.detectable_ratio),
    }


def changes_text(found: Trend) -> str:
    """The change points of a history, looking back."""
    told = [f"{formatting.signed(change.ratio)} at {change.run_id}" for change in found.changes]
    return "; ".join(told) or formatting.ABSENT


def _row(report: PairReport, labels: Mapping[str, str]) -> dict[str, Any]:
    experiment = report.candidate.rpartition("#")[2]
    unequal = [
        f"{key}: {short(ours)} became {short(theirs)}" for key, (ours, theirs) in report.differences.items()
    ]
    return {
        "label": labels.get(experiment, experiment),
        "cells": [_change(report.metrics.get(name)) for name in CHANGES],
        "differences": unequal,
        "factors": factor_changes(report.factors),
        "outputs": report.answers.finding if report.answers else "unknown",
        "outputs_reason": report.answers.reason if report.answers else "the requests cannot be read",
    }


def _change(found: Comparison | None) -> dict[str, str]:
    if found is None:
        return {"value": formatting.ABSENT, "interval": "", "detects": ""}
    undecided = found.verdict is Verdict.NOT_ENOUGH_EVIDENCE
    return {
        "value": formatting.signed(found.difference_ratio),
        "interval": formatting.change_interval(found.low_ratio, found.high_ratio),
        "detects": formatting.detectable(found.detectable_ratio) if undecided else "",
    }


def _remarks(reports: Sequence[PairReport], names: Sequence[str]) -> list[str]:
    """Why metrics have no test, or an exact one: each reason once, with the metrics."""
    found: dict[str, dict[str, None]] = {}
    for report in reports:
        for name in names:
            if name in report.metrics and report.metrics[name].reason:
                found.setdefault(report.metrics[name].reason, {})[BY_NAME[name].label] = None
    return [f"{', '.join(labels)}: {reason}" for reason, labels in found.items()]


def pair_label(reference: str, candidate: str) -> str:
    """Which experiments two names ``run#experiment`` compare: one id where both are the same."""
    ours, theirs = reference.partition("#")[2], candidate.partition("#")[2]
    return theirs if ours == theirs else f"{theirs} against {ours}"


def by_runs(pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], list[int]]:
    """Positions of the pairs by their runs, so that the names of the runs are said once for all experiments."""
    found: dict[tuple[str, str], list[int]] = {}
    for index, (reference, candidate) in enumerate(pairs):
        runs = reference.partition("#")[0], candidate.partition("#")[0]
        found.setdefault(runs, []).append(index)
    return found


def comparison_table(report: PairReport) -> tuple[Table, list[str]]:
    """The metrics of a comparison, and what is to be said of them below the table."""
    rows = []
    for name, found in report.metrics.items():
        change = formatting.signed(found.difference_ratio)
        if interval := formatting.change_interval(found.low_ratio, found.high_ratio):
            change += f"\n{interval}"
        verdict = str(found.verdict)
        if found.verdict is Verdict.NOT_ENOUGH_EVIDENCE:
            verdict += f"\n{formatting.detectable(found.detectable_ratio)}".rstrip()
        sides = [
            f"{formatting.with_unit(name, mean, estimate=report.estimate)}\nn = {n}{on_hosts(found.hosts)}"
            for mean, n in (
                (found.mean_baseline, found.n_baseline),
                (found.mean_candidate, found.n_candidate),
            )
        ]
        rows.append((BY_NAME[name].label, *sides, change, formatting.p_value(found.p_adjusted), verdict))
    titles = ("Metric", "Reference", "Candidate", "Change, 95 % interval", "p (BH)", "Verdict")
    return _n_in_title(Table(titles, tuple(rows)), report), _remarks([report], tuple(report.metrics))


def _n_in_title(table: Table, report: PairReport) -> Table:
    """The number of cycles in the title where it is the same in all rows."""
    counts = {(one.n_baseline, one.n_candidate, one.hosts) for one in report.metrics.values()}
    if len(counts) != 1:
        return table
    titles, (*numbers, hosts) = list(table.titles), counts.pop()
    for at, n in zip((1, 2), numbers, strict=True):
        titles[at] += f" (n = {n}{on_hosts(hosts)})"
    rows = [
        tuple(cell.partition("\nn = ")[0] if at in {1, 2} else cell for at, cell in enumerate(row))
        for row in table.rows
    ]
    return Table(tuple(titles), tuple(rows))


def trends_table(trends: Mapping[str, Trend], metric: str) -> Table:
    """The history of each experiment: its newest value, the verdict, and from which run on its level holds."""
    titles = (
        "Experiment",
        "Runs",
        "Newest",
        "Verdict",
        "Level from",
        "Changes, looking back",
        "Detects from",
    )
    rows = [
        (
            name,
            str(len(found.points)),
            formatting.with_unit(metric, found.points[-1].mean, estimate=found.points[-1].is_estimate),
            found.state,
            found.began or formatting.ABSENT,
            changes_text(found),
            formatting.percent(found.detectable_ratio),
        )
        for name, found in trends.items()
    ]
    return Table(titles, tuple(rows))


def runs_table(found: Trend, metric: str) -> Table:
    """One row a run of an experiment, oldest first, with what changed there."""
    changes = {change.run_id: formatting.signed(change.ratio) for change in found.changes}
    rows = [
        (
            point.run_id,
            formatting.when(point.t_epoch_ns or None),
            formatting.with_unit(metric, point.mean, estimate=point.is_estimate),
            str(len(point.values)),
            "other conditions" if point in found.left_out else changes.get(point.run_id, ""),
        )
        for point in sorted((*found.left_out, *found.points), key=lambda point: point.t_epoch_ns)
    ]
    return Table(("Run", "Started", "Mean", "n", "Change from here"), tuple(rows))


def cycles_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Every row of cycles.parquet: its status, its headline numbers, and why there are none."""
    titles = ("Experiment", "Cycle", "Status", "Energy per output token", "Output tokens/s", "Reason, flags")
    cells = [
        (
            row["experiment"] or formatting.ABSENT,
            str(row["cycle"] or formatting.ABSENT),
            row["status"],
            *(
                formatting.with_unit(name, row[name], estimate=row["energy_kind"] == "estimate")
                for name in ("energy_per_output_token_j", "output_tokens_per_s")
            ),
            "; ".join(filter(None, [row["reason"], ", ".join(row["flags"] or ())])),
        )
        for row in rows
    ]
    return Table(titles, tuple(cells))
