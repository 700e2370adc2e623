"""What a board says about itself: everything that decides whether two measurements can be compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def describe_board(nvml: Any, handle: Any) -> dict[str, Any]:
    """Identity, limits, clocks, modes, memory and processes of one board; null is "not known".

    Power is in watts, clocks in megahertz, memory in bytes. ``processes`` are the compute processes that
    hold memory on it, with the pids of the host (in a pid namespace the driver often hides them).
    """
    questions: dict[str, Callable[[], Any]] = {
        "uuid": lambda: nvml.nvmlDeviceGetUUID(handle),
        "name": lambda: nvml.nvmlDeviceGetName(handle),
        "pci_bus_id": lambda: nvml.nvmlDeviceGetPciInfo(handle).busId,
        "driver_version": nvml.nvmlSystemGetDriverVersion,
        "cuda_driver_version": nvml.nvmlSystemGetCudaDriverVersion,
        "compute_capability": lambda: ".".join(map(str, nvml.nvmlDeviceGetCudaComputeCapability(handle))),
        "power_limit_w": lambda: nvml.nvmlDeviceGetPowerManagementLimit(handle) / 1e3,
        "enforced_power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
        "default_power_limit_w": lambda: nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) / 1e3,
        "max_sm_clock_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
        "max_mem_clock_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "persistence_mode": lambda: bool(nvml.nvmlDeviceGetPersistenceMode(handle)),
        "ecc_mode": lambda: bool(nvml.nvmlDeviceGetEccMode(handle)[0]),
        "mig_mode": lambda: bool(nvml.nvmlDeviceGetMigMode(handle)[0]),
        "mig_devices": lambda: _slices(nvml, handle),
        "performance_state": lambda: nvml.nvmlDeviceGetPerformanceState(handle),
        "memory_total_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total,
        "memory_used_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used,
        "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "processes": lambda: _processes(nvml, handle),
    }
    return {name: _answer(nvml, ask) for name, ask in questions.items()}


def _answer(nvml: Any, ask: Callable[[], Any]) -> Any:
    try:
        answer = ask()
    except nvml.NVMLError:
        return None
    return answer.decode() if isinstance(answer, bytes) else answer


def _slices(nvml: Any, handle: Any) -> list[dict[str, Any]]:
    found = []
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            mig = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        except nvml.NVMLError:
            continue
        found.append({"uuid": nvml.nvmlDeviceGetUUID(mig), "name": nvml.nvmlDeviceGetName(mig)})
    return found


def _processes(nvml: Any, handle: Any) -> list[dict[str, Any]]:
    return [
        {"pid": process.pid, "memory_used_bytes": process.usedGpuMemory}
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    ]
