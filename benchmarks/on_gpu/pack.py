"""Fetch the wheels that a first visit carries along: ``python -m benchmarks.on_gpu.pack``, where there is a network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.on_gpu.__main__ import WHEELS

WANTED = ("pydantic", "fsspec", "docker", "requests", "zeus==0.16.0", "codecarbon==3.3.2")
THERE = ("numpy", "scipy", "torch", "transformers", "pyarrow", "pyyaml", "rich", "click", "nvidia_ml_py")
"""Wheels that the machine has by agreement; none of them is carried."""


def pack(into: Path, python: str) -> None:
    """Download them for a version of Python on Linux, x86-64."""
    into.mkdir(parents=True, exist_ok=True)
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in (28, 27, 17)]
    platforms += ["--platform=manylinux2014_x86_64", f"--python-version={python}", f"--dest={into}"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
    subprocess.run([*command, *platforms, *WANTED], check=True)
    for wheel in into.glob("*.whl"):
        if wheel.name.lower().startswith(tuple(f"{name}-" for name in THERE)):
            wheel.unlink()
    wheels = list(into.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{len(wheels)} wheels, {size / 2**20:.0f} MiB, in {into}")


if __name__ == "__main__":
    pack(WHEELS, "3.12")
