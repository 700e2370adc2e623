"""What becomes of a result that cannot be stored: it stays on its worker, is named, and a later try stores it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow.sdk.exceptions import AirflowException

from llem_airflow.operators.settings import settings
from llem_airflow.results import ResultReadError, ResultsRoot, StoredRun
from llem_airflow.results.folder import why_store_fails
from llem_airflow.results.unstored import keep, kept_results

_RECOVER = (
    "The next try of this task on that host stores it, and so does `llem-airflow results recover` there"
)


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
