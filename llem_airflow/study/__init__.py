"""The question: study files become experiments and plans. No Airflow, no Docker, no engine.

``config`` says what a file may say, ``file`` reads text into checked values with their places, ``plan`` makes runs of
them; ``load`` is the whole way. The public names load when they are first used: a program that only offers the command
pays nothing for them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llem_airflow.study.load import load_study, load_study_text
    from llem_airflow.study.plan.model import Experiment, GpuRequest, Plan, PlannedCycle, Study
    from llem_airflow.study.plan.request import experiment_spec
    from llem_airflow.study.problems import Problem, PromptsError, StudyFileError, StudyWarning

_HOMES = {
    "load": ("load_study", "load_study_text"),
    "plan.model": ("Experiment", "GpuRequest", "Plan", "PlannedCycle", "Study"),
    "problems": ("Problem", "PromptsError", "StudyFileError", "StudyWarning"),
    "plan.request": ("experiment_spec",),
}

__all__ = [
    "Experiment",
    "GpuRequest",
    "Plan",
    "PlannedCycle",
    "Problem",
    "PromptsError",
    "Study",
    "StudyFileError",
    "StudyWarning",
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
