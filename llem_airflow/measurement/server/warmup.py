"""When a server under load is warm: power level, temperature steady, nothing throttled. Pure: rows in, verdict out.

llenergymeasure's composite gate: the three hold together, each by itself, or the time runs out and that is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llem_airflow.measurement.recent_power import DeviceRow
from llem_airflow.protocol.records import SLOWDOWNS
from llem_airflow.protocol.spec import UNMEASURED_KINDS

SPAN_S = 30.0
"""Half of what the gates look at: a Poisson load needs that long for its mean power to tell a trend from chance."""

POWER_RATIO = 0.05
TEMPERATURE_C = 2.0
THROTTLE_BITS = sum(SLOWDOWNS)

UNSEEN_S = 30.0
"""Length of a composite warm-up whose meter tells nothing of a device."""


@dataclass(frozen=True)
class LoadWarmup:
    """How a server is warmed up.

    Attributes:
        gated: Whether the gates end it; otherwise its length does.
        longest_s: Its length, or the longest time that the gates may take, in seconds.
        reason: Why it is not gated, where the study asks for gates.
    """

    gated: bool
    longest_s: float
    reason: str = ""


def load_warmup(config: dict[str, Any], meter_kind: str) -> LoadWarmup:
    """What the study asks for, as far as its meter can see it.

    Args:
        config: The experiment's canonical configuration.
        meter_kind: The meter in use.
    """
    said = config["server"]["warmup"]
    if said["mode"] == "fixed":
        return LoadWarmup(gated=False, longest_s=float(said["duration_seconds"]))
    longest_s = float(said["timeout_seconds"])
    if meter_kind not in UNMEASURED_KINDS:
        return LoadWarmup(gated=True, longest_s=longest_s)
    why = f"the meter {meter_kind} tells neither power nor temperature of a device: so many seconds instead of gates"
    return LoadWarmup(gated=False, longest_s=min(UNSEEN_S, longest_s), reason=why)


def closed_gates(rows: Sequence[DeviceRow], since_ns: int) -> list[str]:
    """What still speaks against an end; empty when it is warm.

    Args:
        rows: Power samples of the last minute at least, of all devices, in the order of time.
        since_ns: When the load began, in nanoseconds of the monotonic clock: earlier rows do not count.
    """
    end_ns = rows[-1].t_ns if rows else 0
    span_ns = int(SPAN_S * 1e9)
    if end_ns - since_ns < 2 * span_ns or rows[0].t_ns > end_ns - 2 * span_ns + span_ns // 10:
        return [f"less than {2 * SPAN_S:g} s under load"]
    seen = [one for one in rows if one.t_ns > end_ns - 2 * span_ns]
    closed = []
    for device in sorted({one.device for one in seen}):
        own = [one for one in seen if one.device == device]
        closed += [f"{device}: {what}" for what in _of_device(own, end_ns - span_ns)]
    return closed


def _of_device(rows: Sequence[DeviceRow], middle_ns: int) -> list[str]:
    closed = []
    before = [one.power_mw for one in rows if one.t_ns <= middle_ns]
    after = [one.power_mw for one in rows if one.t_ns > middle_ns]
    if not before or not after:
        return ["too few samples of power"]
    mean_mw = sum(before) / len(before)
    change = abs(sum(after) / len(after) / mean_mw - 1) if mean_mw > 0 else 0.0
    if change > POWER_RATIO:
        closed.append(f"power changed by {change:.1%} (limit {POWER_RATIO:.0%})")
    temperatures = [one.temperature_c for one in rows if one.temperature_c is not None]
    if temperatures and (moved := max(temperatures) - min(temperatures)) > TEMPERATURE_C:
        closed.append(f"the temperature moved by {moved:g} degrees Celsius (limit {TEMPERATURE_C:g})")
    if any((one.event_reasons or 0) & THROTTLE_BITS for one in rows):
        closed.append("its clock was throttled")
    return closed
