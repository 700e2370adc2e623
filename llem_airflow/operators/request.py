"""What one DAG run was asked for: which model release, which experiments, how many cycles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from llem_airflow.study import Experiment, Study, StudyFileError, load_study_text
from llem_airflow.study.plan.request import (
    Request,
    RunRequestError,
    altered,
    names_in,
    requested,
    wanted,
)

STUDY_FIELD = "study"
"""The field of the trigger form that holds a study's text."""

_KEYS = frozenset({"experiments", "engines", "models", "cycles", "n_prompts", "dry_run"})


class RunRequest(Request):
    """What a DAG run was asked for."""

    @classmethod
    def of(cls, context: Context) -> RunRequest:
        """From the partition of the DAG run and its trigger form.

        A DAG without the form (one that somebody wrote by hand) may have parameters of its own with such names: they
        are left alone.
        """
        params: Mapping[str, Any] = context.get("params") or {}
        key = context.get("partition_key")
        if not set(params) >= _KEYS:
            return cls(version=key)
        return cls(
            version=key or params.get("version"),
            experiments=names_in(params["experiments"]),
            engines=names_in(params["engines"]),
            models=names_in(params["models"]),
            cycles=params["cycles"],
            n_prompts=params["n_prompts"],
            dry_run=bool(params["dry_run"]),
        )


def study_in_form(context: Context) -> Study:
    """The study whose text was given in the trigger form.

    Raises:
        AirflowFailException: The text has problems; the error lists every one with its line and column.
    """
    text = (context.get("params") or {}).get(STUDY_FIELD)
    if not isinstance(text, str):
        raise AirflowFailException(f"this run has no study: give its YAML as the parameter {STUDY_FIELD!r}")
    try:
        return load_study_text(text, name="study")
    except StudyFileError as error:
        raise AirflowFailException(
            f"the study has problems (line and column follow its name):\n{error}"
        ) from error


def study_of_run(study: Study, context: Context) -> Study:
    """The study as the DAG run of this task is to measure it.

    Raises:
        AirflowFailException: The run was asked for something that the study does not have; no retry helps.
    """
    try:
        return requested(study, RunRequest.of(context))
    except RunRequestError as error:
        raise AirflowFailException(str(error)) from error


def cycle_of_run(study: Study, experiment_id: str, cycle: int, context: Context) -> Experiment:
    """The experiment as this task is to measure it; the study's others are not looked at.

    Raises:
        AirflowFailException: The run names no release of the study, or one that it does not have; no retry helps.
        AirflowSkipException: The run does not ask for this cycle.
    """
    request, experiment = RunRequest.of(context), study.experiment(experiment_id)
    if request.dry_run:
        raise AirflowSkipException("dry run: nothing is measured")
    if not wanted(experiment, request) or cycle > min(request.cycles or study.cycles, study.cycles):
        raise AirflowSkipException(f"this run does not ask for {experiment_id} cycle {cycle}")
    try:
        return altered(study, experiment, request)
    except RunRequestError as error:
        raise AirflowFailException(str(error)) from error
