"""Which CUDA the engine's host can run: it decides an engine's default image."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from functools import cache

import docker

from llem_airflow.container.gpus import has_nvidia, inventory, local_inventory
from llem_airflow.container.images import digest

OLDEST_MAJOR = 12
"""Taken when the host has GPUs and nobody tells their driver: newer drivers run older CUDA, not the other way round."""


def host_cuda_major(api: docker.APIClient, images: Iterable[str]) -> int | None:
    """Newest CUDA that the engine's host can run, or None where it has no GPU.

    The driver says it: to this process, else to a container of an image that is there already. The toolkit (``nvcc``)
    is only asked when the driver cannot be, as it may be older or newer than what the driver runs.

    Args:
        api: The engine.
        images: Images with Python, to ask the driver from.
    """
    here = api.base_url.startswith("http+docker://")
    if here and (found := local_inventory()) is not None:
        return found.cuda_major
    present = next((image for image in images if digest(api, image) is not None), None)
    if present is not None and (found := inventory(api, present)).gpus:
        return found.cuda_major
    if not has_nvidia(api):
        return None
    return (_nvcc_major() if here else None) or OLDEST_MAJOR


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
