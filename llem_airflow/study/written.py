"""A study file as written: every value checked where it stands, nothing expanded yet."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llem_airflow.study.engine_names import ENGINE_ALIASES
from llem_airflow.study.fields import Report, Section, check, unknown
from llem_airflow.study.keys import EXPERIMENT
from llem_airflow.study.mistakes import Mistake, Notice, StudyFileError, closest, show
from llem_airflow.study.mistakes import Path as KeyPath
from llem_airflow.study.settle import merged
from llem_airflow.study.study_keys import STUDY_ONLY, SWEEP_KEYS, TOP_KEYS
from llem_airflow.study.sweep import Sweep, parse_sweep
from llem_airflow.study.yaml_text import Source, read_text


@dataclass(slots=True)
class Written:
    """What a study file says.

    Attributes:
        source: The file, with the places of its values.
        fixed: Keys of the experiment that hold for the whole study, without defaults.
        engines: The engines that the file names, or None when it names none.
        sections: Study-level sections by key, without defaults.
        sweep: The sweep.
        entries: Written-out experiments, without defaults.
        notices: What the user should know.
    """

    source: Source
    fixed: dict[str, Any] = field(default_factory=dict)
    engines: list[str] | None = None
    sections: dict[str, Any] = field(default_factory=dict)
    sweep: Sweep = field(default_factory=Sweep)
    entries: list[dict[str, Any]] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)


def read_written(source: Source, folder: Path | None) -> Written:
    """Check a whole file.

    Raises:
        StudyFileError: With every mistake of the file and of its base.
    """
    mistakes: list[Mistake] = []
    report = reporter(source, mistakes)
    written = Written(source)
    fixed = _top(source.value, written, report)
    _check_duplicate_aliases(source, report)
    own, engines = check_experiment(fixed, (), report, engine_list=True)
    below: dict[str, Any] = {}
    base = written.sections.get("base")
    if isinstance(base, str):
        below, base_engines = _base(base, folder, source, mistakes)
        engines = engines if engines is not None else base_engines
        _tell_inherited(written, below, own, base)
    written.fixed, written.engines = merged(below, own), engines
    _check_baseline(written.sections, report)
    written.sweep = parse_sweep(source.value.get("sweep"), report)
    written.entries = _entries(source.value.get("experiments"), report)
    if mistakes:
        raise StudyFileError(mistakes)
    return written


def reporter(source: Source, mistakes: list[Mistake]) -> Report:
    """A function that notes mistakes of one file with their places."""

    def report(
        path: KeyPath, found: str, allowed: str, suggestion: str | None = None, *, of_key: bool = False
    ) -> None:
        mistakes.append(source.mistake(path, found, allowed, suggestion, of_key=of_key))

    return report


def _top(value: dict[str, Any], written: Written, report: Report) -> dict[str, Any]:
    """Sort the keys of the file: study-level ones are checked, experiment keys returned, others reported."""
    fixed = {}
    for name, content in value.items():
        if name in STUDY_ONLY.keys:
            checked = check(STUDY_ONLY.keys[name], content, (name,), report)
            if content is not None or not isinstance(STUDY_ONLY.keys[name], Section):
                written.sections[name] = checked
        elif name in EXPERIMENT.keys or name in ENGINE_ALIASES:
            fixed[name] = content
        elif name in EXPERIMENT.moved:
            report((name,), f"unknown key {name!r}", EXPERIMENT.moved[name], of_key=True)
        elif name not in SWEEP_KEYS:
            meant = closest(name, TOP_KEYS)
            allowed = "no such key" if meant else f"allowed keys: {', '.join(TOP_KEYS)}"
            report((name,), f"unknown key {name!r}"[:120], allowed, meant, of_key=True)
    return fixed


def check_experiment(
    value: dict[str, Any], path: KeyPath, report: Report, *, engine_list: bool = False
) -> tuple[dict[str, Any], list[str] | None]:
    """Check keys of an experiment; the engine's name is returned apart, as a list."""
    result: dict[str, Any] = {}
    engines: list[str] | None = None
    for name, content in value.items():
        key = ENGINE_ALIASES.get(name, name)
        if key == "engine" and isinstance(content, list) and engine_list:
            engines = _engine_list(content, (*path, name), report)
            continue
        what = EXPERIMENT.keys.get(key)
        if what is None:
            _not_of_experiment(name, path, report)
            continue
        result[key] = check(what, content, (*path, name), report)
    if "engine" in result:
        engines = [result["engine"]]
    return result, engines


