"""Gates: what decides whether a planned cycle is measured now, later or not at all, and whether its result counts.

Before it starts, a cycle passes precision, canary, rate search, window and breaker, in this order (:func:`check`). A
gate answers with a :class:`Reason` to skip the cycle (noted in the results, shown in the report), with a pause, or with
None to go on. After it was stored, :func:`require_energy` is the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import NoReturn
from zoneinfo import ZoneInfo

from airflow.sdk import Context, Variable
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from llem_airflow.operators import waits
from llem_airflow.operators.evidence import is_scheduled
from llem_airflow.operators.waits import Pause, PauseTrigger, RunTrigger, now_epoch_s
from llem_airflow.protocol.failures import how_to_rerun
from llem_airflow.protocol.typed_json import from_json
from llem_airflow.results import CycleRef, FailureRef, StoredRun, layout
from llem_airflow.study import Experiment, Study
from llem_airflow.study.plan.model import RateSearch
from llem_airflow.study.plan.order import CANARY_CYCLE, canaries
from llem_airflow.study.plan.request import names_in
from llem_airflow.text.wording import counted

QUARANTINE_VARIABLE = "llem_quarantine"
"""The Airflow Variable that holds names or globs of experiments, separated by commas or spaces."""

_LONG_S = 3600.0
_PROBES_TRIES = 2
"""A probe that a killed worker took with it gets another try of its task; nobody waits longer than for two."""

_NOT_THE_STUDY = frozenset({"gpu_unavailable", "cancelled"})
"""Failures that say nothing about the study: somebody else had the GPUs, or ended it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A planned cycle whose task is about to measure it.

    Attributes:
        study: The study of the run.
        run: The run's results.
        experiment: What would be measured.
        cycle: Which repetition, from 1.
        context: The task's context.
        retries: How many further tries a task of the study gets.
    """

    study: Study
    run: StoredRun
    experiment: Experiment
    cycle: int
    context: Context
    retries: int = 0

    @property
    def try_number(self) -> int:
        """Which try of the task this is, from 1."""
        return int(self.context["ti"].try_number)


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a cycle is not measured, or why its result does not count.

    Attributes:
        code: The gate's name, or the code of what is wrong with the result.
        text: The reason in words.
        needed: Whether the cycle still counts as missing.
    """

    code: str
    text: str
    needed: bool = True

    def __str__(self) -> str:
        return f"{'skipped' if self.needed else 'not needed'}: {self.text}"


Gate = Callable[[Candidate], Reason | Pause | None]


def check(candidate: Candidate) -> Pause | None:
    """Let a cycle pass every gate.

    Returns:
        How long it has to wait before it is checked again, and for what; None to go on.

    Raises:
        AirflowSkipException: A gate skips it; the reason is noted in the results.
    """
    for gate in GATES:
        found = gate(candidate)
        if isinstance(found, Reason):
            skip(candidate, found)
        if found is not None:
            return found
    return None


def skip(candidate: Candidate, reason: Reason) -> NoReturn:
    """Note in the results why a cycle has no result, and skip its task.

    Raises:
        AirflowSkipException: The text names the cycle and the reason.
    """
    note(candidate.run, candidate.experiment.id, candidate.cycle, reason)
    raise AirflowSkipException(f"{candidate.experiment.id} cycle {candidate.cycle}: {reason}")


def note(run: StoredRun, experiment_id: str, cycle: int, reason: Reason) -> None:
    """Note in the results why a planned cycle has no result."""
    run.mark_skipped(experiment_id, cycle, str(reason), needed=reason.needed)


def precision(candidate: Candidate) -> Reason | None:
    """No further cycle once the experiment's interval is as narrow as ``precision_target`` asks for."""
    target = candidate.study.execution.precision_target
    if target is None or candidate.cycle <= target.min_cycles:
        return None
    from llem_airflow.analysis.summary import precision_of  # noqa: PLC0415 - SciPy, for the few studies that ask

    found = precision_of(
        candidate.run,
        candidate.experiment.id,
        relative_half_width=target.relative_half_width,
        min_cycles=target.min_cycles,
    )
    return Reason("precision", found.reason, needed=False) if found.met else None


