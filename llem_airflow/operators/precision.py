"""Stop repeating an experiment once its interval is as narrow as the study asks for."""

from __future__ import annotations

from airflow.sdk.exceptions import AirflowSkipException

from llem_airflow.results import StoredRun
from llem_airflow.study import Experiment, Study


def skip_when_precise(study: Study, run: StoredRun, experiment: Experiment, cycle: int) -> None:
    """Skip a cycle that the study's precision target makes unnecessary, and record why.

    Raises:
        AirflowSkipException: Enough cycles were measured; the text says how narrow the interval is.
    """
    target = study.execution.precision_target
    if target is None or cycle <= target.min_cycles:
        return
    from llem_airflow.analysis.precision import precision_of  # noqa: PLC0415 - SciPy, for the few studies that ask

    found = precision_of(
        run, experiment.id, relative_half_width=target.relative_half_width, min_cycles=target.min_cycles
    )
    if found.met:
        run.mark_skipped(experiment.id, cycle, f"not needed: {found.reason}")
        raise AirflowSkipException(f"{experiment.id} cycle {cycle} is not needed: {found.reason}")
