"""LLEMPrefetchOperator: bring an image and a model to the host before the first experiment that needs them."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from airflow.sdk import Context

from llem_airflow.operators.evidence import attempt_of, open_run
from llem_airflow.operators.experiment import LLEMExperimentOperator
from llem_airflow.operators.gates import Reason, note
from llem_airflow.operators.inputs import model_name, pin, pinned
from llem_airflow.operators.placement import container_settings
from llem_airflow.operators.request import RunRequest, study_in_form, study_of_run
from llem_airflow.operators.retries import AttemptFinalError, AttemptRetryableError, ended
from llem_airflow.operators.runners import engine_address, placing
from llem_airflow.operators.settings import local_model, settings
from llem_airflow.results import StoredRun
from llem_airflow.runners.failures import AttemptFailedError, failure
from llem_airflow.runners.images import fetch_image, fetch_model
from llem_airflow.study import Experiment, Study
from llem_airflow.study.names import KUBERNETES, OWN_ENGINES, split_runner


class LLEMPrefetchOperator(LLEMExperimentOperator):
    """Pull the image and download the model that some experiments share, and pin both for the run.

    Args:
        experiments: Ids of the experiments that share them.
        **kwargs: As for LLEMExperimentOperator.
    """

    ui_color = "#e3f2fd"

    def __init__(self, *, experiments: tuple[str, ...], **kwargs: Any) -> None:
        super().__init__(experiment=experiments[0], **kwargs)
        self.experiments = experiments

    def execute(self, context: Context) -> dict[str, Any]:  # type: ignore[override]  # as its parent does
        """Fetch what the run's containers will need.

        Returns:
            Image and model as they are pinned; empty when the run needs neither.

        Raises:
            AttemptFinalError: They are not to be had; the text says what to do.
            AttemptRetryableError: The same, and another try can help.
        """
        self.study = study_of_run(self.study, context)
        return self._fetch_for(context)

    def _fetch_for(self, context: Context) -> dict[str, Any]:
        wanted = [each for each in self.study.experiments if each.id in self.experiments]
        if not wanted:
            self.log.info("This run asks for none of the experiments that need it")
            return {}
        self.experiment = wanted[0]
        self.look_at_host()
        try:
            with tempfile.TemporaryDirectory(prefix="llem-") as folder:
                run = open_run(self.study, context)
                if self._choose(run, Path(folder)) == "process":
                    self.log.info("These experiments run as processes of the worker: nothing to fetch")
                    return {}
                with placing(Path(folder)):
                    return self._fetch(context, run, self.experiment, Path(folder))
        except AttemptFailedError as error:
            self._note(context, error)
            raise ended(str(error), error.failure) from None  # its text has all that is known
        finally:
            self.leave_host()

    def _note(self, context: Context, error: AttemptFailedError) -> None:
        """Note in the results why the cycles that need it are not there."""
        run = open_run(self.study, context)
        for each in self.study.plan.planned_cycles:
            if each.experiment_id in self.experiments:
                note(run, each.experiment_id, each.cycle, Reason("fetch", error.headline))

    def _fetch(
        self, context: Context, run: StoredRun, experiment: Experiment, folder: Path
    ) -> dict[str, Any]:
        name = self.image
        policy = "always" if self.force_pull else "missing"
        exact = fetch_image(self.cli, name, policy, self.line, folder)
        exact = self._as_on_the_other_hosts(run, name, exact, folder)
        pin(run, "image", name, exact)
        self.log.info("image %s is %s", name, exact)
        fetched = {"image": name, "image_exact": exact}
        if experiment.engine not in OWN_ENGINES:  # what a third party's engine makes of a name is its own
            return fetched
        if local_model(experiment.model, settings(), study_folder=self.study.folder) is not None:
            return fetched
        attempt = self.attempt = attempt_of(context, experiment, self.cycle)
        self._current = self.make_runner(self._runner, run, folder)
        container = replace(container_settings(self, None), image=exact)
        called = model_name(experiment.model, experiment.revision)
        revision = (pinned(run, "model", called) if self.spread_host else None) or experiment.revision
        commit = fetch_model(self.cli, attempt, container, experiment.model, revision, self.line, folder)
        pin(run, "model", called, commit)
        self.log.info("model %s is commit %s", experiment.model, commit)
        return {**fetched, "model": experiment.model, "model_commit": commit}

    def _as_on_the_other_hosts(self, run: StoredRun, name: str, exact: str, folder: Path) -> str:
        """The image that another host of the run has fetched; all cycles of a run are measured in one.

        Raises:
            AttemptFailedError: This host has another one under the name, and no registry can give it that one.
        """
        there = pinned(run, "image", name) if self.spread_host else None
        if there is None or there == exact:
            return exact
        if "@" in there:  # by its digest, whatever the tag means by now
            return fetch_image(self.cli, there, "missing", self.line, folder)
        hint = (
            f"give all hosts the same one: `docker save {name} | docker --host {engine_address(self)} load`"
        )
        raise AttemptFailedError(
            failure("config", hint=hint),
            f"image {name} is {exact} on {self.spread_host} and {there} on another host of the run",
            folder=folder,
        )


class LLEMTextPrefetchOperator(LLEMPrefetchOperator):
    """The same for the study whose text was given in the trigger form: all its images and models, one after the other.

    What is not to be had fails the cycles that need it, with the same words, and leaves the others alone.

    Args:
        **kwargs: As for LLEMExperimentOperator.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(experiments=("",), study=None, **kwargs)

    def execute(self, context: Context) -> list[dict[str, Any]]:  # type: ignore[override]  # one for each image and model
        """Fetch what the run's containers will need.

        Returns:
            Image and model of each group of experiments as they are pinned; nothing in a dry run.
        """
        if RunRequest.of(context).dry_run:
            return []
        self.study = study_of_run(study_in_form(context), context)
        fetched, image = [], self.image
        for ids in sharing(self.study, self.runner):
            self.experiments, self._image_asked = ids, image
            try:
                fetched.append(self._fetch_for(context))
            except (AttemptFinalError, AttemptRetryableError) as error:
                self.log.warning("%s", error)
        return fetched


def sharing(study: Study, runner: str | None) -> list[tuple[str, ...]]:
    """Ids of the experiments that share an image and a model, but for those that run as processes of the worker.

    Args:
        study: The study.
        runner: The operator's argument, which comes before what the study says.
    """
    shared: dict[tuple[str, str | None, str, str | None], list[str]] = {}
    argued = (split_runner(runner or "") or ("", None))[0]
    for each in study.experiments:
        if (argued or each.runner) not in ("process", KUBERNETES):  # nodes of a cluster pull for themselves
            shared.setdefault((each.engine, each.image, each.model, each.revision), []).append(each.id)
    return [tuple(ids) for ids in shared.values()]
