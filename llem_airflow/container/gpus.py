"""GPUs of the engine's host: which there are, and which of them a request can mean."""

from __future__ import annotations

import contextlib
import io
import json
import re
import tarfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError
from docker.types import DeviceRequest

from llem_airflow.container.bundle import pynvml_file
from llem_airflow.container.engine import ENGINE_ERRORS, remove_container
from llem_airflow.study import GpuRequest

LABEL_PROBE = "llem.probe"
"""Marks the short-lived container that asks the driver; it sees every GPU and holds none."""

_KEEP_S = 300.0
_PROBE_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU or a MIG slice of one.

    Attributes:
        id: UUID.
        index: Its number as the driver counts, ``parent:slice`` for a MIG slice.
        name: Product name.
        memory_bytes: Its memory, or None when it is not known.
        parent: UUID of the GPU that it is a slice of, or None.
    """

    id: str
    index: str = ""
    name: str = ""
    memory_bytes: int | None = None
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class Inventory:
    """The GPUs of a host.

    Attributes:
        gpus: All of them, slices behind their GPU.
        cuda_major: Newest CUDA that the driver can run, or None.
        driver: Version of the driver, or None.
    """

    gpus: tuple[Gpu, ...] = ()
    cuda_major: int | None = None
    driver: str | None = None

    def find(self, wanted: str) -> Gpu | None:
        """The GPU that a device id means: a UUID, a beginning of one, an index, or CDI's name of it."""
        name = wanted.rpartition("=")[2] if wanted.startswith("nvidia.com/") else wanted
        exact = [gpu for gpu in self.gpus if name in (gpu.id, gpu.index)]
        begun = [gpu for gpu in self.gpus if len(name) >= 8 and gpu.id.startswith(name)]
        return next(iter(exact or begun), None)

    def overlap(self, one: str, other: str) -> bool:
        """Whether two device ids share hardware: a GPU and its slices do, two slices of it do not."""
        a, b = self.find(one) or Gpu(one), self.find(other) or Gpu(other)
        return b.id in (a.id, a.parent) or b.parent == a.id


class GpuRequestError(ValueError):
    """The host cannot meet a request for GPUs, whatever is free."""


def candidates(request: GpuRequest, inventory: Inventory) -> tuple[Gpu, ...]:
    """GPUs that can meet a request, the smallest first: large ones stay for whoever needs them.

    Raises:
        GpuRequestError: There are fewer than it asks for.
    """
    if request.ids:
        found = [inventory.find(wanted) for wanted in request.ids]
        missing = [wanted for wanted, gpu in zip(request.ids, found, strict=True) if gpu is None]
        if missing:
            raise GpuRequestError(
                f"the host has no GPU {', '.join(missing)}; it has: {_listed(inventory.gpus)}"
            )
        return tuple(gpu for gpu in found if gpu is not None)
    split = {gpu.parent for gpu in inventory.gpus}
    fitting = [gpu for gpu in inventory.gpus if _fits(gpu, request, split)]
    count = request.count or 1
    if len(fitting) < count:
        size = f" with {request.memory_gb:g} GB" if request.memory_gb else ""
        kind = "" if request.kind == "any" else f" of kind {request.kind}"
        raise GpuRequestError(
            f"{count} GPU(s){kind}{size} asked for; the host has: {_listed(inventory.gpus)}"
        )
    return tuple(sorted(fitting, key=lambda gpu: (gpu.memory_bytes or 0, gpu.parent is None, gpu.index)))


def _fits(gpu: Gpu, request: GpuRequest, split: set[str | None]) -> bool:
    if gpu.id in split:  # a GPU in MIG mode cannot be given as a whole
        return False
    if (request.kind == "full" and gpu.parent) or (request.kind == "mig" and not gpu.parent):
        return False
    return request.memory_gb is None or (gpu.memory_bytes or 0) >= request.memory_gb * 1e9


def _listed(gpus: Iterable[Gpu]) -> str:
    return ", ".join(f"{gpu.id} ({gpu.name or 'GPU'} {gpu.index})" for gpu in gpus) or "none"


def has_nvidia(api: docker.APIClient, image: str | None = None) -> bool:
    """Whether this engine gives GPUs.

    Args:
        api: The engine.
        image: An image with Python. With it an engine whose description does not tell is tried.
    """
    info = api.info()
    named = "nvidia" in (info.get("Runtimes") or {})
    listed = any("nvidia.com/gpu" in str(device) for device in info.get("DiscoveredDevices") or ())
    return named or listed or bool(image and inventory(api, image).gpus)


