"""What the models of a study file have in common: strictness, null, moved keys, checks over several keys.

And what is done with a configuration, a nested mapping: it is never changed, and what is untouched is shared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, ClassVar, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

Config = dict[str, Any]
"""The configuration of an experiment, as written or as it is measured."""
KeyNames = tuple[str, ...]
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

    @classmethod
    def moved_to(cls, name: str) -> str | None:
        """Where a key is now that was here once, as a sentence."""
        return cls.moved.get(name)

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


def every_key(
    model: type[Section], path: KeyNames = ()
) -> Iterator[tuple[KeyNames, type[Section], FieldInfo]]:
    """Every key below a model, sections and theirs: its path (``x[]`` of rows), its model, the field."""
    for key, field in keys_of(model).items():
        yield (*path, key), model, field
        if (inner := model_of(field)) is not None:
            yield from every_key(inner, (*path, f"{key}[]" if get_origin(field.annotation) is list else key))


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


def lookup(config: Config, path: KeyNames) -> Any:
    """The value at a path, or None."""
    node: Any = config
    for key in path:
        if not isinstance(node, dict):
            return None
        node = node.get(key)
    return node


def merged(below: Config, above: Config) -> Config:
    """``above`` laid over ``below``, mapping by mapping."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def replaced(config: Config, path: KeyNames, value: Any) -> Config:
    """The mapping with one key set; a mapping that is set is laid over the one that is there."""
    head, *rest = path
    old = config.get(head)
    if rest:
        value = replaced(old if isinstance(old, dict) else {}, tuple(rest), value)
    elif isinstance(old, dict) and isinstance(value, dict):
        value = merged(old, value)
    return config | {head: value}


def with_values(config: Config, values: Iterable[tuple[KeyNames, Any]]) -> Config:
    """The mapping with some keys set, in order."""
    for path, value in values:
        config = replaced(config, path, value)
    return config


def without(config: Config, path: KeyNames) -> Config:
    """The mapping without one key; itself for no path."""
    if not path or path[0] not in config:
        return config
    head, *rest = path
    if not rest:
        return {key: value for key, value in config.items() if key != head}
    if isinstance(config[head], dict):
        return config | {head: without(config[head], tuple(rest))}
    return config


def leaf_paths(value: Mapping[str, Any], before: KeyNames = ()) -> Iterator[KeyNames]:
    """The paths of all values that are no mappings."""
    for key, child in value.items():
        if isinstance(child, dict):
            yield from leaf_paths(child, (*before, key))
        else:
            yield (*before, key)


def overlap(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether one of two paths lies below the other."""
    length = min(len(one), len(other))
    return one[:length] == other[:length]
