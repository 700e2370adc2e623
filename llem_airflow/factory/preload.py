"""What the tasks of a study import, imported once by the scheduler and by the DAG processor.

The LocalExecutor forks its workers from the scheduler, and each task from a worker; the DAG processor forks a process
for each look at a file. What the parent has imported is there for all of them, the rest is imported anew each time.
Its memory is shared until somebody writes to it.
"""

from __future__ import annotations

import multiprocessing
import sys
from importlib import import_module

from airflow.listeners import hookimpl
from airflow.sdk import conf

FOR_TASKS = (
    "airflow.sdk.execution_time.supervisor",
    "airflow.sdk.execution_time.task_runner",
    "airflow.dag_processing.dagbag",
    "llem_airflow.factory.folder",
    "llem_airflow.study.load",
)
"""Nothing that starts threads when it is imported, as NumPy does: they do not survive a fork."""


@hookimpl
def on_starting(component: object) -> None:  # noqa: ARG001 - Airflow's signature
    """Import them, in a process that forks; Airflow tells of its start before that of the executor.

    A process that it has forked has them already.
    """
    if _looks_at_files() or _forks_tasks():
        for name in FOR_TASKS:
            import_module(name)
        # The first asset makes Airflow import what its providers know of URIs; Amazon's brings boto3.
        import_module("llem_airflow.factory.releases").study_asset("preloaded")


def _looks_at_files() -> bool:
    return "airflow.cli.commands.dag_processor_command" in sys.modules


def _forks_tasks() -> bool:
    return (
        "airflow.cli.commands.scheduler_command" in sys.modules
        and "LocalExecutor" in (conf.get("core", "executor", fallback="") or "")
        and multiprocessing.get_start_method() == "fork"
    )
