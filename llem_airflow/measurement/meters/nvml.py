"""The meter ``nvml``: board power and energy of NVIDIA GPUs.

One ``nvmlDeviceGetFieldValues`` call asks for instant power (field 186), average power (185), the energy counter (83)
and the memory's temperature (82), another for the clock event reasons. The legacy ``nvmlDeviceGetPowerUsage`` is a 1 s
mean on most boards and is used only where the fields are missing. A field that fails comes back inside a successful
call: its ``nvmlReturn`` decides.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from llem_airflow.measurement.meters.calls import Fields, extras
from llem_airflow.measurement.meters.contract import (
    MeterFacts,
    MeterUnavailableError,
    Reading,
    refuse_silence,
)
from llem_airflow.protocol.gpus import AmbiguousDeviceError, visible_to_cuda

POWER_INSTANT, POWER_AVERAGE, ENERGY, MEMORY_TEMPERATURE = 186, 185, 83, 82
SCOPE_GPU, SCOPE_MODULE = 0, 1
SLOWLY = ("sm_clock_mhz", "mem_clock_mhz", "temperature_c", "utilisation_percent", "memory_used_bytes")
"""Asked for once a second only: each question is a call of its own, and what it tells moves slowly or is a mean."""
SLOWLY_NS = 950_000_000
"""A little under a second, so that a sample that comes early is not passed over."""
_NOT_ASKED = (None,) * len(SLOWLY)

NO_DRIVER_ADVICE = (
    "Give the container a GPU (`gpus:` in the study; the host needs NVIDIA's driver and container toolkit), "
    "or choose meter: cpu-estimate, whose joules are labelled estimates"
)


class NoDriverError(MeterUnavailableError):
    """There is no NVIDIA driver here, or it shows no GPU."""


class NvmlMeter:
    """Reads the boards that were given, or all visible ones."""

    ticks = True

    def __init__(self, uuids: tuple[str, ...] = ()) -> None:
        self._nvml = nvml = _start_driver()
        try:
            handles = _handles(nvml, uuids)
            self._boards = [_Board(nvml, uuid, handle) for uuid, handle in _parents(nvml, handles).items()]
            for board in self._boards:
                board.require_power()
            self.facts = _facts(nvml, self._boards, [u for u, h in handles if _is_mig(nvml, h)])
        except MeterUnavailableError:
            nvml.nvmlShutdown()
            raise
        except nvml.NVMLError as error:
            nvml.nvmlShutdown()
            raise MeterUnavailableError(
                f"meter nvml: the driver refused: {_said(error)}. Run nvidia-smi on the host"
            ) from error

    def read(self) -> tuple[Reading, ...]:
        """Read every board with all that it tells; a board that fails gives its error, the others go on."""
        return tuple(board.read() for board in self._boards)

    def counters(self) -> tuple[Reading, ...]:
        """Read only the energy counters."""
        return tuple(board.counter() for board in self._boards)

    def describe(self) -> list[dict[str, Any]]:
        """Identity, limits, modes and processes of every board."""
        return [describe_board(self._nvml, board.handle) for board in self._boards]

    def close(self) -> None:
        """Shut the driver library down."""
        self._nvml.nvmlShutdown()


class _Board:
    """One physical GPU."""

    def __init__(self, nvml: Any, uuid: str, handle: Any) -> None:
        self._nvml, self.uuid, self.handle = nvml, uuid, handle
        self.mig = bool(_optional(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle)[0]))
        self.scope = SCOPE_GPU
        if (
            self._field((POWER_INSTANT, SCOPE_GPU)) is None
            and self._field((POWER_INSTANT, SCOPE_MODULE)) is not None
        ):
            self.scope = SCOPE_MODULE  # Grace-Hopper tells only the module, which includes its CPU
        fields = (
            (POWER_INSTANT, self.scope),
            (POWER_AVERAGE, self.scope),
            (ENERGY, 0),
            (MEMORY_TEMPERATURE, 0),
        )
        self._fields, self._counter = Fields(nvml, handle, fields), Fields(nvml, handle, fields[2:3])
        self._legacy = self._field(fields[0]) is None and self._field(fields[1]) is None
        self._legacy_is_instant = self._legacy and self._averages_nothing()
        told = extras(nvml, handle)
        self._event_reasons = told.get("event_reasons", _unknown)
        self._slowly = [told.get(column, _unknown) for column in SLOWLY]
        self._slowly_at_ns = 0

    def require_power(self) -> None:
        """Refuse a board that tells neither power nor energy.

        Raises:
            MeterUnavailableError: It does.
        """
        refuse_silence(
            "nvml",
            self.read(),
            "Virtual GPUs do not; ask the host's administrator, or choose meter: none to run without energy",
        )
        self._slowly_at_ns = 0  # the first sample tells everything

    def read(self) -> Reading:
        fields = self._fields
        before_ns = time.monotonic_ns()
        failed = fields.ask()
        after_ns = time.monotonic_ns()
        if failed:
            return Reading(before_ns, after_ns, self.uuid, error=_short(self._nvml.NVMLError(failed)))
        instant, average, energy, memory_c = fields.values()
        if self._legacy:
            legacy = _optional(self._nvml, lambda: self._nvml.nvmlDeviceGetPowerUsage(self.handle))
            instant, average = (legacy, None) if self._legacy_is_instant else (None, legacy)
        failure = None
        if instant is None and average is None:
            code = fields.first_failure
            failure = _short(self._nvml.NVMLError(code)) if code else "NoPower"
        sm_clock, mem_clock, temperature_c, utilisation, memory_used = self._read_slowly(after_ns)
        return Reading(
            before_ns,
            after_ns,
            self.uuid,
            instant,
            average,
            energy,
            sm_clock,
            mem_clock,
            self._event_reasons(),
            temperature_c,
            memory_c,
            utilisation,
            memory_used,
            failure,
        )

    def _read_slowly(self, now_ns: int) -> Sequence[int | None]:
        if now_ns < self._slowly_at_ns:
            return _NOT_ASKED
        self._slowly_at_ns = now_ns + SLOWLY_NS
        return [ask() for ask in self._slowly]

    def counter(self) -> Reading:
        before_ns = time.monotonic_ns()
        energy = self._counter.values()[0] if self._counter.ask() == 0 else None
        return Reading(before_ns, time.monotonic_ns(), self.uuid, energy_mj=energy)

    def _field(self, field: tuple[int, int]) -> int | None:
        fields = Fields(self._nvml, self.handle, [field])
        if failed := fields.ask():
            raise self._nvml.NVMLError(failed)
        return fields.values()[0]

    def _averages_nothing(self) -> bool:
        """Whether the legacy power is instant: on GA100 and everything before Ampere (nvml.h says so)."""
        nvml = self._nvml
        return bool(_optional(nvml, lambda: nvml.nvmlDeviceGetCudaComputeCapability(self.handle) <= (8, 0)))


def _start_driver() -> Any:
    try:
        import pynvml  # noqa: PLC0415  # only this meter needs it, and images without it run the others
    except ImportError as error:
        raise NoDriverError("meter nvml: the Python package nvidia-ml-py is not installed here") from error
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded) as error:
        raise NoDriverError(
            f"meter nvml: no NVIDIA driver answers here ({_short(error)}). {NO_DRIVER_ADVICE}"
        ) from error
    except pynvml.NVMLError as error:
        raise MeterUnavailableError(
            f"meter nvml: the NVIDIA driver does not work here: {_said(error)}. Run nvidia-smi on the host; "
            "a driver that was updated without a reboot needs one"
        ) from error
    if count == 0:
        raise NoDriverError(f"meter nvml: the driver shows no GPU here. {NO_DRIVER_ADVICE}")
    return pynvml


def _handles(nvml: Any, uuids: tuple[str, ...]) -> list[tuple[str, Any]]:
    """The devices that were asked for (boards or MIG slices), or all boards that the engine may use."""
    boards = _visible(nvml, all_of_them=not uuids)
    if not uuids:
        names = [str(nvml.nvmlDeviceGetName(handle)) for handle in boards.values()]
        try:
            left = visible_to_cuda(os.environ, list(boards), names)
        except AmbiguousDeviceError as error:
            raise MeterUnavailableError(f"meter nvml: {error}") from error
        if left is None:
            return list(boards.items())
        if not left:
            raise NoDriverError(
                f"meter nvml: CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']} hides every GPU from the "
                f"engine. {NO_DRIVER_ADVICE}"
            )
        uuids = tuple(left)
    found = []
    for uuid in uuids:
        try:
            found.append((uuid, nvml.nvmlDeviceGetHandleByUUID(uuid)))
        except nvml.NVMLError as error:
            raise MeterUnavailableError(
                f"meter nvml: {uuid} was asked for but is not visible here ({_short(error)}); visible: "
                f"{', '.join(boards)}"
            ) from error
    return found


def _visible(nvml: Any, *, all_of_them: bool) -> dict[str, Any]:
    """The boards of the host by UUID. One that fails is of no concern to those who asked for others."""
    found = {}
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            found[nvml.nvmlDeviceGetUUID(handle)] = handle
        except (nvml.NVMLError, UnicodeDecodeError):
            if all_of_them:
                raise
    return found


def _parents(nvml: Any, handles: list[tuple[str, Any]]) -> dict[str, Any]:
    """The boards behind the devices, each once. A MIG slice has no power of its own: its board is read."""
    boards: dict[str, Any] = {}
    for uuid, handle in handles:
        board = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle) if _is_mig(nvml, handle) else handle
        boards.setdefault(nvml.nvmlDeviceGetUUID(board) if board is not handle else uuid, board)
    return boards


def _is_mig(nvml: Any, handle: Any) -> bool:
    return bool(_optional(nvml, lambda: nvml.nvmlDeviceIsMigDeviceHandle(handle)))


def _facts(nvml: Any, boards: list[_Board], slices: list[str]) -> MeterFacts:
    notes = []
    names = sorted({str(nvml.nvmlDeviceGetName(board.handle)) for board in boards})
    if any("STAND-IN" in name for name in names):
        notes.append("STAND-IN driver: these numbers come from a script, not from a GPU.")
    shared = bool(slices) or any(board.mig for board in boards)
    if shared:
        notes.append(
            f"{', '.join(slices) or 'A MIG slice'} has no power sensor of its own: this is the power of its "
            f"whole board, "
            "whoever used it."
        )
    module = any(board.scope == SCOPE_MODULE for board in boards)
    if module:
        notes.append("The board tells only the power of its module, which includes the CPU.")
    return MeterFacts(
        "nvml",
        "attributed" if shared else "measured",
        "module" if module else "board",
        tuple(board.uuid for board in boards),
        " ".join(notes) or f"{len(boards)} x {', '.join(names)}; the sensor itself may be off by about 5 %.",
    )


def _unknown() -> None:
    """What a device answers that does not know the question."""


def _optional(nvml: Any, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except nvml.NVMLError:
        return None


def _short(error: Exception) -> str:
    """``GpuIsLost`` for ``NVMLError_GpuIsLost``."""
    return type(error).__name__.replace("NVMLError_", "")


def _said(error: Exception) -> str:
    """The driver's own words, without the full stops that some of them bring."""
    return str(error).rstrip(". ")


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
    told = {name: _optional(nvml, ask) for name, ask in questions.items()}
    return {name: said.decode() if isinstance(said, bytes) else said for name, said in told.items()}


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
