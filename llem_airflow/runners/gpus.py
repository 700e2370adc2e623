"""GPUs of the engine's host: which there are, and which of them a request can mean."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, DockerException
from docker.types import DeviceRequest

from llem_airflow.runners.attempt import LABEL_INSTALLATION, Attempt
from llem_airflow.runners.bundle import pynvml_file
from llem_airflow.runners.engine import remove_container, run_once
from llem_airflow.runners.exchange import packed
from llem_airflow.runners.ssh import SSHClient
from llem_airflow.study import GpuRequest

NO_GPUS = {"NVIDIA_VISIBLE_DEVICES": "void"}
"""Environment of a container that gets no GPU: NVIDIA's runtime, where it is the engine's default, gives all of them to
an image that says ``all``."""

LABEL_PROBE = "llem.probe"
"""Marks the short-lived container that asks the driver; it sees every GPU and holds none."""

_KEEP_S = 300.0
_PROBE_TIMEOUT_S = 60
_LOOK_AGAIN_AFTER_S = (1.0, 2.0)

_NO_GPU_SUPPORT = "could not select device driver"
"""What an engine without the NVIDIA Container Toolkit answers to a request for GPUs."""

_KERNEL_GPUS = "/proc/driver/nvidia/gpus"
"""One folder for each GPU that the loaded kernel module drives. Every container of a host sees it, toolkit or not."""


class GpuLookError(DockerException):
    """Which GPUs a host has could not be found out: that is not known, and not none."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU or a MIG slice of one.

    Attributes:
        id: UUID.
        index: Its number as the driver counts, ``parent:slice`` for a MIG slice.
        name: Product name.
        memory_bytes: Its memory, or None when it is not known.
        parent: UUID of the GPU that it is a slice of, or None.
        minor: N of its device file ``/dev/nvidiaN``, or None when it is not known; not always the index.
    """

    id: str
    index: str = ""
    name: str = ""
    memory_bytes: int | None = None
    parent: str | None = None
    minor: int | None = None


@dataclass(frozen=True, slots=True)
class Inventory:
    """The GPUs of a host.

    Attributes:
        gpus: All of them, slices behind their GPU.
        cuda_major: Newest CUDA that the driver can run, or None.
        driver: Version of the driver, or None.
        absent: Why there are none, for people; empty when there are some or nobody asked.
        hidden: Whether the host has GPUs all the same, which its engine cannot give to containers.
    """

    gpus: tuple[Gpu, ...] = ()
    cuda_major: int | None = None
    driver: str | None = None
    absent: str = ""
    hidden: bool = False

    @property
    def boards(self) -> tuple[Gpu, ...]:
        """The GPUs without their slices."""
        return tuple(gpu for gpu in self.gpus if gpu.parent is None)

    def find(self, wanted: str) -> Gpu | None:
        """The GPU that a device id means: a UUID, a beginning of one, an index, or CDI's name of it.

        An older driver's name of a slice (``MIG-GPU-<uuid>/<instance>/<compute instance>``) means its whole GPU.
        """
        name = wanted.rpartition("=")[2] if wanted.startswith("nvidia.com/") else wanted
        name = _CDI_TYPE.sub("", name)
        name = name[4:].partition("/")[0] if name.startswith("MIG-GPU-") else name
        exact = [gpu for gpu in self.gpus if name.lower() in (gpu.id.lower(), gpu.index)]
        begun = [gpu for gpu in self.gpus if _UUID.match(name) and gpu.id.lower().startswith(name.lower())]
        return next(iter(exact or begun), None)

    def overlap(self, one: str, other: str) -> bool:
        """Whether two device ids share hardware: a GPU and its slices do, two slices of it do not."""
        a, b = self.find(one) or Gpu(one), self.find(other) or Gpu(other)
        return b.id in (a.id, a.parent) or b.parent == a.id


_CDI_TYPE = re.compile(r"^(gpu|mig)(?=\d)")
"""CDI may name devices by type and index: ``gpu0``, ``mig0:1``."""
_UUID = re.compile(r"(GPU|MIG)-.", re.IGNORECASE)


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
            raise GpuRequestError(f"the host has no GPU {', '.join(missing)}; it has: {_listed(inventory)}")
        return tuple(gpu for gpu in found if gpu is not None)
    split = {gpu.parent for gpu in inventory.gpus}
    fitting = [gpu for gpu in inventory.gpus if _fits(gpu, request, split)]
    count = request.count or 1
    if len(fitting) < count:
        size = f" with {request.memory_gb:g} GB" if request.memory_gb else ""
        kind = "" if request.kind == "any" else f" of kind {request.kind}"
        raise GpuRequestError(f"{count} GPU(s){kind}{size} asked for; the host has: {_listed(inventory)}")
    return tuple(sorted(fitting, key=lambda gpu: (gpu.memory_bytes or 0, gpu.parent is None, gpu.index)))


def _fits(gpu: Gpu, request: GpuRequest, split: set[str | None]) -> bool:
    if gpu.id in split:  # a GPU in MIG mode cannot be given as a whole
        return False
    if (request.kind == "full" and gpu.parent) or (request.kind == "mig" and not gpu.parent):
        return False
    return request.memory_gb is None or (gpu.memory_bytes or 0) >= request.memory_gb * 1e9


def _listed(known: Inventory) -> str:
    gpus = ", ".join(f"{gpu.id} ({gpu.name or 'GPU'} {gpu.index})" for gpu in known.gpus)
    return gpus or (f"none: {known.absent}" if known.absent else "none")


def engine_names_gpus(api: docker.APIClient) -> bool:
    """Whether the engine's description names NVIDIA's runtime or devices. If not, it may still give GPUs.

    Raises:
        docker.errors.DockerException: The engine refused.
        requests.exceptions.RequestException: It does not answer.
    """
    info = api.info()
    listed = any("nvidia.com/gpu" in str(device) for device in info.get("DiscoveredDevices") or ())
    return "nvidia" in (info.get("Runtimes") or {}) or listed


def has_nvidia(api: docker.APIClient, image: str | None = None) -> bool:
    """Whether this engine gives GPUs.

    Args:
        api: The engine.
        image: An image with Python. With it an engine whose description does not tell is tried.

    Raises:
        GpuLookError: It could not be tried.
    """
    return engine_names_gpus(api) or bool(image and inventory(api, image).gpus)


def on_this_machine(api: docker.APIClient) -> bool:
    """Whether the engine is this machine's: it is reached by a socket of its own."""
    return api.base_url.startswith("http+docker://") and not isinstance(api, SSHClient)


