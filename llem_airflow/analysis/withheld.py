"""Why there is no energy: what is looked for before a number is given, and the sentence that stands in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llem_airflow.analysis.counter import CounterEnergy
from llem_airflow.analysis.plausible import DISAGREE_RATIO, MIN_BOARD_W, broken_counter, explained_j
from llem_airflow.analysis.power_series import GpuSeries, phase_windows
from llem_airflow.protocol.result import Meter, Window

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
    errors = [error for t_s, error in zip(series.t_s, series.errors, strict=True) if error and t_s > last_s]
    if source is None and errors and last_s < duration_s:
        return Withheld(
            "gpu_lost",
            f"{series.gpu} stopped answering ({errors[0]}) {max(last_s, 0):.1f} s into the window of "
            f"{duration_s:.1f} s.",
        )
    if source is None and len(answered_s) and not (last_s >= duration_s and answered_s[0] <= 0):
        return Withheld(
            "not_bracketed",
            f"{series.gpu}: the window is not bracketed by samples, so its edges are not known.",
        )
    if source is None:
        return Withheld("no_energy", f"{series.gpu} told neither power nor energy in the window.")
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
        return Withheld("duration_mismatch", "The window ends before it begins.")
    measured = phase_windows(events).get("measure")
    if measured is None:
        return None
    if begin_ns < measured[0] - _PHASE_SLACK_NS or end_ns > measured[1] + _PHASE_SLACK_NS:
        return Withheld(
            "duration_mismatch",
            f"The window of {(end_ns - begin_ns) / 1e9:.2f} s lies outside the measure phase of "
            f"{(measured[1] - measured[0]) / 1e9:.2f} s in the events.",
        )
    return None
