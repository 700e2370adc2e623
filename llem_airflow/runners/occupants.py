"""Who is on a GPU without a container: processes of the host, and memory that nobody admits to.

Only where this process sees the driver itself, as a worker on the GPU host does: the engine's list of containers is
the lease and needs none of this, but it does not know what people start beside it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import docker

from llem_airflow.runners.gpus import Gpu, Inventory, on_this_machine
from llem_airflow.runners.leases import Holder

IDLE_BYTES = 2 * 10**9
"""A driver reserves some hundred MB on each GPU; more than this in use is somebody's."""

_WATCHERS = re.compile(r"nvidia-cuda-mps|nv-hostengine|dcgm|nvidia-smi|nvtop|nvitop")
"""Processes that are on every GPU and compute nothing of their own."""

_NOT_SEEN_FROM_HERE = (2, 3, 4, 6, 9, 12, 13)
"""NVML's errors for what this process, this driver or this kind of device does not show: invalid argument, not
supported, no permission, not found, driver not loaded, no library, no such function. All others mean trouble."""

_ON_THE_HOST = "on the host, in no container that holds this GPU"


def occupants(api: docker.APIClient | None, known: Inventory, held: Iterable[Holder]) -> list[Holder]:
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
    named = [(process, _name(process.pid)) for process in processes]
    working = [
        _holder(
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
        return [_holder(gpu, f"{used_bytes / 1e9:.1f} GB in use by a process that cannot be seen")]
    return []


def _in_trouble(gpu: Gpu, error: Exception) -> Holder:
    """What nobody can tell is not free."""
    name = f"nobody knows whom, as the driver does not answer for it ({error})"
    return Holder("", name, (gpu.id,), "running", "", exclusive_host=False, what="see `nvidia-smi`")


def _holder(gpu: Gpu, name: str, **known: Any) -> Holder:
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


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "another namespace or user"
