"""The JSON Schema of a study file, for editors, and of each key; made of the models."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, get_origin

from pydantic.fields import FieldInfo

from llem_airflow.study.config.base import KeyNames, Section, every_key, is_mapping, keys_of, model_of
from llem_airflow.study.config.experiment import Experiment
from llem_airflow.study.config.study import StudyKeys
from llem_airflow.study.names import ENGINES

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_OLD = {"pytorch": "transformers"}
"""Older names of engines that the schema offers; the others are accepted all the same."""
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum"}


@cache
def _properties(model: type[Section]) -> dict[str, Schema]:
    return dict(model.model_json_schema()["properties"])


def value_schema(model: type[Section], key: str) -> Schema:
    """The JSON Schema of a key that holds a value, with its bounds; ``type`` is a list where null is a value."""
    schema = {k: v for k, v in _properties(model)[key].items() if k not in {"title", "anyOf"}}
    field = keys_of(model)[key]
    options = [each for each in _properties(model)[key].get("anyOf", ()) if each != {"type": "null"}]
    schema = (options[0] if options else {}) | schema
    schema = {k: v for k, v in schema.items() if k not in _BOUNDS and not (k == "default" and v is None)}
    for bound in field.metadata:
        schema |= {word: getattr(bound, name) for name, word in _BOUNDS.items() if hasattr(bound, name)}
    if options and isinstance(schema.get("type"), str):
        schema["type"] = [schema["type"], "null"]
    return schema


def _nullable(schema: Schema) -> Schema:
    """Null is the same as leaving a key out, so it is always accepted."""
    kinds = schema.get("type", [])
    if kinds:
        schema["type"] = [*dict.fromkeys([*([kinds] if isinstance(kinds, str) else kinds), "null"])]
    if "enum" in schema:
        schema["enum"] = [*schema["enum"], None]
    return schema


def _section(model: type[Section], description: str | None = None) -> Schema:
    return {
        "type": ["object", "null"],
        "description": description or model.__doc__,
        "properties": {key: _key(model, key, field) for key, field in keys_of(model).items()},
        "additionalProperties": False,
    }


def _key(model: type[Section], key: str, field: FieldInfo) -> Schema:
    inner = model_of(field)
    if inner is None:
        schema = value_schema(model, key)
        return schema if field.is_required() else _nullable(schema)
    if get_origin(field.annotation) is not list:
        return _section(inner, field.description)
    row = _section(inner) | {
        "required": [name for name, each in keys_of(inner).items() if each.is_required()]
    }
    return {"type": ["array", "null"], "items": row, "description": field.description}


def json_schema() -> Schema:
    """The schema of a whole study file, for editors and other tools."""
    own = _section(Experiment)["properties"]
    experiment = {**own, **{alias: own[engine] for alias, engine in _OLD.items()}}
    entry = {"type": "object", "properties": experiment, "additionalProperties": False}
    name = value_schema(Experiment, "engine")
    engine = {"anyOf": [own["engine"], {"type": "array", "items": name, "minItems": 1}]}
    properties = {
        **_section(StudyKeys)["properties"],
        **experiment,
        "engine": engine,
        "sweep": _sweep(),
        "experiments": {"type": ["array", "null"], "items": entry, "description": "Written-out experiments."},
    }
    return {
        "$schema": DIALECT,
        "title": "llem-airflow study",
        "description": "One question about the energy of LLM inference: what runs, how often, in what order.",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _object(properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


def _sweep() -> Schema:
    """Axes by their dotted keys, free keys of the engines by pattern, and groups by any other name."""
    number = {"type": "number"}
    linear = _object({"min": number, "max": number, "num": {"type": "integer", "minimum": 1}})
    ranges = [linear, _object({"log": {"type": "object"}}), _object({"pow2": {"type": "object"}})]
    properties: Schema = {}
    for path, model, field in values(Experiment):
        value = value_schema(model, path[-1])
        if is_mapping(field):
            continue
        for head in (path[0], *(alias for alias, engine in _OLD.items() if engine == path[0])):
            axis = {"anyOf": [{"type": "array", "items": value, "minItems": 1}, value, *ranges]}
            properties[".".join((head, *path[1:]))] = axis
    free = {"anyOf": [{"type": "array", "minItems": 1}, {"type": ["string", "number", "boolean"]}, *ranges]}
    engines = "|".join((*ENGINES, *_OLD))
    return {
        "type": ["object", "null"],
        "description": "Axes (dotted key: list or range), which multiply, and groups (name: mappings).",
        "properties": properties,
        "patternProperties": {rf"^({engines})\.(engine_params|sampling_params)\..+$": free},
        "additionalProperties": {"type": "array", "items": {"type": "object"}, "minItems": 1},
    }


def values(model: type[Section]) -> Iterator[tuple[KeyNames, type[Section], FieldInfo]]:
    """Every key below a model that holds a value, as ``every_key`` gives them."""
    return (each for each in every_key(model) if model_of(each[2]) is None)
