"""Strict reading of JSON objects into frozen dataclasses, with the standard library only."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from typing import Any, TypeVar

from llem_airflow.protocol import PROTOCOL_VERSION

T = TypeVar("T")


class ProtocolError(ValueError):
    """A file at the boundary is not what the protocol says; the message names the file's field."""


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def from_json(cls: type[T], data: object, where: str) -> T:
    """Build the frozen dataclass ``cls`` from a decoded JSON object.

    Args:
        cls: A dataclass whose field types are JSON scalars, lists, dicts or other dataclasses.
        data: What ``json.loads`` returned.
        where: Prefix of error messages, such as the file's name.

    Raises:
        ProtocolError: A field is missing, unknown or of the wrong type.
    """
    if not isinstance(data, dict):
        raise ProtocolError(f"{where}: expected an object, found {type(data).__name__}")
    kind: type = cls
    hints = _hints(kind)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # T is a dataclass by contract
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise ProtocolError(f"{where}: unknown field {unknown[0]!r}; known: {', '.join(sorted(fields))}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], f"{where}: {name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ProtocolError(f"{where}: field {name!r} is missing")
    return cls(**values)


def read_versioned(cls: type[T], text: str, where: str) -> T:
    """Read one of the protocol's files that carry its version.

    Raises:
        ProtocolError: Not JSON, of another version, or a field is wrong.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ProtocolError(f"{where}: not JSON: {error}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != PROTOCOL_VERSION:
        raise ProtocolError(f"{where}: schema_version {version!r}; this side speaks {PROTOCOL_VERSION}")
    return from_json(cls, data, where)


@functools.cache
def _field_names(cls: type) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(cls))


def to_json(value: Any) -> Any:
    """Turn a dataclass (or anything inside one) into plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: to_json(getattr(value, name)) for name in _field_names(type(value))}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    return value


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(typing.get_args(hint), value, where)
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value, where)  # type: ignore[arg-type]  # is_dataclass also admits instances
    if origin in (list, tuple):
        return _convert_sequence(hint, value, where)
    if origin is dict or hint is dict:
        if not isinstance(value, dict):
            raise ProtocolError(f"{where}: expected an object, found {type(value).__name__}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ProtocolError(f"{where}: expected {hint.__name__}, found {type(value).__name__}")
    return value


def _convert_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None:
        if type(None) in options:
            return None
        raise ProtocolError(f"{where}: null is not allowed")
    real = [option for option in options if option is not type(None)]
    if len(real) != 1:
        raise TypeError(f"{where}: the protocol has no unions but with null")
    return _convert(real[0], value, where)


def _convert_sequence(hint: Any, value: Any, where: str) -> Any:
    if not isinstance(value, list):
        raise ProtocolError(f"{where}: expected a list, found {type(value).__name__}")
    (item, *_) = typing.get_args(hint)
    return tuple(_convert(item, entry, f"{where}[{index}]") for index, entry in enumerate(value))
