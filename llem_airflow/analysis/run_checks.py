"""Reasons to doubt that lie in the cycle: what was measured, beside whom, and how steadily."""

from __future__ import annotations

from collections.abc import Callable

from llem_airflow.analysis.flag import Flag, Seen
from llem_airflow.analysis.steadiness import iteration_bias_ratio, power_drift_ratio


def _stand_in(seen: Seen) -> Flag | None:
    names = " ".join(str(gpu.get("name")) for gpu in seen.gpus)
    if "STAND-IN" not in f"{seen.result.meter.note} {names}":
        return None
    return Flag(
        "stand_in",
        "STAND-IN driver: the power comes from a script, not from a GPU.",
        "Use it for tests only; these are not results.",
        "by the device's name",
        "warning",
    )


def _attributed(seen: Seen) -> Flag | None:
    if seen.energy.kind != "attributed":
        return None
    return Flag(
        "attributed",
        f"Energy is attributed to a slice, not measured. {seen.result.meter.note}",
        "Keep the rest of the board idle, or measure on a whole GPU.",
        "NVML has power for boards only",
        "warning",
    )


def _estimate(seen: Seen) -> Flag | None:
    if seen.energy.kind != "estimate":
        return None
    return Flag(
        "estimate",
        f"Energy is an estimate, not a measurement. {seen.result.meter.note}",
        "Do not compare it with measured joules; use a GPU or RAPL for numbers to publish.",
        "by definition of the meter",
        "info",
    )


def _foreign_process(seen: Seen) -> Flag | None:
    pids = [process.get("pid") for gpu in seen.gpus for process in gpu.get("processes") or ()]
    names = [f"pid {pid}" for pid in pids] + [str(name) for name in seen.host.get("foreign_processes") or ()]
    if not names:
        return None
    return Flag(
        "foreign_process",
        f"Somebody else computed on the GPU: {', '.join(names)}. Their energy is in the number.",
        "Ask for the GPU exclusively, or repeat when it is free.",
        "any compute process before the engine was loaded",
        "error",
    )


def _neighbours(seen: Seen) -> Flag | None:
    names = [str(name) for name in seen.host.get("neighbours") or ()]
    if not names:
        return None
    return Flag(
        "neighbours",
        f"Other experiments ran on this host at the same time: {', '.join(names)}.",
        "Run one at a time (pool or max_active_cycles 1) where CPU, memory or cooling are shared.",
        "any container of another attempt",
        "warning",
    )


def _warmup(seen: Seen) -> Flag | None:
    warmup = seen.result.warmup
    if warmup.outcome == "converged":
        return None
    capped = warmup.outcome.startswith("cap_")
    return Flag(
        "warmup_not_converged" if capped else "warmup_not_checked",
        f"The warm-up ended without being steady after {warmup.iterations} iterations: {warmup.reason}"
        if capped
        else f"The warm-up was {warmup.outcome}; nobody looked whether it was steady.",
        "Raise the warm-up's caps." if capped else "Turn convergence detection on.",
        "coefficient of variation of the last iterations 5 %, no slope",
        "warning" if capped else "info",
    )


def _drift(seen: Seen) -> Flag | None:
    bias = iteration_bias_ratio(seen.events)
    drift = power_drift_ratio(seen.series.values(), seen.energy.duration_s)
    if bias is not None and abs(bias) > 0.02:
        message = f"The first iterations of the window move the mean duration by {bias:+.1%} (MSER-5)."
    elif drift is not None and abs(drift) > 0.05:
        message = f"Power changed by {drift:+.1%} from the first to the last third of the window."
    else:
        return None
    return Flag(
        "drift",
        message,
        "Warm up longer; the window was not in a steady state.",
        "2 % of the mean by MSER-5 (White 1997), or 5 % of power between thirds",
        "warning",
    )


def _baseline(seen: Seen) -> Flag | None:
    active_j = seen.energy.active_j
    if active_j is None or active_j > 0:
        return None
    return Flag(
        "baseline_above_load",
        f"The baseline {seen.energy.active_over} took more power than the load: active energy is "
        f"{active_j:.1f} J.",
        "Somebody used the device during the baseline; repeat on an idle host.",
        "active energy above 0",
        "error",
    )


def _clock_step(seen: Seen) -> Flag | None:
    anchors = seen.result.anchors
    if len(anchors) < 2:
        return None
    mono_ns, epoch_ns = (
        anchors[-1].mono_ns - anchors[0].mono_ns,
        anchors[-1].epoch_ns - anchors[0].epoch_ns,
    )
    step_s = (epoch_ns - mono_ns) / 1e9
    if abs(step_s) <= 0.5:
        return None
    return Flag(
        "clock_step",
        f"The wall clock was set by {step_s:+.1f} s during the cycle; durations are monotonic and not "
        f"affected.",
        "Let NTP settle before comparing absolute times with other hosts.",
        "0.5 s",
        "info",
    )


CHECKS: tuple[Callable[[Seen], Flag | None], ...] = (
    _stand_in,
    _attributed,
    _estimate,
    _foreign_process,
    _neighbours,
    _warmup,
    _drift,
    _baseline,
    _clock_step,
)