def canary(candidate: Candidate) -> Reason | None:
    """No cycle whose canary has failed for good in this run: it would fail like it.

    Where the canary's task comes before in the DAG, Airflow itself does not let the others start. This holds for a
    chain and for mapped tasks.
    """
    if not candidate.study.execution.canary:
        return None
    first = canaries(candidate.study.experiments)[candidate.experiment.id]
    if (first, CANARY_CYCLE) == (candidate.experiment.id, candidate.cycle):
        return None
    return _canary_failed(candidate.run, first, candidate.retries)


def note_gated(study: Study, run: StoredRun) -> None:
    """Note in the results which planned cycles are not there because of their canary."""
    if not study.execution.canary:
        return
    begun = {(ref.experiment_id, ref.cycle) for ref in run.cycles()}
    begun |= {(ref.experiment_id, ref.cycle) for ref in run.failures()} | set(run.skipped(needed=True))
    canary_of = canaries(study.experiments)
    reasons = {first: _canary_failed(run, first, 0) for first in set(canary_of.values())}
    for each in study.plan.planned_cycles:
        reason = reasons[canary_of[each.experiment_id]]
        if reason and (each.experiment_id, each.cycle) not in begun:
            note(run, each.experiment_id, each.cycle, reason)


def _canary_failed(run: StoredRun, canary_id: str, retries: int) -> Reason | None:
    """The reason, when the canary has no result and no further try; one in quarantine gates nothing."""
    if run.is_committed(canary_id, CANARY_CYCLE):
        return None
    key = (canary_id, CANARY_CYCLE)
    failed = [each for each in run.failures() if (each.experiment_id, each.cycle) == key]
    if not failed or matches(canary_id, quarantine()):
        return None
    last = failed[-1]
    return (
        Reason("canary", f"the canary {canary_id} failed: {last.reason()[1]}")
        if _final(last, retries)
        else None
    )


def _final(last: FailureRef, retries: int) -> bool:
    """Whether no further try of a cycle follows on its last failure."""
    return last.attempt > retries or not last.provenance().get("failure", {}).get("retryable", True)


def rate_search(candidate: Candidate) -> Reason | Pause | None:
    """Of the rates of a search only those that it asks for, by what the run has stored of the others.

    The rate that decides whether this one is asked for is measured before, by the order of the tasks; where they are
    not in order (mapped ones) this waits for its answer.
    """
    plan, own = candidate.run.plan(), candidate.experiment.id
    told = next((one for one in plan.get("searches", ()) if own in one["experiments"]), None)
    if told is None:
        return None
    from llem_airflow.analysis.rate_search import progress, stored_answer  # noqa: PLC0415 - SciPy, for the few that search

    search, cycles = from_json(RateSearch, told, "plan.json: searches"), range(1, int(plan["cycles"]) + 1)
    open_cycles = _open_cycles(candidate)

    def answer(at: int) -> bool | None:
        name = search.experiments[at]
        if any(open_cycles(name, cycle) for cycle in cycles):
            return None
        return stored_answer(candidate.run, name, cycles)

    found, place = progress(len(search.experiments), answer), search.experiments.index(own)
    if found.rules_out(place):
        seen = [
            f"{search.rates_per_s[at]:g}/s {'meets' if at == found.met else 'misses'} the SLO"
            for at in (found.met, found.missed)
            if at is not None
        ]
        return Reason(
            "search",
            f"find_rate does not ask for {search.rates_per_s[place]:g}/s: {', '.join(seen)}",
            needed=False,
        )
    if found.asks is None or found.asks == place or place in found.probes:
        return None
    return _without_answer(candidate, search, found.asks, cycles, open_cycles)


