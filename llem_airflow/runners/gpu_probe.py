"""Ask the NVIDIA driver what GPUs there are: in this process, or as a file of its own in a container."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # pynvml.py lies beside it in the probe container

import pynvml as nv

_ABSENT = (
    nv.NVML_ERROR_NOT_SUPPORTED,
    nv.NVML_ERROR_NOT_FOUND,
    nv.NVML_ERROR_INVALID_ARGUMENT,
    nv.NVML_ERROR_NO_PERMISSION,
    nv.NVML_ERROR_FUNCTION_NOT_FOUND,
)


def look() -> dict[str, Any]:
    """GPUs with their MIG slices, the newest CUDA that the driver runs, and the driver's version.

    Raises:
        pynvml.NVMLError: There is no driver, or it does not answer.
    """
    nv.nvmlInit()
    found = []
    for index in range(nv.nvmlDeviceGetCount()):
        gpu = nv.nvmlDeviceGetHandleByIndex(index)
        uuid = _text(nv.nvmlDeviceGetUUID(gpu))
        found.append(_facts(gpu, uuid, str(index), None))
        found += _slices(gpu, uuid, index)
    return {
        "gpus": found,
        "cuda_major": nv.nvmlSystemGetCudaDriverVersion() // 1000,
        "driver": _text(nv.nvmlSystemGetDriverVersion()),
    }


def _slices(gpu: Any, uuid: str, index: int) -> list[dict[str, Any]]:
    found = []
    for slot in range(_unless_absent(nv.nvmlDeviceGetMaxMigDeviceCount, gpu) or 0):
        part = _unless_absent(nv.nvmlDeviceGetMigDeviceHandleByIndex, gpu, slot)
        if part is not None:  # an empty slot is
            found.append(_facts(part, _text(nv.nvmlDeviceGetUUID(part)), f"{index}:{slot}", uuid))
    return found


def _facts(gpu: Any, uuid: str, index: str, parent: str | None) -> dict[str, Any]:
    memory = _unless_absent(nv.nvmlDeviceGetMemoryInfo, gpu)
    return {
        "id": uuid,
        "index": index,
        "name": _text(_unless_absent(nv.nvmlDeviceGetName, gpu) or ""),
        "memory_bytes": None if memory is None else memory.total,
        "parent": parent,
        "minor": None if parent else _unless_absent(nv.nvmlDeviceGetMinorNumber, gpu),
    }


def _unless_absent(ask: Callable[..., Any], *arguments: Any) -> Any:
    """The answer; None where this device or driver has none. Any other error means that the driver is in trouble."""
    try:
        return ask(*arguments)
    except nv.NVMLError as error:
        if error.value in _ABSENT:
            return None
        raise


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(look()) + "\n")
