"""What machine this is: Python, packages, the driver's view of its boards. ``machine.py FOLDER``."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys

PACKAGES = ("torch", "transformers", "numpy", "pyarrow", "scipy", "pyyaml", "rich", "click", "nvidia-ml-py")
CARRIED = ("pydantic", "fsspec", "docker", "zeus", "codecarbon")
ABSENT = "apache-airflow"


def main() -> int:
    """Print it; 1 without an NVIDIA driver."""
    print(f"> Python {platform.python_version()}, {os.cpu_count()} cores, Linux {platform.release()}")
    versions = {name: _version(name) for name in (*PACKAGES, *CARRIED, ABSENT)}
    print("> " + ", ".join(f"{name} {version}" for name, version in versions.items() if version))
    print("> not installed: " + (", ".join(name for name, version in versions.items() if not version) or "-"))
    try:
        print(subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False, timeout=20).stdout)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"nvidia-smi: {error}")
    return _boards()


def _boards() -> int:
    import pynvml  # the step fails, and says so, where it is missing

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        print(f"> no NVIDIA driver answers: {error}")
        return 1
    print(f"> driver {pynvml.nvmlSystemGetDriverVersion()}")
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        print(f"> {pynvml.nvmlDeviceGetName(handle)} {pynvml.nvmlDeviceGetUUID(handle)}")
    return 0


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
