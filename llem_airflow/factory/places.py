"""Which operator makes a study's cycles: a study whose runner is a cluster has pods from its DAG's parsing on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llem_airflow import operators
from llem_airflow.study import Study
from llem_airflow.study.plan.cluster import on_a_cluster

_OF_PLANS = ("llem_conn_id", "queue", "executor")


def cycle_operator(study: Study) -> Any:
    """The operator of the study's cycles.

    Raises:
        ImportError: It is that of pods, and the extra ``kubernetes`` is not installed.
    """
    return (
        operators.LLEMKubernetesExperimentOperator
        if on_a_cluster(study)
        else operators.LLEMExperimentOperator
    )


def plan_args(study: Study, operator_args: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments of a study's cycles that its plan, which looks for a Docker engine, can have."""
    pods = on_a_cluster(study)
    return {name: value for name, value in operator_args.items() if not pods or name in _OF_PLANS}
