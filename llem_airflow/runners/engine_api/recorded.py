"""An engine's recorded API: does a call fit it, and does an image still have it?

This file and the records beside it are copied into the image's container and run there: the standard library only, and
Python 3.10-clean.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORDS: dict[str, tuple[str, ...]] = {"vllm": ("0.33", "0.32"), "tensorrt": ("1.2",)}
"""Versions of which there is a record, by engine, newest first."""

_KINDS = {
    "positional_only": inspect.Parameter.POSITIONAL_ONLY,
    "positional_or_keyword": inspect.Parameter.POSITIONAL_OR_KEYWORD,
    "var_positional": inspect.Parameter.VAR_POSITIONAL,
    "keyword_only": inspect.Parameter.KEYWORD_ONLY,
    "var_keyword": inspect.Parameter.VAR_KEYWORD,
}


@dataclass(frozen=True)
class RecordedClass:
    """What is recorded of one class.

    Attributes:
        name: Its import path.
        methods: Signatures by method name, without ``self``.
        fields: Names that its constructor takes by keyword; empty when ``methods`` has ``__init__``.
        keywords: What may come through the ``**kwargs`` of ``__init__``; empty means anything.
        attributes: Further names that are read from instances.
    """

    name: str
    methods: dict[str, inspect.Signature]
    fields: tuple[str, ...]
    keywords: frozenset[str]
    attributes: tuple[str, ...]

    def check_call(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Fail as the real class would when a call does not fit.

        Raises:
            TypeError: The recorded method takes no such arguments, or there is no such method.
        """
        if method == "__init__" and self.fields:
            self._check_names(set(kwargs), set(self.fields))
            return
        if method not in self.methods:
            raise TypeError(f"{self.name} has no method {method!r} in the record")
        signature = self.methods[method]
        signature.bind(*args, **kwargs)
        if method == "__init__" and self.keywords:
            named = {name for name, one in signature.parameters.items() if one.kind is not one.VAR_KEYWORD}
            self._check_names(set(kwargs) - named, set(self.keywords))

    def _check_names(self, used: set[str], allowed: set[str]) -> None:
        unknown = sorted(used - allowed)
        if unknown:
            raise TypeError(f"{self.name}.__init__() got an unexpected keyword argument {unknown[0]!r}")


@dataclass(frozen=True)
class Record:
    """An engine's recorded API.

    Attributes:
        library: Module to import.
        version: Version that was recorded.
        source: Where the record comes from.
        executed: What of it was ever run.
        classes: By import path.
        server: Of its inference server: the command, its flags, those of them without an off form, and the fields of a
            completion request; empty where nothing is recorded.
    """

    library: str
    version: str
    source: str
    executed: str
    classes: dict[str, RecordedClass]
    server: dict[str, Any]


def load_record(engine: str, version: str | None = None) -> Record:
    """The record of an engine.

    Args:
        engine: One of RECORDS.
        version: Version of the library, such as ``0.32.0+cpu``; the newest record where there is none of it.
    """
    minor = next((one for one in RECORDS[engine] if f"{version}.".startswith(f"{one}.")), RECORDS[engine][0])
    data = json.loads(Path(__file__).with_name(f"{engine}-{minor}.json").read_text(encoding="utf-8"))
    classes = {name: _recorded_class(name, entry) for name, entry in data["classes"].items()}
    return Record(
        data["library"], data["version"], data["source"], data["executed"], classes, data.get("server", {})
    )


def _recorded_class(name: str, entry: dict[str, Any]) -> RecordedClass:
    return RecordedClass(
        name=name,
        methods={method: _signature(parameters) for method, parameters in entry.get("methods", {}).items()},
        fields=tuple(entry.get("fields", ())),
        keywords=frozenset(entry.get("keywords", ())),
        attributes=tuple(entry.get("attributes", ())),
    )


