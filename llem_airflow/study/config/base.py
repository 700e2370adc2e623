"""What the models of a study file have in common: strictness, null, moved keys, checks over several keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from llem_airflow.study.config.paths import Config

Contradiction = tuple[tuple[str, ...], str, str]
"""The keys of a section that do not fit together, what was found, what to do."""
FRAGMENT = {"fragment": True}
"""Context of a validation that sees a part of an experiment: nothing is missing yet, and nothing contradicts."""


def key(default: Any, description: str, **bounds: Any) -> Any:
    """A key that holds a value: its default (``...`` where it must be written), what it means, and its bounds."""
    return Field(default, description=description, **bounds)


class Section(BaseModel):
    """A mapping of a study file. Each key is one field: its check, default, schema and documentation."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    moved: ClassVar[Mapping[str, str]] = {}
    """Keys of old places: name -> where it is now."""

    def config(self) -> Config:
        """The section as it is measured."""
        return self.model_dump()


class Consistent(Section):
    """A section in which some keys can contradict others."""

    @model_validator(mode="after")
    def _without_contradictions(self, info: ValidationInfo) -> Self:
        if info.context is not FRAGMENT and (found := list(self.contradictions())):
            raise PydanticCustomError("contradiction", "keys contradict each other", {"problems": found})
        return self

    def contradictions(self) -> Iterator[Contradiction]:
        """What does not fit together in this section as it is measured."""
        raise NotImplementedError


@cache
def keys_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a model by their keys in the file."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def takes_null(field: FieldInfo) -> bool:
    """Whether null is a value of the key; elsewhere it means that the key is left out."""
    return type(None) in get_args(field.annotation) and model_of(field) is None


def model_of(field: FieldInfo | None) -> type[Section] | None:
    """The model of the section, or of each row, that a key holds; None for a key with a value."""
    if field is None:
        return None
    for part in (field.annotation, *_parts(field.annotation)):
        if isinstance(part, type) and issubclass(part, Section):
            return part
    return None


def is_mapping(field: FieldInfo) -> bool:
    """Whether a key holds a mapping of any keys, which pass through to an engine."""
    return any(
        getattr(part, "__origin__", None) is dict for part in (field.annotation, *_parts(field.annotation))
    )


def _parts(annotation: Any) -> Iterator[Any]:
    for part in get_args(annotation):
        yield part
        if getattr(part, "__metadata__", None) or getattr(part, "__origin__", None) is list:
            yield from get_args(part)
