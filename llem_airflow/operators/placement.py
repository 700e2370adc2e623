"""Where an attempt runs and in what: runner, image, GPUs, mounts, network."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from docker.types import Mount

from llem_airflow.container.choice import Choice
from llem_airflow.container.engine_caches import ENGINE_CACHE, cache_environment, engine_cache
from llem_airflow.container.images import default_entrypoint, default_image
from llem_airflow.container.leases import LABEL_TICKET
from llem_airflow.container.settings import NON_ROOT, BoxSettings
from llem_airflow.operators.host import HostSettings
from llem_airflow.operators.settings import LocalModel, settings
from llem_airflow.study import Experiment

if TYPE_CHECKING:
    from llem_airflow.operators.experiment import LLEMExperimentOperator

PASSED_ON = (
    # Threads decide speed and power on a CPU; what the worker's environment says holds for its experiments.
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "MKL_NUM_THREADS",
)
_HUB_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_HUB_VARIABLES = ("HF_ENDPOINT", "HF_HUB_OFFLINE")
_HUB_CACHE = PurePosixPath("/hub/cache")


class PlacementError(ValueError):
    """The attempt cannot be placed as it was asked; another try would not change that."""


class EngineAwayError(PlacementError):
    """No Docker engine answers where a container is wanted; it may come back."""


def choose_image(
    choice: Choice, experiment: Experiment, *, cuda_major: Callable[[], int | None] = lambda: None
) -> tuple[str, str]:
    """The image, and the layer that names it; where none does, the engine's default for the host.

    Args:
        choice: What the layers say of the experiment's engine.
        experiment: The experiment.
        cuda_major: Newest CUDA that the host can run; asked only for the default of an experiment that wants a GPU.

    Raises:
        PlacementError: Nobody names one and the engine has no default.
    """
    if choice.images:
        return choice.images[0]
    major = None if experiment.gpus.count == 0 else cuda_major()
    try:
        return default_image(experiment.engine, major), "the default for " + (
            f"CUDA {major}" if major else "CPUs"
        )
    except ValueError as error:
        raise PlacementError(str(error)) from error


def box_settings(operator: LLEMExperimentOperator, model: LocalModel | None) -> BoxSettings:
    """Everything about the container that is not the experiment, from the operator's arguments and the study."""
    experiment, host = operator.experiment, operator.host
    environment, secrets, mounts, caches = _model_access(model, host)
    user = str(operator.user) if operator.user is not None else NON_ROOT
    compiled = engine_cache(experiment.engine, user)
    mounts.append(_mount(str(ENGINE_CACHE), settings().engine_cache, read_only=False))
    offline = model is not None or environment.get("HF_HUB_OFFLINE") == "1"
    box = BoxSettings(
        image=operator.image,
        entrypoint=default_entrypoint(experiment.engine),
        environment={
            **{k: os.environ[k] for k in PASSED_ON if k in os.environ},
            **cache_environment(compiled),
            **environment,
            **operator.environment,
        },
        private_environment={**secrets, **operator.secrets},
        mounts=(*mounts, *(m if isinstance(m, Mount) else Mount(**m) for m in operator.mounts)),
        caches=(*caches, compiled),
        gpu_request=experiment.gpus,
        gpu_quota=gpu_quota(experiment, host),
        gpu_wait_s=operator.gpu_wait_s,
        gpu_waited_s=operator.gpu_wait.waited_s,
        gpu_wait_here=operator.gpu_wait.here,
        gpu_ticket=(operator.gpu_wait.ticket or {}).get(LABEL_TICKET, ""),
        mem_limit=None if operator.mem_limit is None else str(operator.mem_limit),
        shm_size=str(operator.shm_size or host.shm_size or _shm_size(experiment)),
        network_mode=operator.network_mode or ("none" if offline else "bridge"),
        user=user,
        extra_labels=operator.labels if isinstance(operator.labels, dict) else {},
        wall_clock_s=experiment.wall_clock_s,
        silence_s=experiment.silence_s,
        sample_on_host=(operator.study.sections.get("power") or {}).get("sampling") == "host",
        pull="always" if operator.force_pull else "missing",
    )
    return _as_the_host_asks(box, host)


def _as_the_host_asks(box: BoxSettings, host: HostSettings) -> BoxSettings:
    return replace(
        box,
        cgroup_parent=host.cgroup_parent,
        extra_labels={**host.labels, **box.extra_labels},
        wall_clock_s=_least(box.wall_clock_s, host.max_runtime_s),
        silence_s=_least(box.silence_s, host.max_idle_s),
    )


def _least(*limits_s: float | None) -> float | None:
    return min((limit_s for limit_s in limits_s if limit_s is not None), default=None)


def gpu_quota(experiment: Experiment, host: HostSettings) -> int | None:
    """GPUs that experiments may hold together on a host.

    Raises:
        PlacementError: The experiment alone asks for more.
    """
    asked = len(experiment.gpus.ids) or experiment.gpus.count or 0
    if host.gpu_quota is not None and asked > host.gpu_quota:
        raise PlacementError(
            f"{experiment.id} asks for {asked} GPUs and the host's quota is {host.gpu_quota}: lower `gpus.count`, or "
            "raise gpu_quota of the host's connection"
        )
    return host.gpu_quota


def hub_secrets(host: HostSettings) -> dict[str, str]:
    """Variables with the token for the hub: the host's connection goes before the worker's environment."""
    secrets = {name: os.environ[name] for name in _HUB_SECRETS if os.environ.get(name)}
    return secrets | ({"HF_TOKEN": host.hub_token} if host.hub_token else {})


def _model_access(
    model: LocalModel | None, host: HostSettings
) -> tuple[dict[str, str], dict[str, str], list[Mount], tuple[PurePosixPath, ...]]:
    """Environment, secrets, mounts and caches that bring the weights into the container.

    A model that lies here is mounted read-only and the container gets no network; one from the hub gets the
    network (none in the worker's offline mode), the token as a secret, and a cache that outlives it.
    """
    if model is not None:
        mount = _mount(model.mount_target, model.host_source, read_only=True)
        return {"HF_HUB_OFFLINE": "1"}, {}, [mount], ()
    mount = _mount(str(_HUB_CACHE.parent), settings().hub_cache, read_only=False)
    said = {name: os.environ[name] for name in _HUB_VARIABLES if os.environ.get(name)}
    return {"HF_HOME": str(_HUB_CACHE), **said}, hub_secrets(host), [mount], (_HUB_CACHE,)


def _shm_size(experiment: Experiment) -> str:
    """One GiB, and one for each GPU: vLLM's processes want 160 MiB, NCCL's rings between GPUs more. It is a bound."""
    return f"{1 + (experiment.gpus.count or 1)}g"


def _mount(target: str, source: str, *, read_only: bool) -> Mount:
    """A host path (it has a slash) or a volume."""
    return Mount(target, source, type="bind" if "/" in source else "volume", read_only=read_only)
