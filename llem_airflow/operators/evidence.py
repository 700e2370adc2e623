"""Where the results of an Airflow run lie, and what is recorded of how they came about.

One that cannot be stored stays on its worker, is named, and a later try stores it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException

from llem_airflow import __version__
from llem_airflow.operators.request import RunRequest, study_of_run
from llem_airflow.operators.settings import installation, settings
from llem_airflow.results import ResultReadError, ResultsRoot, StoredRun
from llem_airflow.results.folder import why_store_fails
from llem_airflow.results.unstored import keep, kept_results
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.ending import CONTAINER_LOG
from llem_airflow.runners.failures import AttemptFailedError, classify
from llem_airflow.runners.output import TAIL_LINES
from llem_airflow.study import Experiment, Study

SCHEDULED = "scheduled"
_RECOVER = (
    "The next try of this task on that host stores it, and so does `llem-airflow results recover` there"
)


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


def store_or_keep(
    run: StoredRun, experiment: str, cycle: int, files: Path, provenance: Mapping[str, Any]
) -> str:
    """Store a result; its URL.

    Raises:
        AirflowException: It cannot be stored. The message says where it is kept, and what to do.
        ResultReadError: There is no valid result.
    """
    try:
        return run.commit_cycle(experiment, cycle, files, provenance)
    except ResultReadError:
        raise
    except Exception as error:
        why, host = why_store_fails(error, run.url), os.uname().nodename
        try:
            folder = keep(run, experiment, cycle, files, provenance, why, settings().unstored)
        except OSError as full:
            raise AirflowException(
                f"{experiment} cycle {cycle} was measured and could not be stored: {why}. Nor could it be kept on "
                f"{host}: {full}. A container stays with its volume until the next try or `llem-airflow gc`"
            ) from error
        raise AirflowException(
            f"{experiment} cycle {cycle} was measured and could not be stored: {why}. Nothing is lost: it is kept on "
            f"{host} in {folder}. {_RECOVER}"
        ) from error


def store_kept(run: StoredRun, experiment: str, cycle: int, *, after_try: int) -> str | None:
    """Store what an earlier try on this worker had to keep; its URL, or None where there is nothing.

    Args:
        run: The run.
        experiment: Its experiment.
        cycle: Which repetition.
        after_try: Tries up to this one do not count: their task was cleared.

    Raises:
        AirflowException: It still cannot be stored, and stays.
    """
    for one in kept_results(settings().unstored):
        if (one.root, one.study, one.run_id, one.experiment, one.cycle) != (
            *(run.root.url, run.study, run.run_id),
            *(experiment, cycle),
        ) or int(one.provenance.get("try_number", 0)) <= after_try:
            continue
        try:
            if url := one.store(ResultsRoot(run.root.url)):
                return url
        except Exception as error:
            raise AirflowException(
                f"{experiment} cycle {cycle} was measured by an earlier try and still cannot be stored: "
                f"{why_store_fails(error, run.url)}. It stays on {os.uname().nodename} in {one.folder}. {_RECOVER}"
            ) from error
    return None
