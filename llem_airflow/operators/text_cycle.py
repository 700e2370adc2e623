"""LLEMTextCycleOperator: one cycle of a study that is known only when the run starts."""

from __future__ import annotations

from typing import Any

from airflow.providers.docker.operators.docker import DockerOperator
from airflow.sdk import Context

from llem_airflow.container.attempt import Attempt
from llem_airflow.operators.experiment import LLEMExperimentOperator
from llem_airflow.operators.request import study_in_form, study_of_run


class LLEMTextCycleOperator(LLEMExperimentOperator):
    """Run one cycle of the study whose text was given in the trigger form.

    Made for ``LLEMTextCycleOperator.partial(...).expand_kwargs(plan.output)``.

    Args:
        experiment: Id of one of its experiments.
        cycle: Which repetition, from 1.
        gap_before_s: As for LLEMExperimentOperator, in seconds.
        runner: As for LLEMExperimentOperator.
        image: As for LLEMExperimentOperator.
        **kwargs: As for LLEMExperimentOperator.
    """

    def __init__(
        self,
        *,
        experiment: str,
        cycle: int = 1,
        gap_before_s: float = 0.0,
        runner: str | None = None,
        image: str | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("mount_tmp_dir", False)
        kwargs["auto_remove"] = "force"
        # The parent looks its experiment up in the study, and there is none before the run's form is read.
        DockerOperator.__init__(self, image=image or "", **kwargs)
        self.experiment_id = experiment
        self.cycle = cycle
        self.gap_before_s = gap_before_s
        self.runner = runner
        self._attempt: Attempt | None = None
        self._runner = ""

    def execute(self, context: Context) -> dict[str, Any]:  # type: ignore[override]  # as its parent does
        """Run the attempt and commit its result, as LLEMExperimentOperator does."""
        self.study = study_in_form(context)
        self.experiment = study_of_run(self.study, context).experiment(self.experiment_id)
        self.image = self.image or self.experiment.image or ""
        return super().execute(context)