_known: dict[tuple[str, str], tuple[float, Inventory]] = {}


def inventory(api: docker.APIClient, image: str, owner: str = "") -> Inventory:
    """The GPUs of the engine's host; asked once in five minutes.

    The driver is asked where it answers: in this process when the engine is this machine's, else in a
    container that lives for a second.

    Args:
        api: The engine.
        image: An image with Python for that container.
        owner: Key of the attempt that asks. What a killed try of it left of that container is removed.

    Raises:
        requests.exceptions.RequestException: The engine went away.
    """
    key = (api.base_url, image)
    asked_s, found = _known.get(key, (-_KEEP_S, Inventory()))
    if time.monotonic() - asked_s >= _KEEP_S:
        here = local_inventory() if api.base_url.startswith("http+docker://") else None
        found = here or _probe(api, image, owner)
        _known[key] = (time.monotonic(), found)
    return found


def local_inventory() -> Inventory | None:
    """The GPUs that this process sees; None when it sees no driver."""
    # The 8,000 lines of NVML's bindings are for those who ask the driver, not for every task's start.
    import pynvml  # noqa: PLC0415

    from llem_airflow.container import gpu_probe  # noqa: PLC0415

    try:
        return _inventory(gpu_probe.look())
    except pynvml.NVMLError:
        return None


def _probe(api: docker.APIClient, image: str, owner: str) -> Inventory:
    """Ask the driver from a container; an engine without GPU support refuses to start it."""
    name = f"llem-probe-{owner}" if owner else None
    if name is not None:
        remove_container(api, name)
    identity = ""
    try:
        identity = api.create_container(
            image,
            name=name,
            entrypoint=["python3"],
            command=["/tmp/gpu_probe.py"],  # noqa: S108  # the probe's own
            user="0",
            labels={LABEL_PROBE: "1"},
            environment={"NVIDIA_DRIVER_CAPABILITIES": "utility"},
            host_config=api.create_host_config(
                network_mode="none",
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]])],
            ),
        )["Id"]
        api.put_archive(identity, "/tmp", _archive())  # noqa: S108  # the probe's own
        api.start(identity)
        api.wait(identity, timeout=_PROBE_TIMEOUT_S)
        said = api.logs(identity, stdout=True, stderr=False).decode("utf-8", "replace")
        return _inventory(json.loads(said.strip().splitlines()[-1]))
    except (APIError, ValueError, IndexError):
        return Inventory()
    finally:
        if identity:
            with contextlib.suppress(*ENGINE_ERRORS):
                api.remove_container(identity, force=True, v=True)


def _archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(pynvml_file(), "pynvml.py", filter=_readable)
        archive.add(Path(__file__).with_name("gpu_probe.py"), "gpu_probe.py", filter=_readable)
    return buffer.getvalue()


def _readable(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.mode = 0o444
    return info


def _inventory(said: Mapping[str, Any]) -> Inventory:
    gpus = tuple(Gpu(**gpu) for gpu in said["gpus"])
    return Inventory(gpus, said.get("cuda_major"), said.get("driver"))


_VISIBLE = re.compile(r"^NVIDIA_VISIBLE_DEVICES=(?P<ids>.+)$")


def requested(inspection: Mapping[str, Any], known: Inventory) -> tuple[str, ...]:
    """Ids of the GPUs that any container was given, however it asked, from its inspection."""
    host = inspection.get("HostConfig") or {}
    ids: list[str] = []
    for request in host.get("DeviceRequests") or ():
        capabilities = [name for names in request.get("Capabilities") or () for name in names]
        if "gpu" in capabilities or request.get("Driver") in ("nvidia", "cdi"):
            ids += _named(request, known)
    if host.get("Runtime") == "nvidia":
        for line in (inspection.get("Config") or {}).get("Env") or ():
            if match := _VISIBLE.match(line):
                ids += [] if match["ids"] in ("none", "void") else match["ids"].split(",")
    if "all" in ids:
        return tuple(gpu.id for gpu in known.gpus if gpu.parent is None)
    return tuple(ids)


def _named(request: Mapping[str, Any], known: Inventory) -> list[str]:
    count = int(request.get("Count") or 0)
    if count < 0:
        return ["all"]
    # A count means the first ones, whoever has them.
    first = [gpu.id for gpu in known.gpus if gpu.parent is None][:count]
    return first + [
        ("all" if str(name).endswith("=all") else str(name)) for name in request.get("DeviceIDs") or ()
    ]
