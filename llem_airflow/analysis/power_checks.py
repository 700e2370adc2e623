"""Reasons to doubt that lie in the power samples and the meter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llem_airflow.analysis.flag import Flag, Seen

THROTTLE_BITS = 0x8 | 0x20 | 0x40 | 0x80
"""Hardware slowdown, software thermal, hardware thermal, power brake (nvml.h, clocks event reasons)."""
POWER_CAP_BIT = 0x4


def _short_window(seen: Seen) -> Flag | None:
    duration_s = seen.energy.duration_s
    if duration_s >= 30 or seen.energy.kind == "none":
        return None
    return Flag(
        "short_window",
        f"The window is {duration_s:.1f} s long; a register update of 100 ms at each edge is "
        f"{20 / max(duration_s, 1e-9):.1f} % of it.",
        "Raise `measurement.min_window_seconds` or the number of prompts.",
        "30 s (ML.ENERGY benchmark), error below 10 s (2 x 100 ms is then 2 %)",
        "warning" if duration_s >= 10 else "error",
    )


def _few_samples(seen: Seen) -> Flag | None:
    expected = seen.result.meter.requested_hz * seen.energy.duration_s
    fewest = min((gpu.samples for gpu in seen.energy.gpus), default=0)
    if not seen.known or fewest >= 0.9 * expected - 1:
        return None
    return Flag(
        "few_samples",
        f"{fewest} power samples in the window where {expected:.0f} were due.",
        "Look for a busy host or a slow driver; the counter is not affected, the power curve is.",
        "90 % of the requested rate",
        "warning",
    )


def _gap(seen: Seen) -> Flag | None:
    longest_s = max((gpu.longest_gap_s for gpu in seen.energy.gpus), default=0.0)
    if not seen.known or longest_s <= 5 / seen.result.meter.requested_hz:
        return None
    return Flag(
        "gap",
        f"{longest_s:.2f} s passed between two power samples. The gap is integrated over, not skipped.",
        "Look for what stalled the host: samples go missing exactly when it is busiest.",
        "5 sampling periods",
        "warning",
    )


def _slow_reads(seen: Seen) -> Flag | None:
    meter = seen.result.meter
    if not seen.known or meter.call_p50_s is None:
        return None
    sweep_s = meter.call_p50_s * max(len(meter.devices), 1)
    if sweep_s * meter.requested_hz <= 0.5:
        return None
    return Flag(
        "slow_reads",
        f"Reading all devices takes {sweep_s * 1e3:.0f} ms of the {1e3 / meter.requested_hz:.0f} ms between "
        f"samples.",
        "Turn on persistence mode, or lower `power_hz`.",
        "half a sampling period",
        "warning",
    )


def _sampler_died(seen: Seen) -> Flag | None:
    meter = seen.result.meter
    if not seen.known or meter.achieved_hz is not None or meter.samples == 0:
        return None
    return Flag(
        "sampler_died",
        "The sampling process ended before it was told to; what it had written is used.",
        "See the attempt's log; the container may be short of memory.",
        "any early end",
        "warning",
    )


def _throttled(seen: Seen) -> Flag | None:
    share = _share_of_time(seen, THROTTLE_BITS)
    if share is None or share <= 0.01:
        return None
    return Flag(
        "throttled",
        f"The GPU was slowed down by heat or its power supply in {share:.0%} of the samples.",
        "Improve cooling, wait longer between cycles, and repeat.",
        "1 % of the time (clock event reasons 0x8, 0x20, 0x40, 0x80)",
        "error",
    )


def _power_capped(seen: Seen) -> Flag | None:
    share = _share_of_time(seen, POWER_CAP_BIT)
    if share is None or share <= 0.01:
        return None
    return Flag(
        "power_capped",
        f"The GPU ran at its power limit in {share:.0%} of the samples.",
        "Normal under full load; compare only runs with the same limit.",
        "1 % of the time (clock event reason 0x4)",
        "info",
    )


def _share_of_time(seen: Seen, bits: int) -> float | None:
    """Highest share of a device's samples in the window with one of the event bits; None when not known."""
    shares = []
    for one in seen.series.values():
        inside = (one.t_s >= 0) & (one.t_s <= seen.energy.duration_s) & ~np.isnan(one.event_reasons)
        if inside.any():
            shares.append(float(((one.event_reasons[inside].astype(np.int64) & bits) != 0).mean()))
    return max(shares, default=None)


def _counter_disagreement(seen: Seen) -> Flag | None:
    ratio = seen.energy.check_ratio
    if not seen.known or ratio is None or abs(ratio) <= 0.03:
        return None
    return Flag(
        "counter_disagreement",
        f"The integral of the power samples is {ratio:+.1%} off the energy counter, which is used.",
        "Use a longer window; if it stays, the load may beat in step with the sensor.",
        "3 % (expected agreement over 30 s or more is 1-3 %)",
        "warning",
    )


def _no_counter(seen: Seen) -> Flag | None:
    if not seen.known or seen.result.meter.kind != "nvml":
        return None
    without = [gpu for gpu in seen.energy.gpus if gpu.source != "counter"]
    if not without:
        return None
    resets = sum(gpu.counter_resets for gpu in without)
    if resets:
        return Flag(
            "counter_reset",
            f"The energy counter went back {resets} time(s); energy is the integral of power.",
            "Turn on persistence mode: the counter restarts with the driver.",
            "any decrease",
            "warning",
        )
    return Flag(
        "no_counter",
        f"No energy counter; energy is by {without[0].source}, which sees a part of the time only.",
        "Expect more scatter; GPUs before Volta and virtual GPUs have no counter.",
        "the counter is the first choice",
        "warning",
    )


def _temperature_drift(seen: Seen) -> Flag | None:
    widest = 0.0
    for one in seen.series.values():
        inside = one.temperature_c[(one.t_s >= 0) & (one.t_s <= seen.energy.duration_s)]
        inside = inside[~np.isnan(inside)]
        if len(inside):
            widest = max(widest, float(inside.max() - inside.min()))
    if widest <= 10:
        return None
    return Flag(
        "temperature_drift",
        f"The GPU's temperature moved by {widest:.0f} degrees Celsius inside the window.",
        "Warm up longer: leakage grows with temperature.",
        "10 degrees Celsius",
        "warning",
    )


def _over_limit(seen: Seen) -> Flag | None:
    limits = {gpu.get("uuid"): gpu.get("enforced_power_limit_w") for gpu in seen.gpus}
    for gpu in seen.energy.gpus:
        limit_w = limits.get(gpu.gpu)
        if limit_w and gpu.max_power_w is not None and gpu.max_power_w > 1.1 * limit_w:
            return Flag(
                "over_limit",
                f"A sample says {gpu.max_power_w:.0f} W; the limit of {gpu.gpu} is {limit_w:.0f} W.",
                "Suspect the sensor; compare with another GPU.",
                "1.1 x the enforced power limit",
                "warning",
            )
    return None


CHECKS: tuple[Callable[[Seen], Flag | None], ...] = (
    _short_window,
    _few_samples,
    _gap,
    _slow_reads,
    _sampler_died,
    _throttled,
    _power_capped,
    _counter_disagreement,
    _no_counter,
    _temperature_drift,
    _over_limit,
)
