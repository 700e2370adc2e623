"""The question: study files become experiments and plans. No Airflow, no Docker, no engine.

The public names load when they are first used: a program that only offers the command pays nothing for them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llem_airflow.study.load import load_study, load_study_text
    from llem_airflow.study.mistakes import Mistake, Notice, PromptsError, StudyFileError
    from llem_airflow.study.sections import (
        AirflowSection,
        Execution,
        GpuRequest,
        ModelVersion,
        PrecisionTarget,
    )
    from llem_airflow.study.spec import experiment_spec
    from llem_airflow.study.study import Experiment, Plan, PlannedCycle, Study

_HOMES = {
    "load": ("load_study", "load_study_text"),
    "mistakes": ("Mistake", "Notice", "PromptsError", "StudyFileError"),
    "sections": ("AirflowSection", "Execution", "GpuRequest", "ModelVersion", "PrecisionTarget"),
    "spec": ("experiment_spec",),
    "study": ("Experiment", "Plan", "PlannedCycle", "Study"),
}

__all__ = [
    "AirflowSection",
    "Execution",
    "Experiment",
    "GpuRequest",
    "Mistake",
    "ModelVersion",
    "Notice",
    "Plan",
    "PlannedCycle",
    "PrecisionTarget",
    "PromptsError",
    "Study",
    "StudyFileError",
    "experiment_spec",
    "load_study",
    "load_study_text",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
