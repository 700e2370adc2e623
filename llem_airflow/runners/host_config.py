"""Hardening: what a container may do on its host."""

from __future__ import annotations

from collections.abc import Mapping
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
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.gpus import NO_GPUS
from llem_airflow.runners.settings import BoxSettings

_HOME = {
    # A user without an entry in the image's passwd file has neither home nor name; torch asks for both.
    "HOME": "/tmp",  # noqa: S108  # the container's own tmpfs
    "USER": "llem",
    "LOGNAME": "llem",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def create_arguments(
    api: docker.APIClient,
    attempt: Attempt,
    experiment_hash: str,
    settings: BoxSettings,
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
            **_HOME,
            **settings.environment,
            **settings.private_environment,
            **(
                {} if gpus else NO_GPUS
            ),  # whatever the study or the image says: what was not claimed is not seen
            **protocol,
        },
        "labels": {**settings.extra_labels, **attempt.labels, **(lease or {})},  # ours win over the host's
        "host_config": _host_config(api, attempt, settings, gpus),
    }


def _host_config(
    api: docker.APIClient, attempt: Attempt, settings: BoxSettings, gpus: tuple[str, ...]
) -> dict[str, Any]:
    size = f",size={settings.tmp_size}" if settings.tmp_size else ""
    exchange = Mount(EXCHANGE_DIR, attempt.volume_name, type="volume", no_copy=True)
    log_options = {"max-size": "256m", "max-file": "2", **settings.log_options}
    config: dict[str, Any] = api.create_host_config(
        **settings.host_options,
        init=True,  # PID 1 must pass signals on and reap; Python as PID 1 ignores SIGTERM
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        read_only=settings.read_only,
        # exec: torch.compile and Triton load the libraries that they build there
        tmpfs={"/tmp": f"rw,exec,nosuid,nodev,mode=1777{size}"},  # noqa: S108  # the container's own
        network_mode=settings.network_mode,
        pids_limit=settings.pids_limit,
        mem_limit=settings.mem_limit,
        # Swapping would be measured as slowness; with a limit there is none.
        memswap_limit=settings.mem_limit,
        shm_size=settings.shm_size,
        cpuset_cpus=settings.cpuset_cpus,
        cgroup_parent=settings.cgroup_parent,
        runtime=settings.runtime,
        mounts=[exchange, *settings.mounts],
        device_requests=list(settings.device_requests) or _device_requests(gpus),
        # json-file can be read again from the start by an adopter, whatever the engine's default driver is.
        log_config=LogConfig(type="json-file", config=log_options),
    )
    return config


def _device_requests(gpus: tuple[str, ...]) -> list[DeviceRequest] | None:
    # By id only: a count always gives the first devices, whoever holds them.
    return [DeviceRequest(device_ids=list(gpus), capabilities=[["gpu"]])] if gpus else None
