"""Readings that cannot be true, and the reasons for which no energy is reported.

Drivers do return such values: 65,535 W or 2,147,483 W for one sample, 0 W from a board under load, a counter that
stands still, jumps, or counts in another unit. A reading that cannot be true is a reading that is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from llem_airflow.analysis.counter import MAX_W, CounterEnergy
from llem_airflow.analysis.series import Curve, Floats, GpuSeries, phase_windows
from llem_airflow.protocol.result import Meter, Window

LIMIT_MARGIN = 1.5
"""A board's readings overshoot its enforced limit for moments: by up to 1.2 on GeForce boards, never by this."""
MIN_BOARD_W = 0.5
"""A powered board draws more than this when idle: 0 W is a driver that does not know."""

DISAGREE_RATIO = 0.2
"""Difference of the counter and every integral of power that sampling at 10 Hz cannot explain."""
STILL_S = 2.5
"""A counter that stands still for longer is broken: the slowest register known is written once a second."""
_LONG_GAP_S = 0.5


@dataclass(frozen=True, slots=True)
class Dropped:
    """Readings of power or energy that were taken for missing.

    Attributes:
        readings: How many.
        worst_w: The power that was furthest from what the device can draw, in watts; None when no power was.
        ceiling_w: The most that it can draw, in watts.
    """

    readings: int
    worst_w: float | None
    ceiling_w: float


def without_impossible(
    series: GpuSeries, *, board: bool, limit_w: float | None = None
) -> tuple[GpuSeries, Dropped]:
    """The series with its impossible readings as "not known".

    Impossible are a power below 0 or above what the device can draw, a power of 0 on a board, and different values
    of one column at one instant.

    Args:
        series: What was read of one device.
        board: Whether it is a GPU board, which draws power whenever it answers.
        limit_w: Its enforced power limit in watts, where it is known.
    """
    ceiling_w = ceiling(limit_w)
    floor_w = MIN_BOARD_W if board else 0.0
    twice = np.flatnonzero(np.diff(series.t_s) == 0)
    columns: dict[str, Any] = {}
    bad_rows = np.zeros(len(series.t_s), dtype=bool)
    worst_w: float | None = None
    for name in ("instant_w", "average_w", "counter_j"):
        values: Floats = getattr(series, name)
        bad = _contradicting(values, twice)
        if name != "counter_j":
            outside = (values < floor_w) | (values > ceiling_w)
            bad |= outside
            told_w = values[outside].tolist() + ([] if worst_w is None else [worst_w])
            worst_w = max(told_w, key=abs, default=None)
        if bad.any():
            columns[name] = np.where(bad, np.nan, values)
            bad_rows |= bad
    cleaned = replace(series, **columns) if columns else series
    return cleaned, Dropped(int(bad_rows.sum()), worst_w, ceiling_w)


def ceiling(limit_w: float | None) -> float:
    """The most that a device can draw, in watts."""
    return min(limit_w * LIMIT_MARGIN, MAX_W) if limit_w and limit_w > 0 else MAX_W


