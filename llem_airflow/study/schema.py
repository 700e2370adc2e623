"""The JSON Schema of a study file, from the same tables that check it."""

from __future__ import annotations

from typing import Any

from llem_airflow.study.engine_names import ENGINES
from llem_airflow.study.fields import Leaf, Rows, Section, What, leaves
from llem_airflow.study.keys import EXPERIMENT
from llem_airflow.study.study_keys import STUDY_ONLY

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_OLD = {"pytorch": "transformers"}
"""Older names of engines that the schema offers; the others are accepted all the same."""

_TYPES: dict[str, dict[str, Any]] = {
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "string": {"type": "string"},
    "boolean": {"type": "boolean"},
    "mapping": {"type": "object"},
    "any": {},
    "strings": {"type": "array", "items": {"type": "string"}},
    "integers": {"type": "array", "items": {"type": "integer"}},
    "numbers": {"type": "array", "items": {"type": "number"}},
}

_RANGES: list[dict[str, Any]] = [
    {
        "type": "object",
        "properties": {
            "min": {"type": "number"},
            "max": {"type": "number"},
            "num": {"type": "integer", "minimum": 1},
        },
        "required": ["min", "max", "num"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {"log": {"type": "object"}},
        "required": ["log"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {"pow2": {"type": "object"}},
        "required": ["pow2"],
        "additionalProperties": False,
    },
]


def json_schema() -> dict[str, Any]:
    """The schema of a whole study file, for editors and other tools."""
    own = _properties(EXPERIMENT)
    experiment = {**own, **{alias: own[engine] for alias, engine in _OLD.items()}}
    entry = {"type": "object", "properties": experiment, "additionalProperties": False}
    top = dict(experiment)
    top["engine"] = {"anyOf": [own["engine"], {"type": "array", "items": own["engine"], "minItems": 1}]}
    properties = {
        **_properties(STUDY_ONLY),
        **top,
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


def _properties(section: Section) -> dict[str, Any]:
    return {name: _schema(what) for name, what in section.keys.items()}


def _schema(what: What) -> dict[str, Any]:
    if isinstance(what, Rows):
        row = _schema(what.row)
        row["required"] = [name for name, leaf in what.row.keys.items() if getattr(leaf, "required", False)]
        return {"type": ["array", "null"], "items": row, "description": what.doc}
    if isinstance(what, Section):
        return {
            "type": ["object", "null"],
            "description": what.doc,
            "properties": _properties(what),
            "additionalProperties": what.open,
        }
    return _leaf(what)


def _leaf(leaf: Leaf) -> dict[str, Any]:
    schema: dict[str, Any] = {"description": leaf.doc}
    if leaf.default is not None:
        schema["default"] = leaf.default
    schema.update(
        {key: dict(value) if isinstance(value, dict) else value for key, value in _TYPES[leaf.kind].items()}
    )
    nullable = leaf.nullable or leaf.null_is is not None
    if leaf.choices:
        target = schema["items"] if leaf.kind == "strings" else schema
        target["enum"] = [*leaf.choices, *leaf.aliases]
        if nullable and target is schema:
            target["enum"].append(None)
    if nullable and "type" in schema:
        schema["type"] = [schema["type"], "null"]
    _bounds(schema, leaf)
    return schema


def _bounds(schema: dict[str, Any], leaf: Leaf) -> None:
    least = {"string": "minLength", "strings": "minItems", "integers": "minItems", "mapping": "minProperties"}
    if leaf.least is not None:
        schema[least.get(leaf.kind, "minimum")] = leaf.least
    if leaf.above is not None:
        schema["exclusiveMinimum"] = leaf.above
    if leaf.most is not None:
        schema["maximum"] = leaf.most


def _sweep() -> dict[str, Any]:
    """Axes by their dotted keys, free keys of the engines by pattern, and groups by any other name."""
    group = {"type": "array", "items": {"type": "object"}, "minItems": 1}
    properties: dict[str, Any] = {}
    for path, what in leaves(EXPERIMENT):
        if not isinstance(what, Leaf):
            continue
        value = _leaf(what)
        for name in _names(path):
            properties[name] = {"anyOf": [{"type": "array", "items": value, "minItems": 1}, value, *_RANGES]}
    axis = {"anyOf": [{"type": "array", "minItems": 1}, {"type": ["string", "number", "boolean"]}, *_RANGES]}
    engines = "|".join((*ENGINES, *_OLD))
    return {
        "type": ["object", "null"],
        "description": "Axes (dotted key: list or range), which multiply, and groups (name: mappings).",
        "properties": properties,
        "patternProperties": {f"^({engines})\\.(engine_params|sampling_params)\\..+$": axis},
        "additionalProperties": group,
    }


def _names(path: tuple[str, ...]) -> list[str]:
    olds = [alias for alias, engine in _OLD.items() if engine == path[0]]
    return [".".join((head, *path[1:])) for head in (path[0], *olds)]
