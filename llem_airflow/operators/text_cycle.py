"""LLEMTextCycleOperator: one cycle of a study that is known only when the run starts."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Context

from llem_airflow.operators.experiment import LLEMExperimentOperator
from llem_airflow.operators.request import cycle_of_run, study_in_form
from llem_airflow.study import Experiment, Study


class LLEMTextCycleOperator(LLEMExperimentOperator):
    """Run one cycle of the study whose text was given in the trigger form.

    Made for ``LLEMTextCycleOperator.partial(...).expand_kwargs(plan.output)``.

    Args:
        experiment: Id of one of its experiments.
        **kwargs: As for LLEMExperimentOperator.
    """

    def __init__(self, *, experiment: str, **kwargs: Any) -> None:
        super().__init__(study=None, experiment=experiment, **kwargs)

    def _asked(self, context: Context) -> tuple[Study, Experiment]:
        study = study_in_form(context)
        return study, cycle_of_run(study, self.experiment_id, self.cycle, context)
