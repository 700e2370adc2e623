"""The ``versions:`` of a study as dates that a backfill can walk over; no Airflow is needed for that."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import pendulum
from pendulum import DateTime

from llem_airflow.study import Study, StudyFileError

LONGEST_KEY = 250
"""Airflow's database holds partition keys of this many characters."""


def releases_of(study: Study) -> dict[str, str]:
    """ISO date of each release of a study by its name, oldest first.

    Raises:
        StudyFileError: A release has no date, two have the same, or the study has a schedule too.
    """
    problems = []
    releases: dict[str, str] = {}
    if study.airflow.schedule is not None:
        problems.append(
            study.problem(
                ("airflow", "schedule"),
                "a study with `versions` runs once per release",
                "remove the schedule",
            )
        )
    for index, version in enumerate(study.versions):
        where = ("versions", index)
        if version.released is None:
            missing = f"the release {version.name!r} has no date"
            problems.append(
                study.problem(where, missing, "add `released: 2026-03-01`; a backfill walks over dates")
            )
            continue
        if version.name in releases:
            problems.append(
                study.problem(where, f"the name {version.name!r} is taken", "name each release once")
            )
            continue
        if problem := problem_with({**releases, version.name: version.released}):
            problems.append(study.problem(where, problem, ""))
            continue
        releases[version.name] = version.released
    if problems:
        raise StudyFileError(problems)
    return dict(sorted(releases.items(), key=lambda item: release_date(item[1])))


def problem_with(releases: Mapping[str, str]) -> str | None:
    """Why these releases cannot be partitions, or None."""
    if not releases:
        return "there is no model release"
    names: dict[DateTime, str] = {}
    for name, text in releases.items():
        if not name.strip() or len(name) > LONGEST_KEY:
            return f"the name {name[:60]!r} is no partition key; use 1 to {LONGEST_KEY} characters"
        date = release_date(text)
        if date in names:
            return (
                f"{names[date]!r} and {name!r} are both released at {text}; a backfill tells releases apart by their "
                "dates, so give each its own (a time of day is enough: 2026-03-01T12:00)"
            )
        names[date] = name
    return None


def release_date(text: str) -> DateTime:
    """The ISO date as a moment, in UTC unless it says otherwise."""
    moment = datetime.fromisoformat(text)
    return (
        pendulum.instance(moment, tz="UTC")
        if moment.tzinfo is None
        else pendulum.instance(moment).in_timezone("UTC")
    )
