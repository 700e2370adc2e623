"""The meter ``amdsmi``: socket power and energy of AMD GPUs. It was never run on hardware.

It calls the Python package amdsmi, which lies beside ROCm (``/opt/rocm/share/amd_smi``) or comes from PyPI; the calls
and the keys of their answers are those of version 7.0.2, recorded in tests/recorded/amdsmi-7.0.2.json. They mean:

- ``amdsmi_get_energy_count``: ``energy_accumulator`` x ``counter_resolution`` is microjoules. A report of counters that
  are far off is open (github.com/ROCm/amdsmi/issues/38): the analysis withholds one that the integral of power
  contradicts.
- ``amdsmi_get_power_info``: watts. MI300 and newer tell ``current_socket_power``, MI200 and older
  ``average_socket_power``; what a board does not tell is "N/A".
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from llem_airflow.measurement.meters.contract import (
    MeterFacts,
    MeterUnavailableError,
    Reading,
    refuse_silence,
)

SLOWLY_NS = 950_000_000
"""Clocks, temperature and use are asked for once a second: each is a call of its own."""
ADVICE = (
    "Install ROCm's amd-smi-lib and amdsmi in the image, and give the container /dev/kfd and /dev/dri, or choose "
    "meter: cpu-estimate, whose joules are labelled estimates"
)


class AmdSmiMeter:
    """Reads the boards that were given by their UUIDs, or all visible ones."""

    ticks = True

    def __init__(self, uuids: tuple[str, ...] = ()) -> None:
        self._smi = smi = _start_library()
        try:
            boards = [_Board(smi, handle) for handle in smi.amdsmi_get_processor_handles()]
            self._boards = _asked_for(boards, uuids)
            for board in self._boards:
                board.require_power()
        except smi.AmdSmiException as error:
            self.close()
            raise MeterUnavailableError(
                f"meter amdsmi: the driver refused: {_said(error)}. Run amd-smi on the host"
            ) from error
        except MeterUnavailableError:
            self.close()
            raise
        names = sorted({board.name for board in self._boards})
        self.facts = MeterFacts(
            "amdsmi",
            "measured",
            "board",
            tuple(board.uuid for board in self._boards),
            f"{len(self._boards)} x {', '.join(names)} by amdsmi; this meter was never run on hardware.",
        )

    def read(self) -> tuple[Reading, ...]:
        """Read every board with all that it tells; a board that fails gives its error, the others go on."""
        return tuple(board.read() for board in self._boards)

    def counters(self) -> tuple[Reading, ...]:
        """Read only the energy counters."""
        return tuple(board.counter() for board in self._boards)

    def describe(self) -> list[dict[str, Any]]:
        """Identity, limits, memory and processes of every board."""
        return [board.describe() for board in self._boards]

    def close(self) -> None:
        """Shut the library down."""
        with contextlib.suppress(self._smi.AmdSmiException):
            self._smi.amdsmi_shut_down()


def _asked_for(boards: list[_Board], uuids: tuple[str, ...]) -> list[_Board]:
    known = {board.uuid: board for board in boards}
    absent = [uuid for uuid in uuids if uuid not in known]
    if absent or not known:
        raise MeterUnavailableError(
            f"meter amdsmi: {', '.join(absent) or 'a GPU'} is not visible here; visible: "
            f"{', '.join(known) or 'none'}. {ADVICE}"
        )
    return [known[uuid] for uuid in uuids or known]


class _Board:
    """One GPU."""

    def __init__(self, smi: Any, handle: Any) -> None:
        self._smi, self._handle = smi, handle
        self.uuid: str = smi.amdsmi_get_gpu_device_uuid(handle)
        asic = self._optional(lambda: smi.amdsmi_get_gpu_asic_info(handle)) or {}
        self.name = str(asic.get("market_name") or "AMD GPU")
        self._slowly_at_ns = 0

    def require_power(self) -> None:
        """Refuse a board that tells neither power nor energy.

        Raises:
            MeterUnavailableError: It does.
        """
        refuse_silence("amdsmi", self.read(), ADVICE)
        self._slowly_at_ns = 0  # the first sample tells everything

    def read(self) -> Reading:
        """Power, energy and, once a second, the board's state."""
        smi, error = self._smi, None
        before_ns = time.monotonic_ns()
        try:
            power = smi.amdsmi_get_power_info(self._handle)
        except smi.AmdSmiException as failed:
            power, error = {}, _said(failed)
        energy_mj = self._energy_mj()
        after_ns = time.monotonic_ns()
        instant, average = (
            _times(power.get(f"{which}_socket_power"), 1000) for which in ("current", "average")
        )
        if error is None and instant is None and average is None:
            error = "NoPower"
        return Reading(
            before_ns,
            after_ns,
            self.uuid,
            power_instant_mw=instant,
            power_average_mw=average,
            energy_mj=energy_mj,
            error=error,
            **self._slowly(after_ns),
        )

    def counter(self) -> Reading:
        """The energy counter alone."""
        before_ns = time.monotonic_ns()
        energy_mj = self._energy_mj()
        return Reading(before_ns, time.monotonic_ns(), self.uuid, energy_mj=energy_mj)

    def describe(self) -> dict[str, Any]:
        """The keys of ``describe_board`` that this library knows; null is "not known"."""
        smi, handle = self._smi, self._handle
        cap = self._optional(lambda: smi.amdsmi_get_power_cap_info(handle)) or {}
        driver = self._optional(lambda: smi.amdsmi_get_gpu_driver_info(handle)) or {}
        memory = self._optional(lambda: smi.amdsmi_get_gpu_vram_usage(handle)) or {}
        processes = self._optional(lambda: smi.amdsmi_get_gpu_process_list(handle)) or []
        cap_w = _times(cap.get("power_cap"), 1e-6)  # told in microwatts
        return {
            "uuid": self.uuid,
            "name": self.name,
            "pci_bus_id": self._optional(lambda: smi.amdsmi_get_gpu_device_bdf(handle)),
            "driver_version": driver.get("driver_version"),
            "power_limit_w": cap_w,
            "enforced_power_limit_w": cap_w,
            "default_power_limit_w": _times(cap.get("default_power_cap"), 1e-6),
            "memory_total_bytes": _times(memory.get("vram_total"), 2**20),
            "memory_used_bytes": _times(memory.get("vram_used"), 2**20),
            "temperature_c": self._temperature_c("HOTSPOT"),
            "processes": [{"pid": one["pid"], "memory_used_bytes": one["mem"]} for one in processes],
        }

    def _energy_mj(self) -> int | None:
        told = self._optional(lambda: self._smi.amdsmi_get_energy_count(self._handle))
        return round(told["energy_accumulator"] * told["counter_resolution"] / 1e3) if told else None

    def _slowly(self, now_ns: int) -> dict[str, int | None]:
        if now_ns < self._slowly_at_ns:
            return {}
        self._slowly_at_ns = now_ns + SLOWLY_NS
        smi, handle = self._smi, self._handle
        use = self._optional(lambda: smi.amdsmi_get_gpu_activity(handle)) or {}
        memory = self._optional(lambda: smi.amdsmi_get_gpu_vram_usage(handle)) or {}
        return {
            "sm_clock_mhz": self._clock_mhz("GFX"),
            "mem_clock_mhz": self._clock_mhz("MEM"),
            "temperature_c": self._temperature_c("HOTSPOT"),
            "mem_temperature_c": self._temperature_c("VRAM"),
            "utilisation_percent": _times(use.get("gfx_activity"), 1),
            "memory_used_bytes": _times(memory.get("vram_used"), 2**20),
        }

    def _clock_mhz(self, kind: str) -> int | None:
        smi = self._smi
        told = self._optional(lambda: smi.amdsmi_get_clock_info(self._handle, smi.AmdSmiClkType[kind]))
        return _times(told.get("clk"), 1) if told else None

    def _temperature_c(self, sensor: str) -> int | None:
        smi = self._smi
        asked = smi.AmdSmiTemperatureType[sensor], smi.AmdSmiTemperatureMetric.CURRENT
        return _times(self._optional(lambda: smi.amdsmi_get_temp_metric(self._handle, *asked)), 1)

    def _optional(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except self._smi.AmdSmiException:
            return None


def _start_library() -> Any:
    try:
        import amdsmi  # noqa: PLC0415  # only this meter needs it, and images without it run the others
    except (
        ImportError,
        KeyError,
        OSError,
        AttributeError,
    ) as error:  # KeyError: it is there, ROCm's library is not
        raise MeterUnavailableError(
            f"meter amdsmi: the Python package amdsmi does not load here ({type(error).__name__}: {error}). {ADVICE}"
        ) from error
    try:
        amdsmi.amdsmi_init()
    except amdsmi.AmdSmiException as error:
        raise MeterUnavailableError(
            f"meter amdsmi: no AMD driver answers here ({_said(error)}). {ADVICE}"
        ) from error
    return amdsmi


def _times(told: Any, factor: float) -> int | None:
    """A number in another unit; None for what the library calls "N/A"."""
    return round(told * factor) if isinstance(told, int | float) and not isinstance(told, bool) else None


def _said(error: Exception) -> str:
    """``AMDSMI_STATUS_NO_PERM - Permission Denied``, without the number before it."""
    return str(getattr(error, "err_info", error) or type(error).__name__).strip()
