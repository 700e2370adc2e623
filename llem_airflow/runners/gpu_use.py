"""Whether an attempt's GPUs compute, by the NVIDIA driver of this machine; for a limit of idle time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any


class GpuUse:
    """A look at the utilisation of some GPUs, for as long as the block lasts.

    Args:
        gpus: Their UUIDs.

    Attributes:
        unknown: Why nobody can tell; empty when it can be told.
    """

    def __init__(self, gpus: Sequence[str]) -> None:
        self._gpus = gpus
        self._handles: list[Any] = []
        self._open = False
        self.unknown = ""

    def __enter__(self) -> GpuUse:
        import pynvml  # noqa: PLC0415  # 8,000 lines, for those who set the limit

        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            self._open = True
        except pynvml.NVMLError as error:
            self.unknown = f"this machine's NVIDIA driver cannot be asked: {error}"
            return self
        try:
            self._handles = [pynvml.nvmlDeviceGetHandleByUUID(gpu) for gpu in self._gpus]
            self._percent()
        except pynvml.NVMLError as error:  # a MIG slice tells no utilisation
            self.unknown = f"the driver tells no utilisation of {', '.join(self._gpus)}: {error}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            self._nvml.nvmlShutdown()

    def computes(self) -> bool:
        """Whether any of them computed in the last sampling period; what cannot be told counts as computing."""
        try:
            return self._percent() > 0
        except self._nvml.NVMLError:
            return True

    def _percent(self) -> int:
        """The highest utilisation among them, in percent of the driver's last sampling period (1/6 s to 1 s)."""
        return max(int(self._nvml.nvmlDeviceGetUtilizationRates(each).gpu) for each in self._handles)


@contextlib.contextmanager
def watched(
    gpus: Sequence[str], limit_s: float | None, say: Callable[[str], None], *, elsewhere: bool = False
) -> Iterator[Callable[[], bool] | None]:
    """What a watchdog asks whether GPUs compute; None without a limit or GPU, or where nobody can tell, which is said.

    Args:
        gpus: UUIDs of the attempt's GPUs.
        limit_s: Longest time in which they may compute nothing, in seconds, or None.
        say: Takes a line for people.
        elsewhere: Whether they are another machine's, whose driver does not answer here.
    """
    if limit_s is None or not gpus:
        yield None
        return
    if elsewhere:
        say(f"{_NOT_WATCHED}: the engine is on another machine, whose NVIDIA driver does not answer here")
        yield None
        return
    with GpuUse(gpus) as use:
        if use.unknown:
            say(f"{_NOT_WATCHED}: {use.unknown}")
        yield None if use.unknown else use.computes


_NOT_WATCHED = "max_gpu_idle_s is not watched"
