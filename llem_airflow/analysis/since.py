"""What changed since the run before: the part of a report that looks back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llem_airflow.analysis.baseline import previous_run
from llem_airflow.analysis.comparing import PairReport, compare_runs, unmatched
from llem_airflow.analysis.run_rows import RunRows
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

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "run_id": self.run_id,
            "started_epoch_ns": self.started_epoch_ns,
            "problem": self.problem,
            "comparisons": [report.to_json() for report in self.reports],
            "new": list(self.new),
            "gone": list(self.gone),
        }


def since_previous(run: StoredRun) -> Since | None:
    """An aggregated run against the newest aggregated one before it of the same study and release, if there is one."""
    before = previous_run(run)
    if before is None:
        return None
    try:
        ours, theirs = RunRows.of(before), RunRows.of(run)
        reports = compare_runs(ours, theirs)
        gone, new = unmatched(ours, theirs)
    except (ResultReadError, ValueError) as error:
        return Since(before.run_id, before.started_epoch_ns(), problem=str(error))
    return Since(before.run_id, before.started_epoch_ns(), tuple(reports), tuple(new), tuple(gone))
