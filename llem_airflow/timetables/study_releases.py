"""The ``versions:`` of a study as a timetable, and its mistakes with their place in the file."""

from __future__ import annotations

from typing import Any

import yaml

from llem_airflow.study import Study, StudyFileError
from llem_airflow.study.mistakes import Mistake
from llem_airflow.timetables.releases import ModelReleaseTimetable, problem_with


def release_timetable(study: Study) -> ModelReleaseTimetable:
    """The timetable of a study with ``versions:``.

    Raises:
        StudyFileError: A release has no date, two have the same, or the study has a schedule too.
    """
    mistakes = []
    releases: dict[str, str] = {}
    if study.airflow.schedule is not None:
        mistakes.append(
            _mistake(
                study,
                ("airflow", "schedule"),
                "a study with `versions` runs once per release",
                "remove the schedule",
            )
        )
    for index, version in enumerate(study.versions):
        where = ("versions", index)
        if version.released is None:
            missing = f"the release {version.name!r} has no date"
            mistakes.append(
                _mistake(study, where, missing, "add `released: 2026-03-01`; a backfill walks over dates")
            )
            continue
        if version.name in releases:
            mistakes.append(
                _mistake(study, where, f"the name {version.name!r} is taken", "name each release once")
            )
            continue
        if problem := problem_with({**releases, version.name: version.released}):
            mistakes.append(_mistake(study, where, problem, ""))
            continue
        releases[version.name] = version.released
    if mistakes:
        raise StudyFileError(mistakes)
    return ModelReleaseTimetable(releases)


def _mistake(study: Study, path: tuple[str | int, ...], found: str, allowed: str) -> Mistake:
    line, column = _place(study.text, path)
    dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    return Mistake(str(study.path or study.name), line, column, dotted, found, allowed)


def _place(text: str, path: tuple[str | int, ...]) -> tuple[int, int]:
    """Line and column of the deepest part of the path that the text has."""
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for part in path:
        if isinstance(node, yaml.MappingNode):
            child = next((value for key, value in node.value if key.value == part), None)
        else:
            child = (
                node.value[part] if isinstance(part, int) and isinstance(node, yaml.SequenceNode) else None
            )
        if child is None:
            break
        node = child
    return node.start_mark.line + 1, node.start_mark.column + 1
