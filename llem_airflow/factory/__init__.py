"""A study file becomes a DAG: ``study_dag``, ``study_dags``, ``StudyTaskGroup``, ``adhoc_dag``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llem_airflow.factory.folder import INVALID_TAG, study_dags
    from llem_airflow.factory.form import study_params
    from llem_airflow.factory.releases import study_asset
    from llem_airflow.factory.study import StudyTaskGroup, adhoc_dag, study_dag

__all__ = [
    "INVALID_TAG", "StudyTaskGroup", "adhoc_dag", "study_asset", "study_dag", "study_dags", "study_params",
]  # fmt: skip

_MODULES = {
    "INVALID_TAG": "folder",
    "study_dags": "folder",
    "study_asset": "releases",
    "study_params": "form",
}


def __getattr__(name: str) -> Any:
    """Import a part on first use: every Airflow process loads the plugin, whose listener is in this package."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'study')}"), name)
