"""Do the joules belong to the device that computed? The model's device against what the meter reads."""

from __future__ import annotations

from dataclasses import replace

from llem_airflow.analysis.energy import EnergyOfWindow, Withheld
from llem_airflow.protocol.result import CycleResult

_OF_THE_CPU = ("rapl", "cpu-estimate")


def of_the_model(energy: EnergyOfWindow, result: CycleResult) -> EnergyOfWindow:
    """The energy, withheld when the meter read another device than the one that the model ran on."""
    why = mismatch(result)
    if why is None or energy.kind == "none":
        return energy
    return replace(
        energy,
        energy_j=None,
        source=None,
        average_power_w=None,
        check_ratio=None,
        uncertainty_j=None,
        active_j=None,
        active_over=None,
        prefill_j=None,
        decode_j=None,
        withheld=(*energy.withheld, Withheld("other_device", why)),
    )


def mismatch(result: CycleResult) -> str | None:
    """Why the meter's joules are not the model's, as one sentence; None when they are, or nobody can tell.

    Any vendor's GPU is ``cuda``, ``xpu`` or the like to PyTorch; a meter of the CPU measures none of them.
    """
    meter, device = result.meter, result.model.get("device")
    if not isinstance(device, str) or not device or device == "meta":
        return None
    if meter.kind == "nvml" and device.startswith("cpu"):
        return f"The model ran on the CPU ({device}), and the meter read {len(meter.devices)} GPU(s)."
    if meter.kind in _OF_THE_CPU and not device.startswith("cpu"):
        return f"The model ran on {device}, and the meter {meter.kind} knows the CPU only."
    used = result.model.get("gpu_uuids")
    if meter.kind != "nvml" or meter.energy_kind != "measured" or not isinstance(used, list):
        return None
    unread = [uuid for uuid in used if uuid not in meter.devices]
    if unread:
        return f"The model ran on {', '.join(unread)}, which the meter did not read ({', '.join(meter.devices)})."
    return None
