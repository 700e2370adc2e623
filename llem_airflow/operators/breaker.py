"""The circuit breaker: a study whose cycles fail one after the other stops using the GPUs.

Nothing is counted anywhere: the stored results and failures of the run say how many cycles failed in a row, whoever
restarts what. After the cooldown exactly one cycle is tried as a probe (the first that creates a file of the run); the
others wait for its end. When it fails too, the rest is skipped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from airflow.sdk import Context

from llem_airflow.operators.not_begun import skip_noted
from llem_airflow.results import FailureRef, StoredRun, layout
from llem_airflow.study import Experiment, Study

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 10.0
_LONG_S = 3600.0
_PROBES_TRIES = 2
"""A probe that a killed worker took with it gets another try of its task; nobody waits longer than for two."""

_NOT_THE_STUDY = frozenset({"gpu_unavailable", "cancelled"})
"""Failures that say nothing about the study: somebody else had the GPUs, or ended it."""


@dataclass(frozen=True, slots=True)
class Tripped:
    """A run in which too many cycles failed in a row.

    Attributes:
        cycles: How many.
        epoch_ns: When the last one of the allowed number failed.
        last: The failure that came last.
        probe_failed: Whether a cycle that began after the cooldown failed too.
    """

    cycles: int
    epoch_ns: int
    last: FailureRef
    probe_failed: bool


def tripped(run: StoredRun, most: int, cooldown_s: float) -> Tripped | None:
    """The state of the breaker, from what the run has stored; None while it lets everything through.

    Args:
        run: The results so far.
        most: Cycles that may fail in a row; 0 for any number.
        cooldown_s: Pause before the probe, in seconds.
    """
    failures = run.failures() if most else []
    if most == 0 or len({(ref.experiment_id, ref.cycle) for ref in failures}) < most:
        return None
    worked_ns = max((_when(ref.provenance(), "finished") for ref in run.cycles(repeats=True)), default=0)
    timed = [
        (_when(record, "finished"), _when(record, "started"), ref)
        for ref, record in ((ref, ref.provenance()) for ref in failures)
    ]
    in_a_row = sorted(
        (each for each in timed if each[0] > worked_ns and each[2].reason()[0] not in _NOT_THE_STUDY),
        key=lambda each: each[0],
    )
    first_ns: dict[tuple[str, int], int] = {}
    for finished_ns, _, ref in in_a_row:
        first_ns.setdefault((ref.experiment_id, ref.cycle), finished_ns)
    if len(first_ns) < most:
        return None
    opened_ns = sorted(first_ns.values())[most - 1]
    probe_failed = any(started_ns >= opened_ns + cooldown_s * 1e9 for _, started_ns, _ in in_a_row)
    return Tripped(len(first_ns), opened_ns, in_a_row[-1][2], probe_failed)


def skip_when_tripped(
    study: Study,
    run: StoredRun,
    experiment: Experiment,
    cycle: int,
    context: Context,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Skip a cycle of a run whose breaker has tripped, and note why; or let it through as the probe.

    What has begun gets its further tries, and what a person clears is measured.

    Raises:
        AirflowSkipException: The text says what failed and how to go on.
    """
    most, cooldown_s = study.execution.max_consecutive_failures, study.execution.breaker_cooldown_s
    if context["ti"].try_number > 1:
        return
    state = tripped(run, most, cooldown_s)
    if state is None:
        return
    category, message = state.last.reason()
    failed = (
        f"{state.cycles} cycles in a row failed, the last one {state.last.experiment_id} cycle {state.last.cycle} "
        f"[{category}]: {message}"
    )
    if state.probe_failed:
        reason = (
            f"not begun: {failed}. A probe after a pause of {cooldown_s:g} s failed too. Correct the cause, then clear "
            f"this task (study_execution.max_consecutive_failures: {most}; 0 for any number)"
        )
        skip_noted(run, experiment, cycle, reason)
    if run.folder.child(layout.BREAKER_DIR).create(
        f"probe-{state.epoch_ns}", f"{experiment.id} {cycle}".encode()
    ):
        left_s = state.epoch_ns / 1e9 + cooldown_s - time.time_ns() / 1e9
        log.warning("%s. This cycle is the probe, after a pause of %.0f s", failed, max(0.0, left_s))
        if left_s > 0:
            sleep(left_s)
        return
    log.warning("%s. Another cycle is the probe; this one waits for its end", failed)
    limit_s = cooldown_s + _PROBES_TRIES * (experiment.wall_clock_s or _LONG_S)
    for _ in range(int(limit_s / _LOOK_EVERY_S) + 1):
        sleep(_LOOK_EVERY_S)
        now = tripped(run, most, cooldown_s)
        if now is None or now.epoch_ns != state.epoch_ns or now.probe_failed:
            skip_when_tripped(study, run, experiment, cycle, context, sleep)
            return
    skip_noted(run, experiment, cycle, f"not begun: {failed}. The probe has not ended within {limit_s:.0f} s")


def _when(record: dict[str, object], what: str) -> int:
    found = record.get(f"{what}_epoch_ns")
    return found if isinstance(found, int) else 0
