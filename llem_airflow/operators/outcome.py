"""What a run came to, in a few numbers: for the asset event, for the notifier, for those who schedule on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llem_airflow.results import ResultsRoot, StoredRun, names
from llem_airflow.study import Study

if TYPE_CHECKING:
    from llem_airflow.analysis.comparing import PairReport
    from llem_airflow.analysis.summary import Summary

HEADLINES = ("energy_per_output_token_j", "output_tokens_per_s", "ttft_mean_s")
_SHOWN = 50
"""Experiments whose numbers go into an event; Airflow keeps events in its database, and results lie in the store."""


def key_numbers(summary: Summary) -> dict[str, Any]:
    """Mean, 95 % interval and number of cycles of the headline metrics, by experiment."""
    found: dict[str, Any] = {}
    for experiment in summary.experiments[:_SHOWN]:
        numbers: dict[str, Any] = {}
        for name in HEADLINES:
            metric = experiment.metric(name)
            if metric is not None:
                interval = metric.all.interval
                numbers[name] = {
                    "mean": metric.all.mean,
                    "low": interval.low if interval else None,
                    "high": interval.high if interval else None,
                    "n": metric.all.n,
                }
        found[experiment.id] = numbers
    return {
        "study": summary.study,
        "planned": summary.planned,
        "valid": summary.valid,
        "energy_kind": summary.energy_kind,
        "experiments": found,
    }


def baseline_run(study: Study, run: StoredRun, root: ResultsRoot) -> StoredRun | None:
    """The aggregated run that this one is compared with, or None when there is none yet.

    With ``regression.baseline: previous`` the newest one before this run of the same release, else the newest run of
    the release that is named.
    """
    wanted = study.airflow.regression
    if wanted is None:
        return None
    release = run.meta().get("version") if wanted.baseline == "previous" else wanted.baseline
    others = [
        other
        for other in root.runs(study.name)
        if other.url != run.url
        and other.meta().get("version") == release
        and other.folder.exists(names.SUMMARY)
    ]
    if wanted.baseline == "previous":
        others = [other for other in others if other.started_epoch_ns() < run.started_epoch_ns()]
    return others[-1] if others else None


def compared(baseline: StoredRun, run: StoredRun) -> list[PairReport]:
    """Each experiment of the run against the same experiment of the baseline, whatever model release each measured."""
    from llem_airflow.analysis.comparing import (  # noqa: PLC0415 - SciPy, which no other task needs
        compare_sides,
        corrected,
        cycle_rows,
        side,
    )

    known = {str(row["experiment"]) for row in cycle_rows(baseline)}
    ids = dict.fromkeys(str(row["experiment"]) for row in cycle_rows(run))
    return corrected([compare_sides(side(baseline, each), side(run, each)) for each in ids if each in known])


def worse(study: Study, reports: Sequence[PairReport]) -> list[str]:
    """A sentence for each experiment that became worse by more than the study allows."""
    wanted = study.airflow.regression
    if wanted is None:
        return []
    found = []
    for report in reports:
        metric = report.metrics.get(wanted.metric)
        if (
            metric is None
            or metric.verdict != "regression"
            or abs(metric.difference_ratio) < wanted.threshold_ratio
        ):
            continue
        found.append(
            f"{report.candidate}: {wanted.metric} {metric.difference_ratio:+.1%} "
            f"({metric.mean_baseline:.4g} -> {metric.mean_candidate:.4g}, n = {metric.n_baseline} and "
            f"{metric.n_candidate} cycles) against {report.baseline}"
        )
    return found
