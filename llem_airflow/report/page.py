"""report.html: one self-contained page, readable in light and dark, on paper, and without JavaScript."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from llem_airflow import __version__
from llem_airflow.analysis import formatting
from llem_airflow.analysis.aggregate import Curve, ReportData
from llem_airflow.analysis.cycle import Cycle
from llem_airflow.analysis.flags import places_text
from llem_airflow.analysis.hosts import on_hosts
from llem_airflow.analysis.metrics import BY_NAME, METRICS
from llem_airflow.analysis.plan import flatten, short
from llem_airflow.analysis.summary import ExperimentSummary, Summary
from llem_airflow.report import plots
from llem_airflow.report.plots import power_overlay, power_panels
from llem_airflow.report.under_load import under_load
from llem_airflow.report.view import FRONTS, View
from llem_airflow.text.wording import counted

PANELS_UP_TO = 8
"""With more experiments than this, the cycles of each are drawn over each other, folded away, and not printed."""


def report_html(data: ReportData) -> str:
    """The page. The same data gives the same bytes."""
    summary = data.summary
    view = View(summary, data.previous)
    labels, experiments = list(view.labels.values()), summary.experiments
    load = under_load(experiments, view.labels, summary.searches)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "when": formatting.when,
        "percent": formatting.percent,
        "places": places_text,
        "short": short,
        "sentence": formatting.sentence,
        "counted": counted,
        "called": lambda place: _called(place, view.labels),
    }
    return environment.get_template("report.html.j2").render(
        version=__version__,
        view=view,
        summary=summary,
        unfolded=len(experiments) <= PANELS_UP_TO,
        anything=any(row.has_result for row in data.cycles),
        statistics=[
            (e, label, _statistics(e)) for e, label in zip(experiments, labels, strict=True) if e.metrics
        ],
        forest=plots.forest(experiments, "energy_per_output_token_j", labels, data.cycles)
        or plots.forest(experiments, "output_tokens_per_s", labels, data.cycles),
        load=load,
        rates=plots.rates(load.ladders) if load else None,
        trade_off=plots.trade_off(experiments, view.fronts, FRONTS, labels),
        latency=plots.latencies(experiments, labels),
        power=_power(summary, data.curves, labels),
        curves_left_out=sum(row.has_result for row in data.cycles) - len(data.curves),
        cycles=[_cycle_row(row, tag=not view.all_estimates) for row in data.cycles],
        environments=[(item["cycles"], _facts(item["environment"])) for item in summary.environments],
        study_text=data.study_text,
        metrics=METRICS,
    )


def _called(place: str, labels: Mapping[str, str]) -> str:
    """``<id> cycle 1`` with the experiment's name."""
    experiment, _, cycle = place.rpartition(" cycle ")
    return f"{labels.get(experiment, experiment)} cycle {cycle}"


def _facts(environment: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What an environment says, a line for each fact; of the GPUs afterwards only where they were others."""
    told = dict(environment)
    if told.get("gpus_after") == told.get("gpus"):
        told.pop("gpus_after", None)
    for key, value in told.items():
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            told[key] = dict(enumerate(value))
    return [(key, value) for key, value in flatten(told).items() if value not in (None, "", [], {})]


def _statistics(e: ExperimentSummary) -> list[dict[str, Any]]:
    rows = []
    for found in e.metrics:
        metric = BY_NAME[found.name]
        unit, factor = formatting.scale(metric, found.all.mean)
        every = found.all
        scaled = [every.mean, every.sd, every.median, every.mad, every.p5, every.p95]
        mean, sd, median, mad, p5, p95 = (
            formatting.number(v * factor if v is not None else None) for v in scaled
        )
        estimate = metric.energy and e.energy_kind == "estimate"
        rows.append(
            {
                "label": metric.label + (" (estimate)" if estimate else ""),
                "unit": unit,
                "n": f"{every.n}{on_hosts(every.hosts)}",
                "mean": f"~ {mean}" if estimate else mean,
                "interval": formatting.interval(every, factor),
                "bca": f"{formatting.number(every.bootstrap.low * factor)} to "
                f"{formatting.number(every.bootstrap.high * factor)}"
                if every.bootstrap
                else "",
                "sd": sd,
                "cv": formatting.percent(every.cv_ratio),
                "median": median,
                "mad": mad,
                "p5": p5,
                "p95": p95,
                "undoubted": f"{formatting.number(found.undoubted.mean * factor)} (n = {found.undoubted.n})"
                if found.undoubted
                else "",
            }
        )
    return rows


def _cycle_row(row: Cycle, *, tag: bool) -> dict[str, Any]:
    estimate = row.energy_kind == "estimate"
    names = ("energy_j", "energy_per_output_token_j", "output_tokens_per_s", "e2el_mean_s", "window_s")
    return {
        "row": row,
        "values": [
            formatting.with_unit(name, row.measures.get(name), estimate=estimate, tag=tag) for name in names
        ],
        "flags": ", ".join(flag.code for flag in row.flags if flag.severity != "info")
        or row.reason.split(":", 1)[0],
    }


def _power(summary: Summary, curves: Sequence[Curve], labels: Sequence[str]) -> list[tuple[str, Any]]:
    draw = power_overlay if len(summary.experiments) > PANELS_UP_TO else power_panels
    found = []
    for e, label in zip(summary.experiments, labels, strict=True):
        picture = draw(e.id, [one for one in curves if one.experiment == e.id])
        if picture is not None:
            found.append((label, picture))
    return found
