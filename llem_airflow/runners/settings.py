"""How a box is built: everything about a container that is not the experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from docker.types import DeviceRequest, Mount

from llem_airflow.protocol.redaction import secrets_in
from llem_airflow.runners.gpus import Gpu
from llem_airflow.study import GpuRequest

NON_ROOT = "65532:65532"
"""The uid that distroless images call ``nonroot``: it owns nothing in usual images and on usual hosts."""


@dataclass(frozen=True, slots=True)
class BoxSettings:
    """Settings of one box.

    Attributes:
        image: Image that holds the engine.
        entrypoint: What starts the bundle; the bundle's path follows it as its only argument.
        environment: Variables of the container.
        private_environment: Variables whose values are secrets: they appear in no label, log or file of ours.
        mounts: Further mounts, such as models.
        caches: Folders in mounted volumes, as the container sees them, in which its user must be able to write; a new
            volume belongs to root.
        gpus: Device ids that the container gets, once they are free; empty for what ``gpu_request`` says.
        gpu_request: GPUs to choose, or None for none.
        device_requests: Requests that the container is made with as they are; the GPUs that they name are waited
            for and leased instead of those of ``gpu_request``.
        gpu_inventory: The host's GPUs where they are configured; empty to ask the driver.
        gpu_quota: GPUs that containers of ours may hold on the host together, or None for any number.
        gpu_wait_s: How long to wait for GPUs, in seconds.
        gpu_waited_s: How much of that has gone by already, in seconds.
        gpu_wait_here: Wait in this process; else the error for GPUs that are not free comes at once, with the ticket.
        gpu_ticket: Number of the place in the queue that the claim has already, or empty.
        mem_limit: Bound of memory as Docker writes it (``8g``), or None.
        shm_size: Size of /dev/shm; engines with worker processes need 512 MB or more.
        tmp_size: Bound of the tmpfs at /tmp, or None for half of the host's memory.
        network_mode: ``none``, unless the model must be fetched.
        user: ``uid[:gid]`` in the container; None for the image's own.
        cgroup_parent: Cgroup below which the container is put, or None.
        extra_labels: Labels besides ours, such as those that a shared host asks for.
        host_options: Further arguments of ``APIClient.create_host_config``.
        hostname: Name of the container's host, or None for Docker's.
        working_dir: Where the bundle is started; None for /tmp.
        log_options: Options of the json-file log, by name.
        pids_limit: Bound of processes and threads.
        cpuset_cpus: CPUs that it may use (``0-3``), or None for all.
        read_only: Whether the image's own file system is read-only.
        runtime: OCI runtime, or None for the engine's default.
        wall_clock_s: Longest life of the container, in seconds, or None.
        silence_s: Longest time without output, in seconds, or None.
        gpu_idle_s: Longest time in which its GPUs compute nothing, in seconds, or None.
        stop_grace_s: Time between SIGTERM and SIGKILL, in seconds.
        engine_grace_s: How long an engine may be away, as at a restart, before the attempt fails, in seconds.
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
    gpus: tuple[str, ...] = ()
    gpu_request: GpuRequest | None = None
    device_requests: tuple[DeviceRequest, ...] = ()
    gpu_inventory: tuple[Gpu, ...] = ()
    gpu_quota: int | None = None
    gpu_wait_s: float = 180.0
    gpu_waited_s: float = 0.0
    gpu_wait_here: bool = True
    gpu_ticket: str = ""
    mem_limit: str | None = None
    shm_size: str = "1g"
    tmp_size: str | None = None
    network_mode: str = "none"
    user: str | None = NON_ROOT
    cgroup_parent: str | None = None
    extra_labels: Mapping[str, str] = field(default_factory=dict)
    host_options: Mapping[str, Any] = field(default_factory=dict)
    hostname: str | None = None
    working_dir: str | None = None
    log_options: Mapping[str, str] = field(default_factory=dict)
    pids_limit: int = 4096
    cpuset_cpus: str | None = None
    read_only: bool = True
    runtime: str | None = None
    wall_clock_s: float | None = None
    silence_s: float | None = None
    gpu_idle_s: float | None = None
    stop_grace_s: float = 10.0
    engine_grace_s: float = 120.0
    direct_volume: bool = True
    pull: str = "missing"
    sample_on_host: bool = False
    log_bytes: int = 64 * 1024 * 1024
    keep_failed: bool = False

    def secrets(self) -> list[str]:
        """Values that no log, file or message of ours may show."""
        return [*self.private_environment.values(), *secrets_in(self.environment)]
