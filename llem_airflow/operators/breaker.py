"""The circuit breaker: a study whose cycles fail one after the other stops using the GPUs.

Nothing is counted anywhere: the stored results and failures of the run say how many cycles failed in a row, whoever
restarts what. After the cooldown exactly one cycle is tried as a probe (the first that creates a file of the run); the
others wait for its end, in the triggerer. When it fails too, the rest is skipped.
"""

from __future__ import annotations

from dataclasses import dataclass

from airflow.sdk import Context

from llem_airflow.operators import gpu_wait
from llem_airflow.operators.gpu_wait import now_epoch_s
from llem_airflow.operators.not_begun import skip_noted
from llem_airflow.operators.waits import Pause, PauseTrigger, RunTrigger
from llem_airflow.results import FailureRef, StoredRun, layout
from llem_airflow.study import Experiment, Study
from llem_airflow.text.wording import counted

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


def pause_when_tripped(
    study: Study, run: StoredRun, experiment: Experiment, cycle: int, context: Context
) -> Pause | None:
    """Skip a cycle of a run whose breaker has tripped, and note why; or say how long it waits, and for what.

    What has begun gets its further tries, and what a person clears is measured.

    Returns:
        The pause before the probe, if this cycle is it; the wait for the probe's end, if another one is; None to go on.

    Raises:
        AirflowSkipException: The text says what failed and how to go on.
    """
    most, cooldown_s = study.execution.max_consecutive_failures, study.execution.breaker_cooldown_s
    if context["ti"].try_number > 1:
        return None
    state = tripped(run, most, cooldown_s)
    if state is None:
        return None
    category, message = state.last.reason()
    failed = (
        f"{counted(state.cycles, 'cycle')} in a row failed, the last one "
        f"{state.last.experiment_id} cycle {state.last.cycle} [{category}]: {message}"
    )
    if state.probe_failed:
        reason = (
            f"not begun: {failed}. A probe after a pause of {cooldown_s:g} s failed too. Correct the cause, then clear "
            f"this task (study_execution.max_consecutive_failures: {most}; 0 for any number)"
        )
        skip_noted(run, experiment, cycle, reason)
    cooled_epoch_s = state.epoch_ns / 1e9 + cooldown_s
    since_epoch_s = _probe_of_another(run, state, experiment, cycle)
    if since_epoch_s is None:
        if cooled_epoch_s <= now_epoch_s():
            return None
        text = f"{failed}. This cycle is the probe, after a pause of {cooldown_s:g} s"
        short = cooldown_s <= gpu_wait.SETTLE_S
        return Pause(text, cooled_epoch_s, None if short else PauseTrigger(until_epoch_s=cooled_epoch_s))
    limit_s = cooldown_s + _PROBES_TRIES * (experiment.wall_clock_s or _LONG_S)
    if since_epoch_s + limit_s <= now_epoch_s():
        skip_noted(
            run, experiment, cycle, f"not begun: {failed}. The probe has not ended within {limit_s:.0f} s"
        )
    trigger = ProbeTrigger(
        until_epoch_s=since_epoch_s + limit_s,
        run_url=run.url,
        most=most,
        cooldown_s=cooldown_s,
        opened_ns=state.epoch_ns,
    )
    text = f"{failed}. Another cycle is the probe; this one waits for its end"
    return Pause(text, since_epoch_s + limit_s, trigger)


def _probe_of_another(run: StoredRun, state: Tripped, experiment: Experiment, cycle: int) -> float | None:
    """Since when another cycle is the probe; None where this one is: it makes the file, or finds its name in it."""
    folder, name, own = (
        run.folder.child(layout.BREAKER_DIR),
        f"probe-{state.epoch_ns}",
        f"{experiment.id} {cycle}",
    )
    now_s = now_epoch_s()
    if folder.create(name, f"{own} {now_s:.0f}".encode()):
        return None
    words = folder.read(name).decode().split()
    if " ".join(words[:2]) == own:
        return None
    return float(words[2]) if len(words) > 2 else now_s


class ProbeTrigger(RunTrigger):
    """Fires when the probe of a run has ended, whatever became of it, or has taken too long.

    Args:
        until_epoch_s: When it has taken too long.
        run_url: Folder of the run's results.
        most: Cycles that may fail in a row.
        cooldown_s: Pause before the probe, in seconds.
        opened_ns: When the last one of the allowed number failed.
    """

    names = (*RunTrigger.names, "most", "cooldown_s", "opened_ns")

    def __init__(
        self, *, until_epoch_s: float, run_url: str, most: int, cooldown_s: float, opened_ns: int
    ) -> None:
        super().__init__(until_epoch_s=until_epoch_s, run_url=run_url)
        self.most, self.cooldown_s, self.opened_ns = most, cooldown_s, opened_ns

    def look(self, run: StoredRun) -> Tripped | None:
        """The state of the breaker."""
        return tripped(run, self.most, self.cooldown_s)

    def is_over(self) -> bool:
        """Whether the breaker has opened or closed anew since, or the time is over."""
        now: Tripped | None = self.seen()
        waits = now is not None and now.epoch_ns == self.opened_ns and not now.probe_failed
        return not waits or super().is_over()


def _when(record: dict[str, object], what: str) -> int:
    found = record.get(f"{what}_epoch_ns")
    return found if isinstance(found, int) else 0
