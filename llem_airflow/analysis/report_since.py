"""Rows of the report about what changed since the run before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from llem_airflow.analysis import quantity
from llem_airflow.analysis.comparing import PairReport
from llem_airflow.analysis.history import BUDGET, Trend
from llem_airflow.analysis.labels import factor_changes, short
from llem_airflow.analysis.metrics import BY_NAME
from llem_airflow.analysis.since import Since
from llem_airflow.analysis.verdict import GRAVEST_FIRST, Comparison, Verdict

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
        "note": quantity.sentence(BUDGET),
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
        "shows": quantity.percent(found.detectable_ratio),
    }


def changes_text(found: Trend) -> str:
    """The change points of a history, looking back."""
    told = [f"{quantity.signed(change.ratio)} at {change.run_id}" for change in found.changes]
    return "; ".join(told) or quantity.ABSENT


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
        return {"value": quantity.ABSENT, "interval": "", "power": ""}
    interval, power = quantity.change_interval(found.low_ratio, found.high_ratio), found.reason
    if found.verdict is Verdict.NOT_ENOUGH_EVIDENCE and found.detectable_ratio is not None:
        power = quantity.detectable(found.detectable_ratio)
    return {"value": quantity.signed(found.difference_ratio), "interval": interval, "power": power}
