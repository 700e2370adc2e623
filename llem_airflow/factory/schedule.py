"""When a study runs by itself: its schedule on its own clock, its first date, and when a run of it is late."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from itertools import islice, pairwise, takewhile
from typing import Any
from zoneinfo import ZoneInfo

import pendulum
from airflow.exceptions import AirflowTimetableInvalid
from airflow.sdk import Context, CronTriggerTimetable
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from airflow.timetables.base import TimeRestriction
from airflow.timetables.trigger import CronTriggerTimetable as CronInTheScheduler

from llem_airflow.operators.notify import tell_timed_out
from llem_airflow.study import Problem, Study, StudyFileError
from llem_airflow.timetables.release_dates import releases_of
from llem_airflow.timetables.releases import ModelReleaseTimetable

_NOT_CRON = ("@once", "@continuous")
LATE = "llem_airflow.operators.notify.tell_late"
_YEAR = pendulum.datetime(2027, 1, 1), pendulum.datetime(2028, 1, 2)
"""A schedule is judged by what it does in one year; which one does not matter, and no clock is asked."""
_MOST_LOOKED_AT = 2000
"""More than the minutes of a day: a window is met by then, or never."""


def schedule_of(study: Study) -> Any:
    """What makes the study run: once per model release, a cron expression in its time zone, or nothing.

    Raises:
        StudyFileError: The releases are no partitions, or the schedule never runs the study.
    """
    if study.versions:
        return ModelReleaseTimetable(releases_of(study))
    wanted = study.airflow.schedule
    if wanted is None:
        return None
    if wanted in _NOT_CRON:
        if study.airflow.start_date is None:
            raise StudyFileError(
                [
                    _problem(
                        study,
                        "schedule",
                        f"Airflow runs {wanted} only from a start_date on",
                        "add start_date",
                    )
                ]
            )
        return wanted
    _check(study, wanted)
    return CronTriggerTimetable(wanted, timezone=study.airflow.timezone)


def next_runs(study: Study, after: datetime, count: int = 3) -> list[datetime]:
    """The next moments at which Airflow runs the study by itself, on the study's clock; empty without a schedule.

    Args:
        study: A study whose schedule :func:`schedule_of` accepts.
        after: Usually now.
        count: How many.
    """
    zone = ZoneInfo(study.airflow.timezone)
    start = start_of(study)
    begin = max(after, start) if start is not None else after
    if study.versions:
        runs = ModelReleaseTimetable(releases_of(study)).iter_partition_dagrun_infos(
            earliest=begin, latest=begin + timedelta(days=36500)
        )
        found: Iterator[datetime] = (run.run_after for run in runs)
    elif study.airflow.schedule is None or study.airflow.schedule in _NOT_CRON:
        found = iter([begin] if study.airflow.schedule else [])
    else:
        cron = CronInTheScheduler(study.airflow.schedule, timezone=study.airflow.timezone)
        found = _fires(cron, pendulum.instance(begin))
    return [moment.astimezone(zone) for moment in islice(found, count)]


def start_of(study: Study) -> datetime | None:
    """The first date of the schedule, on the study's clock unless it says otherwise."""
    if study.airflow.start_date is None:
        return None
    moment = datetime.fromisoformat(study.airflow.start_date)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=ZoneInfo(study.airflow.timezone))


def deadline_of(study: Study) -> DeadlineAlert | None:
    """The alert for a run that is not done in time: so long after it was due, or queued where nothing is due."""
    if study.airflow.deadline_s is None:
        return None
    due = study.airflow.schedule is not None
    return DeadlineAlert(
        reference=DeadlineReference.DAGRUN_LOGICAL_DATE if due else DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(seconds=study.airflow.deadline_s),
        # In the triggerer: a run is late just when every slot of the executor is taken.
        callback=AsyncCallback(LATE, kwargs={"study": study.name}),
        name="late",
    )


def timed_out_of(study: Study) -> Callable[[Context], None] | None:
    """What tells somebody that the time limit has ended a run: Airflow then skips the aggregate, which does it else."""
    longest_h = study.execution.wall_clock_timeout_hours
    if longest_h is None or "failure" not in study.airflow.notify_on:
        return None
    return partial(tell_timed_out, study=study.name, longest_h=longest_h)


def _check(study: Study, wanted: str) -> None:
    """Refuse a cron expression that Airflow does not take, that never fires, or that the study's own times defeat."""
    cron = CronInTheScheduler(wanted, timezone=study.airflow.timezone)
    # Airflow checks the expression when it stores the DAG, and one that fails there takes every DAG of its file along.
    try:
        cron.validate()
        fires = _fires(cron, _YEAR[0])
        first = list(islice(fires, 2))
    except (AirflowTimetableInvalid, ValueError) as error:
        never = isinstance(error, ValueError)  # croniter finds no date in 50 years
        found = f"{wanted!r} never comes: there is no such date" if never else str(error)
        raise StudyFileError(
            [_problem(study, "schedule", found, "a cron expression such as 0 2 * * *")]
        ) from error
    airflow = study.airflow
    if airflow.window is None and airflow.deadline_s is None:
        return
    zone = ZoneInfo(airflow.timezone)
    year = [*first, *takewhile(lambda moment: moment < _YEAR[1], islice(fires, _MOST_LOOKED_AT))]
    problems = []
    if airflow.window is not None and not any(airflow.window.holds(one.astimezone(zone)) for one in year):
        first_time = f"{year[0].astimezone(zone):%H:%M}"
        found = (
            f"no run of the schedule {wanted!r} begins in the window {airflow.window}, but at {first_time}"
        )
        problems.append(_problem(study, "window", found, "move the window, or the schedule into it"))
    longest_s = max((late - early).total_seconds() for early, late in pairwise(year))
    if airflow.deadline_s is not None and airflow.deadline_s > longest_s:
        found = f"{airflow.deadline_s:g} s are longer than the {longest_s:g} s from one run to the next"
        problems.append(_problem(study, "deadline", found, "a run has to be done before the next one is due"))
    if problems:
        raise StudyFileError(problems)


def _fires(cron: CronInTheScheduler, after: pendulum.DateTime) -> Iterator[pendulum.DateTime]:
    """When Airflow's scheduler runs it, as the scheduler itself reckons."""
    info = cron.next_dagrun_info(
        last_automated_data_interval=None, restriction=TimeRestriction(after, None, catchup=True)
    )
    while info is not None:
        yield info.run_after
        info = cron.next_dagrun_info(
            last_automated_data_interval=info.data_interval,
            restriction=TimeRestriction(after, None, catchup=True),
        )


def _problem(study: Study, key: str, found: str, allowed: str) -> Problem:
    return study.problem(("airflow", key), found, allowed)
