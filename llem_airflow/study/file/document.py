"""A study file as it stands: every value checked where it is written, nothing expanded yet."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from llem_airflow.study.config.base import Config, keys_of, merged, model_of, overlap, takes_null
from llem_airflow.study.config.experiment import Experiment
from llem_airflow.study.config.study import OF_STUDY, StudyKeys
from llem_airflow.study.file.check import WRONG, Report, check, check_value, unknown, without_nulls
from llem_airflow.study.file.yaml import Source, read_text
from llem_airflow.study.names import ENGINE_ALIASES
from llem_airflow.study.problems import KeyPath, Problem, StudyFileError, StudyWarning, closest, show


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

    def refuse(self, path: KeyPath, found: str, allowed: str, problems: Iterable[Problem] = ()) -> NoReturn:
        """Say that the study cannot be planned, at one of its keys, beside other problems."""
        raise StudyFileError([*problems, self.source.problem(path, found, allowed, of_key=True)])

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
    _check_duplicate_aliases(source, report)
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
    for name, content in value.items():
        key, where = ENGINE_ALIASES.get(name, name), (*path, name)
        if key == "engine" and isinstance(content, list) and not path:
            if not content:
                report(where, "the list of engines is empty", "name at least one engine")
            engines = engine_names(content, where, report)
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


def engine_names(values: list[Any], path: KeyPath, report: Report) -> list[str]:
    """The engines of a list, each once."""
    names = [
        check_value(Experiment, "engine", item, (*path, index), report) for index, item in enumerate(values)
    ]
    return [name for name in dict.fromkeys(names) if name is not WRONG]


def _check_duplicate_aliases(source: Source, report: Report) -> None:
    """``pytorch:`` and ``transformers:`` in one mapping are the same key twice."""
    for path in ((), ("runners",), ("images",)):
        value: Any = source.value
        for key in path:
            value = value.get(key)
        for name in value if isinstance(value, dict) else ():
            current = ENGINE_ALIASES.get(name)
            if current is not None and current in value:
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
