"""The canary of a group gates the rest: what would fail like it is not begun."""

from __future__ import annotations

from llem_airflow.operators.not_begun import skip_noted
from llem_airflow.operators.quarantine import matches, quarantine
from llem_airflow.results import StoredRun
from llem_airflow.study import Experiment, Study
from llem_airflow.study.plan.order import CANARY_CYCLE, canaries


def skip_after_canary(study: Study, run: StoredRun, experiment: Experiment, cycle: int, retries: int) -> None:
    """Skip a cycle whose canary has failed for good in this run, and note in the results why it is not there.

    Where the canary's task comes before in the DAG, Airflow itself does not let the others start. This holds for a
    chain and for mapped tasks.

    Raises:
        AirflowSkipException: The text names the canary.
    """
    if not study.execution.canary:
        return
    canary = canaries(study.experiments)[experiment.id]
    if (canary, CANARY_CYCLE) == (experiment.id, cycle):
        return
    if reason := _why_gated(run, canary, retries):
        skip_noted(run, experiment, cycle, reason)


def note_gated(study: Study, run: StoredRun) -> None:
    """Note in the results which planned cycles are not there because of their canary."""
    if not study.execution.canary:
        return
    begun = {(ref.experiment_id, ref.cycle) for ref in run.cycles()}
    begun |= {(ref.experiment_id, ref.cycle) for ref in run.failures()} | set(run.not_begun())
    canary_of = canaries(study.experiments)
    reasons = {canary: _why_gated(run, canary, 0) for canary in set(canary_of.values())}
    for each in study.plan.runs:
        reason = reasons[canary_of[each.experiment_id]]
        if reason and (each.experiment_id, each.cycle) not in begun:
            run.mark_not_begun(each.experiment_id, each.cycle, reason)


def _why_gated(run: StoredRun, canary: str, retries: int) -> str | None:
    """The reason, when the canary has no result and no further try; one in quarantine gates nothing."""
    if run.is_committed(canary, CANARY_CYCLE):
        return None
    failed = [each for each in run.failures() if (each.experiment_id, each.cycle) == (canary, CANARY_CYCLE)]
    if not failed or matches(canary, quarantine()):
        return None
    last = failed[-1]
    final = last.attempt > retries or not last.provenance().get("failure", {}).get("retryable", True)
    return f"not begun: the canary {canary} failed: {last.reason()[1]}" if final else None
