"""Which GPUs a container was given, however it asked: read from its inspection, as NVIDIA's toolkit decides.

The rules are those of dockerd (a request for GPUs overwrites the variable) and of nvidia-container-toolkit
(internal/config/image: variable, mounts, annotations, images of before 2018 that name no variable).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from llem_airflow.runners.gpus import Inventory

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
