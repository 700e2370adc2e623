"""Who holds GPUs: containers, however they asked for them, and processes of the host without one.

An engine's list of containers says who was given what. A container that is none of ours is read as NVIDIA's toolkit
reads it (dockerd: a request for GPUs overwrites the variable; nvidia-container-toolkit, internal/config/image:
variable, mounts, annotations, images of before 2018 that name no variable). What people start beside containers only
the driver knows, where this process sees it itself, as a worker on the GPU host does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import docker
from docker.errors import NotFound

from llem_airflow.runners.attempt import LABEL_KEY, gpus_of, of_dag
from llem_airflow.runners.engine import LIVE_STATES, name_of
from llem_airflow.runners.gpus import LABEL_PROBE, Gpu, Inventory, on_this_machine

LABEL_TICKET = "llem.ticket"
"""When the claim began, as text that sorts by time; earlier claims go first."""

LABEL_EXCLUSIVE = "llem.exclusive"
"""``host`` when no other experiment may run on the host meanwhile."""

LABEL_QUOTA = "llem.quota"
"""GPUs that experiments may hold on the host together, as the claim's connection says."""

_OWNER = re.compile(r"(^|[._-])(user|owner)$", re.IGNORECASE)
OBSERVERS = re.compile(r"dcgm-exporter|nvidia[_-]gpu[_-]exporter|nvidia-smi|nvtop|cadvisor|device-plugin")
"""Images that are given every GPU in order to watch it; they hold none."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A container, or a process of the host, and the GPUs that it holds.

    Attributes:
        container: Its id; empty for what is on a GPU without one.
        name: Its name.
        gpus: Device ids, as it was given them.
        state: ``created`` (a claim that has not started), or a live state.
        ticket: Its claim's ticket; empty when it is not ours.
        exclusive_host: Whether it wants the host for itself.
        what: What people call it: experiment and DAG, or the image.
        owner: Whose it is, as far as labels or the process's user say; empty when nobody says.
        since_epoch_s: When it got them, in seconds since 1970, or None when it is not known.
        pid: The process, or 0 for a container and for what cannot be told.
        quota: The host's quota that its claim went by, or None.
    """

    container: str
    name: str
    gpus: tuple[str, ...]
    state: str
    ticket: str
    exclusive_host: bool
    what: str
    owner: str = ""
    since_epoch_s: float | None = None
    pid: int = 0
    quota: int | None = None

    @property
    def kind(self) -> str:
        """``task`` (an experiment, in a container or as a process), ``container`` or ``process``."""
        return "task" if self.ticket else "container" if self.container else "process"

    @property
    def live(self) -> bool:
        """Whether it runs; a created one only claims."""
        return self.state in LIVE_STATES


_foreign: dict[str, Mapping[str, Any]] = {}
"""Container id -> its inspection. How it asked for GPUs is fixed when it is made, so one inspection is enough."""


def holders(api: docker.APIClient, known: Inventory) -> list[Holder]:
    """Every container that holds GPUs or, being one of our experiments, a part of the host.

    Raises:
        docker.errors.DockerException: The engine refused.
        requests.exceptions.RequestException: It does not answer.
    """
    listed = api.containers(all=True)
    _forget(container["Id"] for container in listed)
    info = cache(api.info)
    found = [_holder(api, container, known, info) for container in listed]
    return [holder for holder in found if holder is not None]


def _forget(present: Iterable[str]) -> None:
    for gone in set(_foreign) - set(present):
        _foreign.pop(gone, None)


def _holder(
    api: docker.APIClient, listed: Mapping[str, Any], known: Inventory, info: Callable[[], Mapping[str, Any]]
) -> Holder | None:
    labels = listed.get("Labels") or {}
    state = str(listed["State"])
    if LABEL_PROBE in labels:
        return None
    if LABEL_KEY in labels:
        if state not in (*LIVE_STATES, "created"):
            return None
        gpus, what = gpus_of(labels), of_dag(labels)
    else:
        if state not in LIVE_STATES or OBSERVERS.search(str(listed.get("Image"))):
            return None
        gpus, privileged = given_to(api, listed["Id"], known, info)
        what = f"{listed['Image']}{', privileged' * privileged}"
        if not gpus:
            return None
    ours = labels if LABEL_KEY in labels else {}
    return Holder(
        listed["Id"],
        name_of(listed),
        gpus,
        state,
        ours.get(LABEL_TICKET, ""),
        ours.get(LABEL_EXCLUSIVE) == "host",
        what,
        owner=_owner(labels),
        since_epoch_s=float(listed["Created"]),
        quota=int(ours.get(LABEL_QUOTA) or 0) or None,
    )


def _owner(labels: Mapping[str, str]) -> str:
    """Who a container's labels say that it is of, as shared hosts label containers (``ds01.user``)."""
    return next((value for name, value in sorted(labels.items()) if _OWNER.search(name) and value), "")


