"""What NVML answers and refuses about one board, and what each answer costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

_ASKED = 21
_ASKED_S = 0.5
"""A slow driver is asked less often."""
FIELDS = {
    "field_186_power_instant": 186,
    "field_185_power_average": 185,
    "field_83_energy": 83,
    "field_82_memory_temperature": 82,
}


def ask_everything(
    nvml: Any, handle: Any, on_question: Callable[[str], None]
) -> tuple[dict[str, str], dict[str, float]]:
    """To each question ``ok`` or the name of NVML's error; and its median duration in microseconds where it is ok.

    Args:
        nvml: The module pynvml, with its driver library loaded.
        handle: The board.
        on_question: Called with the name of each question before it is asked.
    """
    answers: dict[str, str] = {}
    cost_us: dict[str, float] = {}
    for name, ask in _questions(nvml, handle).items():
        on_question(name)
        try:
            ask()
        except nvml.NVMLError as error:
            answers[name] = type(error).__name__.replace("NVMLError_", "")
            continue
        answers[name] = "ok"
        took_ns: list[int] = []
        while len(took_ns) < _ASKED and sum(took_ns) < _ASKED_S * 1e9:
            began_ns = time.monotonic_ns()
            try:
                ask()
            except nvml.NVMLError:
                break
            took_ns.append(time.monotonic_ns() - began_ns)
        if took_ns:
            cost_us[name] = statistics.median(took_ns) / 1e3
    return answers, cost_us


def _questions(nvml: Any, handle: Any) -> dict[str, Callable[[], Any]]:
    def field(number: int) -> Callable[[], None]:
        def ask() -> None:
            value = nvml.nvmlDeviceGetFieldValues(handle, [(number, 0)])[0]
            if value.nvmlReturn:  # a field that fails comes back inside a successful call
                raise nvml.NVMLError(value.nvmlReturn)

        return ask

    return {
        **{name: field(number) for name, number in FIELDS.items()},
        "power_usage": lambda: nvml.nvmlDeviceGetPowerUsage(handle),
        "total_energy": lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle),
        "power_limit": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle),
        "clock_events": lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
        "sm_clock": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "temperature": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "utilisation": lambda: nvml.nvmlDeviceGetUtilizationRates(handle),
        "memory": lambda: nvml.nvmlDeviceGetMemoryInfo(handle),
        "mig_mode": lambda: nvml.nvmlDeviceGetMigMode(handle),
        "processes": lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle),
    }
