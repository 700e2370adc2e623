"""When warm-up is over. Pure: numbers in, verdict out."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from llem_airflow.measurement.recent_power import TEMPERATURE_SPAN_S, DeviceRow, Recent
from llem_airflow.protocol.gpus import SLOWDOWN_BITS
from llem_airflow.protocol.spec import UNMEASURED_KINDS


@dataclass(frozen=True)
class WarmupRules:
    """When warm-up may end.

    Attributes:
        enabled: Whether there is a warm-up at all.
        gated: Whether it ends by the gates; otherwise after ``min_iterations``.
        window: How many last iterations the gates look at.
        cv_threshold: Largest coefficient of variation of their latency.
        slope_threshold: Largest change over the window by the Theil-Sen slope, relative to their median.
        power_threshold: Largest relative difference of the mean power of the last two spans.
        temperature_threshold_c: Largest move of the temperature lately, in degrees Celsius.
        min_iterations: Fewest iterations.
        max_iterations: Most iterations that the latency may take (the floor in time comes first, and a device
            that still heats is waited for).
        min_duration_s: Shortest warm-up, in seconds: a GPU needs that to reach its temperature.
        max_duration_s: Longest warm-up, in seconds.
    """

    enabled: bool = True
    gated: bool = True
    window: int = 10
    cv_threshold: float = 0.05
    slope_threshold: float = 0.02
    power_threshold: float = 0.02
    temperature_threshold_c: float = 1.0
    min_iterations: int = 10
    max_iterations: int = 40
    min_duration_s: float = 0.0
    max_duration_s: float = 300.0


@dataclass(frozen=True)
class Verdict:
    """What the gates say after an iteration.

    Attributes:
        outcome: One of ``protocol.result.Warmup.outcome`` when warm-up is over, else None.
        cv: Coefficient of variation of the last window, or None before it is full.
        reason: One sentence.
    """

    outcome: str | None
    cv: float | None
    reason: str


def warmup_rules(config: dict[str, Any], meter_kind: str, wall_clock_s: float | None) -> WarmupRules:
    """Rules of an experiment: what the study says over the defaults of its meter.

    The time floor is for the temperature of a measured device; an estimate has none.

    Args:
        config: The experiment's canonical configuration.
        meter_kind: The meter in use.
        wall_clock_s: Longest life of the attempt, in seconds; warm-up takes at most a third of it.
    """
    said = {k: v for k, v in ((config.get("offline") or {}).get("warmup") or {}).items() if v is not None}
    measured = meter_kind not in UNMEASURED_KINDS
    gated = bool(said.get("convergence_detection", True))
    window = int(said.get("window_size", 10))
    fewest = int(said.get("min_prompts", window)) if gated else int(said.get("n_prompts", 5))
    floor_s = float(said.get("thermal_floor_seconds", 60.0 if measured else 0.0))
    longest_s = max(300.0 if measured else 60.0, 2 * floor_s)
    if wall_clock_s is not None:
        longest_s = min(longest_s, wall_clock_s / 3)
    return WarmupRules(
        enabled=bool(said.get("enabled", True)),
        gated=gated,
        window=window,
        cv_threshold=float(said.get("cv_threshold", 0.05)),
        min_iterations=fewest,
        max_iterations=max(fewest, int(said.get("max_prompts", 40))),
        min_duration_s=min(floor_s, longest_s),
        max_duration_s=longest_s,
    )


def coefficient_of_variation(values: Sequence[float]) -> float:
    """Standard deviation (n - 1) over mean.

    Raises:
        ValueError: Fewer than two values, or a mean of zero.
    """
    mean = statistics.fmean(values)
    if len(values) < 2 or mean == 0:
        raise ValueError("a coefficient of variation needs two values and a mean that is not zero")
    return statistics.stdev(values) / mean


def theil_sen_slope(values: Sequence[float]) -> float:
    """Median slope over all pairs, per step: a trend that single outliers do not move."""
    return statistics.median(
        (values[j] - values[i]) / (j - i) for i, j in combinations(range(len(values)), 2)
    )


def judge(
    latencies_s: Sequence[float], elapsed_s: float, look: Callable[[], Recent | None], rules: WarmupRules
) -> Verdict:
    """Whether warm-up is over.

    The coefficient of variation sees scatter but not slope: under slow drift it passes at once with some per
    cent of bias left. Therefore no trend, a flat power and a flat temperature are asked for as well.

    Args:
        latencies_s: Latency of every iteration so far, in seconds per output token.
        elapsed_s: Time since warm-up began, in seconds.
        look: Tells what power and temperature did lately; None when they are not measured. Called only once the
            bounds allow an end: looking takes time in which the device idles.
        rules: When it may end.
    """
    recent = latencies_s[-rules.window :]
    cv = coefficient_of_variation(recent) if len(recent) >= max(2, rules.window) else None
    n = len(latencies_s)
    if elapsed_s < rules.max_duration_s and (n < rules.min_iterations or elapsed_s < rules.min_duration_s):
        return Verdict(None, cv, f"{n} of at least {rules.min_iterations} iterations")
    if not rules.gated:
        return _of_a_fixed_length(n, elapsed_s, cv, rules)
    latency, device = _latency_gates(recent, cv, rules), _device_gates(look(), rules)
    closed = latency + device
    if not closed:
        return Verdict("converged", cv, f"the last {rules.window} iterations are steady")
    outcome = _cap(n if latency else 0, elapsed_s, rules)
    when = {"cap_iterations": "when the iterations ran out", "cap_time": "when the time ran out"}
    return Verdict(outcome, cv, f"not steady {when.get(outcome or '', 'yet')}: {'; '.join(closed)}")


def _of_a_fixed_length(n: int, elapsed_s: float, cv: float | None, rules: WarmupRules) -> Verdict:
    if n >= rules.min_iterations:
        done = f"{n} iteration{'s' * (n != 1)}"
        return Verdict(
            "fixed", cv, f"{done} in {elapsed_s:.0f} s, as the study asks, not checked for steadiness"
        )
    asked = f"{n} of the {rules.min_iterations} iterations that the study asks for"
    return Verdict("cap_time", cv, f"{asked} in {elapsed_s:.0f} s; it may take {rules.max_duration_s:.0f} s")


def _cap(n: int, elapsed_s: float, rules: WarmupRules) -> str | None:
    if elapsed_s >= rules.max_duration_s:
        return "cap_time"
    return "cap_iterations" if n >= rules.max_iterations else None


def _latency_gates(recent: Sequence[float], cv: float | None, rules: WarmupRules) -> list[str]:
    """What the latency still says against an end."""
    if cv is None:
        return [f"fewer than {rules.window} iterations"]
    closed = []
    if cv > rules.cv_threshold:
        closed.append(f"CV {cv:.1%} over {rules.cv_threshold:.1%}")
    drift = abs(theil_sen_slope(recent)) * len(recent) / statistics.median(recent)
    if drift > rules.slope_threshold:
        closed.append(f"latency drifts by {drift:.1%} over the window")
    return closed


def _device_gates(recent: Recent | None, rules: WarmupRules) -> list[str]:
    """What power and temperature still say against it."""
    closed = []
    if recent is not None and recent.before_w > 0:
        change = abs(recent.last_w - recent.before_w) / recent.before_w
        if change > rules.power_threshold:
            closed.append(f"power still changes by {change:.1%}")
    moved_c = recent.temperature_moved_c if recent else None
    if moved_c is not None and moved_c > rules.temperature_threshold_c:
        closed.append(
            f"the temperature moved by {moved_c:g} degrees Celsius in the last {TEMPERATURE_SPAN_S:g} s"
        )
    return closed


SPAN_S = 30.0
"""Half of what the gates look at: a Poisson load needs that long for its mean power to tell a trend from chance."""

POWER_RATIO = 0.05
TEMPERATURE_C = 2.0

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
    if any((one.event_reasons or 0) & SLOWDOWN_BITS for one in rows):
        closed.append("its clock was throttled")
    return closed