def _signature(parameters: list[dict[str, Any]]) -> inspect.Signature:
    made = []
    for one in parameters:
        kind = _KINDS[one["kind"]]
        optional = (
            kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL) or one["required"]
        )
        made.append(
            inspect.Parameter(one["name"], kind, default=inspect.Parameter.empty if optional else None)
        )
    return inspect.Signature(made)


def drift(record: Record) -> list[str]:
    """How the library in this image differs from its record, in sentences; empty when every call still fits.

    Only what is missing counts: new optional arguments break nothing.

    Raises:
        ModuleNotFoundError: The library is not in this image.
    """
    importlib.import_module(record.library)
    found: list[str] = []
    for name, recorded in record.classes.items():
        module, _, cls = name.rpartition(".")
        try:
            real = getattr(importlib.import_module(module), cls)
        except (ModuleNotFoundError, AttributeError) as error:
            found.append(f"{name}: gone ({error})")
            continue
        found += _class_drift(recorded, real)
    return found


def _class_drift(recorded: RecordedClass, real: Any) -> list[str]:
    found = [
        f"{recorded.name}: takes no {name!r} any more"
        for name in recorded.fields
        if name not in _fields(real)
    ]
    found += [
        f"{recorded.name}: has no {name!r} any more"
        for name in recorded.attributes
        if not _has_attribute(real, name)
    ]
    for method, signature in recorded.methods.items():
        if not hasattr(real, method):
            found.append(f"{recorded.name}.{method}: gone")
            continue
        found += _signature_drift(
            f"{recorded.name}.{method}", signature, inspect.signature(getattr(real, method))
        )
    return found


def _signature_drift(where: str, recorded: inspect.Signature, real: inspect.Signature) -> list[str]:
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in real.parameters.values())
    found = [
        f"{where}: takes no {name!r} any more"
        for name, one in recorded.parameters.items()
        if one.kind not in variable and name not in real.parameters and not takes_any
    ]
    return found + [
        f"{where}: now requires {name!r}"
        for name, one in real.parameters.items()
        if one.default is one.empty
        and one.kind not in variable
        and name not in (*recorded.parameters, "self")
    ]


def _has_attribute(cls: Any, name: str) -> bool:
    # What a constructor sets on ``self`` is in no table of the class: there is only its source.
    annotated = any(name in vars(one).get("__annotations__", ()) for one in cls.__mro__)
    if annotated or hasattr(cls, name):
        return True
    with contextlib.suppress(OSError, TypeError):
        return f"self.{name}" in inspect.getsource(cls)
    return False


def _fields(cls: Any) -> set[str]:
    # pydantic, msgspec and dataclasses each keep their fields elsewhere.
    for attribute in ("model_fields", "__struct_fields__"):
        if getattr(cls, attribute, None):
            return set(getattr(cls, attribute))
    if dataclasses.is_dataclass(cls):
        return {field.name for field in dataclasses.fields(cls)}
    return set(inspect.signature(cls).parameters)


def engine_check(engine: str) -> int:
    """Compare the library in this image with its record, for people.

    Args:
        engine: The engine's name.

    Returns:
        0 when every recorded call still fits, 1 when not, 2 without a record or a library.
    """
    if engine not in RECORDS:
        print(f"engine-check: there is a record of {' and '.join(RECORDS)}, not of {engine!r}")
        return 2
    record = load_record(engine)
    try:
        version = str(getattr(importlib.import_module(record.library), "__version__", "of unknown version"))
        record = load_record(engine, version)
        found = drift(record)
    except ModuleNotFoundError as error:
        print(f"engine-check: {error.name} is not in this image")
        return 2
    print(f"{record.library} {version} here; recorded: {record.version}, {record.source}")
    print(f"run so far: {record.executed}")
    for line in found:
        print(f"  {line}")
    print(f"{len(found)} difference{'s' * (len(found) != 1)}" if found else "every recorded call still fits")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(engine_check(sys.argv[1]))
