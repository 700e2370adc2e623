"""A stand-in for the Python package amdsmi 7.0.2: the calls of tests/recorded/amdsmi-7.0.2.json that the meter makes.

``STANDIN_AMDSMI`` names a JSON file: ``[{"uuid", "power_w", "generation": "mi300" | "mi200", "fails": [functions]}]``.
Its counter is the integral of a constant power, written every 10 ms, in units of 15.3 microjoules, as MI200's is.
"""

from __future__ import annotations

import json
import os
import time
from enum import IntEnum
from pathlib import Path
from typing import Any

RESOLUTION_UJ = 15.3
NOT_TOLD = "N/A"


class AmdSmiException(Exception):  # noqa: N818  # the library's name
    """Base of what the library raises."""


class AmdSmiLibraryException(AmdSmiException):
    def __init__(self, err_code: int) -> None:
        super().__init__(err_code)
        self.err_code = err_code
        self.err_info = "AMDSMI_STATUS_NOT_SUPPORTED - Feature not supported"


class AmdSmiInitFlags(IntEnum):
    INIT_AMD_GPUS = 2


class AmdSmiClkType(IntEnum):
    GFX = 0
    MEM = 4


class AmdSmiTemperatureType(IntEnum):
    HOTSPOT = 1
    VRAM = 2


class AmdSmiTemperatureMetric(IntEnum):
    CURRENT = 0


def _boards() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(Path(os.environ["STANDIN_AMDSMI"]).read_text())
    return found


def _board(handle: Any, function: str) -> dict[str, Any]:
    board: dict[str, Any] = _boards()[handle]
    if function in board.get("fails", ()):
        raise AmdSmiLibraryException(2)
    return board


def amdsmi_init(flag: AmdSmiInitFlags = AmdSmiInitFlags.INIT_AMD_GPUS) -> None:
    if not _boards():
        raise AmdSmiLibraryException(34)


def amdsmi_shut_down() -> None: ...


def amdsmi_get_processor_handles() -> list[int]:
    return list(range(len(_boards())))


def amdsmi_get_gpu_device_uuid(processor_handle: Any) -> str:
    return str(_board(processor_handle, "amdsmi_get_gpu_device_uuid")["uuid"])


def amdsmi_get_gpu_device_bdf(processor_handle: Any) -> str:
    return f"0000:{processor_handle + 1:02x}:00.0"


def amdsmi_get_gpu_asic_info(processor_handle: Any) -> dict[str, Any]:
    _board(processor_handle, "amdsmi_get_gpu_asic_info")
    return {"market_name": "AMD Instinct (STAND-IN)", "vendor_name": "AMD"}


def amdsmi_get_gpu_driver_info(processor_handle: Any) -> dict[str, Any]:
    return {"driver_name": "amdgpu", "driver_version": "6.14.0", "driver_date": NOT_TOLD}


def amdsmi_get_gpu_vram_usage(processor_handle: Any) -> dict[str, Any]:
    return {"vram_total": 196_592, "vram_used": 283}


def amdsmi_get_gpu_activity(processor_handle: Any) -> dict[str, Any]:
    return {"gfx_activity": 97, "umc_activity": 20, "mm_activity": NOT_TOLD}


def amdsmi_get_gpu_process_list(processor_handle: Any) -> list[dict[str, Any]]:
    return [{"name": NOT_TOLD, "pid": 4321, "mem": 1 << 30}]


def amdsmi_get_power_info(processor_handle: Any) -> dict[str, Any]:
    board = _board(processor_handle, "amdsmi_get_power_info")
    told, other = ("current", "average") if board["generation"] == "mi300" else ("average", "current")
    return {f"{told}_socket_power": board["power_w"], f"{other}_socket_power": NOT_TOLD, "power_limit": 750}


def amdsmi_get_power_cap_info(processor_handle: Any) -> dict[str, Any]:
    return {"power_cap": 750_000_000, "default_power_cap": 750_000_000}


def amdsmi_get_energy_count(processor_handle: Any) -> dict[str, Any]:
    board = _board(processor_handle, "amdsmi_get_energy_count")
    written_s = time.monotonic_ns() // 10_000_000 / 100
    return {
        "energy_accumulator": int(written_s * board["power_w"] * 1e6 / RESOLUTION_UJ),
        "counter_resolution": RESOLUTION_UJ,
        "timestamp": int(written_s * 1e9),
    }


def amdsmi_get_clock_info(processor_handle: Any, clock_type: AmdSmiClkType) -> dict[str, Any]:
    return {"clk": 2100 if clock_type == AmdSmiClkType.GFX else 1300, "min_clk": 132, "max_clk": 2100}


def amdsmi_get_temp_metric(
    processor_handle: Any, sensor_type: AmdSmiTemperatureType, metric: AmdSmiTemperatureMetric
) -> int:
    return 61 if sensor_type == AmdSmiTemperatureType.HOTSPOT else 54
