"""Ask the NVIDIA driver what GPUs there are: in this process, or as a file of its own in a container."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # pynvml.py lies beside it in the probe container

import pynvml as nv


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
    try:
        slots = nv.nvmlDeviceGetMaxMigDeviceCount(gpu)
    except nv.NVMLError:
        return []
    found = []
    for slot in range(slots):
        try:
            part = nv.nvmlDeviceGetMigDeviceHandleByIndex(gpu, slot)
            found.append(_facts(part, _text(nv.nvmlDeviceGetUUID(part)), f"{index}:{slot}", uuid))
        except nv.NVMLError:  # an empty slot
            continue
    return found


def _facts(gpu: Any, uuid: str, index: str, parent: str | None) -> dict[str, Any]:
    try:
        memory_bytes = nv.nvmlDeviceGetMemoryInfo(gpu).total
    except nv.NVMLError:
        memory_bytes = None
    try:
        name = _text(nv.nvmlDeviceGetName(gpu))
    except nv.NVMLError:
        name = ""
    return {"id": uuid, "index": index, "name": name, "memory_bytes": memory_bytes, "parent": parent}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(look()) + "\n")
