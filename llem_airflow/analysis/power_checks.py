"""Checks of the power samples and the meter, and whether the measurement window was in a steady state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from llem_airflow.analysis.energy import MODELLED, GpuEnergy
from llem_airflow.analysis.flags import Check, Seen, add_check
from llem_airflow.analysis.plausibility import slept_s
from llem_airflow.analysis.series import Floats, GpuSeries, rows_between
from llem_airflow.protocol.gpus import POWER_CAP_BIT, SLOWDOWN_BITS
from llem_airflow.text.wording import counted

_MIN_ITERATIONS = 20
_MIN_SAMPLES = 30
_BATCH = 5


def mser5_cut(values: Sequence[float]) -> int | None:
    """How many values at the begin are not yet steady, by MSER-5; None when it cannot tell.

    Formula: means of batches of 5; the cut d minimises sum((z_i - mean(z_i, i > d))^2) / (k - d)^2 over d <=
    k / 2. A minimum at the last allowed d means that steadiness was never seen. (White, "An effective
    truncation heuristic for bias reduction in simulation output", Simulation 69, 1997.)
    """
    batches = [float(np.mean(values[i : i + _BATCH])) for i in range(0, len(values) - _BATCH + 1, _BATCH)]
    k = len(batches)
    if k < 4:
        return None
    scores = [float(np.var(batches[d:])) / (k - d) for d in range(k // 2 + 1)]
    best = int(np.argmin(scores))
    return best * _BATCH if best < k // 2 else None


def iteration_bias_ratio(events: Sequence[Mapping[str, Any]]) -> float | None:
    """How far the window's first, unsteady iterations move the mean duration.

    Formula: mean of all durations / mean of those that MSER-5 keeps - 1. Where MSER-5 finds no steady
    state: mean of the first half / mean of the second half - 1. Only iterations with the most common number
    of output tokens count: a smaller last batch of each pass is no drift.
    """
    iterations = [
        (event.get("output_tokens"), float(event["duration_s"]))
        for event in events
        if event.get("event") == "iteration" and event.get("phase") == "measure" and event.get("duration_s")
    ]
    usual = Counter(tokens for tokens, _ in iterations).most_common(1)
    durations = [duration_s for tokens, duration_s in iterations if tokens == usual[0][0]]
    if len(durations) < _MIN_ITERATIONS:
        return None
    cut = mser5_cut(durations)
    half = len(durations) // 2
    if cut is None:
        return float(np.mean(durations[:half]) / np.mean(durations[half:]) - 1)
    return float(np.mean(durations) / np.mean(durations[cut:]) - 1)


def power_drift_ratio(series: Iterable[GpuSeries], duration_s: float) -> float | None:
    """Change of power over the window.

    Formula: median power of the last third / median of the first third - 1, summed over devices.
    """
    first, last = 0.0, 0.0
    for one in series:
        power = one.power
        thirds: list[Floats] = [
            power.inside(0, duration_s / 3),
            power.inside(duration_s * 2 / 3, duration_s),
        ]
        if min(map(len, thirds)) < _MIN_SAMPLES / 3:
            return None
        first += float(np.median(thirds[0]))
        last += float(np.median(thirds[1]))
    return last / first - 1 if first > 0 else None


_LONGER = "Raise `measurement.min_window_seconds` or the number of prompts."

POWER_CHECKS: list[Check] = []
"""Each of the checks below, in their order."""
check = partial(add_check, POWER_CHECKS)


@check("short_window", "error", _LONGER, "10 s: 2 x 100 ms is then 2 %")
def _very_short_window(seen: Seen) -> str | None:
    return _window_length(seen) if seen.energy.duration_s < 10 else None


@check("short_window", "warning", _LONGER, "30 s (ML.ENERGY benchmark)")
def _short_window(seen: Seen) -> str | None:
    return _window_length(seen) if 10 <= seen.energy.duration_s < 30 else None


@check("short_window", "warning", _LONGER, "5 s: 50 readings at 10 Hz")
def _few_readings(seen: Seen) -> str | None:
    if seen.energy.kind != "estimate" or seen.energy.duration_s >= 5:
        return None
    said = f"The measurement window is {seen.energy.duration_s:.1f} s long"
    return f"{said}; so short an estimate follows every other process."


@check(
    "few_samples",
    "warning",
    "Look for a busy host or a slow driver; the counter is not affected, the power curve is.",
    "90 % of the requested rate",
)
def _few_samples(seen: Seen) -> str | None:
    expected = seen.result.meter.requested_hz * seen.energy.duration_s
    fewest = min((gpu.samples for gpu in seen.energy.gpus), default=0)
    if not seen.known or fewest >= 0.9 * expected - 1:
        return None
    return (
        f"{fewest} of {counted(round(expected), 'power sample')} that were due are in the measurement window."
    )


@check(
    "gap",
    "warning",
    "Look for what stalled the host: samples go missing exactly when it is busiest.",
    "5 sampling periods",
)
def _gap(seen: Seen) -> str | None:
    longest_s = max((gpu.longest_gap_s for gpu in seen.energy.gpus), default=0.0)
    if not seen.known or longest_s <= 5 / seen.result.meter.requested_hz:
        return None
    return f"{longest_s:.2f} s passed between two power samples. The gap is integrated over, not skipped."


@check("slow_reads", "warning", "Turn on persistence mode, or lower `power_hz`.", "half a sampling period")
def _slow_reads(seen: Seen) -> str | None:
    meter = seen.result.meter
    if not seen.known or meter.call_p50_s is None:
        return None
    sweep_s = meter.call_p50_s * max(len(meter.devices), 1)
    if sweep_s * meter.requested_hz <= 0.5:
        return None
    return (
        f"Reading all devices takes {sweep_s * 1e3:.0f} ms of the {1e3 / meter.requested_hz:.0f} ms between "
        f"samples."
    )


@check(
    "sampler_died", "warning", "See the attempt's log; the container may be short of memory.", "any early end"
)
def _sampler_died(seen: Seen) -> str | None:
    meter = seen.result.meter
    if not seen.known or meter.achieved_hz is not None or meter.samples == 0:
        return None
    return "The sampling process ended before it was told to; what it had written is used."


@check(
    "throttled",
    "error",
    "Improve cooling, wait longer between cycles, and repeat.",
    "1 % of the time (clock event reasons 0x8, 0x20, 0x40, 0x80)",
)
def _throttled(seen: Seen) -> str | None:
    share = _share_of_time(seen, SLOWDOWN_BITS)
    if share is None or share <= 0.01:
        return None
    return f"The GPU was slowed down by heat or its power supply in {share:.0%} of the samples."


@check(
    "power_capped",
    "info",
    "Normal under full load; compare only runs with the same limit.",
    "1 % of the time (clock event reason 0x4)",
)
def _power_capped(seen: Seen) -> str | None:
    share = _share_of_time(seen, POWER_CAP_BIT)
    if share is None or share <= 0.01:
        return None
    return f"The GPU ran at its power limit in {share:.0%} of the samples."


@check(
    "counter_disagreement",
    "warning",
    "Use a longer measurement window; if it stays, the load may beat in step with the sensor.",
    "3 % (expected agreement over 30 s or more is 1-3 %)",
)
def _counter_disagreement(seen: Seen) -> str | None:
    ratio = seen.energy.check_ratio
    if not seen.known or ratio is None or abs(ratio) <= 0.03:
        return None
    return f"The integral of the power samples is {ratio:+.1%} off the energy counter, which is used."


@check(
    "counter_reset",
    "warning",
    "Turn on persistence mode: the counter restarts with the driver.",
    "any decrease",
)
def _counter_reset(seen: Seen) -> str | None:
    resets = sum(gpu.counter_resets for gpu in _without_counter(seen))
    return (
        f"The energy counter went back {resets} time(s); energy is the integral of power." if resets else None
    )


@check(
    "no_counter",
    "warning",
    "Expect more scatter; GPUs before Volta and virtual GPUs have no counter.",
    "the counter is the first choice",
)
def _no_counter(seen: Seen) -> str | None:
    without = _without_counter(seen)
    if not without or any(gpu.counter_resets for gpu in without) or _counter_frozen(seen):
        return None
    averaged = [gpu for gpu in without if gpu.source == "integral_average"]
    delays_s = [seen.series[gpu.gpu].average_delay_s for gpu in averaged]
    late = f" It is moved back by {max(delays_s):.2f} s, as its readings tell." if any(delays_s) else ""
    if averaged and not all(delays_s):
        late = " Over how long it is the mean, its readings do not tell: it is taken as it stands."
    return (
        f"No energy counter; energy is by {without[0].source}, which sees a part of the time only: its uncertainty is "
        f"not characterised.{late}"
    )


@check(
    "counter_frozen",
    "warning",
    "Restart the driver (or unload and load it); energy is the integral of power, with more scatter.",
    "no move in the whole series",
)
def _counter_frozen(seen: Seen) -> str | None:
    frozen = [
        name
        for name, one in seen.series.items()
        if one.counter.covers(0.0, seen.energy.duration_s) and not np.ptp(one.counter.y)
    ]
    if not frozen or seen.result.meter.energy_kind == "estimate":
        return None
    return (
        f"The energy counter of {', '.join(frozen)} never moved, from the first reading on: it is not used."
    )


@check(
    "uncertainty_not_characterised",
    "warning",
    "Do not state an error for this energy; compare the counter with another GPU of this kind.",
    "register periods up to 1.1 s (benchmarks/coverage.py)",
)
def _not_characterised(seen: Seen) -> str | None:
    gpus = [gpu for gpu in seen.energy.gpus if gpu.source == "counter" and gpu.uncertainty_j is None]
    if not seen.known or not gpus:
        return None
    why = "its counter is written less than once in 1.1 s, or contradicts itself"
    if seen.result.meter.kind not in MODELLED:
        why = f"how the counter of the meter {seen.result.meter.kind} is written is not known"
    return (
        f"The uncertainty of the energy of {', '.join(gpu.gpu for gpu in gpus)} is not characterised: {why}."
    )


@check(
    "temperature_drift", "warning", "Warm up longer: leakage grows with temperature.", "10 degrees Celsius"
)
def _temperature_drift(seen: Seen) -> str | None:
    widest = 0.0
    for one in seen.series.values():
        inside = one.temperature_c[rows_between(one.t_s, 0, seen.energy.duration_s)]
        inside = inside[~np.isnan(inside)]
        if len(inside):
            widest = max(widest, float(inside.max() - inside.min()))
    if widest <= 10:
        return None
    return f"The GPU's temperature moved by {widest:.0f} degrees Celsius in the measurement window."


@check(
    "implausible_readings",
    "warning",
    "Suspect the driver or the sensor; compare with another GPU or another driver.",
    "0 W on a board, above 1.5 x its enforced limit (5,000 W where it is not known), two values at one instant",
)
def _implausible_readings(seen: Seen) -> str | None:
    told = []
    for gpu in seen.energy.gpus:
        dropped = gpu.dropped
        if dropped.readings and dropped.worst_w is None:
            told.append(f"{dropped.readings} of {gpu.gpu} contradict another one of the same instant")
        elif dropped.readings:
            told.append(
                f"{dropped.readings} of {gpu.gpu}, which can draw up to {dropped.ceiling_w:,.0f} W "
                f"(worst: {dropped.worst_w:,.0f} W)"
            )
    return f"Readings that cannot be true count as missing: {'; '.join(told)}." if told else None


@check(
    "clock_jump",
    "error",
    "Repeat the cycle on a machine that is not suspended or moved.",
    "a gap of 2.5 s in which the counter rose by less than half of the lowest power seen",
)
def _clock_jump(seen: Seen) -> str | None:
    longest_s = max((slept_s(one, 0.0, seen.energy.duration_s) for one in seen.series.values()), default=0.0)
    if not seen.known or not longest_s:
        return None
    return (
        f"The clock went on by {longest_s:.1f} s in which the energy counter stood still: it jumped, or the "
        "machine slept. Durations, rates and mean power of this measurement window are wrong."
    )


@check(
    "over_limit", "warning", "Suspect the sensor; compare with another GPU.", "1.1 x the enforced power limit"
)
def _over_limit(seen: Seen) -> str | None:
    limits = {gpu.get("uuid"): gpu.get("enforced_power_limit_w") for gpu in seen.gpus}
    for gpu in seen.energy.gpus:
        limit_w = limits.get(gpu.gpu)
        if limit_w and gpu.max_power_w is not None and gpu.max_power_w > 1.1 * limit_w:
            return f"A sample says {gpu.max_power_w:.0f} W; the limit of {gpu.gpu} is {limit_w:.0f} W."
    return None


def _window_length(seen: Seen) -> str | None:
    """The edges are those of a board's energy register: other meters have none, and an estimate has no edges."""
    if seen.energy.kind in {"none", "estimate"}:
        return None
    duration_s = seen.energy.duration_s
    said = f"The measurement window is {duration_s:.1f} s long"
    if seen.result.meter.kind != "nvml":
        return f"{said}; windows this short differ more from one another."
    share = 20 / max(duration_s, 1e-9)
    return f"{said}; a register update of 100 ms at each edge is {share:.1f} % of it."


def _share_of_time(seen: Seen, bits: int) -> float | None:
    """Highest share of a device's samples in the window with one of the event bits; None when not known."""
    return max((float(((found & bits) != 0).mean()) for found in seen.event_reasons), default=None)


def _without_counter(seen: Seen) -> list[GpuEnergy]:
    """Devices whose energy is not by their counter although their meter has one."""
    if not seen.known or seen.result.meter.kind not in MODELLED:
        return []
    return [gpu for gpu in seen.energy.gpus if gpu.source != "counter"]
