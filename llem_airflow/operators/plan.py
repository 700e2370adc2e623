"""LLEMPlanOperator: check what a run was asked for and show what it will measure, before any GPU is used."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from airflow.sdk import BaseOperator, Context, conf
from airflow.sdk.exceptions import AirflowFailException, DownstreamTasksSkipped

from llem_airflow.operators.evidence import SCHEDULED, is_scheduled, open_run
from llem_airflow.operators.experiment import LLEMExperimentOperator
from llem_airflow.operators.placement import PlacementError
from llem_airflow.operators.request import RunRequest, study_in_form, study_of_run
from llem_airflow.operators.runners import decide, pin_choices
from llem_airflow.operators.settings import relative_root, settings, settle_installation
from llem_airflow.operators.ui import keeps_failure
from llem_airflow.results import CycleRef, ResultsRoot, StoredRun, layout
from llem_airflow.runners.choice import Choice
from llem_airflow.study import Study, StudyFileError, load_study
from llem_airflow.study.plan.findings import not_runnable
from llem_airflow.study.prompts import prompt_problems
from llem_airflow.text.wording import counted

Cycles = set[tuple[str, int]]
"""Experiment and number of each."""

_SHOWN = 500
_ENGINE_PATIENCE_S = 15.0
"""How long an engine may be away when a run is planned, as at its restart."""


class LLEMPlanOperator(BaseOperator):
    """Check the run's request against the study, write the plan into the results, skip what is not asked for.

    Args:
        study: The study, or the path of its file.
        cycles: Task (and map index) of each cycle by experiment and cycle, so that what a run does not ask for is
            skipped at once instead of one task start each.
        after: Further tasks that a dry run skips, such as the aggregate.
        operator_args: Arguments of every cycle: they say how the Docker engine is reached and where cycles run.

    Attributes:
        resume: Skip the cycles that have a result in this very run: it goes on where it was broken off.
        sessions: Start and stop task of each session by its id: skipped with the last of its cycles.
    """

    ui_color = "#e3f2fd"
    resume = False
    sessions: Mapping[str, tuple[str, str]] = MappingProxyType({})

    def __init__(
        self,
        *,
        study: Study | str | Path,
        cycles: dict[tuple[str, int], tuple[str, int]] | None = None,
        after: tuple[str, ...] = (),
        operator_args: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**(_where(operator_args) | kwargs))
        self.operator_args = dict(operator_args or {})
        self.study = study if isinstance(study, Study) else load_study(study)
        self.cycles = cycles or {}
        self.after = after

    @keeps_failure
    def execute(self, context: Context) -> dict[str, Any]:
        """Check, show and store the plan.

        Returns:
            How many experiments and cycles are planned, how many of them the run before has measured, and how long
            all of them can take.

        Raises:
            AirflowFailException: The run was asked for something that the study does not have, or there is nowhere to
                run it.
        """
        asked = study_of_run(self.study, context)
        dry_run = RunRequest.of(context).dry_run
        show_plan(self, asked)
        check_study(asked)
        choices = decided(self, asked, context)
        if not dry_run:
            settle_installation()
            choices = pin_choices(_opened(asked, context), choices, again=True)
        show_choices(self, choices)
        plan = {
            "experiments": len(asked.experiments),
            "cycles": len(asked.plan.planned_cycles),
            "longest_s": asked.plan.wall_clock_s,
            "dry_run": dry_run,
            "runners": {engine: str(choice) for engine, choice in choices.items()},
        }
        carried = set() if dry_run else self._there_already(asked, context)
        if carried:
            plan["carried_over"] = len(carried)
            self.log.info("measured already and not measured again: %s", counted(len(carried), "cycle"))
        skipped = self._skipped(asked, carried, dry_run=dry_run)
        if skipped:
            context["ti"].xcom_push("return_value", plan)
            raise DownstreamTasksSkipped(tasks=skipped)  # type: ignore[no-untyped-call]  # Airflow leaves it untyped
        return plan

    def _there_already(self, asked: Study, context: Context) -> Cycles:
        run = open_run(asked, context)
        found = carry_over(asked, run, context)
        return found | {(ref.experiment_id, ref.cycle) for ref in run.cycles()} if self.resume else found

    def _skipped(self, asked: Study, carried: Cycles, *, dry_run: bool) -> list[str | tuple[str, int]]:
        kept = (
            set()
            if dry_run
            else {(run.experiment_id, run.cycle) for run in asked.plan.planned_cycles} - carried
        )
        tasks: list[str | tuple[str, int]] = [
            task_id if map_index < 0 else (task_id, map_index)
            for key, (task_id, map_index) in self.cycles.items()
            if key not in kept
        ]
        # A session without cycles is not started.
        used = {run.session for run in asked.plan.planned_cycles if (run.experiment_id, run.cycle) in kept}
        tasks += [task_id for name, around in self.sessions.items() if name not in used for task_id in around]
        return [*tasks, *self.after] if dry_run else tasks


class LLEMPlanTextOperator(BaseOperator):
    """Plan the study whose text was given in the trigger form, for mapped cycles.

    Its result is for ``expand_kwargs`` of :class:`LLEMTextCycleOperator`.

    Args:
        operator_args: Arguments of every cycle, as for :class:`LLEMPlanOperator`.
    """

    ui_color = LLEMPlanOperator.ui_color

    def __init__(self, *, operator_args: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**(_where(operator_args) | kwargs))
        self.operator_args = dict(operator_args or {})

    @keeps_failure
    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Check, show and store the plan.

        Returns:
            Experiment, cycle and thermal gap of each planned cycle, in order; nothing in a dry run.

        Raises:
            AirflowFailException: The text has problems, the plan is longer than Airflow maps, or there is nowhere to
                run it.
        """
        asked = study_of_run(study_in_form(context), context)
        show_plan(self, asked)
        check_study(asked)
        if asked.execution.in_sessions:
            raise AirflowFailException(
                "the cycles of a pasted study are one mapped task, which has no sessions: put the study's file into "
                "the study folder, or write `isolation: container`"
            )
        if asked.airflow.hosts and "llem_conn_id" not in self.operator_args:
            raise AirflowFailException(
                "the cycles of a pasted study are one mapped task, which has one queue and pool: put the study's file "
                "into the study folder, or leave airflow.hosts out"
            )
        choices = decided(self, asked, context)
        show_choices(self, choices)
        if RunRequest.of(context).dry_run:
            return []
        most = conf.getint("core", "max_map_length")
        if (number := len(asked.plan.planned_cycles)) > most:
            raise AirflowFailException(
                f"the plan has {counted(number, 'cycle')} and this Airflow maps at most {most}: raise "
                "[core] max_map_length, measure fewer, or put the study's file into the study folder"
            )
        pin_choices(_opened(asked, context), choices, again=True)
        return [
            {"experiment": run.experiment_id, "cycle": run.cycle, "gap_before_s": run.gap_before_s}
            for run in asked.plan.planned_cycles
        ]


