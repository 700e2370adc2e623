"""Tell somebody that a run is late, or that its time limit has ended it."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any, cast

from airflow.sdk import DAG, Context

from llem_airflow.operators.notify import tell


async def tell_late(*, study: str, context: dict[str, Any]) -> str:
    """What Airflow's triggerer calls when the deadline of a run has passed.

    Args:
        study: Name of the study.
        context: The run (``dag_run``) and its deadline, as Airflow gives them.

    Returns:
        What was told, or why nobody was.
    """
    run, deadline = context["dag_run"], context["deadline"]["deadline_time"]
    ended = run.get("end_date")
    # Airflow drops the deadline of a run that succeeds in time, and keeps that of one that fails in time.
    if ended is not None and _moment(ended) <= _moment(deadline):
        return f"{run['dag_run_id']} had ended in time ({run['state']})"
    text = (
        f"{study} is late: its run {run['dag_run_id']} was to be done by {deadline} and is {run['state']}. "
        f"It goes on. Look at what it waits for: DAG {run['dag_id']}, tasks that are queued, running or deferred. "
        "`airflow.deadline` of the study sets the time."
    )
    # The names that a notifier's templates know from the messages that a task sends.
    named = {**context, "dag": DAG(run["dag_id"]), "run_id": run["dag_run_id"]}
    # A notifier blocks, and the triggerer's loop serves everybody.
    await asyncio.to_thread(tell, cast("Context", named), "late", text)
    return text


def tell_timed_out(context: Context, *, study: str, longest_h: float) -> None:
    """What Airflow's DAG processor calls when a run has failed; other failures are told by the aggregate's task.

    Args:
        context: The run, and the reason why it failed.
        study: Name of the study.
        longest_h: Its time limit, in hours.
    """
    if context.get("reason") != "timed_out":
        return
    text = (
        f"{study}: its run {context['run_id']} was ended after {longest_h:g} h "
        "(study_execution.wall_clock_timeout_hours), and what it had not begun is skipped. Clear the task `aggregate` "
        "for the summary of what was measured"
    )
    tell(context, "failure", text)


def _moment(value: str | datetime) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)
