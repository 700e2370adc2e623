"""What Airflow says of a study, for commands that otherwise need no Airflow; nothing is left behind."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llem_airflow.cli.names import results_root
from llem_airflow.study import Problem, Study, StudyWarning
from llem_airflow.study.plan.findings import not_runnable
from llem_airflow.study.prompts import prompt_problems

_CANNOT_RUN = "cannot-run"


def dag_problems(study: Study) -> tuple[Problem, ...]:
    """What keeps the study from becoming a DAG; where Airflow is installed, also what it refuses."""
    with _airflow("llem_airflow.factory.folder") as folder:
        if folder is not None:
            # Connections of hosts are where the study runs, and need not be known here.
            elsewhere = {"llem_conn_id": study.airflow.hosts[0]} if study.airflow.hosts else {}
            found: tuple[Problem, ...] = folder.dag_problems(study, **elsewhere)
            return found
    return tuple(not_runnable(study))


def with_what_keeps_it(study: Study) -> Study:
    """The study with a notice for each reason why it could not run as it is."""
    # Airflow is asked only for what is not known without it: its import takes seconds.
    known = dag_problems(study) if _runs_by_itself(study) else not_runnable(study)
    told = tuple(
        StudyWarning(
            _CANNOT_RUN, f"cannot run: {one.path}: {one.found}; {one.allowed}".rstrip("; "), one.line
        )
        for one in (*known, *prompt_problems(study))
    )
    return replace(study, plan=replace(study.plan, warnings=(*told, *_results_root(), *study.warnings)))


def next_runs(study: Study) -> list[datetime]:
    """The next three moments at which Airflow runs the study by itself; none where Airflow is not installed."""
    refused = any(notice.code == _CANNOT_RUN for notice in study.warnings)
    if refused or not _runs_by_itself(study):
        return []
    with _airflow("llem_airflow.factory.schedule") as schedule:
        found: list[datetime] = [] if schedule is None else schedule.next_runs(study, datetime.now(UTC))
        return found


def _results_root() -> Iterator[StudyWarning]:
    """A notice where the results root of this environment cannot be written; Airflow may name another one."""
    root = results_root()
    if "://" in root:
        return
    path = Path(root).absolute()
    nearest = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    if not os.path.isdir(nearest) or not os.access(nearest, os.W_OK):  # noqa: PTH112  # Path.is_dir() may raise
        yield StudyWarning(
            "results-root", f"the results root {path} cannot be written here: set LLEM_RESULTS_ROOT"
        )


def _runs_by_itself(study: Study) -> bool:
    return study.airflow.schedule is not None or bool(study.versions)


@contextmanager
def _airflow(name: str) -> Iterator[Any]:
    """A module of ours that needs Airflow, or None without it.

    Airflow writes its configuration into AIRFLOW_HOME when it is imported: where none is set, into a folder that goes.
    """
    if find_spec("airflow") is None:
        yield None
    elif "airflow" in sys.modules or "AIRFLOW_HOME" in os.environ:
        yield import_module(name)
    else:
        with tempfile.TemporaryDirectory(prefix="llem-airflow-") as home:
            os.environ["AIRFLOW_HOME"] = home
            try:
                yield import_module(name)
            finally:
                del os.environ["AIRFLOW_HOME"]