def _not_of_experiment(name: str, path: KeyPath, report: Report) -> None:
    if name in STUDY_ONLY.keys or name in SWEEP_KEYS:
        report(
            (*path, name),
            f"{name!r} belongs to the whole study",
            "write it at the top level of the file",
            of_key=True,
        )
    elif name in EXPERIMENT.moved:
        report((*path, name), f"unknown key {name!r}", EXPERIMENT.moved[name], of_key=True)
    else:
        unknown(EXPERIMENT, name, path, report)


def _engine_list(content: list[Any], path: KeyPath, report: Report) -> list[str]:
    if not content:
        report(path, "the list of engines is empty", "name at least one engine")
    leaf = EXPERIMENT.keys["engine"]
    names = [check(leaf, item, (*path, index), report) for index, item in enumerate(content)]
    return list(dict.fromkeys(names))


def _check_duplicate_aliases(source: Source, report: Report) -> None:
    """``pytorch:`` and ``transformers:`` in one mapping are the same key twice."""
    for path in ((), ("runners",), ("images",)):
        value: Any = source.value
        for key in path:
            value = value.get(key)
        if not isinstance(value, dict):
            continue
        for name in value:
            current = ENGINE_ALIASES.get(name)
            if current is not None and current in value:
                report(
                    (*path, name),
                    f"is an older name of {current!r}, which is there as well",
                    "keep one of them",
                    of_key=True,
                )


def _check_baseline(sections: dict[str, Any], report: Report) -> None:
    """A regression is told against the previous run or against a release that the study has."""
    regression = (sections.get("airflow") or {}).get("regression") or {}
    baseline = regression.get("baseline", "previous")
    known = ["previous", *(row["name"] for row in sections.get("versions") or () if row.get("name"))]
    if baseline not in known:
        path = ("airflow", "regression", "baseline")
        report(path, f"found {show(baseline)}", f"allowed: {', '.join(known)}", closest(str(baseline), known))


def _base(
    name: str, folder: Path | None, source: Source, mistakes: list[Mistake]
) -> tuple[dict[str, Any], list[str] | None]:
    """The experiment keys of the base file; its study-level keys are ignored."""
    path = Path(os.path.expanduser(name))  # noqa: PTH111  # Path.expanduser() raises for an unknown ~name
    if not path.is_absolute():
        if folder is None:
            mistakes.append(
                source.mistake(
                    ("base",), f"found {show(name)}", "a study that is not a file needs an absolute path"
                )
            )
            return {}, None
        path = folder / path
    if not os.path.exists(path):  # noqa: PTH110  # Path.exists() raises on a name that is too long or in a closed folder
        found, allowed = (
            f"the base file {name!r} does not exist"[:200],
            "paths are relative to the study file",
        )
        mistakes.append(source.mistake(("base",), found, allowed))
        return {}, None
    try:
        below = Source(str(path), read_text(path, str(path)))
    except StudyFileError as error:
        mistakes.extend(error.mistakes)
        return {}, None
    own = {
        key: value
        for key, value in below.value.items()
        if key not in STUDY_ONLY.keys and key not in SWEEP_KEYS
    }
    return check_experiment(own, (), reporter(below, mistakes), engine_list=True)


def _tell_inherited(written: Written, below: dict[str, Any], own: dict[str, Any], base: str) -> None:
    """Llenergymeasure replaces whole sections of the base; here they merge, which is said when it matters."""
    for key, section in below.items():
        mine = own.get(key)
        if isinstance(section, dict) and isinstance(mine, dict):
            kept = sorted(set(section) - set(mine))
            if kept:
                message = f"{', '.join(f'{key}.{name}' for name in kept)} come from the base file {base!r}"
                written.notices.append(Notice("inherited", message, written.source.place((key,))[0]))


def _entries(value: Any, report: Report) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list):
        report(
            ("experiments",), f"found {show(value)}", "allowed: a list of mappings, one for each experiment"
        )
        return []
    entries = []
    for index, entry in enumerate(value):
        path: KeyPath = ("experiments", index)
        if not isinstance(entry, dict):
            report(path, f"found {show(entry)}", "allowed: a mapping with the keys of an experiment")
            continue
        checked, _ = check_experiment(entry, path, report)
        entries.append(checked)
    return entries
