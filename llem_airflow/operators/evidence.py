"""Where the results of an Airflow run lie, and what is recorded of how they came about."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.sdk import Context

from llem_airflow import __version__
from llem_airflow.operators.installation import installation
from llem_airflow.operators.request import RunRequest, study_of_run
from llem_airflow.operators.settings import settings
from llem_airflow.results import ResultsRoot, StoredRun
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.ending import CONTAINER_LOG
from llem_airflow.runners.failures import AttemptFailedError, classify
from llem_airflow.runners.output import TAIL_LINES
from llem_airflow.study import Experiment, Study

SCHEDULED = "scheduled"


def is_scheduled(context: Context) -> bool:
    """Whether the schedule started this run, not a person, a backfill or an asset."""
    return run_type(context) == SCHEDULED


def run_type(context: Context) -> str | None:
    """How the run came about, in Airflow's words."""
    found: Any = getattr(context.get("dag_run"), "run_type", None)
    return None if found is None else str(getattr(found, "value", found))


def run_of(study: Study, context: Context) -> StoredRun:
    """The results folder of the DAG run; whoever is its first opens it."""
    run = ResultsRoot(settings().results_root).run(study.name, context["ti"].run_id)
    if run.meta().get("run_id") == run.run_id:
        return run  # the plan of a large study is not worked out and compared for each of its cycles
    return open_run(study_of_run(study, context), context)


def open_run(study: Study, context: Context) -> StoredRun:
    """The results folder of the DAG run, with the study and its plan written into it."""
    ti = context["ti"]
    run = ResultsRoot(settings().results_root).run(study.name, ti.run_id)
    facts: dict[str, Any] = {"dag_id": ti.dag_id, "run_id": ti.run_id, "study": study.name}
    if how := run_type(context):
        facts["run_type"] = how
    if started := getattr(context.get("dag_run"), "start_date", None):
        facts["started_epoch_ns"] = int(started.timestamp() * 1e9)
    if version := RunRequest.of(context).version:
        facts["version"] = version
    if note := getattr(context.get("dag_run"), "note", None):
        facts["note"] = note
    plan = study.plan.to_json()
    if target := study.execution.precision_target:
        plan["precision_target"] = {
            "relative_half_width": target.relative_half_width,
            "min_cycles": target.min_cycles,
        }
    plan["stated"] = study.output.stated()
    run.write_plan(study.text, plan, facts)
    return run


def attempt_of(context: Context, experiment: Experiment, cycle: int) -> Attempt:
    """The attempt that this try of the task is."""
    ti = context["ti"]
    return Attempt(
        dag_id=ti.dag_id,
        run_id=ti.run_id,
        task_id=ti.task_id,
        map_index=ti.map_index if ti.map_index is not None else -1,
        experiment_id=experiment.id,
        experiment_hash=experiment.hash,
        cycle=cycle,
        try_number=ti.try_number,
        installation=installation(),
    )


def cut_short(error: BaseException, folder: Path) -> AttemptFailedError:
    """The failure of an attempt that Airflow's limit or a late word of the engine ended.

    Args:
        error: What was raised.
        folder: What has been collected so far.
    """
    found = classify(None, "", error=error)
    log = folder / CONTAINER_LOG
    tail = tuple(log.read_text("utf-8", "replace").splitlines()[-TAIL_LINES:]) if log.is_file() else ()
    said = str(error).strip() or type(error).__name__
    if found.category == "timeout_wall_clock":
        said = f"the task ran longer than its execution_timeout ({said})"
    return AttemptFailedError(found, said, folder=folder, log_tail=tail)


def provenance(attempt: Attempt, runner: str, started_epoch_ns: int) -> dict[str, Any]:
    """How a result (or a failure) came about: who ran it, by what, when."""
    return {
        "llem_airflow_version": __version__,
        "dag_id": attempt.dag_id,
        "run_id": attempt.run_id,
        "task_id": attempt.task_id,
        "map_index": attempt.map_index,
        "try_number": attempt.try_number,
        "experiment": attempt.experiment_id,
        "experiment_hash": attempt.experiment_hash,
        "cycle": attempt.cycle,
        "runner": runner,
        "started_epoch_ns": started_epoch_ns,
        "finished_epoch_ns": time.time_ns(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
