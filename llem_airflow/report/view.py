"""The view model: what every renderer shows, as texts; cells, rows and sections, written once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llem_airflow.analysis import formatting
from llem_airflow.analysis.compare import PairReport
from llem_airflow.analysis.compare_named import Since
from llem_airflow.analysis.flags import Doubt, grouped
from llem_airflow.analysis.history import BUDGET, Trend
from llem_airflow.analysis.metrics import BY_NAME
from llem_airflow.analysis.plan import factor_changes, short
from llem_airflow.analysis.statistics import pareto
from llem_airflow.analysis.summary import ExperimentSummary, MetricSummary, Summary
from llem_airflow.analysis.verdict import GRAVEST_FIRST, Comparison, Verdict

TPOT, ITL = "tpot_mean_s", "itl_mean_s"


@dataclass(frozen=True, slots=True)
class Cell:
    """A value for people.

    Attributes:
        value: Three significant digits, or a dash.
        unit: The unit that fits.
        interval: The 95 % interval, or that there is none.
        estimate: Whether it has to be marked as an estimate.
        tag: Whether with the word, not with the sign alone.
    """

    value: str = formatting.ABSENT
    unit: str = ""
    interval: str = ""
    estimate: bool = False
    tag: bool = True


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table of metrics.

    Attributes:
        name: Name of the metric.
        title: Its label; of two metrics where they are equal.
        meaning: Its definition.
        estimate: Whether every value in it is an estimate; then the header says so, and the cells have the sign ``~``.
    """

    name: str
    title: str
    meaning: str
    estimate: bool


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


METRICS = ("output_tokens_per_j", "energy_per_request_j", "energy_delay_product_j_s")
FRONTS = {"throughput": "output_tokens_per_s", "latency": "e2el_mean_s"}
"""What energy per output token is weighed against."""


def fronts(experiments: Sequence[ExperimentSummary]) -> dict[str, set[str]]:
    """By what it is weighed against, the experiments that no other one beats in that and in energy together.

    Only what the 95 % intervals of both show: where they overlap in both directions, which one is better is not known.
    """
    return {name: _front(experiments, metric) for name, metric in FRONTS.items()}


def efficiency_section(
    experiments: Sequence[ExperimentSummary], labels: Mapping[str, str], best: Mapping[str, set[str]]
) -> dict[str, Any] | None:
    """What the template shows; None when there is no energy."""
    if not any(e.metric(name) for e in experiments for name in METRICS):
        return None
    derived = {each.name: f"{each.label} (estimate)" for e in experiments for each in e.derived}
    shown = columns(experiments, METRICS)
    return {
        "titles": [c.title + " (estimate)" * c.estimate for c in shown] + list(derived.values()),
        "rows": [
            {
                "label": labels[e.id],
                "cells": [metric_cell(e, c.name, tag=not c.estimate) for c in shown]
                + [derived_cell(e, name) for name in derived],
                "best": [name for name, ids in best.items() if e.id in ids],
            }
            for e in experiments
        ],
        "bases": list(dict.fromkeys(each.basis for e in experiments for each in e.derived)),
        "boundary": ", ".join(dict.fromkeys(e.energy_boundary for e in experiments if e.energy_boundary)),
    }


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


SHOWN = ("energy_per_output_token_j", "output_tokens_per_s", "ttft_mean_s", "e2el_mean_s")


def since_section(since: Since | None, labels: Mapping[str, str]) -> dict[str, Any] | None:
    """What the template shows; the gravest verdict first. None without an earlier run."""
    if since is None:
        return None
    verdicts = {one.candidate: _verdict(one, since.history) for one in since.reports}
    reports = sorted(since.reports, key=lambda one: GRAVEST_FIRST.index(verdicts[one.candidate]))
    counted = Counter(map(str, verdicts.values()))
    return {
        "run_id": since.run_id,
        "started_epoch_ns": since.started_epoch_ns,
        "problem": since.problem,
        "counts": [
            f"{counted[verdict]} {verdict}" for verdict in map(str, GRAVEST_FIRST) if counted[verdict]
        ],
        "titles": [BY_NAME[name].label for name in SHOWN],
        "rows": [_row(one, labels) | {"verdict": str(verdicts[one.candidate])} for one in reports],
        "history": [_history_row(name, one, labels) for name, one in since.history.items()],
        "by_history": any(len(one.points) > 2 for one in since.history.values()),
        "note": formatting.sentence(BUDGET),
        "new": [labels.get(name, name) for name in since.new],
        "gone": list(since.gone),
    }


def _verdict(report: PairReport, history: Mapping[str, Trend]) -> Verdict:
    """Of the history, which knows how much whole runs differ; conditions that differ are told before it."""
    found = history.get(report.candidate.rpartition("#")[2])
    return report.verdict if found is None or report.differences else found.verdict


def _history_row(name: str, found: Trend, labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "label": labels.get(name, name),
        "runs": len(found.points),
        "state": found.state,
        "changes": changes_text(found),
        "shows": formatting.percent(found.detectable_ratio),
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
        "cells": [_change(report.metrics.get(name)) for name in SHOWN],
        "differences": unequal,
        "factors": factor_changes(report.factors),
        "answers": report.answers.finding if report.answers else "unknown",
        "answers_reason": report.answers.reason if report.answers else "the requests cannot be read",
    }


def _change(found: Comparison | None) -> dict[str, str]:
    if found is None:
        return {"value": formatting.ABSENT, "interval": "", "power": ""}
    interval, power = formatting.change_interval(found.low_ratio, found.high_ratio), found.reason
    if found.verdict is Verdict.NOT_ENOUGH_EVIDENCE and found.detectable_ratio is not None:
        power = formatting.detectable(found.detectable_ratio)
    return {"value": formatting.signed(found.difference_ratio), "interval": interval, "power": power}


def grouped_doubts(summary: Summary) -> list[tuple[Doubt, list[str]]]:
    """Each kind of doubt once, with where it was seen."""
    labels = summary.labels
    return grouped(
        (labels[experiment.id], doubt) for experiment in summary.experiments for doubt in experiment.doubts
    )
