"""What a board says of itself, question by question, on a driver that answers each with another number."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from llem_airflow.measurement.meters.nvml import describe_board


class NVMLError(Exception):
    """Of the driver."""


class Driver:
    """The calls of nvidia-ml-py that are made; one of them may fail."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, fails: str = "") -> None:
        self._fails = fails
        self._answers: dict[str, Any] = {
            "nvmlDeviceGetUUID": lambda one: b"GPU-a" if one == 0 else f"MIG-{one}",
            "nvmlDeviceGetName": lambda one: "A board" if one == 0 else f"slice {one}",
            "nvmlDeviceGetPciInfo": lambda _: SimpleNamespace(busId="0000:01:00.0"),
            "nvmlSystemGetDriverVersion": lambda: "580.1",
            "nvmlSystemGetCudaDriverVersion": lambda: 13000,
            "nvmlDeviceGetCudaComputeCapability": lambda _: (9, 0),
            "nvmlDeviceGetPowerManagementLimit": lambda _: 650_000,
            "nvmlDeviceGetEnforcedPowerLimit": lambda _: 600_500,
            "nvmlDeviceGetPowerManagementDefaultLimit": lambda _: 700_000,
            "nvmlDeviceGetMaxClockInfo": lambda _, which: {1: 1980, 2: 2619}[which],
            "nvmlDeviceGetPersistenceMode": lambda _: 1,
            "nvmlDeviceGetEccMode": lambda _: [0, 1],  # now, and after the next boot
            "nvmlDeviceGetMigMode": lambda _: [1, 0],
            "nvmlDeviceGetPerformanceState": lambda _: 8,
            "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=80, free=50, used=30),
            "nvmlDeviceGetTemperature": lambda _, which: {0: 41}[which],
            "nvmlDeviceGetComputeRunningProcesses": lambda _: [SimpleNamespace(pid=7, usedGpuMemory=5)],
            "nvmlDeviceGetMaxMigDeviceCount": lambda _: 4,
            "nvmlDeviceGetMigDeviceHandleByIndex": self._slice,
        }

    def _slice(self, _: Any, index: int) -> int:
        if index % 2:
            raise NVMLError  # no slice in this place
        return index + 10

    def __getattr__(self, name: str) -> Any:
        def refuse(*_: Any) -> Any:
            raise NVMLError

        return refuse if name == self._fails else self._answers[name]


DESCRIBED = {
    "uuid": "GPU-a",
    "name": "A board",
    "pci_bus_id": "0000:01:00.0",
    "driver_version": "580.1",
    "cuda_driver_version": 13000,
    "compute_capability": "9.0",
    "power_limit_w": 650.0,
    "enforced_power_limit_w": 600.5,
    "default_power_limit_w": 700.0,
    "max_sm_clock_mhz": 1980,
    "max_mem_clock_mhz": 2619,
    "persistence_mode": True,
    "ecc_mode": False,
    "mig_mode": True,
    "mig_devices": [{"uuid": "MIG-10", "name": "slice 10"}, {"uuid": "MIG-12", "name": "slice 12"}],
    "performance_state": 8,
    "memory_total_bytes": 80,
    "memory_used_bytes": 30,
    "temperature_c": 41,
    "processes": [{"pid": 7, "memory_used_bytes": 5}],
}


def test_each_question_has_its_own_answer() -> None:
    assert describe_board(Driver(), 0) == DESCRIBED


def test_what_a_board_does_not_answer_is_not_known_and_nothing_else_is_lost() -> None:
    assert describe_board(Driver("nvmlDeviceGetEccMode"), 0) == {**DESCRIBED, "ecc_mode": None}
    unknown = {"power_limit_w": None}
    assert describe_board(Driver("nvmlDeviceGetPowerManagementLimit"), 0) == {**DESCRIBED, **unknown}
