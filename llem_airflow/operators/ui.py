"""What Airflow's UI shows of a task beside its log: the buttons to its report or evidence, and what it failed with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode, urlsplit

from airflow.sdk import BaseOperatorLink, Context, conf
from airflow.sdk.exceptions import AirflowException, AirflowSkipException, DownstreamTasksSkipped

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

log = logging.getLogger(__name__)

FAILURE_KEY = "llem_failure"
"""The XCom of a failed task that holds the text."""
_LONGEST = 20_000

R = TypeVar("R")


def keeps_failure(execute: Callable[[Any, Context], R]) -> Callable[[Any, Context], R]:
    """An operator's ``execute`` that keeps what it fails with as an XCom: a log is no place to look for problems."""

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


class ReportLink(BaseOperatorLink):
    """The report of the run, in Airflow's own pages."""

    name = "Energy report"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002 - Airflow's interface
        """Where the report is shown, also where Airflow is served below a path."""
        return _page("run", ti_key)


class EvidenceLink(BaseOperatorLink):
    """What a cycle's task observed, or why it failed."""

    name = "Evidence"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Where the evidence of the cycle is shown."""
        task: Any = operator
        return _page("cycle", ti_key, experiment=task.experiment_id, cycle=task.cycle)


def _page(name: str, ti_key: TaskInstanceKey, **more: object) -> str:
    below = urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")
    return f"{below}/llem/{name}?{urlencode({'dag_id': ti_key.dag_id, 'run_id': ti_key.run_id, **more})}"
