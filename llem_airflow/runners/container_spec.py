"""How a container is made: what it gets, what it may do on its host, and where its engine's caches lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import docker
from docker.types import DeviceRequest, LogConfig, Mount

from llem_airflow.protocol.files import (
    BUNDLE,
    ENV_CONFIG_PATH,
    ENV_OUTPUT_DIR,
    EXCHANGE_DIR,
    OUT_DIR,
    config_name,
)
from llem_airflow.protocol.live import ENV_LIVE
from llem_airflow.protocol.redaction import secrets_in
from llem_airflow.runners.attempt import LABEL_PRIVATE, Attempt
from llem_airflow.runners.gpus import NO_GPUS
from llem_airflow.runners.output import LOG_BYTES
from llem_airflow.study import GpuRequest

NON_ROOT = "65532:65532"
"""The uid that distroless images call ``nonroot``: it owns nothing in usual images and on usual hosts."""

ENGINE_CACHE = PurePosixPath("/engine-cache")
"""Where the volume of the engines' caches is mounted."""

_PIDS = 4096
"""Bound of processes and threads."""

_VARIABLES = {
    "VLLM_CACHE_ROOT": "vllm",  # inspected models, compiled graphs
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    # Compiled engines; the engine's module adds the GPU's name, which the library's own key lacks.
    "TLLM_LLMAPI_BUILD_CACHE_ROOT": "tensorrt-llm",
    "CUDA_CACHE_PATH": "cuda",
}

HOME_VARIABLES = {
    # A user without an entry in the image's passwd file has neither home nor name; torch asks for both.
    "HOME": "/tmp",  # noqa: S108  # the container's own tmpfs
    "USER": "llem",
    "LOGNAME": "llem",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}


@dataclass(frozen=True, slots=True)
class ContainerSettings:
    """Settings of one container.

    Attributes:
        image: Image that holds the engine.
        entrypoint: What starts the bundle; the bundle's path follows it as its only argument.
        environment: Variables of the container.
        private_environment: Variables whose values are secrets: they appear in no label, log or file of ours.
        mounts: Further mounts, such as models.
        caches: Folders in mounted volumes, as the container sees them, in which its user must be able to write; a new
            volume belongs to root.
        gpu_request: GPUs to choose, or None for none.
        device_requests: Requests that the container is made with as they are; the GPUs that they name are waited
            for and leased instead of those of ``gpu_request``.
        gpu_quota: GPUs that containers of ours may hold on the host together, or None for any number.
        mem_limit: Bound of memory as Docker writes it (``8g``), or None.
        shm_size: Size of /dev/shm; engines with worker processes need 512 MB or more.
        network_mode: ``none``, unless the model must be fetched.
        user: ``uid[:gid]`` in the container; None for the image's own.
        cgroup_parent: Cgroup below which the container is put, or None.
        extra_labels: Labels besides ours, such as those that a shared host asks for.
        host_options: Further arguments of ``APIClient.create_host_config``.
        hostname: Name of the container's host, or None for Docker's.
        working_dir: Where the bundle is started; None for /tmp.
        log_options: Options of the json-file log, by name.
        wall_clock_s: Longest life of the container, in seconds, or None.
        silence_s: Longest time without output, in seconds, or None.
        gpu_idle_s: Longest time in which its GPUs compute nothing, in seconds, or None.
        stop_grace_s: Time between SIGTERM and SIGKILL, in seconds.
        direct_volume: Whether files go into and out of the exchange volume's folder itself where the worker sees it, as
            root on the engine's host does; else, and everywhere else, by the archive API.
        pull: ``missing``, ``always`` or ``never``.
        sample_on_host: Whether this worker samples the power as well, beside the container.
        log_bytes: Most bytes of output that are kept in container.log.
        keep_failed: Whether a container that ran and failed is stopped and kept, to be looked at.
    """

    image: str
    entrypoint: tuple[str, ...] = ("python3",)
    environment: Mapping[str, str] = field(default_factory=dict)
    private_environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    mounts: tuple[Mount, ...] = ()
    caches: tuple[PurePosixPath, ...] = ()
    gpu_request: GpuRequest | None = None
    device_requests: tuple[DeviceRequest, ...] = ()
    gpu_quota: int | None = None
    mem_limit: str | None = None
    shm_size: str = "1g"
    network_mode: str = "none"
    user: str | None = NON_ROOT
    cgroup_parent: str | None = None
    extra_labels: Mapping[str, str] = field(default_factory=dict)
    host_options: Mapping[str, Any] = field(default_factory=dict)
    hostname: str | None = None
    working_dir: str | None = None
    log_options: Mapping[str, str] = field(default_factory=dict)
    wall_clock_s: float | None = None
    silence_s: float | None = None
    gpu_idle_s: float | None = None
    stop_grace_s: float = 10.0
    direct_volume: bool = True
    pull: str = "missing"
    sample_on_host: bool = False
    log_bytes: int = LOG_BYTES
    keep_failed: bool = False

    def secrets(self) -> list[str]:
        """Values that no log, file or message of ours may show."""
        return [*self.private_environment.values(), *secrets_in(self.environment)]