def _without_answer(
    candidate: Candidate,
    search: RateSearch,
    asks: int,
    cycles: range,
    open_cycles: Callable[[str, int], bool],
) -> Reason | Pause:
    """What follows for a rate while the one that decides about it has no answer."""
    run, name = candidate.run, search.experiments[asks]
    rate = f"find_rate at {search.rates_per_s[asks]:g}/s"
    if not any(open_cycles(name, cycle) for cycle in cycles):
        text = f"{rate} has no result, on which this rate depends; {how_to_rerun('its task')}, then this one"
        return Reason("search", text)
    tries = (candidate.retries + 1) * len(cycles)
    limit_s = tries * (candidate.study.airflow.retry_delay_s + (candidate.experiment.wall_clock_s or _LONG_S))
    since_s = (run.last_finished_epoch_ns() or run.started_epoch_ns()) / 1e9
    if since_s + limit_s <= now_epoch_s():
        return Reason("search", f"{rate} has not ended within {limit_s:.0f} s, and this rate depends on it")
    trigger = AnswerTrigger(until_epoch_s=since_s + limit_s, run_url=run.url, seen_before=_stored(run))
    return Pause(f"{rate} decides whether this rate is asked for", since_s + limit_s, trigger)


def _open_cycles(candidate: Candidate) -> Callable[[str, int], bool]:
    """Whether a cycle of the run may still get a result, or another one."""
    run = candidate.run
    done = {(ref.experiment_id, ref.cycle) for ref in run.cycles()}
    done |= set(run.skipped(needed=True)) | set(run.skipped(needed=False))
    last = {(ref.experiment_id, ref.cycle): ref for ref in run.failures()}
    done |= {key for key, ref in last.items() if _final(ref, candidate.retries)}
    return lambda name, cycle: (name, cycle) not in done


def _stored(run: StoredRun) -> int:
    """How much a run has stored of its cycles."""
    return len(run.cycles(repeats=True)) + len(run.failures()) + len(run.skipped(needed=True))


class AnswerTrigger(RunTrigger):
    """Fires when the run has stored more than before, or it has taken too long.

    Args:
        until_epoch_s: When it has taken too long.
        run_url: Folder of the run's results.
        seen_before: How many results, failures and skipped cycles it had.
    """

    names = (*RunTrigger.names, "seen_before")

    def __init__(self, *, until_epoch_s: float, run_url: str, seen_before: int) -> None:
        super().__init__(until_epoch_s=until_epoch_s, run_url=run_url)
        self.seen_before = seen_before

    def look(self, run: StoredRun) -> int:
        """How much it has stored."""
        return _stored(run)

    def is_over(self) -> bool:
        """Whether something came since."""
        return self.seen() != self.seen_before or super().is_over()


def quarantine() -> tuple[str, ...]:
    """Names and globs of the experiments that run and are shown, and cannot fail the run."""
    return names_in(Variable.get(QUARANTINE_VARIABLE, default=""))


def matches(experiment_id: str, patterns: Sequence[str]) -> bool:
    """Whether one of them is this experiment's, with or without the hash at the end of its id."""
    names = (experiment_id, experiment_id.rpartition("-")[0])
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def window(candidate: Candidate, now: datetime | None = None) -> Reason | None:
    """No new cycle of a scheduled run outside the study's time-of-day window.

    What a person asks for (a manual run, a cleared task) is not held back, nor a further try of what has begun.
    """
    airflow = candidate.study.airflow
    if airflow.window is None or not is_scheduled(candidate.context) or candidate.try_number > 1:
        return None
    zone = ZoneInfo(airflow.timezone)
    clock = (now or datetime.now(zone)).astimezone(zone)
    if airflow.window.holds(clock):
        return None
    left = (
        "the next scheduled run goes on with it"
        if airflow.carry_over
        else f"{how_to_rerun('the task')} to measure it all the same"
    )
    return Reason(
        "window", f"it was {clock:%H:%M} and the window is {airflow.window} ({airflow.timezone}); {left}"
    )


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


