"""The question: study files become experiments and plans. No Airflow, no Docker, no engine."""

from __future__ import annotations

from llem_airflow.study.load import load_study, load_study_text
from llem_airflow.study.mistakes import Mistake, Notice, StudyFileError
from llem_airflow.study.prompts import PromptsError
from llem_airflow.study.sections import AirflowSection, Execution, GpuRequest, ModelVersion, PrecisionTarget
from llem_airflow.study.spec import experiment_spec
from llem_airflow.study.study import Experiment, Plan, PlannedCycle, Study

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
