"""The process that draws power with PyTorch: matrix products between two instants, told line by line.

It says when it has imported PyTorch, when it has a CUDA context, and when each load really began and ended: before its
first product was given to the board, and after its last one was done.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

_PRODUCT_S = 0.001
"""A product lasts about so long: an edge is as sharp as that."""
_SIZES = (512, 1024, 2048, 4096, 8192)
_QUEUED = 2
"""Products given ahead, so that the board never waits for Python."""


def main() -> int:
    """Answer until the input ends; errors are answers too."""
    try:
        import torch  # noqa: PLC0415  # it is what may be missing

        _say(imported=True)
        factor: Any = None
        for line in sys.stdin:
            if line.strip() == "context":
                factor = _factor(torch)
                _say(context=True)
            else:
                on_ns, off_ns = map(int, line.split())
                _say(**_burst(torch, factor, on_ns, off_ns))
    except Exception as error:  # noqa: BLE001  # PyTorch and CUDA raise many kinds; the page says which
        _say(error=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": "))
        return 1
    return 0


def _factor(torch: Any) -> Any:
    """A matrix whose square takes the board about a millisecond."""
    if not torch.cuda.is_available():
        raise RuntimeError("PyTorch sees no CUDA device")
    kind = torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    factor = None
    for size in _SIZES:
        factor = torch.randn(size, size, device="cuda", dtype=kind)
        _square(torch, factor)
        began_s = time.perf_counter()
        for _ in range(3):
            _square(torch, factor)
        if (time.perf_counter() - began_s) / 3 > _PRODUCT_S / 2:
            break
    return factor


def _square(torch: Any, factor: Any) -> None:
    torch.matmul(factor, factor)
    torch.cuda.synchronize()


def _burst(torch: Any, factor: Any, on_ns: int, off_ns: int) -> dict[str, int]:
    out = torch.empty_like(factor)
    time.sleep(max((on_ns - time.monotonic_ns()) / 1e9 - 0.002, 0.0))
    while time.monotonic_ns() < on_ns:  # the last two milliseconds, to be on time
        pass
    given: list[Any] = []
    began_ns = time.monotonic_ns()
    while time.monotonic_ns() < off_ns:
        torch.matmul(factor, factor, out=out)
        event = torch.cuda.Event()
        event.record()
        given.append(event)
        if len(given) > _QUEUED:
            given.pop(0).synchronize()
    torch.cuda.synchronize()
    return {"on_ns": began_ns, "off_ns": time.monotonic_ns()}


def _say(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
