"""Tell somebody, by any Airflow notifier, once per run: section ``[llem]`` names it by its import path.

A task tells what became of its run; Airflow itself tells that a run is late, or that its time limit has ended it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import datetime
from importlib import import_module
from typing import Any, cast

from airflow.sdk import DAG, BaseNotifier, Context, conf

log = logging.getLogger(__name__)


class NotifierSettingsError(ValueError):
    """The options ``notifier`` and ``notifier_args`` of section ``[llem]`` do not make a notifier."""


def notifier() -> BaseNotifier | None:
    """The notifier of this installation, or None when none is named.

    Raises:
        NotifierSettingsError: The text says which option is wrong and why.
    """
    path = conf.get("llem", "notifier", fallback=None)
    if not path:
        return None
    text = conf.get("llem", "notifier_args", fallback=None) or "{}"
    try:
        args = json.loads(text)
    except ValueError as error:
        raise NotifierSettingsError(f"[llem] notifier_args is no JSON object: {error}") from error
    if not isinstance(args, dict):
        raise NotifierSettingsError("[llem] notifier_args must be a JSON object of the notifier's arguments")
    module, _, name = path.rpartition(".")
    try:
        made = getattr(import_module(module), name)(**args)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise NotifierSettingsError(f"[llem] notifier = {path} with {sorted(args)}: {error}") from error
    if not isinstance(made, BaseNotifier):
        raise NotifierSettingsError(
            f"[llem] notifier = {path} is no Airflow notifier (a subclass of BaseNotifier)"
        )
    return made


def tell(context: Context, what: str, text: str) -> None:
    """Send a message about this run; the notifier's templates find it as ``llem_event`` and ``llem_message``.

    A notifier that does not work is logged and fails nothing: the result is what matters.
    """
    try:
        made = notifier()
        if made is None:
            log.info("no notifier is set ([llem] notifier): %s", what)
            return
        fields: dict[str, Any] = {"llem_event": what, "llem_message": text}
        made({**context, **fields})
    except Exception:  # a notifier is somebody else's code, and may fail in any way
        log.exception("the notifier failed; the message was:\n%s", text)


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