def given_to(
    api: docker.APIClient, container: str, known: Inventory, info: Callable[[], Mapping[str, Any]]
) -> tuple[tuple[str, ...], bool]:
    """What a foreign container was given, and whether because it is privileged; nothing when it has gone.

    Args:
        api: The engine.
        container: Its id.
        known: The host's GPUs.
        info: Describes the engine; asked only for a container that is not known yet.
    """
    if container not in _foreign:
        try:
            inspection = api.inspect_container(container)
        except NotFound:
            return (), False
        _foreign[container] = {**inspection, "engine": info()}
    inspection = _foreign[container]
    given = requested(inspection, known, inspection["engine"])
    return given, bool((inspection.get("HostConfig") or {}).get("Privileged"))


_VARIABLE = "NVIDIA_VISIBLE_DEVICES"
_AS_MOUNTS = "/var/run/nvidia-container-devices/"
_CDI_ANNOTATION = "cdi.k8s.io/"
_CDI_KIND = "nvidia.com/"
_CAPABILITIES = {"gpu", "nvidia", "compute", "compat32", "graphics", "utility", "video", "display"}
_DEVICE_FILE = re.compile(r"^/dev/nvidia(?P<minor>\d+)$")
_CONTROL = ("254", "255")  # /dev/nvidia-modeset and /dev/nvidiactl
_ALL_DEVICE_FILES = ("/dev", "/dev/", "/dev/dxg")
_CGROUP_RULE = re.compile(
    r"^(?:a|c) (?:\*|195):(?P<minor>\*|\d+)(?: |$)"
)  # 195: major number of /dev/nvidiaN


