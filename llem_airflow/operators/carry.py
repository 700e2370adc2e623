"""Carry over: a scheduled run goes on with what the one before it did not begin."""

from __future__ import annotations

import tempfile
from pathlib import Path

from airflow.sdk import Context

from llem_airflow.operators.evidence import SCHEDULED, is_scheduled
from llem_airflow.operators.settings import settings
from llem_airflow.results import CycleRef, ResultsRoot, StoredRun, layout
from llem_airflow.study import Study

Cycles = set[tuple[str, int]]


def carry_over(study: Study, run: StoredRun, context: Context) -> Cycles:
    """Take over what the scheduled run before this one measured, when it did not begin all that it planned.

    A run that began everything, whatever became of it, is followed by a fresh one. Only results of the very same
    experiment are taken; their provenance says where they come from.

    Returns:
        Experiment and cycle of each result that needs no measuring.
    """
    if not study.airflow.carry_over or not is_scheduled(context):
        return set()
    before = _before(study, run)
    if before is None or not left_cycles(before):
        return set()
    hashes = {each.id: each.hash for each in study.experiments}
    planned = {(each.experiment_id, each.cycle) for each in study.plan.planned_cycles}
    taken: Cycles = set()
    for ref in before.cycles():
        key = (ref.experiment_id, ref.cycle)
        if key in planned and ref.provenance().get("experiment_hash") == hashes[ref.experiment_id]:
            _take_over(ref, run)
            taken.add(key)
    return taken


def left_cycles(run: StoredRun) -> Cycles:
    """What a run planned and did not begin: outside the window, or it was ended before (time limit, power cut)."""
    from llem_airflow.analysis.plan import planned  # noqa: PLC0415 - for the few studies that carry over

    plan = planned(run.plan())
    begun = {(ref.experiment_id, ref.cycle) for ref in run.cycles()}
    begun |= {(ref.experiment_id, ref.cycle) for ref in run.failures()}
    left = set(plan.cycles) - begun - set(run.skipped(needed=False))
    if plan.precision_target is None:
        return left
    # Cycles above the least number may have been left out because the interval was narrow enough.
    least = int(plan.precision_target["min_cycles"])
    return {key for key in left if key[1] <= least or key in run.skipped(needed=True)}


def _before(study: Study, run: StoredRun) -> StoredRun | None:
    """The newest earlier scheduled run of the same DAG."""
    mine = run.meta()
    earlier = [
        other
        for other in ResultsRoot(settings().results_root).runs(study.name)
        if other.url != run.url
        and other.meta().get("dag_id") == mine.get("dag_id")
        and other.meta().get("run_type") == SCHEDULED
        and other.started_epoch_ns() < run.started_epoch_ns()
    ]
    return earlier[-1] if earlier else None


def _take_over(ref: CycleRef, run: StoredRun) -> None:
    """Store a copy of another run's result; storing it again changes nothing."""
    with tempfile.TemporaryDirectory(prefix="llem-") as folder:
        for name in ref.folder.files():
            if name != layout.PROVENANCE:
                (Path(folder) / name).write_bytes(ref.folder.read(name))
        record = ref.provenance()
        record.setdefault("carried_from", ref.folder.url)
        run.commit_cycle(ref.experiment_id, ref.cycle, Path(folder), record)
