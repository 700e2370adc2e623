"""Pins: which image and which commit of a model a run uses, as they were fetched before its first experiment."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import docker

from llem_airflow.results import StoredRun, layout
from llem_airflow.results.folder import json_bytes
from llem_airflow.runners.images import digest
from llem_airflow.runners.settings import BoxSettings
from llem_airflow.study import Experiment

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


def as_fetched(run: StoredRun, api: docker.APIClient, box: BoxSettings) -> BoxSettings:
    """The settings with the very image that was fetched for the run; as they are when none was, or it has gone."""
    exact = pinned(run, "image", box.image)
    return box if exact is None else with_image(api, box, exact)


def with_image(api: docker.APIClient, box: BoxSettings, exact: str) -> BoxSettings:
    """The settings with the very image that their name meant earlier in the run; as they are when it has gone."""
    if "@" not in exact and digest(api, exact) is None:  # an id, which only its own engine knows
        log.warning("image %s was %s in this run, which is not on this engine any more", box.image, exact)
        return box
    return replace(box, image=exact, pull="missing")


def _file(kind: str, name: str) -> str:
    return f"{kind}-{layout.folder_name(name)}.json"
