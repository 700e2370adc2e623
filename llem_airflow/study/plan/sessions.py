"""Which cycles share a living container, and what becomes of the order and the pauses.

A session is all that loads alike (engine, image, model, revision, engine arguments, GPUs) in one pass: cycle 1 of each
experiment, or cycle 2, and so on. No two cycles of one experiment share a session, so that an interval over the cycles
of an experiment is one over sessions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llem_airflow.protocol.engine_keys import load_arguments
from llem_airflow.study.config.study import Execution
from llem_airflow.study.plan.identity import canonical_json, digest, word
from llem_airflow.study.plan.model import Experiment, Plan, Study
from llem_airflow.study.plan.order import Run
from llem_airflow.study.problems import KeyPath, StudyWarning
from llem_airflow.text.wording import counted

_SERVERS_THAT_LIVE_ON = {"vllm"}
"""Engines whose server says when it is at rest, and forgets what it has cached when it is asked to."""
PASSES = "interleave"
"""The order that sessions have, as far as pauses go: they follow one another pass by pass."""
_ISOLATION: KeyPath = ("study_execution", "isolation")
_DIGITS, _MOST_MODEL = 6, 30
_PASS = "-c"  # noqa: S105  # not a password: what stands before the number of the pass in a session's id


def load_groups(experiments: Sequence[Experiment]) -> list[str]:
    """Of each experiment the name of what it loads; experiments that load alike have the same one."""
    return [
        f"{each.engine}-{word(each.model.rstrip('/').rsplit('/', 1)[-1])[:_MOST_MODEL].strip('-_')}-"
        f"{digest(_load(each))[:_DIGITS]}"
        for each in experiments
    ]


def _load(experiment: Experiment) -> str:
    gpus = experiment.gpus
    return canonical_json(
        [
            experiment.engine,
            experiment.image,
            experiment.model,
            load_arguments(experiment.engine, experiment.config),
            [gpus.count, gpus.kind, gpus.ids, gpus.memory_gb, gpus.exclusive],
        ]
    )


def session_id(groups: Sequence[str], run: Run) -> str:
    """The session of a cycle.

    Args:
        groups: Of ``load_groups``.
        run: The cycle.
    """
    index, cycle = run
    return f"{groups[index]}{_PASS}{cycle}"


def load_of(session: str) -> str:
    """The name of what a session loads, which its id begins with: the same one in every pass.

    Args:
        session: Of ``session_id``.
    """
    return session.rpartition(_PASS)[0]


def by_session(runs: Sequence[Run], groups: Sequence[str]) -> list[Run]:
    """The cycles session by session: sessions by their first cycle, within one in the order that was asked for."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(session_id(groups, run), []).append(run)
    return [run for session in found.values() for run in session]


def not_in_sessions(study: Study) -> Iterator[tuple[KeyPath, str, str]]:
    """Why a study cannot be measured in sessions: the key, what was found, what to do."""
    execution = study.execution
    if not execution.in_sessions:
        return
    found = f"found {execution.isolation!r}"
    back = "or write `isolation: container`"
    if processes := sorted({each.engine for each in study.experiments if each.runner == "process"}):
        said = (
            f"{found}: a session is a living container, and `runners` says process for {', '.join(processes)}"
        )
        yield _ISOLATION, said, f"write container there, {back}"
    if execution.engine_lives_on and (serving := sorted(_serving(study) - _SERVERS_THAT_LIVE_ON)):
        said = (
            f"{found}: the server of {', '.join(serving)} cannot be made ready for a second experiment, and "
            "serving_mode is server"
        )
        yield _ISOLATION, said, "write `isolation: process`, which saves the container starts, " + back
    if study.plan.searches:
        said = f"{found}: find_rate asks for a rate when all cycles of another are there, and a session has one of each"
        yield _ISOLATION, said, f"write the rates as a sweep, {back}"
    idle_s = execution.session.idle_seconds
    longest_s = max(
        (run.gap_before_s for each in study.plan.sessions for run in each.cycles[1:]), default=0.0
    )
    if longest_s >= idle_s:
        said = f"a session ends itself after {idle_s:g} s without a cycle, and pauses in it are {longest_s:g} s long"
        yield ("study_execution", "session", "idle_seconds"), said, "raise it, or shorten the pauses"


def _serving(study: Study) -> set[str]:
    """Engines that serve."""
    return {one.engine for one in study.experiments if one.config.get("serving_mode") == "server"}


def session_warnings(
    execution: Execution, plan: Plan, *, order_kept: bool, experiments: Sequence[Experiment]
) -> Iterator[StudyWarning]:
    """What the user should know of the sessions of a plan.

    Args:
        execution: Section ``study_execution``.
        plan: The plan, with its sessions.
        order_kept: Whether the cycles run in the order that was asked for.
        experiments: The plan's experiments.
    """
    if not order_kept:
        yield StudyWarning(
            "session-order",
            f"the order {execution.experiment_order} holds within each session only: cycles run session by session, so "
            "that one container serves what loads alike; study_execution.isolation: container keeps it",
        )
    longest_s = {each.id: each.wall_clock_s or 0.0 for each in experiments}
    limit_s = execution.session.max_runtime_seconds
    over = [
        each
        for each in plan.sessions
        if sum(longest_s[run.experiment_id] for run in each.cycles)
        + sum(run.gap_before_s for run in each.cycles[1:])
        > limit_s
    ]
    if over:
        text = (
            f"{counted(len(over), 'session')} can take longer than study_execution.session.max_runtime_seconds "
            f"({limit_s:g}), as {over[0].id} with {counted(len(over[0].cycles), 'cycle')}: what is left then "
            "fails"
        )
        yield StudyWarning("session-long", text)
    if plan.sessions and len(plan.sessions) == len(plan.planned_cycles):
        text = (
            f"no two experiments load alike: each session has one cycle, and isolation: {execution.isolation} "
            "saves nothing"
        )
        yield StudyWarning("session-alone", text)
