"""What an attempt takes over: image and model, the same ones in the whole run and in each try of a task; idle power.

What was fetched before the run's first experiment is pinned for the run; a further try of a task runs what its first
try ran. A tag or a branch may stand for something else by then, and a run must not mix the two.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import docker

from llem_airflow.operators.settings import LocalModel, settings
from llem_airflow.protocol.gpus import gpus_told, idle_conditions
from llem_airflow.protocol.spec import ExperimentSpec, IdlePower, KnownIdlePower
from llem_airflow.results import CycleRef, FailureRef, ResultReadError, StoredRun, layout
from llem_airflow.results.folder import json_bytes
from llem_airflow.runners.container_spec import ContainerSettings
from llem_airflow.runners.failures import AttemptFailedError, failure
from llem_airflow.runners.images import digest
from llem_airflow.runners.models import is_of_the_hub, missing_model
from llem_airflow.study import Experiment
from llem_airflow.study.names import OWN_ENGINES

log = logging.getLogger(__name__)

_FOLDER = "pins"


def pinned(run: StoredRun, kind: str, name: str) -> str | None:
    """What a name means in this run, or None when nobody has asked yet.

    Args:
        run: The run.
        kind: ``image`` or ``model``.
        name: Name of the image, or of the model with its revision.
    """
    folder, file = run.folder.child(_FOLDER), _file(kind, name)
    return str(json.loads(folder.read(file))["exact"]) if folder.exists(file) else None


def pin(run: StoredRun, kind: str, name: str, exact: str) -> None:
    """Decide what a name means in this run."""
    run.folder.child(_FOLDER).write(_file(kind, name), json_bytes({"name": name, "exact": exact}))


def model_name(model: str, revision: str | None) -> str:
    """A model of the hub as it is pinned."""
    return f"{model}@{revision}" if revision else model


def pinned_model(run: StoredRun, experiment: Experiment) -> str | None:
    """The commit of an experiment's model in this run, where it was fetched before."""
    return pinned(run, "model", model_name(experiment.model, experiment.revision))


def as_fetched(run: StoredRun, api: docker.APIClient, asked: ContainerSettings) -> ContainerSettings:
    """The settings with the very image that was fetched for the run; as they are when none was, or it has gone."""
    exact = pinned(run, "image", asked.image)
    return asked if exact is None else with_image(api, asked, exact)


def with_image(api: docker.APIClient, asked: ContainerSettings, exact: str) -> ContainerSettings:
    """The settings with the very image that their name meant earlier in the run; as they are when it has gone."""
    if "@" not in exact and digest(api, exact) is None:  # an id, which only its own engine knows
        log.warning("image %s was %s in this run, which is not on this engine any more", asked.image, exact)
        return asked
    return replace(asked, image=exact, pull="missing")


def _file(kind: str, name: str) -> str:
    return f"{kind}-{layout.folder_name(name)}.json"


@dataclass(frozen=True)
class EarlierTries:
    """The failed tries of a task in this run.

    Attributes:
        failures: Their records, the first try first.
    """

    failures: Sequence[FailureRef] = ()

    @classmethod
    def of(cls, run: StoredRun, experiment_id: str, cycle: int, after: int) -> EarlierTries:
        """Those of this cycle; tries up to number ``after`` do not count, as a person has cleared the task since."""
        return cls(
            [
                each
                for each in run.failures()
                if (each.experiment_id, each.cycle) == (experiment_id, cycle) and each.attempt > after
            ]
        )

    def pin_image(self, api: docker.APIClient, asked: ContainerSettings) -> ContainerSettings:
        """The settings with the image of the first try; when they name another image than it did, they stay."""
        records = [each.provenance() for each in self.failures]
        first = next(
            (r["image_digest"] for r in records if r.get("image") == asked.image and r.get("image_digest")),
            None,
        )
        return asked if first is None else with_image(api, asked, first)

    def pin_model(self, spec: ExperimentSpec) -> ExperimentSpec:
        """The spec with the commit that the first try loaded, when it came from the hub under the same name."""
        for each in self.failures:
            try:
                model = each.environment().get("model")
            except ResultReadError:
                continue
            commit = model.get("commit") if isinstance(model, dict) else None
            if commit and each.provenance().get("experiment_hash") == spec.experiment_hash:
                return replace(spec, model=replace(spec.model, commit=str(commit)))
        return spec


def require_model(
    experiment: Experiment, found: LocalModel | None, study_folder: Path | None, folder: Path
) -> None:
    """Look for a model that has no directory here, before a process starts: the library takes a minute to say so.

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
    if found or experiment.engine not in OWN_ENGINES or is_of_the_hub(experiment.model):
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


def known_idle_power(run: StoredRun, experiment: Experiment, cycle: int) -> KnownIdlePower | None:
    """The idle power of the newest earlier cycle of this run that measured it, where it may be taken over.

    The study's strategy decides whether it may, and its age.

    Whether it holds on the device that this cycle is given, only the attempt itself can see.
    """
    said = experiment.config["measurement"]["baseline"]
    if said["strategy"] == "fresh" or said["enabled"] is False:
        return None
    reuses = 0
    for number in range(cycle - 1, 0, -1):
        ref = run.cycle(experiment.id, number)
        if ref is None:
            continue
        try:
            kinds = {str(event.get("phase")) for event in ref.events() if event.get("event") == "phase_end"}
            if "baseline_bare" not in kinds:
                reuses += 1
                continue
            if time.time_ns() - int(ref.provenance()["finished_epoch_ns"]) > said["cache_ttl_seconds"] * 1e9:
                return None
            due = said["strategy"] == "validated" and (reuses + 1) % said["validation_interval"] == 0
            return _known(ref, check=due)
        except (ResultReadError, KeyError):
            return None
    return None


def _known(ref: CycleRef, *, check: bool) -> KnownIdlePower | None:
    from llem_airflow.analysis.cycle import read_cycle  # noqa: PLC0415 - NumPy and Arrow, for those who need it only

    _, reading = read_cycle(ref, position=None, failed_attempts=0)
    phases = reading.energy.baselines if reading else ()
    if not phases:
        return None
    environment = ref.environment()
    return KnownIdlePower(
        measured_in=f"cycle {ref.cycle}",
        conditions=idle_conditions(environment.get("boot_id"), gpus_told(environment)),
        phases=tuple(IdlePower(one.name, one.power_w, one.sd_w, one.samples) for one in phases),
        check=check,
    )