def create_arguments(
    api: docker.APIClient,
    attempt: Attempt,
    experiment_hash: str,
    settings: ContainerSettings,
    gpus: tuple[str, ...] = (),
    lease: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Arguments of ``APIClient.create_container`` for an attempt's container.

    Args:
        api: The engine.
        attempt: Whose container it is.
        experiment_hash: Identity of the experiment.
        settings: How it is built.
        gpus: Device ids that it gets.
        lease: Labels that the claim of the GPUs adds.
    """
    protocol = {
        ENV_LIVE: "1",
        ENV_CONFIG_PATH: f"{EXCHANGE_DIR}/{config_name(experiment_hash)}",
        ENV_OUTPUT_DIR: f"{EXCHANGE_DIR}/{OUT_DIR}",
    }
    return {
        "image": settings.image,
        "name": attempt.container_name,
        "entrypoint": list(settings.entrypoint),
        "command": [f"{EXCHANGE_DIR}/{BUNDLE}"],
        "working_dir": settings.working_dir or "/tmp",  # noqa: S108  # the container's own tmpfs
        "hostname": settings.hostname,
        "user": settings.user,
        "environment": {
            **HOME_VARIABLES,
            **settings.environment,
            **settings.private_environment,
            **(
                {} if gpus else NO_GPUS
            ),  # whatever the study or the image says: what was not claimed is not seen
            **protocol,
        },
        "labels": {  # ours win over the host's
            **settings.extra_labels,
            **attempt.labels,
            **(
                {LABEL_PRIVATE: ",".join(sorted(settings.private_environment))}
                if settings.private_environment
                else {}
            ),
            **(lease or {}),
        },
        "host_config": _host_config(api, attempt, settings, gpus),
    }


def _host_config(
    api: docker.APIClient, attempt: Attempt, settings: ContainerSettings, gpus: tuple[str, ...]
) -> dict[str, Any]:
    exchange = Mount(EXCHANGE_DIR, attempt.volume_name, type="volume", no_copy=True)
    log_options = {"max-size": "256m", "max-file": "2", **settings.log_options}
    config: dict[str, Any] = api.create_host_config(
        **settings.host_options,
        init=True,  # PID 1 must pass signals on and reap; Python as PID 1 ignores SIGTERM
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        read_only=True,
        # exec: torch.compile and Triton load the libraries that they build there
        tmpfs={"/tmp": "rw,exec,nosuid,nodev,mode=1777"},  # noqa: S108  # the container's own
        network_mode=settings.network_mode,
        pids_limit=_PIDS,
        mem_limit=settings.mem_limit,
        # Swapping would be measured as slowness; with a limit there is none.
        memswap_limit=settings.mem_limit,
        shm_size=settings.shm_size,
        cgroup_parent=settings.cgroup_parent,
        mounts=[exchange, *settings.mounts],
        device_requests=list(settings.device_requests) or _device_requests(gpus),
        # json-file can be read again from the start by an adopter, whatever the engine's default driver is.
        log_config=LogConfig(type="json-file", config=log_options),
    )
    return config


def _device_requests(gpus: tuple[str, ...]) -> list[DeviceRequest] | None:
    # By id only: a count always gives the first devices, whoever holds them.
    return [DeviceRequest(device_ids=list(gpus), capabilities=[["gpu"]])] if gpus else None


def engine_cache(engine: str, user: str) -> PurePosixPath:
    """The folder of an engine's caches in the volume: of each user its own, as none could write what another made.

    Args:
        engine: Name of the engine.
        user: ``uid[:gid]`` in the container.
    """
    return ENGINE_CACHE / f"{engine}-{user.partition(':')[0]}"


def cache_environment(folder: PurePosixPath) -> dict[str, str]:
    """The variables that lead the engines' caches into a folder."""
    return {variable: str(folder / name) for variable, name in _VARIABLES.items()}