def requested(
    inspection: Mapping[str, Any], known: Inventory, info: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """Ids of the GPUs that a container was given, as it named them; every board of the host for "all".

    Args:
        inspection: What the engine says of the container.
        known: The host's GPUs.
        info: The engine's description: which runtime is the default, and which runtimes are NVIDIA's.
    """
    host = inspection.get("HostConfig") or {}
    ids = [*_files(host, known), *_annotated(host)]
    requests = [request for request in host.get("DeviceRequests") or () if isinstance(request, Mapping)]
    ids += [
        str(name)
        for request in requests
        if request.get("Driver") == "cdi"
        for name in request.get("DeviceIDs") or ()
        if str(name).startswith(_CDI_KIND)
    ]
    asked = [request for request in requests if _for_nvidia(request)]
    naming = [request for request in asked if request.get("Count") or request.get("DeviceIDs")]
    if naming:  # each overwrites the variable: the last one counts, and what the image says does not
        ids += _named(naming[-1], known)
    elif asked or _nvidia_runtime(host, info or {}):
        ids += () if _annotated(host) else _mounted(inspection) or _by_variable(inspection)
    if host.get("Privileged") or any(name == "all" or name.endswith("=all") for name in ids):
        return tuple(gpu.id for gpu in known.boards)
    return tuple(dict.fromkeys(ids))


def _files(host: Mapping[str, Any], known: Inventory) -> list[str]:
    """From device files that it was given, or that it may make."""
    minors: list[str] = []
    for device in host.get("Devices") or ():
        path = str(device.get("PathOnHost"))
        if match := _DEVICE_FILE.match(path):
            minors.append(match["minor"])
        elif path in _ALL_DEVICE_FILES:
            return ["all"]
    rules = (_CGROUP_RULE.match(str(rule)) for rule in host.get("DeviceCgroupRules") or ())
    minors += [rule["minor"] for rule in rules if rule]
    return (
        ["all"] if "*" in minors else [_of_minor(minor, known) for minor in minors if minor not in _CONTROL]
    )


def _of_minor(minor: str, known: Inventory) -> str:
    for gpu in known.boards:
        if minor == (gpu.index if gpu.minor is None else str(gpu.minor)):
            return gpu.id
    return f"/dev/nvidia{minor}"


def _annotated(host: Mapping[str, Any]) -> list[str]:
    lists = (
        str(value)
        for key, value in (host.get("Annotations") or {}).items()
        if key.startswith(_CDI_ANNOTATION)
    )
    return [name for names in lists for name in _split(names) if name.startswith(_CDI_KIND)]


def _for_nvidia(request: Mapping[str, Any]) -> bool:
    driver = request.get("Driver") or ""
    capabilities = {name for names in request.get("Capabilities") or () for name in names}
    return driver == "nvidia" or (not driver and bool(capabilities & _CAPABILITIES))


def _named(request: Mapping[str, Any], known: Inventory) -> list[str]:
    count = int(request.get("Count") or 0)
    if count < 0:
        return ["all"]
    # A count means the first ones, whoever has them.
    return [gpu.id for gpu in known.boards][:count] + [str(name) for name in request.get("DeviceIDs") or ()]


def _nvidia_runtime(host: Mapping[str, Any], info: Mapping[str, Any]) -> bool:
    name = str(host.get("Runtime") or info.get("DefaultRuntime") or "")
    path = str(((info.get("Runtimes") or {}).get(name) or {}).get("path") or "")
    return "nvidia" in name or "nvidia-container-runtime" in path


def _mounted(inspection: Mapping[str, Any]) -> list[str]:
    """From a list of devices as mounts of /dev/null, which goes before the variable where the host accepts it."""
    host = inspection.get("HostConfig") or {}
    binds = (str(bind).split(":") for bind in host.get("Binds") or ())
    pairs: Iterable[tuple[str, str]] = [
        *((str(m.get("Source")), str(m.get("Destination"))) for m in inspection.get("Mounts") or ()),
        *((str(m.get("Source")), str(m.get("Target"))) for m in host.get("Mounts") or ()),
        *((parts[0], parts[1]) for parts in binds if len(parts) > 1),
    ]
    return [
        target.removeprefix(_AS_MOUNTS).rpartition("/")[2]
        for source, target in pairs
        if source == "/dev/null" and target.startswith(_AS_MOUNTS)
    ]


def _by_variable(inspection: Mapping[str, Any]) -> list[str]:
    """From the variable, whether the image brings it or the container was started with it."""
    config = inspection.get("Config") or {}
    environment = dict(str(line).split("=", 1) for line in config.get("Env") or () if "=" in str(line))
    if _VARIABLE not in environment:
        legacy = environment.get("CUDA_VERSION") and not environment.get("NVIDIA_REQUIRE_CUDA")
        return ["all"] if legacy else []
    ids = _split(environment[_VARIABLE])
    return [] if {"void", "none"} & set(ids) else ids


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


IDLE_BYTES = 2 * 10**9
"""A driver reserves some hundred MB on each GPU; more than this in use is somebody's."""

_WATCHERS = re.compile(r"nvidia-cuda-mps|nv-hostengine|dcgm|nvidia-smi|nvtop|nvitop")
"""Processes that are on every GPU and compute nothing of their own."""

_NOT_SEEN_FROM_HERE = (2, 3, 4, 6, 9, 12, 13)
"""NVML's errors for what this process, this driver or this kind of device does not show: invalid argument, not
supported, no permission, not found, driver not loaded, no library, no such function. All others mean trouble."""

_ON_THE_HOST = "on the host, in no container that holds this GPU"


def gpu_processes(api: docker.APIClient | None, known: Inventory, held: Iterable[Holder]) -> list[Holder]:
    """Holders of GPUs that no container holds; none where the driver cannot be seen from here.

    Args:
        api: The engine; one on another machine has a driver of its own. None for this machine without an engine.
        known: The host's GPUs.
        held: What containers hold. A process on their GPUs is taken for theirs.
    """
    if api is not None and not on_this_machine(api):
        return []
    taken = [gpu for holder in held for gpu in holder.gpus]
    split = {gpu.parent for gpu in known.gpus}
    free = [
        gpu
        for gpu in known.gpus
        if gpu.id not in split and not any(known.overlap(gpu.id, other) for other in taken)
    ]
    import pynvml  # noqa: PLC0415 - 8,000 lines, for those who wait for GPUs of this machine

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [] if error.value in _NOT_SEEN_FROM_HERE else [_in_trouble(gpu, error) for gpu in free]
    try:
        return [holder for gpu in free for holder in _on(gpu)]
    finally:
        pynvml.nvmlShutdown()


def _on(gpu: Gpu) -> list[Holder]:
    import pynvml  # noqa: PLC0415

    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.id)
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        used_bytes = int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
    except pynvml.NVMLError as error:
        return [] if error.value in _NOT_SEEN_FROM_HERE else [_in_trouble(gpu, error)]
    named = [(process, _command(process.pid)) for process in processes]
    working = [
        _process(
            gpu,
            f"process {process.pid} ({name}, {(process.usedGpuMemory or 0) / 1e9:.1f} GB)",
            owner=user_name(Path(f"/proc/{process.pid}")),
            since_epoch_s=_since_epoch_s(process.pid),
            pid=process.pid,
        )
        for process, name in named
        if not _WATCHERS.search(name)
    ]
    if working:
        return working
    if used_bytes > IDLE_BYTES and not named:
        return [_process(gpu, f"{used_bytes / 1e9:.1f} GB in use by a process that cannot be seen")]
    return []


def _in_trouble(gpu: Gpu, error: Exception) -> Holder:
    """What nobody can tell is not free."""
    name = f"nobody knows whom, as the driver does not answer for it ({error})"
    return Holder("", name, (gpu.id,), "running", "", exclusive_host=False, what="see `nvidia-smi`")


def _process(gpu: Gpu, name: str, **known: Any) -> Holder:
    return Holder("", name, (gpu.id,), "running", "", exclusive_host=False, what=_ON_THE_HOST, **known)


def user_name(path: Path) -> str:
    """The user that a file or a process (``/proc/<pid>``) is of; empty when that cannot be told."""
    try:
        return path.owner()
    except (OSError, KeyError):
        return ""


def _since_epoch_s(pid: int) -> float | None:
    """When a process began, from the kernel's count of ticks since the boot."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        (boot,) = re.findall(r"^btime (\d+)$", Path("/proc/stat").read_text(encoding="utf-8"), re.MULTILINE)
    except (OSError, ValueError, IndexError):
        return None
    return int(boot) + ticks / os.sysconf("SC_CLK_TCK")


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "another namespace or user"
