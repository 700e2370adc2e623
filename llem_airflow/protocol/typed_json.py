"""Strict reading of JSON objects into frozen dataclasses, with the standard library only."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from llem_airflow.protocol import PROTOCOL_VERSION

T = TypeVar("T")
File = TypeVar("File", bound="VersionedFile")

UNLESS_DEFAULT = {"unless_default": True}
"""Metadata of a dataclass's field that ``to_json`` leaves out while it has its default."""


class ProtocolError(ValueError):
    """A file at the boundary is not what the protocol says; the message names the file's field."""


def from_json(cls: type[T], data: object, where: str) -> T:
    """Build the frozen dataclass ``cls`` from a decoded JSON object.

    Args:
        cls: A dataclass whose field types are JSON scalars, lists, dicts or other dataclasses.
        data: What ``json.loads`` returned.
        where: Prefix of error messages, such as the file's name.

    Raises:
        ProtocolError: A field is missing, unknown or of the wrong type.
    """
    kind: type = cls
    try:
        found: T = _reader(kind)(data)
    except _MisfitError as error:
        raise ProtocolError(f"{where}{error.place}: {error.what}") from error
    return found


class VersionedFile:
    """One of the protocol's files that carry its version: a frozen dataclass with a field ``schema_version``."""

    _name: typing.ClassVar[str]

    def dumps(self) -> str:
        """The file's text, JSON."""
        return json.dumps(to_json(self), indent=1, sort_keys=True, allow_nan=False)

    @classmethod
    def loads(cls: type[File], text: str, where: str = "") -> File:
        """Read one.

        Args:
            text: JSON.
            where: Name of the file, for messages; else its usual name.

        Raises:
            ProtocolError: Not JSON, of another version, or a field is wrong.
        """
        where = where or cls._name
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ProtocolError(f"{where}: not JSON: {error}") from error
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != PROTOCOL_VERSION:
            raise ProtocolError(f"{where}: schema_version {version!r}; this side speaks {PROTOCOL_VERSION}")
        return from_json(cls, data, where)


@functools.cache
def _written(cls: type) -> tuple[tuple[str, Any], ...]:
    """Names of the fields, each with the value with which it is left out (``MISSING`` where it never is)."""
    return tuple(
        (f.name, f.default if "unless_default" in f.metadata else dataclasses.MISSING)
        for f in dataclasses.fields(cls)
    )


def to_json(value: Any) -> Any:
    """Turn a dataclass (or anything inside one) into plain JSON values; fields that have names keep them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            name: to_json(each)
            for name, omitted in _written(type(value))
            if (each := getattr(value, name)) != omitted or omitted is dataclasses.MISSING
        }
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    return value


class _MisfitError(Exception):
    """A value is not what its hint says. Its place is put together on the way out, and costs nothing without one."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what, self.place = what, ""

    def inside(self, place: str) -> _MisfitError:
        self.place = place + self.place
        return self


Reader = Callable[[Any], Any]
"""Turns a decoded JSON value into what a hint says."""


@functools.cache
def _reader(hint: Any) -> Reader:
    """How values of a hint are read, worked out once: a summary of 1,000 experiments has a million values."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return lambda value: value
    if origin in (typing.Union, types.UnionType):
        return _union_reader(hint)
    if dataclasses.is_dataclass(hint):
        return _object_reader(hint)
    if origin in (list, tuple):
        return _sequence_reader(hint)
    return _plain_reader(dict if origin is dict else hint)


def _object_reader(cls: Any) -> Reader:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    needed = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    readers = {name: _reader(hints[name]) for name in fields}

    def read(data: Any) -> Any:
        if not isinstance(data, dict):
            raise _MisfitError(f"expected an object, found {type(data).__name__}")
        unknown = data.keys() - fields.keys()
        if unknown:
            raise _MisfitError(f"unknown field {min(unknown)!r}; known: {', '.join(sorted(fields))}")
        for name in needed:
            if name not in data:
                raise _MisfitError(f"field {name!r} is missing")
        values = {}
        name = ""
        try:
            for name, value in data.items():
                values[name] = readers[name](value)
        except _MisfitError as error:
            raise error.inside(f": {name}") from None
        return cls(**values)

    return read


def _union_reader(hint: Any) -> Reader:
    options = typing.get_args(hint)
    real, *more = (option for option in options if option is not type(None))
    nullable = type(None) in options
    if more:
        raise TypeError(f"{hint}: the protocol has no unions but with null")
    inner = _reader(real)

    def read(value: Any) -> Any:
        if value is not None:
            return inner(value)
        if nullable:
            return None
        raise _MisfitError("null is not allowed")

    return read


def _sequence_reader(hint: Any) -> Reader:
    inner = _reader(typing.get_args(hint)[0])

    def read(value: Any) -> Any:
        if not isinstance(value, list):
            raise _MisfitError(f"expected a list, found {type(value).__name__}")
        found: list[Any] = []
        try:
            for entry in value:
                found.append(inner(entry))  # noqa: PERF401 - how many there are is the place of an error
        except _MisfitError as error:
            raise error.inside(f"[{len(found)}]") from None
        return tuple(found)

    return read


def _plain_reader(kind: type) -> Reader:
    said = "an object" if kind is dict else kind.__name__

    def read(value: Any) -> Any:
        if type(value) is kind:
            return value
        if kind is float and type(value) is int:
            return float(value)
        if isinstance(value, kind) and not isinstance(value, bool):
            return value
        raise _MisfitError(f"expected {said}, found {type(value).__name__}")

    return read
