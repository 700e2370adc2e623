"""Reasons to doubt a cycle, to be shown next to its numbers; some of them take the number away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llem_airflow.analysis import power_checks, run_checks
from llem_airflow.analysis.energy import EnergyOfWindow
from llem_airflow.analysis.flag import Flag, Seen
from llem_airflow.protocol.result import CycleResult

__all__ = ["Flag", "flags"]


def flags(
    result: CycleResult,
    energy: EnergyOfWindow,
    *,
    events: Sequence[Mapping[str, Any]] = (),
    environment: Mapping[str, Any] | None = None,
    host: Mapping[str, Any] | None = None,
) -> tuple[Flag, ...]:
    """All reasons to doubt one cycle, the gravest first.

    Args:
        result: What the cycle observed.
        energy: What ``window_energy`` made of its power samples.
        events: Rows of events.jsonl.
        environment: The cycle's environment.json; ``gpus`` is what the devices said before the engine was
            loaded.
        host: What the outside saw: ``neighbours``, a list of names;
            ``foreign_containers``, what each took; ``on_cpu`` and ``neighbours_unknown``, reasons;
            ``privileged``, whether its container was.
    """
    said = (environment or {}).get("gpus")
    gpus = [gpu for gpu in said if isinstance(gpu, Mapping)] if isinstance(said, list) else []
    seen = Seen(result, energy, energy.series, events, gpus, host or {})
    found = _withheld(energy) + [
        flag for check in (*run_checks.CHECKS, *power_checks.CHECKS) if (flag := check(seen)) is not None
    ]
    order = ("withheld", "error", "warning", "info")
    return tuple(sorted(found, key=lambda flag: order.index(flag.severity)))


_NEXT_STEP_OF_WITHHELD = {
    "no_meter": "Choose a meter (`meter: auto`) to get energy.",
    "gpu_missing": "See the attempt's log for the sampler's messages; repeat the cycle.",
    "gpu_lost": "See the host's kernel log for Xid errors and repeat the cycle on another GPU.",
    "not_bracketed": "See whether the sampler ended early in the attempt's log; repeat the cycle.",
    "gap_without_counter": "Look for what stalled the host; repeat the cycle.",
    "sources_disagree": "Repeat the cycle, and compare the board's counter with another meter.",
    "implausible_counter": "Repeat the cycle; do not trust this counter before it agrees with another meter.",
    "other_device": "Choose the meter of the device that computes, or give the engine the GPUs that are measured.",
    "unreadable_series": "Look at the cycle's power file; repeat the cycle.",
    "duration_mismatch": "Report it with the cycle's folder: the attempt's marks contradict each other.",
    "no_energy": "Check with nvidia-smi that the GPU tells its power.",
}


def _withheld(energy: EnergyOfWindow) -> list[Flag]:
    """One flag for each reason; what was asked for is information, the rest takes the number away."""
    found: dict[str, Flag] = {}
    for reason in energy.withheld:
        severity = "info" if reason.code == "no_meter" else "withheld"
        message = f"Energy is not known: {reason.message}"
        if reason.code in found:
            message = f"{found[reason.code].message} {reason.message}"
        found[reason.code] = Flag(
            reason.code, message, _NEXT_STEP_OF_WITHHELD[reason.code], "absent is never 0", severity
        )
    return list(found.values())
