"""Fetch the wheels that a first visit carries along: ``python -m benchmarks.on_gpu.pack``, where there is a network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.on_gpu.__main__ import WHEELS

WANTED = ("pydantic", "fsspec", "docker", "requests", "zeus==0.16.0", "codecarbon==3.3.2")
THERE = ("numpy", "scipy", "torch", "transformers", "pyarrow", "pyyaml", "rich", "click", "nvidia_ml_py")
"""Wheels that the machine has by agreement; none of them is carried."""


def main() -> int:
    """Download them for Python 3.12 on Linux, x86-64."""
    WHEELS.mkdir(parents=True, exist_ok=True)
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in (28, 27, 17)]
    subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--only-binary=:all:",
                "--python-version=3.12",
            ),
            *(*platforms, "--platform=manylinux2014_x86_64", f"--dest={WHEELS}", *WANTED),
        ],
        check=True,
    )
    for wheel in WHEELS.glob("*.whl"):
        if wheel.name.lower().startswith(tuple(f"{name}-" for name in THERE)):
            wheel.unlink()
    size = sum(wheel.stat().st_size for wheel in WHEELS.glob("*.whl"))
    print(f"{len(list(WHEELS.glob('*.whl')))} wheels, {size / 2**20:.0f} MiB, in {Path(WHEELS)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
