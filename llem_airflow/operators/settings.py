"""What an Airflow installation says about this provider: section ``[llem]`` and the matching variables."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from airflow.configuration import AIRFLOW_HOME
from airflow.sdk import Variable, conf

from llem_airflow.results.unstored import FOLDER
from llem_airflow.runners.choice import Layers, read_runners
from llem_airflow.runners.models import model_folder

MODELS_MOUNT = PurePosixPath("/models")
"""Where a model directory appears in an experiment's container."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one Airflow installation.

    Attributes:
        results_root: Folder or fsspec URL of the results.
        models_dir: Folder of model directories as the worker sees it, or None.
        host_models_dir: The same as the Docker engine sees it (path or volume name), or None.
        hub_cache: Volume or host folder for models fetched from the hub.
        engine_cache: Volume or host folder for what engines compile at their start.
        python: Interpreter of the process runner.
        plan_cache: Folder of expanded studies, which workers read.
        unstored: Folder of results that could not be stored, on each worker.
        runners: Runner by engine, as JSON in the study file's words, or None.
    """

    results_root: str
    models_dir: Path | None
    host_models_dir: str | None
    hub_cache: str
    engine_cache: str
    python: str
    plan_cache: Path
    unstored: Path
    runners: str | None = None


def settings() -> Settings:
    """Read the settings; variables of the environment fill what the configuration leaves open."""
    models_dir = _read("models_dir")
    root = _read("results_root") or "results"
    return Settings(
        results_root=root if "://" in root else str(Path(root).resolve()),
        models_dir=Path(models_dir).resolve() if models_dir else None,
        host_models_dir=_read("host_models_dir") or (str(Path(models_dir).resolve()) if models_dir else None),
        hub_cache=_read("hub_cache") or "llem-hub-cache",
        engine_cache=_read("engine_cache") or "llem-engine-cache",
        python=_read("python") or sys.executable,
        plan_cache=Path(_read("plan_cache") or Path(AIRFLOW_HOME) / "llem-plans"),
        unstored=Path(_read("unstored") or Path(AIRFLOW_HOME) / FOLDER),
        runners=_read("runners"),
    )


def relative_root() -> str:
    """What a results root that is a relative path means, for people; empty where it is none."""
    root = _read("results_root") or "results"
    if "://" in root or Path(root).is_absolute():
        return ""
    return (
        f"the results root {root!r} is a relative path: here it means {Path(root).resolve()}, in a process of "
        "Airflow's that was started in another folder another one. Name an absolute path or a URL: [llem] results_root"
    )


def parse_time_layers(operator_args: Mapping[str, Any]) -> Layers:
    """What names runners and images as far as a DAG's parsing may look: arguments, variables and configuration.

    Raises:
        RunnerError: ``[llem] runners`` cannot be read.
    """
    return Layers(
        argument=operator_args.get("runner"),
        environ=os.environ,
        installation=installed_runners(),
        operator_image=operator_args.get("image") or "",
    )


def installed_runners() -> dict[str, str]:
    """Runner by engine, as ``[llem] runners`` says.

    Raises:
        RunnerError: It cannot be read.
    """
    said = settings().runners
    return read_runners(said, "[llem] runners") if said else {}


def named_hosts() -> tuple[str, ...]:
    """Ids of the connections of GPU hosts that ``[llem] hosts`` names, for what looks after all of them."""
    return _names("hosts")


def named_clusters() -> tuple[str, ...]:
    """The clusters that ``[llem] clusters`` names, likewise: ``CONNECTION`` or ``CONNECTION/NAMESPACE``."""
    return _names("clusters")


def _names(option: str) -> tuple[str, ...]:
    return tuple(name for each in (_read(option) or "").split(",") if (name := each.strip()))


def _read(option: str) -> str | None:
    value = conf.get("llem", option, fallback=None)
    return value or os.environ.get(f"LLEM_{option.upper()}")


INSTALLATION_VARIABLE = "llem_installation"
"""The Airflow Variable that holds the identity, so that all workers have the same wherever their AIRFLOW_HOME is."""

_DESCRIPTION = (
    "Names this Airflow on Docker engines. Kept, so that running containers and retries are found again."
)


def configured_installation() -> str | None:
    """What ``[llem] installation`` or ``LLEM_INSTALLATION`` says, which goes before the Variable."""
    return _read("installation") or None


def derived_installation() -> str:
    """From AIRFLOW_HOME and the address of the API server: the same over restarts, but not on every machine."""
    address = conf.get("core", "execution_api_server_url", fallback="")
    return hashlib.sha256(f"{AIRFLOW_HOME} {address}".encode()).hexdigest()[:8]


def installation() -> str:
    """The identity, as a task sees it."""
    return configured_installation() or _stored_installation() or derived_installation()


def settle_installation() -> None:
    """Store the identity that holds now, once: what runs keeps its labels, and other workers get the same."""
    if configured_installation() is None and _stored_installation() is None:
        with contextlib.suppress(ImportError):  # outside of a task there is no Airflow to store it in
            Variable.set(INSTALLATION_VARIABLE, derived_installation(), description=_DESCRIPTION)


def _stored_installation() -> str | None:
    return (Variable.get(INSTALLATION_VARIABLE, default=None) or "").strip() or None


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model directory on the worker's or the engine's disk.

    Attributes:
        worker_path: The directory as the worker sees it.
        host_source: What the Docker engine mounts: a host path, or a volume that holds the models folder.
        container_path: The directory in the container.
        mount_target: Where ``host_source`` is mounted in the container.
    """

    worker_path: Path
    host_source: str
    container_path: str
    mount_target: str

    def path(self, *, mounted: bool) -> str:
        """The directory as an attempt sees it: where it is mounted, or where it is."""
        return self.container_path if mounted else str(self.worker_path)


def local_model(name: str, where: Settings, *, study_folder: Path | None = None) -> LocalModel | None:
    """Find a model's directory; None means that ``name`` is for the hub to resolve.

    Looks under the models folder, then takes ``name`` as a path (relative ones from the study file's folder).
    """
    found = model_folder(name, where.models_dir, study_folder)
    if found is None:
        return None
    if where.models_dir is None or not found.is_relative_to(where.models_dir):
        target = str(MODELS_MOUNT / found.name)
        return LocalModel(found, str(found), target, target)
    below = found.relative_to(where.models_dir).as_posix()
    inside, source = str(MODELS_MOUNT / below), where.host_models_dir or str(where.models_dir)
    if "/" not in source:  # a volume is mounted whole
        return LocalModel(found, source, inside, str(MODELS_MOUNT))
    return LocalModel(found, str(PurePosixPath(source) / below), inside, inside)
