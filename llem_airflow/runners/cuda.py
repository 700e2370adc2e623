"""Which CUDA the engine's host can run: it decides an engine's default image."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from functools import cache

import docker

from llem_airflow.runners.gpus import (
    GpuLookError,
    engine_names_gpus,
    inventory,
    kernel_gpus,
    local_inventory,
    on_this_machine,
)
from llem_airflow.runners.images import digest

OLDEST_MAJOR = 12
"""Taken when the host has GPUs and nobody tells their driver: newer drivers run older CUDA, not the other way round."""


def host_cuda_major(api: docker.APIClient, images: Iterable[str]) -> int | None:
    """Newest CUDA that the engine's host can run, or None where it has no GPU.

    The driver says it: to this process, else to a container of an image that is there already. The toolkit (``nvcc``)
    is only asked when the driver cannot be, as it may be older or newer than what the driver runs.

    Args:
        api: The engine.
        images: Images with Python, to ask the driver from.

    Raises:
        GpuLookError: It cannot be known whether the host has GPUs.
        docker.errors.DockerException: The engine refused.
        requests.exceptions.RequestException: The engine went away.
    """
    here = on_this_machine(api)
    if here and (local := local_inventory()) is not None and local.gpus:
        return local.cuda_major
    present = next((image for image in images if digest(api, image) is not None), None)
    found = None if present is None else inventory(api, present)
    if found is not None and found.gpus:
        return found.cuda_major
    if engine_names_gpus(api) or (here and kernel_gpus()):
        return (_nvcc_major() if here else None) or OLDEST_MAJOR
    if found is None and not here:
        raise GpuLookError(
            f"whether the host of the engine at {api.base_url} has GPUs is not known, as it has no image to ask its "
            "driver from: pull one there, or name one (`images:`, LLEM_IMAGE_<ENGINE>)"
        )
    return None


@cache
def _nvcc_major() -> int | None:
    """CUDA of the toolkit on this machine, or None."""
    try:
        said = subprocess.run(
            ["nvcc", "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\brelease (\d+)\.", said)
    return int(found[1]) if found else None
