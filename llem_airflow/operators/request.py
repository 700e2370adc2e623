"""What one DAG run was asked for: which model release, which experiments, how many cycles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import Context, Param
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from llem_airflow.study import Experiment, Study, StudyFileError, load_study_text
from llem_airflow.study.names import ENGINES
from llem_airflow.study.plan.request import (
    SHOWN,
    Request,
    RunRequestError,
    altered,
    names_in,
    requested,
    wanted,
)

__all__ = [
    "RunRequest",
    "RunRequestError",
    "cycle_of_run",
    "form",
    "names_in",
    "requested",
    "study_in_form",
    "study_of_run",
]

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


def form(study: Study | None, *, offer: bool = True) -> dict[str, Param]:
    """The fields of a trigger form; also what ``conf`` of the REST API and the command line may set.

    Args:
        study: The study whose names the form offers, or None when the study itself is a field of the form.
        offer: Offer its names. A worker, which only reads what was chosen, need not look at every experiment.
    """
    known = study.experiments if study and offer else ()
    engines = sorted({each.engine for each in known}) or list(ENGINES)
    models = sorted({each.model for each in known})
    fields = {} if study else {STUDY_FIELD: _study_field()}
    fields |= {
        "experiments": Param(
            "*",
            type="string",
            minLength=1,
            title="Experiments",
            description_md="Names or globs, separated by commas or spaces; `*` is all of them.",
            examples=["*", *(each.id for each in known[:SHOWN])],
            section="What to measure",
        ),
        "engines": _several("Engines", {"type": "string", "enum": engines}, engines),
        "models": _several("Models", {"type": "string", "minLength": 1}, models),
        "cycles": _number("Cycles", study.cycles if study else 10_000, "The first so many cycles of each."),
        "n_prompts": _number(
            "Prompts per cycle", 1_000_000, "Instead of the study's number; compared with their like only."
        ),
        "dry_run": Param(
            False,
            type="boolean",
            title="Dry run",
            description_md="Check and show the plan in the log of the task `plan`; measure nothing.",
            section="How",
        ),
    }
    if study is None or study.versions:
        fields["version"] = Param(
            None,
            type=["string", "null"],
            **_optional(enum=[None, *(version.name for version in study.versions)] if study else None),
            title="Model release",
            description_md="Which of the study's `versions` to measure. Empty: the partition key decides.",
            section="What to measure",
        )
    return fields


def _optional(**fields: Any) -> Any:
    """What there is of some fields of a Param; the SDK's own signature does not name JSON Schema's keys."""
    return {name: value for name, value in fields.items() if value is not None}


def _study_field() -> Param:
    return Param(
        type="string",
        format="multiline",
        minLength=1,
        title="Study",
        description_md="The whole YAML of a study. `llem-airflow init` writes one to start from.",
        section="Study",
    )


def _several(title: str, items: dict[str, Any], known: list[str]) -> Param:
    return Param(
        None,
        type=["array", "null"],
        items=items,
        **_optional(examples=known or None),
        title=title,
        description_md="None chosen: all.",
        section="What to measure",
    )


def _number(title: str, most: int, description: str) -> Param:
    return Param(
        None,
        type=["integer", "null"],
        minimum=1,
        maximum=most,
        title=title,
        description_md=description,
        section="What to measure",
    )


def study_in_form(context: Context) -> Study:
    """The study whose text was given in the trigger form.

    Raises:
        AirflowFailException: The text has mistakes; the error lists every one with its line and column.
    """
    text = (context.get("params") or {}).get(STUDY_FIELD)
    if not isinstance(text, str):
        raise AirflowFailException(f"this run has no study: give its YAML as the parameter {STUDY_FIELD!r}")
    try:
        return load_study_text(text, name="study")
    except StudyFileError as error:
        raise AirflowFailException(
            f"the study has mistakes (line and column follow its name):\n{error}"
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