def _where(operator_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """What decides on which workers cycles run: the plan looks for a Docker engine on the same ones."""
    return {name: value for name, value in (operator_args or {}).items() if name in ("queue", "executor")}


def decided(
    plan: LLEMPlanOperator | LLEMPlanTextOperator, asked: Study, context: Context
) -> dict[str, Choice]:
    """Where the run's experiments run, by engine.

    Raises:
        AirflowFailException: A layer names what there is not, an engine that decides does not answer, or several
            engines have no containers; the text says what to do.
    """
    # Connections, TLS files and templates of the cycles' arguments are read as a cycle reads them.
    cycle = LLEMExperimentOperator(
        task_id="runners", study=asked, experiment=asked.experiments[0], **plan.operator_args
    )
    # The others may name what only a cycle has.
    cycle.template_fields = ("image", "docker_conn_id")
    cycle.render_template_fields(context, plan.get_template_env())
    try:
        cycle.look_at_host()
        return decide(cycle, asked.experiments, patience_s=_ENGINE_PATIENCE_S)
    except PlacementError as error:
        raise AirflowFailException(str(error)) from error
    finally:
        cycle.leave_host()


def show_choices(plan: BaseOperator, choices: Mapping[str, Choice]) -> None:
    """Say in the task's log where each engine's experiments run, and why."""
    for engine, choice in choices.items():
        image = f", image {choice.images[0][0]} ({choice.images[0][1]})" if choice.images else ""
        plan.log.info("Runner of %s: %s%s", engine, choice, image if choice.runner != "process" else "")


def check_study(study: Study) -> None:
    """Refuse what no cycle of the run could end well with.

    Raises:
        AirflowFailException: Every reason, with its place in the study.
    """
    if problems := [*not_runnable(study), *prompt_problems(study)]:
        raise AirflowFailException(str(StudyFileError(problems)))


def _opened(study: Study, context: Context) -> StoredRun:
    """The run's folder in the results, which every cycle will write into."""
    try:
        return open_run(study, context)
    except OSError as error:
        raise AirflowFailException(
            f"the results root {settings().results_root} cannot be written: {error}; correct its rights, or set "
            "results_root in section [llem] (LLEM_RESULTS_ROOT)"
        ) from error


def show_plan(operator: BaseOperator, study: Study) -> None:
    """Write the plan into the task's log."""
    log = operator.log
    hours = study.plan.wall_clock_s / 3600
    log.info(
        "%s: %s, %s to measure, at most %.2f h",
        study.name,
        counted(len(study.experiments), "experiment"),
        counted(len(study.plan.planned_cycles), "cycle"),
        hours,
    )
    for notice in (*study.warnings, *filter(None, [relative_root()])):
        log.warning("%s", notice)
    for run in study.plan.planned_cycles[:_SHOWN]:
        log.info("  %s cycle %s%s", run.experiment_id, run.cycle, f" on {run.host}" if run.host else "")
    if len(study.plan.planned_cycles) > _SHOWN:
        log.info("  … and %s more", len(study.plan.planned_cycles) - _SHOWN)


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
