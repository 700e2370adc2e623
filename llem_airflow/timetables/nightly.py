"""When a study runs by itself: its schedule on its own clock, its first date, and when a run of it is late."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from airflow.exceptions import AirflowTimetableInvalid
from airflow.sdk import CronTriggerTimetable
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from airflow.timetables.trigger import CronTriggerTimetable as CronInTheScheduler

from llem_airflow.study import Study, StudyFileError
from llem_airflow.timetables.places import mistake_at
from llem_airflow.timetables.release_dates import releases_of
from llem_airflow.timetables.releases import ModelReleaseTimetable

_NOT_CRON = ("@once", "@continuous")
LATE = "llem_airflow.operators.late.tell_late"


def schedule_of(study: Study) -> Any:
    """What makes the study run: once per model release, a cron expression in its time zone, or nothing.

    Raises:
        StudyFileError: The releases are no partitions, or the cron expression names no time.
    """
    if study.versions:
        return ModelReleaseTimetable(releases_of(study))
    wanted = study.airflow.schedule
    if wanted is None or wanted in _NOT_CRON:
        return wanted
    # Airflow checks the expression when it stores the DAG, and one that fails there takes every DAG of its file along.
    try:
        CronInTheScheduler(wanted, timezone=study.airflow.timezone).validate()
    except AirflowTimetableInvalid as error:
        raise StudyFileError(
            [mistake_at(study, ("airflow", "schedule"), str(error), "a cron expression such as 0 2 * * *")]
        ) from error
    return CronTriggerTimetable(wanted, timezone=study.airflow.timezone)


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
