"""Where an attempt runs and in what: runner, image, GPUs, mounts, network."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import docker
from docker.types import Mount

from llem_airflow.operators import arguments
from llem_airflow.operators.host import HostSettings
from llem_airflow.operators.settings import LocalModel, settings
from llem_airflow.runners.choice import Choice
from llem_airflow.runners.container_spec import (
    ENGINE_CACHE,
    NON_ROOT,
    ContainerSettings,
    cache_environment,
    engine_cache,
)
from llem_airflow.runners.images import default_entrypoint, default_image
from llem_airflow.runners.process import ProcessSettings
from llem_airflow.study import Experiment
from llem_airflow.text.wording import counted

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
    choice: Choice,
    experiment: Experiment,
    *,
    cuda_major: Callable[[], int | None] = lambda: None,
    registry: str | None = None,
) -> tuple[str, str]:
    """The image, and the layer that names it; where none does, the engine's default for the host.

    Args:
        choice: What the layers say of the experiment's engine.
        experiment: The experiment.
        cuda_major: Newest CUDA that the host can run; asked only for the default of an experiment that wants a GPU.
        registry: Where the default comes from; None for where its name leads.

    Raises:
        PlacementError: Nobody names one and the engine has no default.
    """
    if choice.images:
        return choice.images[0]
    major = None if experiment.gpus.count == 0 else cuda_major()
    try:
        image = default_image(experiment.engine, major)
        by = "the default for " + (f"CUDA {major}" if major else "CPUs")
        return (f"{registry}/{image}", f"{by}, from the host's registry") if registry else (image, by)
    except ValueError as error:
        raise PlacementError(str(error)) from error


def container_settings(operator: LLEMExperimentOperator, model: LocalModel | None) -> ContainerSettings:
    """Everything about the container that is not the experiment, from the operator's arguments and the study."""
    experiment, host = operator.experiment, operator.host
    said = arguments.environment(operator)
    environment, secrets, mounts, caches = _model_access(model, host, said)
    user = str(operator.user) if operator.user is not None else NON_ROOT
    compiled = engine_cache(experiment.engine, user)
    mounts.append(_mount(str(ENGINE_CACHE), settings().engine_cache, read_only=False))
    environment = {
        **{k: os.environ[k] for k in PASSED_ON if k in os.environ},
        **cache_environment(compiled),
        **environment,
        **said,
    }
    offline = model is not None or environment.get("HF_HUB_OFFLINE") == "1"
    log_options = {"max-size": operator.log_opts_max_size, "max-file": operator.log_opts_max_file}
    return ContainerSettings(
        image=operator.image,
        entrypoint=arguments.entrypoint(operator) or default_entrypoint(experiment.engine),
        environment=environment,
        private_environment={**secrets, **operator.secrets},
        mounts=(*mounts, *map(_as_mount, operator.mounts)),
        caches=(*caches, compiled),
        gpu_request=experiment.gpus,
        device_requests=arguments.device_requests(operator),
        gpu_quota=gpu_quota(experiment, host),
        mem_limit=None if operator.mem_limit is None else str(operator.mem_limit),
        shm_size=str(first(operator.shm_size, host.shm_size, _shm_size(experiment))),
        network_mode=operator.network_mode or ("none" if offline else "bridge"),
        user=user,
        cgroup_parent=host.cgroup_parent,
        extra_labels={**host.labels, **arguments.labels(operator)},
        host_options=arguments.host_options(operator),
        hostname=operator.hostname,
        working_dir=operator.working_dir,
        log_options={name: str(value) for name, value in log_options.items() if value is not None},
        **limits(operator),
        sample_on_host=operator.study.keys.power.sampling == "host",
        pull="always" if operator.force_pull else "missing",
        keep_failed=bool(first(operator.keep_failed, host.keep_failed, False)),
    )


def process_settings(operator: LLEMExperimentOperator, engine: docker.APIClient | None) -> ProcessSettings:
    """Everything about the process that is not the experiment, likewise.

    Args:
        operator: The operator.
        engine: The Docker engine of this machine, whose containers hold GPUs too; None where none answers.
    """
    environment = arguments.environment(operator)
    return ProcessSettings(
        python=settings().python,
        environment=environment,
        private_environment={**hub_secrets(operator.host, environment), **operator.secrets},
        **limits(operator),
        gpu_request=operator.experiment.gpus,
        gpu_quota=gpu_quota(operator.experiment, operator.host),
        engine=engine,
    )


def _as_mount(asked: Mount | dict[str, Any]) -> Mount:
    """A template makes a plain dict of a Mount, with the keys of Docker's API."""
    if isinstance(asked, Mount):
        return asked
    if "Target" not in asked:
        return Mount(**asked)
    made = Mount(asked["Target"], asked.get("Source"))
    made.update(asked)
    return made


def first(*said: Any) -> Any:
    """What the first source that says anything says.

    The order of authority, everywhere: the operator's argument, the study, the host's connection, the worker's
    variables and configuration, our default.
    """
    return next((value for value in said if value is not None), None)


def limits(operator: LLEMExperimentOperator) -> dict[str, Any]:
    """Limits of an attempt: no source can loosen another's, so the narrowest counts."""
    experiment, host = operator.experiment, operator.host
    return {
        "wall_clock_s": _least(experiment.wall_clock_s, host.max_runtime_s),
        "silence_s": _least(experiment.silence_s, host.max_idle_s),
        "gpu_idle_s": _least(operator.max_gpu_idle_s, host.max_gpu_idle_s),
    }


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
            f"{experiment.id} asks for {counted(asked, 'GPU')} and the host's quota is {host.gpu_quota}: lower "
            "`gpus.count`, or raise gpu_quota of the host's connection"
        )
    return host.gpu_quota


def hub_secrets(host: HostSettings, said: Collection[str] = ()) -> dict[str, str]:
    """Variables with the token for the hub: the host's connection goes before the worker's environment.

    Args:
        host: The host.
        said: Names of the variables that the operator's arguments set, which go before both.
    """
    secrets = {name: os.environ[name] for name in _HUB_SECRETS if os.environ.get(name)}
    secrets |= {"HF_TOKEN": host.hub_token} if host.hub_token else {}
    return {name: value for name, value in secrets.items() if name not in said}


def _model_access(
    model: LocalModel | None, host: HostSettings, said: Collection[str]
) -> tuple[dict[str, str], dict[str, str], list[Mount], tuple[PurePosixPath, ...]]:
    """Environment, secrets, mounts and caches that bring the weights into the container.

    A model that lies here is mounted read-only and the container gets no network; one from the hub gets the
    network (none in the worker's offline mode), the token as a secret, and a cache that outlives it.
    """
    if model is not None:
        mount = _mount(model.mount_target, model.host_source, read_only=True)
        return {"HF_HUB_OFFLINE": "1"}, {}, [mount], ()
    mount = _mount(str(_HUB_CACHE.parent), settings().hub_cache, read_only=False)
    worker = {name: os.environ[name] for name in _HUB_VARIABLES if os.environ.get(name)}
    return {"HF_HOME": str(_HUB_CACHE), **worker}, hub_secrets(host, said), [mount], (_HUB_CACHE,)


def _shm_size(experiment: Experiment) -> str:
    """One GiB, and one for each GPU: vLLM's processes want 160 MiB, NCCL's rings between GPUs more. It is a bound."""
    return f"{1 + (experiment.gpus.count or 1)}g"


def _mount(target: str, source: str, *, read_only: bool) -> Mount:
    """A host path (it has a slash) or a volume."""
    return Mount(target, source, type="bind" if "/" in source else "volume", read_only=read_only)