def breaker(candidate: Candidate) -> Reason | Pause | None:
    """The circuit breaker: after too many failures in a row one cycle is the probe, and the others wait for its end.

    Nothing is counted anywhere: the stored results and failures of the run say how many cycles failed in a row,
    whoever restarts what. What has begun gets its further tries, and what a person clears is measured.
    """
    run, experiment = candidate.run, candidate.experiment
    execution = candidate.study.execution
    most, cooldown_s = execution.max_consecutive_failures, execution.breaker_cooldown_s
    if candidate.try_number > 1 or (state := tripped(run, most, cooldown_s)) is None:
        return None
    category, message = state.last.reason()
    failed = (
        f"{counted(state.cycles, 'cycle')} in a row failed, the last one "
        f"{state.last.experiment_id} cycle {state.last.cycle} [{category}]: {message}"
    )
    if state.probe_failed:
        return Reason(
            "breaker",
            f"{failed}. A probe after a pause of {cooldown_s:g} s failed too. Correct the cause, then clear this task "
            f"(study_execution.max_consecutive_failures: {most}; 0 for any number)",
        )
    cooled_epoch_s = state.epoch_ns / 1e9 + cooldown_s
    since_epoch_s = _probe_of_another(candidate, state)
    if since_epoch_s is None:
        if cooled_epoch_s <= now_epoch_s():
            return None
        text = f"{failed}. This cycle is the probe, after a pause of {cooldown_s:g} s"
        short = cooldown_s <= waits.SETTLE_S
        return Pause(text, cooled_epoch_s, None if short else PauseTrigger(until_epoch_s=cooled_epoch_s))
    limit_s = cooldown_s + _PROBES_TRIES * (experiment.wall_clock_s or _LONG_S)
    if since_epoch_s + limit_s <= now_epoch_s():
        return Reason("breaker", f"{failed}. The probe has not ended within {limit_s:.0f} s")
    trigger = ProbeTrigger(
        until_epoch_s=since_epoch_s + limit_s,
        run_url=run.url,
        most=most,
        cooldown_s=cooldown_s,
        opened_ns=state.epoch_ns,
    )
    text = f"{failed}. Another cycle is the probe; this one waits for its end"
    return Pause(text, since_epoch_s + limit_s, trigger)


def _probe_of_another(candidate: Candidate, state: Tripped) -> float | None:
    """Since when another cycle is the probe; None where this one is: it makes the file, or finds its name in it."""
    folder = candidate.run.folder.child(layout.BREAKER_DIR)
    name, own = f"probe-{state.epoch_ns}", f"{candidate.experiment.id} {candidate.cycle}"
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
        open_still = now is not None and now.epoch_ns == self.opened_ns and not now.probe_failed
        return not open_still or super().is_over()


def _when(record: dict[str, object], what: str) -> int:
    found = record.get(f"{what}_epoch_ns")
    return found if isinstance(found, int) else 0


GATES: tuple[Gate, ...] = (precision, canary, rate_search, window, breaker)


def without_required_energy(experiment: Experiment, ref: CycleRef) -> Reason | None:
    """Why a stored cycle has no energy although its study requires one; None when all is well."""
    if not experiment.config["measurement"].get("require_energy"):
        return None
    from llem_airflow.analysis.cycle import read_cycle  # noqa: PLC0415 - NumPy and Arrow, for those who ask only

    row, reading = read_cycle(ref, position=None, failed_attempts=0)
    if row.measures.get("energy_j") is not None:
        return None
    withheld = reading.energy.withheld if reading else ()
    code = withheld[0].code if withheld else row.status
    return Reason(code, "; ".join(reason.message for reason in withheld) or row.reason)


def require_energy(experiment: Experiment, ref: CycleRef | None) -> None:
    """Fail the task of a cycle that is stored and has no energy although its study requires one.

    Raises:
        AirflowException: Its energy is withheld; another try measures again.
        AirflowFailException: Nothing was asked to measure energy, so that no try would.
    """
    found = without_required_energy(experiment, ref) if ref else None
    if found is None or ref is None:
        return
    text = (
        f"{ref.experiment_id} cycle {ref.cycle}: stored, but its energy is withheld and the study says "
        f"`measurement.require_energy: true`. {found.code}: {found.text}\nEvidence: {ref.folder.url}"
    )
    if found.code == "no_meter":
        raise AirflowFailException(f"{text}\nChoose another `measurement.meter` than `none`.")
    raise AirflowException(text)
