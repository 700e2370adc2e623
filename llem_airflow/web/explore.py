"""What the explorer of a finished run shows: its answer, its experiments with every metric, the fronts, the cycles."""

from __future__ import annotations

from typing import Any

from llem_airflow.analysis.metrics import BY_NAME, METRICS
from llem_airflow.analysis.plan import experiment_labels
from llem_airflow.analysis.summary import ExperimentSummary, MetricSummary, load_summary
from llem_airflow.frames.asked import Problems, Swept
from llem_airflow.report.under_load import under_load
from llem_airflow.report.view import fronts
from llem_airflow.results import ResultReadError, StoredRun, layout
from llem_airflow.results.parquet import read_table
from llem_airflow.web.kept import Kept

ENERGY = "energy_per_output_token_j"
AGAINST = ("output_tokens_per_s", "ttft_mean_s", "tpot_mean_s", "e2el_mean_s")
"""What energy per output token is weighed against."""
HEADLINES = (ENERGY, "output_tokens_per_s")
"""The number that stands for an experiment: the second where there is no energy."""


def explorer(run: StoredRun, kept: Kept) -> dict[str, Any]:
    """Answer, experiments, metrics and fronts of a run.

    Raises:
        ResultReadError: It was not aggregated, or its files do not open.
    """
    found: dict[str, Any] = kept.of_file("explorer", run.folder, layout.SUMMARY, lambda: _explorer(run))
    return found


def _explorer(run: StoredRun) -> dict[str, Any]:
    summary = load_summary(run)
    if summary is None:
        raise ResultReadError(f"{run.url}: not aggregated yet; `llem-airflow report {run.url}` does it")
    problems = Problems()
    swept = Swept.of([run], problems)
    experiments = summary.experiments
    present = {metric.name for e in experiments for metric in e.metrics}
    weighed = fronts(experiments, {name: name for name in AGAINST})
    keys = [key for key in swept.kinds if key not in {"engine", "model"}]
    load = under_load(experiments, summary.labels, summary.searches)
    return {
        "study": run.study,
        "run_id": run.run_id,
        "url": run.url,
        "answer": summary.answer or "",
        "load": list(load.said) if load else [],
        "planned": summary.planned,
        "valid": summary.valid,
        "energy_kind": summary.energy_kind,
        "started_epoch_ns": summary.started_epoch_ns,
        "finished_epoch_ns": summary.finished_epoch_ns,
        "setting": summary.setting,
        "missing": list(summary.missing),
        "skipped": list(summary.skipped),
        "problems": [str(row["problem"]) for row in problems.found],
        "factors": [
            *(name for name in ("engine", "model") if len({getattr(e, name) for e in experiments}) > 1),
            *keys,
        ],
        "metrics": [metric_facts(metric.name) for metric in METRICS if metric.name in present],
        "fronts": {
            name: [e.id for e in experiments if e.id in best]
            for name, best in weighed.items()
            if sum(bool(e.metric(ENERGY) and e.metric(name)) for e in experiments) > 1
        },
        "experiments": [
            _experiment(e, label, {"engine": e.engine, "model": e.model} | swept.of_experiment(run, e.id))
            for e, label in zip(experiments, experiment_labels(experiments), strict=True)
        ],
    }


def metric_facts(name: str) -> dict[str, Any]:
    """What a page has to know of a metric to show it."""
    metric = BY_NAME[name]
    return {
        "name": name,
        "label": metric.label,
        "unit": metric.unit,
        "better": metric.better,
        "meaning": metric.meaning,
        "energy": metric.energy,
    }


def _experiment(e: ExperimentSummary, label: str, factors: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": e.id,
        "label": label,
        "hash": e.hash,
        "factors": factors,
        "planned": e.planned,
        "valid": e.valid,
        "hosts": list(e.hosts),
        "energy_kind": e.energy_kind,
        "energy_source": e.energy_source,
        "energy_boundary": e.energy_boundary,
        "doubts": [
            {
                "code": doubt.code,
                "severity": doubt.severity,
                "message": doubt.message,
                "next_step": doubt.next_step,
                "cycles": list(doubt.cycles),
            }
            for doubt in e.doubts
        ],
        "metrics": {metric.name: _numbers(metric) for metric in e.metrics},
    }


def _numbers(metric: MetricSummary) -> dict[str, Any]:
    """Mean, spread and the interval for people; none where n is too small for one that tells."""
    shown = metric.all.shown_interval
    return {
        "n": metric.all.n,
        "hosts": metric.all.hosts,
        "mean": metric.all.mean,
        "sd": metric.all.sd,
        "low": shown.low if shown else None,
        "high": shown.high if shown else None,
    }


def cycle_values(run: StoredRun, metric: str) -> list[dict[str, Any]]:
    """The value of a metric in each cycle that has a result, for its distribution.

    Raises:
        ResultReadError: There is no such metric, or the run was not aggregated.
    """
    if metric not in BY_NAME:
        raise ResultReadError(f"{metric!r} is no metric")
    if not run.folder.exists(layout.CYCLES_TABLE):
        raise ResultReadError(f"{run.url}: not aggregated yet; `llem-airflow report {run.url}` does it")
    rows = read_table(
        run.folder, layout.CYCLES_TABLE, ["experiment", "cycle", "doubtful", "energy_kind", metric]
    ).to_pylist()
    return [
        {
            "experiment": row["experiment"],
            "cycle": row["cycle"],
            "value": row[metric],
            "doubtful": bool(row["doubtful"]),
        }
        for row in rows
        if row[metric] is not None
    ]
