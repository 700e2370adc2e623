"""A planned cycle that is not begun: skipped in Airflow, and the reason stands in the results."""

from __future__ import annotations

from typing import NoReturn

from airflow.sdk.exceptions import AirflowSkipException

from llem_airflow.results import StoredRun
from llem_airflow.study import Experiment


def skip_noted(run: StoredRun, experiment: Experiment, cycle: int, reason: str) -> NoReturn:
    """Note in the results why a cycle is not there, and skip its task.

    Raises:
        AirflowSkipException: The text names the cycle and the reason.
    """
    run.mark_not_begun(experiment.id, cycle, reason)
    raise AirflowSkipException(f"{experiment.id} cycle {cycle}: {reason}")
