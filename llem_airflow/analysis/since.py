"""What changed since the run before: the part of a report that looks back."""

from __future__ import annotations

from dataclasses import dataclass

from llem_airflow.analysis.baseline import previous_run
from llem_airflow.analysis.comparing import PairReport, compare_runs, unmatched
from llem_airflow.results import ResultReadError, StoredRun


@dataclass(frozen=True)
class Since:
    """A run against the one before.

    Attributes:
        run_id: Id of the run before.
        started_epoch_ns: When it began.
        reports: Each experiment that both have.
        new: Experiments that the run before does not have.
        gone: Experiments that only the run before has.
        problem: Why nothing could be compared, or empty.
    """

    run_id: str
    started_epoch_ns: int
    reports: tuple[PairReport, ...] = ()
    new: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    problem: str = ""


def since_previous(run: StoredRun) -> Since | None:
    """An aggregated run against the newest aggregated one before it of the same study and release, if there is one."""
    before = previous_run(run)
    if before is None:
        return None
    try:
        reports = compare_runs(before, run)
        gone, new = unmatched(before, run)
    except (ResultReadError, ValueError) as error:
        return Since(before.run_id, before.started_epoch_ns(), problem=str(error))
    return Since(before.run_id, before.started_epoch_ns(), tuple(reports), tuple(new), tuple(gone))
