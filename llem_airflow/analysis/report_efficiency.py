"""Rows of the report about efficiency: tokens per joule, energy-delay product, the fronts, CO2e and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llem_airflow.analysis.metrics import BY_NAME
from llem_airflow.analysis.pareto import pareto
from llem_airflow.analysis.report_cells import columns, derived_cell, metric_cell
from llem_airflow.analysis.summary import ExperimentSummary, MetricSummary

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
