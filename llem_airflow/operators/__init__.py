"""Airflow operators: one cycle of one experiment, what the cycles mean together, what has changed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llem_airflow.operators.aggregate import LLEMAggregateOperator
    from llem_airflow.operators.compare import LLEMCompareOperator
    from llem_airflow.operators.experiment import LLEMExperimentOperator, LLEMTextCycleOperator
    from llem_airflow.operators.kubernetes import LLEMKubernetesExperimentOperator
    from llem_airflow.operators.maintenance import LLEMCollectGarbageOperator
    from llem_airflow.operators.plan import LLEMPlanOperator, LLEMPlanTextOperator
    from llem_airflow.operators.prefetch import LLEMPrefetchOperator, LLEMTextPrefetchOperator
    from llem_airflow.operators.session import LLEMStartSessionOperator, LLEMStopSessionOperator

__all__ = [
    "LLEMAggregateOperator",
    "LLEMCollectGarbageOperator",
    "LLEMCompareOperator",
    "LLEMExperimentOperator",
    "LLEMKubernetesExperimentOperator",
    "LLEMPlanOperator",
    "LLEMPlanTextOperator",
    "LLEMPrefetchOperator",
    "LLEMStartSessionOperator",
    "LLEMStopSessionOperator",
    "LLEMTextCycleOperator",
    "LLEMTextPrefetchOperator",
]

_MODULES = {
    "LLEMAggregateOperator": "aggregate",
    "LLEMCollectGarbageOperator": "maintenance",
    "LLEMCompareOperator": "compare",
    "LLEMExperimentOperator": "experiment",
    "LLEMKubernetesExperimentOperator": "kubernetes",
    "LLEMPlanOperator": "plan",
    "LLEMPlanTextOperator": "plan",
    "LLEMPrefetchOperator": "prefetch",
    "LLEMStartSessionOperator": "session",
    "LLEMStopSessionOperator": "session",
    "LLEMTextCycleOperator": "experiment",
    "LLEMTextPrefetchOperator": "prefetch",
}


def __getattr__(name: str) -> Any:
    """Import an operator on first use: the pages of the UI need the settings beside them, not Docker and SciPy."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        if _MODULES[name] != "kubernetes" or str(error.name).startswith("llem_airflow"):
            raise
        raise ImportError(
            f"{name} needs Airflow's Kubernetes provider, of which {error.name} is not installed here: "
            "pip install 'llem-airflow[kubernetes]', for the DAG processor and the workers"
        ) from error
