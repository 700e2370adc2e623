"""Which boards an engine may use, as CUDA itself decides it: the lease gives and the meter reads these, no others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

VARIABLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
BY_BUS = "PCI_BUS_ID"


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
