"""What both sides know of GPUs: what boards tell, what decides their idle power, which ones an engine may use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SLOWDOWNS = {
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""Clock event reasons (nvml.h) that are a fault of the moment, by their bit."""

SLOWDOWN_BITS = sum(SLOWDOWNS)

POWER_CAP_BIT = 0x4
"""The clock event reason of a GPU that runs at its power limit."""

BOARD_CONDITIONS = (
    "uuid",
    "name",
    "driver_version",
    "power_limit_w",
    "enforced_power_limit_w",
    "ecc_mode",
    "mig_mode",
    "persistence_mode",
)
"""What a board says in environment.json that has to be equal for a comparison."""

BOARD_STATE = ("performance_state", "memory_used_bytes", "temperature_c", "processes")
"""What a board says there that is of the moment."""

VARIABLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
BY_BUS = "PCI_BUS_ID"
"""The engine's environment, as CUDA reads it."""


def gpus_told(environment: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The devices that an environment.json, or what was made of one, tells of; what is none is left out."""
    said = environment.get("gpus")
    return [one for one in said if isinstance(one, Mapping)] if isinstance(said, list) else []


def idle_conditions(boot_id: str | None, gpus: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What decides how much a device takes when idle: the machine since its boot, board, driver, limits and modes.

    Args:
        boot_id: The host's, as in environment.json.
        gpus: The devices, as in environment.json.
    """
    names = ("uuid", "driver_version", "enforced_power_limit_w", "persistence_mode", "ecc_mode", "mig_mode")
    return (f"boot {boot_id}", *(" ".join(f"{gpu.get(name)}" for name in names) for gpu in gpus))


class AmbiguousDeviceError(ValueError):
    """A number in the list of devices means one board to CUDA and perhaps another one to the driver."""


def visible_to_cuda(
    environ: Mapping[str, str], uuids: Sequence[str], names: Sequence[str]
) -> list[str] | None:
    """Devices that ``CUDA_VISIBLE_DEVICES`` leaves, or None where it is not set.

    A number counts boards, a text is the beginning of a UUID; what CUDA does not understand ends the list, so that an
    empty value and -1 hide everything (CUDA programming guide, "CUDA Environment Variables").

    Args:
        environ: Environment of the engine.
        uuids: All boards that the driver shows, in its order, which is that of the PCI bus.
        names: Their product names.

    Raises:
        AmbiguousDeviceError: A number is given, and which board it means depends on an order that only CUDA knows.
    """
    value = environ.get(VARIABLE)
    if value is None:
        return None
    found: list[str] = []
    for entry in (part.strip() for part in value.split(",")):
        if entry.isdigit() and int(entry) < len(uuids):
            if len(set(names)) > 1 and environ.get(ORDER) != BY_BUS:
                raise AmbiguousDeviceError(
                    f"{VARIABLE}={value} counts boards by their speed and the driver by their place, and the boards "
                    f"here differ ({', '.join(sorted(set(names)))}): name them by UUID, or set {ORDER}={BY_BUS}"
                )
            found.append(uuids[int(entry)])
        elif entry.startswith("MIG-"):
            found.append(entry)
        elif (
            entry.startswith("GPU-") and len(matching := [one for one in uuids if one.startswith(entry)]) == 1
        ):
            found.append(matching[0])
        else:
            break
    return found
