"""Quiet hours: after the study's window no new experiment of a scheduled run starts."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from airflow.sdk import Context

from llem_airflow.operators.not_begun import skip_noted
from llem_airflow.protocol.failures import how_to_rerun
from llem_airflow.results import StoredRun
from llem_airflow.study import Experiment, Study

SCHEDULED = "scheduled"


def is_scheduled(context: Context) -> bool:
    """Whether the schedule started this run, not a person, a backfill or an asset."""
    return run_type(context) == SCHEDULED


def run_type(context: Context) -> str | None:
    """How the run came about, in Airflow's words."""
    found: Any = getattr(context.get("dag_run"), "run_type", None)
    return None if found is None else str(getattr(found, "value", found))


def skip_outside_window(
    study: Study,
    run: StoredRun,
    experiment: Experiment,
    cycle: int,
    context: Context,
    now: datetime | None = None,
) -> None:
    """Skip a cycle that would begin outside the study's window, and note in the results why it is not there.

    What a person asks for (a manual run, a cleared task) is not held back, nor a further try of what has begun.

    Raises:
        AirflowSkipException: The text says what the clock shows and when the window is.
    """
    window = study.airflow.window
    if window is None or not is_scheduled(context) or context["ti"].try_number > 1:
        return
    zone = ZoneInfo(study.airflow.timezone)
    clock = (now or datetime.now(zone)).astimezone(zone)
    if window.holds(clock):
        return
    left = (
        "the next scheduled run goes on with it"
        if study.airflow.carry_over
        else f"{how_to_rerun('the task')} to measure it all the same"
    )
    reason = f"not begun: it was {clock:%H:%M} and the window is {window} ({study.airflow.timezone}); {left}"
    skip_noted(run, experiment, cycle, reason)