_known: dict[tuple[str, str], tuple[float, Inventory]] = {}


def inventory(api: docker.APIClient, image: str, owner: Attempt | None = None) -> Inventory:
    """The GPUs of the engine's host; asked once in five minutes where it has some, else every time.

    The driver is asked where it answers: in this process when the engine is this machine's, else in a
    container that lives for a second. A look that fails is made again twice.

    Args:
        api: The engine.
        image: An image with Python for that container.
        owner: The attempt that asks. What a killed try of it left of that container is removed.

    Raises:
        GpuLookError: It could not be found out.
        requests.exceptions.RequestException: The engine went away.
    """
    key = (api.base_url, image)
    asked_s, found = _known.get(key, (-_KEEP_S, Inventory()))
    if time.monotonic() - asked_s >= _KEEP_S:
        found = _look_patiently(api, image, owner)
        if found.gpus:
            _known[key] = (time.monotonic(), found)
    return found


def _look_patiently(api: docker.APIClient, image: str, owner: Attempt | None) -> Inventory:
    for pause_s in _LOOK_AGAIN_AFTER_S:
        with contextlib.suppress(GpuLookError):
            return _look(api, image, owner)
        time.sleep(pause_s)
    return _look(api, image, owner)


def _look(api: docker.APIClient, image: str, owner: Attempt | None) -> Inventory:
    here = local_inventory() if on_this_machine(api) else None
    return here if here is not None and here.gpus else _probe(api, image, owner)


