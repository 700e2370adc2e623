"""LLEMPlanOperator: check what a run was asked for and show what it will measure, before any GPU is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow.sdk import BaseOperator, Context, conf
from airflow.sdk.exceptions import AirflowFailException, DownstreamTasksSkipped

from llem_airflow.operators.carry import carry_over
from llem_airflow.operators.evidence import open_run
from llem_airflow.operators.request import RunRequest, study_in_form, study_of_run
from llem_airflow.study import Study, load_study

_SHOWN = 500


class LLEMPlanOperator(BaseOperator):
    """Check the run's request against the study, write the plan into the results, skip what is not asked for.

    Args:
        study: The study, or the path of its file.
        cycles: Task (and map index) of each cycle by experiment and cycle, so that what a run does not ask for is
            skipped at once instead of one task start each.
        after: Further tasks that a dry run skips, such as the aggregate.
    """

    ui_color = "#e3f2fd"

    def __init__(
        self,
        *,
        study: Study | str | Path,
        cycles: dict[tuple[str, int], tuple[str, int]] | None = None,
        after: tuple[str, ...] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.study = study if isinstance(study, Study) else load_study(study)
        self.cycles = cycles or {}
        self.after = after

    def execute(self, context: Context) -> dict[str, Any]:
        """Check, show and store the plan.

        Returns:
            How many experiments and cycles are planned, how many of them the run before has measured, and how long
            all of them can take.

        Raises:
            AirflowFailException: The run was asked for something that the study does not have.
        """
        asked = study_of_run(self.study, context)
        dry_run = RunRequest.of(context).dry_run
        show_plan(self, asked)
        plan = {
            "experiments": len(asked.experiments),
            "cycles": len(asked.plan.runs),
            "longest_s": asked.plan.wall_clock_s,
            "dry_run": dry_run,
        }
        carried = set() if dry_run else carry_over(asked, open_run(asked, context), context)
        if carried:
            plan["carried_over"] = len(carried)
            self.log.info("%s cycles were measured by the run before and are taken over", len(carried))
        skipped = self._skipped(asked, carried, dry_run=dry_run)
        if skipped:
            context["ti"].xcom_push("return_value", plan)
            raise DownstreamTasksSkipped(tasks=skipped)  # type: ignore[no-untyped-call]  # Airflow leaves it untyped
        return plan

    def _skipped(
        self, asked: Study, carried: set[tuple[str, int]], *, dry_run: bool
    ) -> list[str | tuple[str, int]]:
        kept = set() if dry_run else {(run.experiment_id, run.cycle) for run in asked.plan.runs} - carried
        tasks: list[str | tuple[str, int]] = [
            task_id if map_index < 0 else (task_id, map_index)
            for key, (task_id, map_index) in self.cycles.items()
            if key not in kept
        ]
        return [*tasks, *self.after] if dry_run else tasks


class LLEMPlanTextOperator(BaseOperator):
    """Plan the study whose text was given in the trigger form, for mapped cycles.

    Its result is for ``expand_kwargs`` of :class:`LLEMTextCycleOperator`.
    """

    ui_color = LLEMPlanOperator.ui_color

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Check, show and store the plan.

        Returns:
            Experiment, cycle and thermal gap of each planned cycle, in order; nothing in a dry run.

        Raises:
            AirflowFailException: The text has mistakes, or the plan is longer than Airflow maps.
        """
        asked = study_of_run(study_in_form(context), context)
        show_plan(self, asked)
        if RunRequest.of(context).dry_run:
            return []
        most = conf.getint("core", "max_map_length")
        if len(asked.plan.runs) > most:
            raise AirflowFailException(
                f"the plan has {len(asked.plan.runs)} cycles and this Airflow maps at most {most}: raise "
                "[core] max_map_length, measure fewer, or put the study's file into the study folder"
            )
        open_run(asked, context)
        return [
            {"experiment": run.experiment_id, "cycle": run.cycle, "gap_before_s": run.gap_before_s}
            for run in asked.plan.runs
        ]


def show_plan(operator: BaseOperator, study: Study) -> None:
    """Write the plan into the task's log."""
    log = operator.log
    hours = study.plan.wall_clock_s / 3600
    log.info(
        "%s: %s experiments, %s cycles to measure, at most %.2f h",
        study.name,
        len(study.experiments),
        len(study.plan.runs),
        hours,
    )
    for notice in study.notices:
        log.warning("%s", notice)
    for run in study.plan.runs[:_SHOWN]:
        log.info("  %s cycle %s", run.experiment_id, run.cycle)
    if len(study.plan.runs) > _SHOWN:
        log.info("  … and %s more", len(study.plan.runs) - _SHOWN)
