"""The driver's calls that a sampler repeats for ever, with their arguments made once.

nvidia-ml-py looks the function up, wraps each constant and makes the structures for the answer anew at every call, and
its structures are Python objects with a slow way to their members. That is most of what a reading costs, and the
sampler shares the host with what it measures.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from typing import Any

Ask = Callable[[], int | None]

_FIELD = struct.Struct("=24xIIQ")
"""nvmlFieldValue_t of nvml.h: fieldId, scopeId, timestamp and latencyUsec passed over; valueType, nvmlReturn, value."""
_UNSIGNED_INT, _UNSIGNED_LONG_LONG = 1, 3
_OTHER_KINDS = {0: "=d", 2: "=Q", 4: "=q", 5: "=i4x"}
_UNKNOWN_ERROR = 999


class Fields:
    """``nvmlDeviceGetFieldValues`` for the same fields of one device, again and again.

    Args:
        nvml: The module pynvml, with its driver library loaded.
        handle: The device.
        wanted: Field and scope of each.
    """

    def __init__(self, nvml: Any, handle: Any, wanted: Sequence[tuple[int, int]]) -> None:
        self._values = (nvml.c_nvmlFieldValue_t * len(wanted))()
        for value, (field, scope) in zip(self._values, wanted, strict=True):
            # A field that the driver does not touch is not known, rather than a successful 0.
            value.fieldId, value.scopeId, value.nvmlReturn = field, scope, _UNKNOWN_ERROR
        self._unanswered = bytes(self._values)
        # A driver too old to have it (before 418) answers as pynvml does.
        missing = nvml.NVML_ERROR_FUNCTION_NOT_FOUND
        self._function = getattr(nvml.nvmlLib, "nvmlDeviceGetFieldValues", lambda *_: missing)
        self._arguments = (handle, len(wanted), ctypes.byref(self._values))

    def ask(self) -> int:
        """Ask for all; what the call as a whole returns, 0 for success."""
        ctypes.memmove(self._values, self._unanswered, len(self._unanswered))
        returned: int = self._function(*self._arguments)
        return returned

    def values(self) -> list[int | None]:
        """What the last call told of each field; None when the field itself failed."""
        return [
            None
            if failed
            else raw
            if kind == _UNSIGNED_LONG_LONG
            else raw & 0xFFFFFFFF
            if kind == _UNSIGNED_INT
            else _other(kind, raw)
            for kind, failed, raw in _FIELD.iter_unpack(self._values)
        ]

    @property
    def first_failure(self) -> int:
        """What the first field returned in the last call."""
        return int(self._values[0].nvmlReturn)


def _other(kind: int, raw: int) -> int | None:
    """A value of one of the rarer types; None when its type is not known."""
    layout = _OTHER_KINDS.get(kind)
    return None if layout is None else int(struct.unpack(layout, raw.to_bytes(8, "little"))[0])


def extras(nvml: Any, handle: Any) -> dict[str, Ask]:
    """What else a device tells, by column: None when it fails now. What it does not know at all is left out."""
    number, long_number = ctypes.c_uint, ctypes.c_ulonglong
    # Drivers before 535 know only the second name.
    reasons = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
    # Names of the call, what it is told, the numbers that it answers with, and which of them is wanted.
    calls: dict[str, tuple[Sequence[str], Sequence[int], Any, int]] = {
        "sm_clock_mhz": (("nvmlDeviceGetClockInfo",), (nvml.NVML_CLOCK_SM,), (number * 1)(), 0),
        "mem_clock_mhz": (("nvmlDeviceGetClockInfo",), (nvml.NVML_CLOCK_MEM,), (number * 1)(), 0),
        "event_reasons": (reasons, (), (long_number * 1)(), 0),
        "temperature_c": (("nvmlDeviceGetTemperature",), (nvml.NVML_TEMPERATURE_GPU,), (number * 1)(), 0),
        "utilisation_percent": (("nvmlDeviceGetUtilizationRates",), (), (number * 2)(), 0),  # GPU, memory
        "memory_used_bytes": (("nvmlDeviceGetMemoryInfo",), (), (long_number * 3)(), 2),  # total, free, used
    }
    asked = {column: _repeated(nvml, handle, *call) for column, call in calls.items()}
    return {column: ask for column, ask in asked.items() if ask is not None}


def _repeated(
    nvml: Any, handle: Any, names: Sequence[str], told: Sequence[int], answer: Any, part: int
) -> Ask | None:
    """The call with its arguments bound; None when the driver or the device does not know it."""
    function = next((getattr(nvml.nvmlLib, name) for name in names if hasattr(nvml.nvmlLib, name)), None)
    arguments = (handle, *told, ctypes.byref(answer))
    unknown = (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND)
    if function is None or function(*arguments) in unknown:
        return None

    def ask() -> int | None:
        return answer[part] if function(*arguments) == 0 else None

    return ask
