"""What a task of a run fails with, kept where the pages find it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException, AirflowSkipException, DownstreamTasksSkipped

log = logging.getLogger(__name__)

FAILURE_KEY = "llem_failure"
"""The XCom of a failed task that holds the text."""
_LONGEST = 20_000

R = TypeVar("R")


def keeps_failure(execute: Callable[[Any, Context], R]) -> Callable[[Any, Context], R]:
    """An operator's ``execute`` that keeps what it fails with as an XCom: a log is no place to look for mistakes."""

    @wraps(execute)
    def kept(self: Any, context: Context) -> R:
        try:
            return execute(self, context)
        except (AirflowSkipException, DownstreamTasksSkipped):
            raise
        except Exception as error:
            keep_failure(context, error)
            raise

    return kept


def keep_failure(context: Context, error: Exception) -> None:
    """Keep the text of an error that a task is about to raise; whatever happens meanwhile, that one is raised."""
    told = str(error) if isinstance(error, AirflowException) else f"{type(error).__name__}: {error}"
    try:
        context["ti"].xcom_push(key=FAILURE_KEY, value=told[:_LONGEST])
    except Exception as other:  # noqa: BLE001 - a page without the text must not hide the error itself
        log.warning("The Energy tab will not show why this failed: %s", other)
