"""A model that is nowhere is told before a process starts, with where it was looked for: the library takes a minute."""

from __future__ import annotations

import re
from pathlib import Path

from llem_airflow.operators.settings import LocalModel, settings
from llem_airflow.runners.failures import AttemptFailedError, failure
from llem_airflow.runners.models import missing_model
from llem_airflow.study import Experiment
from llem_airflow.study.names import OWN_ENGINES

_OF_THE_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def require_model(
    experiment: Experiment, found: LocalModel | None, study_folder: Path | None, folder: Path
) -> None:
    """Look for a model that has no directory here.

    ``owner/name`` is the hub's, which may want a token that the attempt has and this task has not; what a third
    party's engine makes of a name is its own.

    Args:
        experiment: Its model is looked for.
        found: Its directory, if it has one.
        study_folder: Folder of the study's file.
        folder: Where the attempt's evidence is.

    Raises:
        AttemptFailedError: It is neither in the models folder nor on the hub, or the hub cannot be asked.
    """
    if found or experiment.engine not in OWN_ENGINES or _OF_THE_HUB.fullmatch(experiment.model):
        return
    why = missing_model(experiment.model, settings().models_dir, study_folder)
    if why is None:
        return
    hub_is_sure = missing_model(experiment.model, settings().models_dir, study_folder, elsewhere=True)
    seen, _, advice = why.rpartition(". ")
    hint = f"{advice[:1].lower()}{advice[1:]} ([llem] models_dir)"
    raise AttemptFailedError(
        failure("model_missing", retryable=not hub_is_sure, hint=hint), seen, folder=folder
    )