def _contradicting(values: Floats, twice: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Rows of one instant that tell different values; ``twice`` are the rows that have the time of the next."""
    found = np.zeros(len(values), dtype=bool)
    differ = twice[np.abs(values[twice] - values[twice + 1]) > 0]
    found[differ] = found[differ + 1] = True
    return found


def broken_counter(counter: Curve, begin_s: float, end_s: float, ceiling_w: float) -> str | None:
    """What a counter did between two instants that no counter of energy does, as the end of a sentence, or None.

    Formula: between two readings dt apart it may rise by at most ceiling x (dt + two of its own steps in time), and
    it may not stand still for STILL_S over three readings or more.
    """
    around = counter.around(begin_s, end_s)
    t_s, y = around.t_s, around.y
    if len(t_s) < 2:
        return None
    steps_s, rises_j = np.diff(t_s), np.diff(y)
    moves_s = t_s[1:][rises_j > 0]
    own_step_s = min(float(np.median(np.diff(moves_s))), 1.0) if len(moves_s) > 2 else 1.0
    beyond_j = rises_j - ceiling_w * (steps_s + 2 * own_step_s)
    if (beyond_j > 0).any():
        worst = int(np.argmax(beyond_j))
        return f"rose by {rises_j[worst]:,.0f} J in {steps_s[worst]:.2f} s"
    marks = np.flatnonzero(np.concatenate([[True], rises_j != 0, [True]]))
    for begin, end in pairwise(marks.tolist()):
        still_s = float(t_s[end - 1] - t_s[begin])
        if end - begin >= 3 and still_s > STILL_S:
            return f"stood still for {still_s:.1f} s"
    return None


def explained_j(power: Curve, begin_s: float, end_s: float) -> float:
    """How far an integral of samples may be off because of what lies between them, in joules.

    Formula: for each pair of neighbouring samples half the difference x the time between them, as the load may have
    moved right after the one or right before the other each time (a load in step with the sampler does); a gap counts
    with the highest power that was seen, whole.
    """
    around = power.around(begin_s, end_s)
    steps_s = np.diff(around.t_s)
    long = steps_s > _LONG_GAP_S
    jumps_j = (np.abs(np.diff(around.y)) * steps_s / 2)[~long]
    return float(jumps_j.sum() + steps_s[long].sum() * power.y.max(initial=0.0))


def slept_s(series: GpuSeries, begin_s: float, end_s: float) -> float:
    """Longest gap between readings in which the counter did not go on: the clock jumped, or the machine slept.

    Formula: a gap longer than STILL_S in which the counter rose by less than half of the lowest power that was read
    x its length.
    """
    counter, power = series.counter, series.power
    if len(counter.t_s) < 2 or not len(power.t_s):
        return 0.0
    steps_s, rises_j = np.diff(counter.t_s), np.diff(counter.y)
    inside = (counter.t_s[1:] > begin_s) & (counter.t_s[:-1] < end_s)
    slept = inside & (steps_s > STILL_S) & (rises_j < power.y.min() * steps_s / 2)
    return float(steps_s[slept].max(initial=0.0))


MAX_BLIND_GAP_S = 3.0
"""Longest gap between samples that an integral may bridge without a counter to vouch for it."""

_PHASE_SLACK_NS = 50_000_000


@dataclass(frozen=True)
class Withheld:
    """Why there is no number.

    Attributes:
        code: not_bracketed | gpu_missing | gpu_lost | gap_without_counter | unreadable_series | duration_mismatch
            | sources_disagree | implausible_counter | other_device | no_meter | no_energy.
        message: One sentence.
    """

    code: str
    message: str


def unusable(series: GpuSeries, source: str | None, gap_s: float, duration_s: float) -> Withheld | None:
    """Why this device's energy is withheld, or None."""
    if source == "counter":
        return None
    answered_s = series.answered_t_s
    last_s = float(answered_s[-1]) if len(answered_s) else -np.inf
    errors = [error for error in series.errors.take(np.flatnonzero(series.t_s > last_s)) if error]
    if source is None and errors and last_s < duration_s:
        return Withheld(
            "gpu_lost",
            f"{series.gpu} stopped answering ({errors[0]}) {max(last_s, 0):.1f} s into the measurement window of "
            f"{duration_s:.1f} s.",
        )
    if source is None and len(answered_s) and not (last_s >= duration_s and answered_s[0] <= 0):
        return Withheld(
            "not_bracketed",
            f"{series.gpu}: the measurement window is not bracketed by samples, so its edges are not known.",
        )
    if source is None:
        return Withheld("no_energy", f"{series.gpu} told neither power nor energy in the measurement window.")
    if gap_s > MAX_BLIND_GAP_S:
        return Withheld(
            "gap_without_counter",
            f"{series.gpu}: {gap_s:.1f} s without a sample and no usable energy counter "
            f"(limit {MAX_BLIND_GAP_S:g} s).",
        )
    return None


def contradiction(
    series: GpuSeries,
    counter: CounterEnergy,
    integrals_j: Mapping[str, float | None],
    ceiling_w: float,
    duration_s: float,
) -> Withheld | None:
    """Why the counter's energy cannot be true, or None: by itself, or beside the integrals of power.

    One of them is enough to vouch for it: instant power looks at a part of each register period only, and a load in
    step with it shows one of its levels, where the averaged power sees both.
    """
    counter_j = counter.energy_j or 0.0
    broken = broken_counter(series.counter, 0.0, duration_s, ceiling_w)
    known = {name: joules for name, joules in integrals_j.items() if joules is not None}
    if not known:
        if broken is None and not MIN_BOARD_W * duration_s < counter_j <= ceiling_w * duration_s:
            broken = f"says {counter_j / duration_s:,.2f} W on average; up to {ceiling_w:,.0f} W are possible"
        return (
            Withheld("implausible_counter", f"{series.gpu}: its energy counter {broken}.") if broken else None
        )
    may_j = explained_j(series.power, 0.0, duration_s) + (counter.uncertainty_j or 0.0)
    nearest = min(known, key=lambda name: abs(known[name] - counter_j))
    apart_j = abs(counter_j - known[nearest])
    if broken is None and apart_j <= DISAGREE_RATIO * min(counter_j, known[nearest]) + may_j:
        return None
    why = f" (the counter {broken})" if broken else ""
    told = " and ".join(f"the integral of {name} power {joules:,.1f} J" for name, joules in known.items())
    return Withheld(
        "sources_disagree",
        f"{series.gpu}: the energy counter says {counter_j:,.1f} J and {told}{why}; sampling explains "
        f"{may_j:,.1f} J of the difference.",
    )


def missing_devices(
    series: Mapping[str, GpuSeries], meter: Meter, expected: Sequence[str]
) -> tuple[Withheld, ...]:
    """Devices that should have samples and have none. A MIG slice is read through its board."""
    boards = [gpu for gpu in expected if gpu.startswith("GPU-")] if meter.kind == "nvml" else []
    names = dict.fromkeys((*meter.devices, *boards))
    return tuple(
        Withheld("gpu_missing", f"{name} was in use but has no power samples.")
        for name in names
        if name not in series
    )


def duration_mismatch(window: Window, events: Sequence[Mapping[str, Any]]) -> Withheld | None:
    """The window that cannot be: it ends before it begins, or lies outside of the phase that was measured."""
    begin_ns, end_ns = window.t_begin_mono_ns, window.t_end_mono_ns
    if end_ns <= begin_ns:
        return Withheld("duration_mismatch", "The measurement window ends before it begins.")
    measured = phase_windows(events).get("measure")
    if measured is None:
        return None
    if begin_ns < measured[0] - _PHASE_SLACK_NS or end_ns > measured[1] + _PHASE_SLACK_NS:
        return Withheld(
            "duration_mismatch",
            f"The measurement window of {(end_ns - begin_ns) / 1e9:.2f} s lies outside the measure phase of "
            f"{(measured[1] - measured[0]) / 1e9:.2f} s in the events.",
        )
    return None
