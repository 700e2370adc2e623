"""A load for the GPU: matrix products for a part of each second, until it is ended. ``load.py``; says ``ready``.

Without PyTorch or without CUDA there is none: what draws the power then (a stand-in's script) is not ours.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
import time
from pathlib import Path

DUTY = 0.6
PERIOD_S = 0.737  # not in step with a register of 100 ms


def computes() -> bool:
    """Whether PyTorch can compute on a GPU here. It is imported, for seconds, only where there is a device file."""
    if not Path("/dev/nvidiactl").exists() or importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


def main() -> int:
    """Load all visible devices."""
    if not computes():
        print("none", flush=True)
        return 0
    import torch

    devices = range(torch.cuda.device_count())
    matrices = [torch.randn(8192, 8192, device=f"cuda:{i}", dtype=torch.bfloat16) for i in devices]
    products = [torch.empty_like(matrix) for matrix in matrices]
    print("ready", flush=True)
    begin_s = time.monotonic()
    for period in itertools.count():
        while time.monotonic() < begin_s + (period + DUTY) * PERIOD_S:
            for i, matrix in enumerate(matrices):
                torch.matmul(matrix, matrix, out=products[i])
            for i in devices:
                torch.cuda.synchronize(i)
        time.sleep(max(begin_s + (period + 1) * PERIOD_S - time.monotonic(), 0))
    return 0


if __name__ == "__main__":
    sys.exit(main())
