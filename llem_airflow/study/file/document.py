"""A study file as it stands: every value checked where it is written, nothing expanded yet.

What pydantic says of a value is told in the file's own words.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from llem_airflow.study.config.base import (
    FRAGMENT,
    Config,
    Section,
    every_key,
    keys_of,
    merged,
    model_of,
    overlap,
    takes_null,
    without,
)
from llem_airflow.study.config.engines import key_of_engines
from llem_airflow.study.config.experiment import Experiment
from llem_airflow.study.config.schema import value_schema
from llem_airflow.study.config.study import OF_STUDY, StudyKeys
from llem_airflow.study.config.types import finite
from llem_airflow.study.file.yaml import Source, read_text
from llem_airflow.study.names import ENGINE_ALIASES
from llem_airflow.study.problems import KeyPath, Problem, StudyFileError, StudyWarning, closest, show

Report = Callable[..., None]
"""``report(path, found, allowed, suggestion=None, of_key=False)`` notes one problem."""
Stage = Literal["whole", "part", "rest"]
Of = TypeVar("Of", bound=Section)
_KINDS = {"integer": "whole number", "number": "number", "string": "text", "object": "mapping"}
WRONG: Any = object()
"""Stands for a value that was reported."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much a study may ask of the process that reads it.

    Attributes:
        points: Points of its sweep.
        cycles: Planned cycles: they are held in memory, in every process that reads the study.
        reads_base: Whether the file that ``base`` names is read.
    """

    points: int = 200_000
    cycles: int = 1_000_000
    reads_base: bool = True


FILE_BOUNDS = Bounds()
"""Of a study file, which somebody put where DAGs come from."""


@dataclass(slots=True)
class Document:
    """What a study file says.

    Attributes:
        source: The file, with the places of its values.
        base: Its base file, likewise, or None.
        fixed: Keys of the experiment that hold for the whole study, as written there and in the base, without defaults.
        engines: The engines that the file names, or None when it names none.
        keys: The study-level keys.
        entries: Written-out experiments, without defaults.
        warnings: What the user should know.
        bounds: How much it may ask for.
    """

    source: Source
    base: Source | None = None
    fixed: Config = field(default_factory=dict)
    engines: list[str] | None = None
    keys: StudyKeys = field(default_factory=StudyKeys)
    entries: list[Config] = field(default_factory=list)
    warnings: list[StudyWarning] = field(default_factory=list)
    bounds: Bounds = FILE_BOUNDS

    @property
    def default_engine(self) -> str:
        """The engine of an experiment that names none."""
        return (self.engines or ["transformers"])[0]

    def reporter(self, problems: set[Problem], origin: KeyPath = (), places: Iterable[Any] = ()) -> Report:
        """A function that notes problems of an experiment at the place that wrote the value.

        Args:
            problems: Takes them.
            origin: Where the experiment is written out, or () for the top of the file.
            places: ``(path, value, place)`` of keys that the sweep sets.
        """

        def report(path: KeyPath, *said: Any, of_key: bool = False) -> None:
            for key, _, place in places:
                if overlap(path, key):
                    problems.add(self.source.problem((*place, *path[len(key) :]), *said, of_key=of_key))
                    return
            if self.base is not None and not self.source.has((*origin, *path)) and self.base.has(path):
                problems.add(self.base.problem(path, *said, of_key=of_key))
                return
            written = (*origin, *path) if self.source.has((*origin, *path[:1])) else path
            problems.add(self.source.problem(written, *said, of_key=of_key))

        return report


def read_document(
    source: Source, folder: Path | None, problems: set[Problem], bounds: Bounds = FILE_BOUNDS
) -> Document:
    """Check a whole file but for its sweep; what is wrong with it and with its base goes to ``problems``."""
    document = Document(source, bounds=bounds)
    report = document.reporter(problems)
    for key in ("runners", "images"):
        _check_names(source.value.get(key), (key,), report)
    study = {name: value for name, value in source.value.items() if name in keys_of(StudyKeys)}
    document.keys = check(StudyKeys, without_nulls(StudyKeys, study), (), report) or StudyKeys()
    _check_versions(document.keys, report)
    own, document.engines = _read_experiment(source.value, (), report)
    if isinstance(name := study.get("base"), str) and name.strip():
        _inherit(document, name, folder, own, problems)
    document.fixed = merged(document.fixed, own)
    document.entries = _entries(source.value.get("experiments"), report)
    return document


def _read_experiment(value: Config, path: KeyPath, report: Report) -> tuple[Config, list[str] | None]:
    """The keys of an experiment as written, checked one by one, and the engines that it names.

    The top of a file may list several engines, and has keys of the whole study, which are not looked at here.
    """
    found: Config = {}
    engines: list[str] | None = None
    _check_names(value, path, report)
    for name, content in value.items():
        key, where = ENGINE_ALIASES.get(name, name), (*path, name)
        if key == "engine" and isinstance(content, list) and not path:
            if not content:
                report(where, "the list of engines is empty", "name at least one engine")
            engines = engine_names(enumerate(content), where, report)
        elif key in keys_of(Experiment):
            checked = _checked(key, content, where, report)
            if checked is not WRONG:
                found[key] = checked
        elif key not in OF_STUDY:
            unknown(Experiment, name, path, report, also=() if path else OF_STUDY)
        elif path:
            said = f"{name!r} belongs to the whole study"
            report(where, said, "write it at the top level of the file", of_key=True)
    if "engine" in found:
        engines = [found["engine"]]
    return found, engines


def _checked(key: str, content: Any, where: KeyPath, report: Report) -> Any:
    section = model_of(keys_of(Experiment)[key])
    if content is None and (section is not None or not takes_null(keys_of(Experiment)[key])):
        return WRONG
    if section is None:
        return check_value(Experiment, key, content, where, report)
    content = without_nulls(section, content)
    check(section, content, where, report, stage="part")
    return content if isinstance(content, dict) else WRONG


def engine_names(values: Iterable[tuple[int, Any]], path: KeyPath, report: Report) -> list[str]:
    """The engines of a list, each once; its items come with their places in it."""
    names = [check_value(Experiment, "engine", item, (*path, index), report) for index, item in values]
    return [name for name in dict.fromkeys(names) if name is not WRONG]


def _check_names(value: Any, path: KeyPath, report: Report) -> None:
    """``pytorch:`` and ``transformers:`` in one mapping are the same key twice."""
    names = [key for key, content in value.items() if content is not None] if isinstance(value, dict) else []
    for name in names:
        if (current := ENGINE_ALIASES.get(name)) in names:
            said = f"is an older name of {current!r}, which is there as well"
            report((*path, name), said, "keep one of them", of_key=True)


def _check_versions(keys: StudyKeys, report: Report) -> None:
    """Releases have names of their own, and a regression is told against the previous run or one of them."""
    names = [version.name for version in keys.versions]
    for index, name in enumerate(names):
        if name in names[:index]:
            report(("versions", index, "name"), f"{name!r} is there twice", "give each its own")
    baseline = "previous" if keys.airflow.regression is None else keys.airflow.regression.baseline
    known = list(dict.fromkeys(["previous", *names]))
    if baseline not in known:
        path = ("airflow", "regression", "baseline")
        report(path, f"found {show(baseline)}", f"allowed: {', '.join(known)}", closest(baseline, known))


def _inherit(document: Document, name: str, folder: Path | None, own: Config, problems: set[Problem]) -> None:
    """Take the experiment keys of the base file; its study-level keys are ignored."""
    source = document.source
    if not document.bounds.reads_base:
        advice = "write its keys into this file: no other file is read here"
        problems.add(source.problem(("base",), f"found {show(name)}", advice))
        return
    path = Path(os.path.expanduser(name))  # noqa: PTH111  # Path.expanduser() raises for an unknown ~name
    if not path.is_absolute() and folder is None:
        advice = "a study that is not a file needs an absolute path"
        problems.add(source.problem(("base",), f"found {show(name)}", advice))
        return
    path = path if folder is None else folder / path
    if not os.path.exists(path):  # noqa: PTH110  # Path.exists() raises on a name that is too long or in a closed folder
        found = f"the base file {name!r} does not exist"[:200]
        problems.add(source.problem(("base",), found, "paths are relative to the study file"))
        return
    try:
        document.base = base = Source(str(path), read_text(path, str(path)))
        problems.update(base.problems)
    except StudyFileError as error:
        problems.update(error.problems)
        return
    document.fixed, engines = _read_experiment(base.value, (), Document(base).reporter(problems))
    document.engines = engines if document.engines is None else document.engines
    for key, section in document.fixed.items():
        mine = own.get(key)
        # llenergymeasure replaces whole sections of the base; here they merge, which is said when it matters.
        kept = sorted({*section} - {*mine}) if isinstance(section, dict) and isinstance(mine, dict) else []
        if kept:
            message = f"{', '.join(f'{key}.{each}' for each in kept)} come from the base file {name!r}"
            document.warnings.append(StudyWarning("inherited", message, source.place((key,))[0]))


def _entries(value: Any, report: Report) -> list[Config]:
    if value is None:
        return []
    if not isinstance(value, list):
        allowed = "allowed: a list of mappings, one for each experiment"
        report(("experiments",), f"found {show(value)}", allowed)
        return []
    entries = []
    for index, entry in enumerate(value):
        path: KeyPath = ("experiments", index)
        if isinstance(entry, dict):
            entries.append(_read_experiment(entry, path, report)[0])
        else:
            report(path, f"found {show(entry)}", "allowed: a mapping with the keys of an experiment")
    return entries


def check(
    model: type[Of],
    value: Any,
    path: KeyPath,
    report: Report,
    *,
    stage: Stage = "whole",
    swept: Collection[KeyPath] = (),
    wrong: Iterable[KeyPath] = (),
) -> Of | None:
    """The value as the model; every problem goes to ``report``, also those of keys beside a wrong one.

    In the stage ``part`` this is a part of an experiment, of which nothing is missing yet and nothing contradicts;
    in ``rest`` the parts were reported, and only what contradicts is new. Of keys that contradict each other one
    that a sweep sets (``swept``) is told; nothing contradicts a key that is known to be ``wrong``.
    """
    told: set[KeyPath] = set(wrong)
    while True:
        try:
            return model.model_validate(value, context=FRAGMENT if stage == "part" else None)
        except ValidationError as error:
            found = [_Wrong(model, each) for each in error.errors(include_url=False)]
        for each in found:
            known = stage == "rest" and each.kind != "contradiction"
            if each.place not in told and not known and not (stage == "part" and each.kind == "missing"):
                each.tell(path, report, swept=swept, told=told, absent=stage != "rest")
            told.add(each.place)
        rest = value
        for each in found:
            rest = without(rest, each.keys)
        if rest == value or not isinstance(rest, dict):
            return None
        value = rest


@cache
def _adapter(model: type[Section], key: str) -> TypeAdapter[Any]:
    field = keys_of(model)[key]
    kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))


def check_value(model: type[Section], key: str, value: Any, path: KeyPath, report: Report) -> Any:
    """One value of a key in canonical form, or WRONG."""
    try:
        return _adapter(model, key).validate_python(value)
    except ValidationError as error:
        wrong = [
            _Wrong(model, each | {"loc": (key, *each["loc"])}) for each in error.errors(include_url=False)
        ]
    for each in {each.place: each for each in reversed(wrong)}.values():
        each.tell(path, report, below=1)
    return WRONG


def check_free(value: Any, path: KeyPath, report: Report) -> Any:
    """A value that passes through to an engine, or WRONG."""
    try:
        return finite(value)
    except PydanticCustomError as error:
        said = error.context or {}
        report((*path, *said["path"]), said["found"], said["allowed"])
        return WRONG


class _Wrong:
    """One error of pydantic.

    Attributes:
        kind: Its type.
        place: The key's path below the model, without what pydantic adds for unions.
        keys: Likewise, of a list that has something wrong the whole list.
    """

    def __init__(self, model: type[Section], error: Any) -> None:
        self.kind, self.value, self.said = error["type"], error["input"], error.get("ctx", {})
        place: list[str | int] = []
        self.owner: type[Section] = model
        inner: type[Section] | None = model
        for part in error["loc"]:
            if isinstance(part, str):
                if inner is None:
                    break
                self.owner, inner = inner, model_of(keys_of(inner).get(part))
            place.append(part)
        self.place: KeyPath = tuple(place)
        index = next((at for at, part in enumerate(place) if isinstance(part, int)), None)
        self.keys = tuple(map(str, place[:index]))
        self.model = inner

    def tell(
        self,
        path: KeyPath,
        report: Report,
        *,
        below: int = 0,
        swept: Collection[KeyPath] = (),
        told: Collection[KeyPath] = (),
        absent: bool = True,
    ) -> None:
        """Report it at its place below ``path``, which has so many of its keys; no contradiction to a wrong key.

        One of keys that are all absent is told only where nothing else was: that they are missing is known then.
        """
        where = (*path, *self.place[below:])
        if self.kind == "refused":
            said = (self.said[name] for name in ("found", "allowed", "suggestion"))
            report((*where, *self.said["path"]), *said)
        elif self.kind == "contradiction":
            for keys, found, advice in self.said["problems"]:
                if any((*self.place, key) in told for key in keys):
                    continue
                written = [(*where, key) for key in keys if key in self.value]
                if not written and not absent:
                    continue
                report(next((key for key in written if key in swept), (*written, where)[0]), found, advice)
        elif self.kind == "extra_forbidden":
            unknown(self.owner, str(self.place[-1]), where[:-1], report)
        elif self.kind == "missing":
            report(where[:-1], f"the key {self.place[-1]!r} is missing", f"add `{self.place[-1]}: ...`")
        elif self.model is not None:
            keys = ", ".join(keys_of(self.model))
            words = "a list of mappings" if self.kind == "list_type" else f"a mapping with the keys {keys}"
            report(where, f"found {show(self.value)}", f"allowed: {words}"[:300])
        else:
            self._tell_value(where, report)

    def _tell_value(self, where: KeyPath, report: Report) -> None:
        key = next(str(part) for part in reversed(self.place) if isinstance(part, str))
        schema = value_schema(self.owner, key)
        if isinstance(self.place[-1], int):
            schema = schema.get("items", {})
        choices = [name for name in schema.get("enum", ()) if name is not None]
        meant = closest(self.value, choices) if isinstance(self.value, str) and choices else None
        report(
            where,
            f"found {show(self.value)}",
            f"allowed: {allowed(schema)}{_hint(schema, self.value)}",
            meant,
        )


def allowed(schema: Mapping[str, Any]) -> str:
    """What may be written for a value, in words."""
    null = ", or null" if isinstance(schema.get("type"), list) and "null" in schema["type"] else ""
    if "enum" in schema:
        return f"{', '.join(name for name in schema['enum'] if name not in {None, *ENGINE_ALIASES})}{null}"
    return f"{_kind(schema)}{null}"


def _kind(schema: Mapping[str, Any]) -> str:
    kinds = schema.get("type", "any")
    names = [kind for kind in ([kinds] if isinstance(kinds, str) else kinds) if kind != "null"]
    return " or ".join(_word(kind, schema) for kind in names)


def _word(kind: str, schema: Mapping[str, Any]) -> str:
    if kind == "array":
        items = schema.get("items", {})
        inner = ", ".join(items["enum"]) if "enum" in items else f"{_KINDS.get(items.get('type'), 'value')}s"
        return f"a list of {inner}{' that is not empty' if schema.get('minItems') else ''}"
    if kind == "boolean":
        return "true or false"
    if kind not in _KINDS:
        return "any value"
    return f"{'' if kind == 'string' else 'a '}{_KINDS[kind]}{_bounds(schema)}"


def _bounds(schema: Mapping[str, Any]) -> str:
    if schema.get("minLength"):
        return " that is not empty"
    bounds = [schema.get(word) for word in ("minimum", "exclusiveMinimum", "maximum")]
    least, above, most = [None if bound is None else f"{bound:.12g}" for bound in bounds]
    if least and most:
        return f" from {least} to {most}"
    if above:
        return f" above {above}" + (f", at most {most}" if most else "")
    return f", {least} or more" if least else ""


def _hint(schema: Mapping[str, Any], value: Any) -> str:
    kinds = schema.get("type", [])
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    if "enum" in schema:
        return ""
    if "string" in kinds and isinstance(value, (int, float)):
        return " (put it in quotes)"
    if kinds & {"integer", "number", "boolean"} and isinstance(value, str) and value.strip():
        text = value.strip()
        if text.replace(".", "", 1).lstrip("-").isdigit() or text.lower() in {"true", "false"}:
            return " (without quotes)"
    return ""


def unknown(
    model: type[Section], name: str, path: KeyPath, report: Report, *, also: Iterable[str] | None = None
) -> None:
    """Report a key that the section at ``path`` does not have: where it is now, or which was probably meant.

    ``also`` are keys that may be there beside those of a whole experiment; None for a section of one.
    """
    found, where = f"unknown key {name!r}"[:120], (*path, name)
    if moved := model.moved_to(name):
        found = f"{name!r} is not a key here" if also is None else found
        report(where, found, moved, of_key=True)
        return
    known = [*(also or ()), *keys_of(model)]
    meant = closest(name, known)
    words = "no such key" if meant else f"allowed keys: {', '.join(known)}"
    if meant is None and also is not None:
        meant = full_key(name, Experiment, *([StudyKeys] if also else ()))
        words = "it has another place" if meant else key_of_engines(name) or words
    report(where, found, words[:400], meant, of_key=True)


def full_key(name: str, *models: type[Section]) -> str | None:
    """The full dotted key of a bare name, when some section of the models has it."""
    found = (path for model in models for path, _, _ in every_key(model) if path[-1] == name)
    return next((key for path in found if path[1:] and "[" not in (key := ".".join(path))), None)


def without_nulls(model: type[Section], value: Any) -> Any:
    """The mapping without keys whose null means that they are left out; unknown keys stay, to be reported."""
    if isinstance(value, list):
        return [without_nulls(model, row) for row in value]
    if not isinstance(value, dict):
        return value
    fields, found = keys_of(model), {}
    for key, child in value.items():
        field = fields.get(key)
        if child is None and field is not None and not takes_null(field):
            continue
        inner = model_of(field)
        found[key] = child if inner is None else without_nulls(inner, child)
    return found
