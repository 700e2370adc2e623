"""What changed since the run before: the part of a report that looks back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llem_airflow.analysis.baseline import previous_run
from llem_airflow.analysis.comparing import COMPARED, PairReport, compare_runs, unmatched
from llem_airflow.analysis.history import Trend
from llem_airflow.analysis.progress import history_until
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
        history: The history of each experiment of this run by its id; its verdict is the one that counts.
    """

    run_id: str
    started_epoch_ns: int
    reports: tuple[PairReport, ...] = ()
    new: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    problem: str = ""
    history: Mapping[str, Trend] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "run_id": self.run_id,
            "started_epoch_ns": self.started_epoch_ns,
            "problem": self.problem,
            "comparisons": [report.to_json() for report in self.reports],
            "new": list(self.new),
            "gone": list(self.gone),
            "history": {
                name: {
                    "verdict": str(one.verdict),
                    "state": one.state,
                    "runs": len(one.points),
                    "changes": [
                        {"run": each.run_id, "ratio": each.ratio, "p": each.p} for each in one.changes
                    ],
                    "note": one.note,
                }
                for name, one in self.history.items()
            },
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
    history: dict[str, Trend] = {}
    for metric in COMPARED[:2]:  # the second where there is no energy
        history = history or history_until(run, metric)
    return Since(
        before.run_id, before.started_epoch_ns(), tuple(reports), tuple(new), tuple(gone), history=history
    )
