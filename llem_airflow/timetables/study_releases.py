"""The ``versions:`` of a study as a timetable, and its mistakes with their place in the file."""

from __future__ import annotations

from llem_airflow.study import Study, StudyFileError
from llem_airflow.timetables.places import mistake_at
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
            mistake_at(
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
                mistake_at(study, where, missing, "add `released: 2026-03-01`; a backfill walks over dates")
            )
            continue
        if version.name in releases:
            mistakes.append(
                mistake_at(study, where, f"the name {version.name!r} is taken", "name each release once")
            )
            continue
        if problem := problem_with({**releases, version.name: version.released}):
            mistakes.append(mistake_at(study, where, problem, ""))
            continue
        releases[version.name] = version.released
    if mistakes:
        raise StudyFileError(mistakes)
    return ModelReleaseTimetable(releases)
