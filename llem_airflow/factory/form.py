"""The trigger form of a study's DAG: what of the study a run is to measure."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param

from llem_airflow.operators.request import STUDY_FIELD
from llem_airflow.study import Study
from llem_airflow.study.names import ENGINES
from llem_airflow.study.plan.request import SHOWN


def study_params(study: Study | None, *, offer: bool = True) -> dict[str, Param]:
    """The fields of a trigger form; also what ``conf`` of the REST API and the command line may set.

    Args:
        study: The study whose names the form offers, or None when the study itself is a field of the form.
        offer: Whether the form lists the study's names. A worker only reads what was chosen and leaves them out.
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