def local_inventory() -> Inventory | None:
    """The GPUs that this process sees; None when it sees no driver.

    Raises:
        GpuLookError: There is a driver and it does not answer, as after an update without a restart.
    """
    # The 8,000 lines of NVML's bindings are for those who ask the driver, not for every task's start.
    import pynvml  # noqa: PLC0415

    from llem_airflow.runners import gpu_probe  # noqa: PLC0415

    try:
        return _inventory(gpu_probe.look())
    except pynvml.NVMLError as error:
        if error.value in (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED):
            return None
        raise GpuLookError(f"the NVIDIA driver of this machine does not answer: {error}") from error


def kernel_gpus() -> int:
    """How many GPUs the NVIDIA kernel module of this machine drives, also where nothing else of a driver is seen."""
    folder = Path(_KERNEL_GPUS)
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def _probe(api: docker.APIClient, image: str, owner: Attempt | None) -> Inventory:
    """Ask the driver from a container; an engine without GPU support refuses to start it."""
    try:
        said = _in_container(api, image, owner, ["/tmp/gpu_probe.py"], gpus=True)  # noqa: S108  # the probe's own
    except APIError as error:
        text = str(error.explanation or error)
        if _NO_GPU_SUPPORT in text:
            return _none(api, image, owner, text)
        raise GpuLookError(f"the engine cannot ask its host's NVIDIA driver: {text}") from error
    try:
        return _inventory(json.loads(said))
    except (ValueError, KeyError, TypeError) as error:
        raise GpuLookError(f"the host's NVIDIA driver was asked in a container and said: {said!r}") from error


def _none(api: docker.APIClient, image: str, owner: Attempt | None, refusal: str) -> Inventory:
    """No GPU to be had, and whether the host has some all the same."""
    if on_this_machine(api):
        count = kernel_gpus()
    else:
        code = f"import glob; print(len(glob.glob('{_KERNEL_GPUS}/*')))"
        try:
            count = int(_in_container(api, image, owner, ["-c", code], gpus=False))
        except (APIError, ValueError) as error:
            raise GpuLookError(f"whether the engine's host has GPUs cannot be seen: {error}") from error
    if count:
        text = f"the host has {count} NVIDIA GPU(s) that its engine cannot give to containers ({refusal})"
        return Inventory(absent=f"{text}: install the NVIDIA Container Toolkit there", hidden=True)
    if engine_names_gpus(api):
        return Inventory(absent=f"the engine names NVIDIA GPUs and cannot give any ({refusal})", hidden=True)
    return Inventory(absent=f"the engine gives no GPU to containers ({refusal})")


def free_bytes_there(api: docker.APIClient, image: str) -> int:
    """Room on the disk on which an engine keeps containers, in bytes, as one of them sees it.

    Raises:
        docker.errors.APIError: None can be made, as where the disk is full.
        ValueError: It said something else.
    """
    code = "import os; disk = os.statvfs('/'); print(disk.f_bavail * disk.f_frsize)"
    return int(_in_container(api, image, None, ["-c", code], gpus=False))


def _in_container(
    api: docker.APIClient, image: str, owner: Attempt | None, command: list[str], *, gpus: bool
) -> str:
    """The last line that a short-lived container prints, of its errors where it prints nothing else."""
    name = f"llem-probe-{owner.key}" if owner else None
    if name is not None:
        remove_container(api, name)
    files = {"pynvml.py": pynvml_file(), "gpu_probe.py": Path(__file__).with_name("gpu_probe.py")}
    archive = packed({inside: path.read_bytes() for inside, path in files.items()}, [], None)
    _, out, err = run_once(
        api,
        image,
        "/tmp",  # noqa: S108  # the probe's own
        archive,
        _PROBE_TIMEOUT_S,
        name=name,
        entrypoint=["python3"],
        command=command,
        user="0",
        labels={LABEL_PROBE: "1"} | ({LABEL_INSTALLATION: owner.labels[LABEL_INSTALLATION]} if owner else {}),
        environment={"NVIDIA_DRIVER_CAPABILITIES": "utility"} if gpus else NO_GPUS,
        host_config=api.create_host_config(
            network_mode="none",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]])] if gpus else None,
        ),
    )
    return (out.strip() or err.strip() or "nothing").splitlines()[-1]


def _inventory(said: Mapping[str, Any]) -> Inventory:
    gpus = tuple(Gpu(**gpu) for gpu in said["gpus"])
    return Inventory(gpus, said.get("cuda_major"), said.get("driver"))
