"""Energy of the measured window, from what the meter saw.

Order of trust for each device: its energy counter; the integral of its instant power; the integral of its
averaged power; else nothing. The first two check each other where both exist. A number that cannot be
defended is withheld: it is then None, never 0, and the reason stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from llem_airflow.analysis.counter import counter_energy
from llem_airflow.analysis.latency import Requests
from llem_airflow.analysis.plausibility import (
    Dropped,
    Withheld,
    contradiction,
    duration_mismatch,
    missing_devices,
    unusable,
    without_impossible,
)
from llem_airflow.analysis.series import (
    Floats,
    GpuSeries,
    UnreadableSeriesError,
    phase_windows,
    series_by_gpu,
)
from llem_airflow.protocol.gpu_profile import Sensor
from llem_airflow.protocol.result import CycleResult, Meter, Window
from llem_airflow.protocol.spec import PEER_METER


def prefill_and_decode(
    series: Mapping[str, GpuSeries], origin_ns: int, requests: Requests | None
) -> tuple[float | None, float | None]:
    """Joules of all prefills and of all decoding in the measured window.

    Formula: the integral of instant power over [first submit, last first token] of every iteration, and over
    [last first token, last token]. Both are None unless every iteration prefills all its requests before any
    of them decodes (batches, not continuous batching), and the typical prefill spans at least two samples: a
    shorter one is not resolved by the sensor.
    """
    iterations = _iterations(requests) if requests else None
    curves = [one.instant for one in series.values()]
    if requests is None or iterations is None or any(len(curve.t_s) < 2 for curve in curves):
        return None, None
    begin_s, first_s, last_s = (times + (requests.origin_ns - origin_ns) / 1e9 for times in iterations)
    period_s = max(float(np.median(np.diff(curve.t_s))) for curve in curves)
    if float(np.median(first_s - begin_s)) < 2 * period_s:
        return None, None
    if not all(curve.covers(float(begin_s[0]), float(last_s.max())) for curve in curves):
        return None, None
    times = list(zip(begin_s.tolist(), first_s.tolist(), last_s.tolist(), strict=True))
    prefill_j = sum(curve.integral(begin, first) for curve in curves for begin, first, _ in times)
    decode_j = sum(curve.integral(first, last) for curve in curves for _, first, last in times)
    return prefill_j, decode_j


def _iterations(requests: Requests) -> tuple[Floats, Floats, Floats] | None:
    """First submit, last first token and last token of every iteration, in seconds since the requests' origin.

    None when prefill and decode overlap or times are missing.
    """
    known = (requests.submit_ns, requests.first_ns, requests.last_ns)
    if not len(requests) or any(np.isnan(times).any() for times in known):
        return None
    order = np.argsort(requests.iteration, kind="stable")
    starts = np.flatnonzero(np.diff(requests.iteration[order], prepend=-2))
    submit, first, last, second = (times[order] for times in (*known, requests.second_ns))
    begin_ns, first_ns = np.minimum.reduceat(submit, starts), np.maximum.reduceat(first, starts)
    last_ns, second_ns = np.maximum.reduceat(last, starts), np.minimum.reduceat(second, starts)
    if (second_ns < first_ns).any():
        return None
    by_time = np.argsort(begin_ns, kind="stable")
    if (begin_ns[by_time][1:] < last_ns[by_time][:-1]).any():
        return None
    return begin_ns[by_time] / 1e9, first_ns[by_time] / 1e9, last_ns[by_time] / 1e9


__all__ = [
    "SEMANTICS_VERSION",
    "Baseline",
    "EnergyOfWindow",
    "GpuEnergy",
    "Withheld",
    "phase_windows",
    "window_energy",
]

SEMANTICS_VERSION = 6
"""Raised whenever the meaning of these numbers changes; numbers of different versions are not compared.

1: counter at sharp moves, else edge-interpolated trapezoid; baselines are medians of their phases.
2: each reading of the counter counts at the move of the register that wrote it, whose period the moves tell.
3: the uncertainty of that period and about the power decides which readings count, and is part of what is told; beyond
   the last exact point the energy goes on with its own slope.
4: readings that cannot be true are missing, and a counter that contradicts the power is no energy.
5: the register's period is not taken for 100 ms, its clock only where it keeps one; averaged power is moved by the
   delay that the readings tell, not by half a second; the uncertainty covers 95 %, and is None where not known.
6: a board's own profile says its register's period and averaging window; both edges are told by the register's clock,
   or both as they were read; a reset outside of the window cuts off what lies beyond it.
"""

BASELINES = ("baseline_bare", "baseline_context", "baseline_loaded")
"""Phases whose power can be subtracted; active energy subtracts the first that was measured."""

MODELLED = ("nvml", "rapl")
"""Meters of which is known how the register of their counter is written."""

_MIN_BASELINE_SAMPLES = 5


@dataclass(frozen=True)
class GpuEnergy:
    """Energy of one device in the window.

    Attributes:
        gpu: Its name in power.csv.
        energy_j: The number to use, in joules, or None.
        source: counter | integral_instant | integral_average | estimate | reported; None without a number.
        counter_j: By its counter, in joules.
        instant_j: By the integral of instant power, in joules.
        average_j: By the integral of averaged power, in joules.
        check_ratio: Integral of instant power / counter - 1; None where they are not independent.
        average_power_w: ``energy_j`` / duration, in watts.
        max_power_w: Highest sample of power in the window, in watts.
        samples: Samples of power in the window.
        longest_gap_s: Longest time between two of them, in seconds.
        counter_resets: Times the counter went back.
        uncertainty_j: How far ``energy_j`` may be off because of what the readings leave open, in joules, with a
            coverage of 95 %; None when not known. The sensor's own error comes on top.
        dropped: Readings in the whole series that could not be true.
    """

    gpu: str
    energy_j: float | None
    source: str | None
    counter_j: float | None
    instant_j: float | None
    average_j: float | None
    check_ratio: float | None
    average_power_w: float | None
    max_power_w: float | None
    samples: int
    longest_gap_s: float
    counter_resets: int
    uncertainty_j: float | None
    dropped: Dropped


@dataclass(frozen=True)
class Baseline:
    """Power of all devices while one thing was idle.

    Attributes:
        name: baseline_bare | baseline_context | baseline_loaded.
        power_w: Sum over devices of the median power, in watts.
        sd_w: Standard deviation of the samples, devices added in quadrature, in watts.
        samples: Samples of the device with the fewest.
        measured_in: The earlier cycle that measured it; empty when this one did.
    """

    name: str
    power_w: float
    sd_w: float
    samples: int
    measured_in: str = ""


@dataclass(frozen=True)
class EnergyOfWindow:
    """Energy of the measured window, with all that labels it.

    Attributes:
        kind: measured | estimate | attributed | none.
        boundary: board | module | cpu-package | estimate | none: what the joules are the joules of.
        duration_s: Length of the window, in seconds.
        energy_j: Energy of all devices together, in joules, or None when withheld.
        source: Where it comes from, as in GpuEnergy; ``mixed`` when devices differ.
        average_power_w: ``energy_j`` / ``duration_s``, in watts.
        check_ratio: Integral of instant power / counter - 1 over all devices, or None.
        uncertainty_j: Sum of the devices' uncertainties, in joules; None when one of them is not known.
        active_j: ``energy_j`` minus the subtracted baseline's power times the duration, in joules.
        active_over: Name of the subtracted baseline.
        baselines: All that were measured.
        prefill_j: Share of the prefills, in joules, where it can be told apart.
        decode_j: Share of the decoding, in joules, likewise.
        gpus: Each device.
        withheld: Why ``energy_j`` is None; empty otherwise.
        semantics_version: SEMANTICS_VERSION of the code that computed it.
        series: What was read of each device, for the checks.
    """

    kind: str
    boundary: str
    duration_s: float
    energy_j: float | None = None
    source: str | None = None
    average_power_w: float | None = None
    check_ratio: float | None = None
    uncertainty_j: float | None = None
    active_j: float | None = None
    active_over: str | None = None
    baselines: tuple[Baseline, ...] = ()
    prefill_j: float | None = None
    decode_j: float | None = None
    gpus: tuple[GpuEnergy, ...] = ()
    withheld: tuple[Withheld, ...] = ()
    semantics_version: int = SEMANTICS_VERSION
    series: Mapping[str, GpuSeries] = field(default_factory=dict, repr=False, compare=False)


def window_energy(
    power: Any,
    meter: Meter,
    window: Window,
    *,
    events: Sequence[Mapping[str, Any]] = (),
    requests: Requests | None = None,
    expected_gpus: Sequence[str] = (),
    limits_w: Mapping[str, float] | None = None,
    sensors: Mapping[str, Sensor] | None = None,
) -> EnergyOfWindow:
    """Energy of the window. Bad data never raises: it withholds.

    Args:
        power: Columns of power.csv, as for ``series_by_gpu``.
        meter: What read them.
        window: The measured window.
        events: Rows of events.jsonl, for the baselines and as a check of the window.
        requests: Those of the window, for the split into prefill and decode.
        expected_gpus: UUIDs that the attempt was given; one without samples withholds the total.
        limits_w: Enforced power limit of each device by its name, in watts, where it is known.
        sensors: What gpu-check found out about the meter of each device by its name, where it did.
    """
    duration_s = window.duration_s
    if meter.kind == "none":
        return _without(meter, duration_s, Withheld("no_meter", "No meter was asked for."))
    try:
        series = series_by_gpu(power, window.t_begin_mono_ns)
    except UnreadableSeriesError as error:
        return _without(meter, duration_s, Withheld("unreadable_series", str(error)))
    cleaned = {
        name: without_impossible(one, board=meter.kind == "nvml", limit_w=(limits_w or {}).get(name))
        for name, one in series.items()
    }
    known = sensors or {}
    series = {name: replace(one, sensor=known.get(name, one.sensor)) for name, (one, _) in cleaned.items()}
    dropped = {name: gone for name, (_, gone) in cleaned.items()}
    found = _of_series(series, dropped, meter, window, events, requests, expected_gpus)
    return replace(found, series=series)


def _of_series(
    series: Mapping[str, GpuSeries],
    dropped: Mapping[str, Dropped],
    meter: Meter,
    window: Window,
    events: Sequence[Mapping[str, Any]],
    requests: Requests | None,
    expected_gpus: Sequence[str],
) -> EnergyOfWindow:
    duration_s = window.duration_s
    if mismatch := duration_mismatch(window, events):
        return _without(meter, duration_s, mismatch)
    missing = missing_devices(series, meter, expected_gpus)
    computed = [_gpu_energy(one, dropped[name], meter, duration_s) for name, one in series.items()]
    gpus = tuple(gpu for gpu, _ in computed)
    withheld = missing + tuple(reason for _, reason in computed if reason)
    if withheld or not gpus:
        return _without(meter, duration_s, *withheld, gpus=gpus)
    baselines = _baselines(series, window.t_begin_mono_ns, events)
    split = prefill_and_decode(series, window.t_begin_mono_ns, requests)
    return _total(meter, duration_s, gpus, baselines, split)


def _total(
    meter: Meter,
    duration_s: float,
    gpus: tuple[GpuEnergy, ...],
    baselines: tuple[Baseline, ...],
    split: tuple[float | None, float | None],
) -> EnergyOfWindow:
    energy_j = sum(gpu.energy_j for gpu in gpus if gpu.energy_j is not None)
    sources = {gpu.source for gpu in gpus}
    over = baselines[0] if baselines else None
    return EnergyOfWindow(
        energy_j=energy_j,
        source=sources.pop() if len(sources) == 1 else "mixed",
        kind=meter.energy_kind,
        boundary=meter.boundary,
        duration_s=duration_s,
        average_power_w=energy_j / duration_s,
        check_ratio=_check_ratio(gpus),
        uncertainty_j=_sum([gpu.uncertainty_j for gpu in gpus]),
        active_j=energy_j - over.power_w * duration_s if over else None,
        active_over=over.name if over else None,
        baselines=baselines,
        prefill_j=split[0],
        decode_j=split[1],
        gpus=gpus,
    )


def _without(
    meter: Meter, duration_s: float, *withheld: Withheld, gpus: tuple[GpuEnergy, ...] = ()
) -> EnergyOfWindow:
    """No total; the devices that could be computed keep theirs."""
    why = withheld or (Withheld("no_energy", "There are no power samples."),)
    return EnergyOfWindow(meter.energy_kind, meter.boundary, duration_s, gpus=gpus, withheld=why)


def _gpu_energy(
    series: GpuSeries, dropped: Dropped, meter: Meter, duration_s: float
) -> tuple[GpuEnergy, Withheld | None]:
    independent = meter.kind == "nvml"  # elsewhere power is derived from the counter and checks nothing
    counter = counter_energy(series, 0.0, duration_s, steps=independent, limit_w=dropped.ceiling_w)
    instant, average, power = series.instant, series.average, series.power
    instant_j = instant.integral(0.0, duration_s) if instant.covers(0.0, duration_s) else None
    average_j = average.integral(0.0, duration_s) if average.covers(0.0, duration_s) else None
    candidates = {"counter": counter.energy_j, "integral_instant": instant_j, "integral_average": average_j}
    source = next((name for name, value in candidates.items() if value is not None and value > 0), None)
    gap_s = power.longest_gap_s(0.0, duration_s)
    reason = unusable(series, source, gap_s, duration_s)
    if source == "counter" and meter.energy_kind != "estimate" and meter.kind != PEER_METER:
        told = {"instant": instant_j, "averaged": average_j}
        reason = contradiction(series, counter, told, dropped.ceiling_w, duration_s)
    energy_j = candidates[source] if source and reason is None else None
    if energy_j is None:
        source = None
    elif meter.energy_kind == "estimate":
        source = "estimate"
    elif meter.kind == PEER_METER:
        source = "reported"
    inside = power.inside(0.0, duration_s)
    return GpuEnergy(
        gpu=series.gpu,
        energy_j=energy_j,
        source=source,
        counter_j=counter.energy_j,
        instant_j=instant_j,
        average_j=average_j,
        check_ratio=_ratio(instant_j, counter.energy_j) if independent else None,
        average_power_w=energy_j / duration_s if energy_j is not None else None,
        max_power_w=float(inside.max()) if len(inside) else None,
        samples=len(inside),
        longest_gap_s=gap_s,
        counter_resets=counter.resets,
        # Samples of power see a part of the time; nobody bounds what they, an estimate or another tool leave out, nor
        # what the counter of a meter does whose register nobody has modelled.
        uncertainty_j=counter.uncertainty_j if source == "counter" and meter.kind in MODELLED else None,
        dropped=dropped,
    ), reason


def _sum(values: Sequence[float | None]) -> float | None:
    """All may be off to one side; None when one is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _check_ratio(gpus: Sequence[GpuEnergy]) -> float | None:
    """Integral of instant power over counter, minus 1, over the devices together."""
    if any(gpu.check_ratio is None for gpu in gpus):
        return None
    return _ratio(sum(gpu.instant_j or 0.0 for gpu in gpus), sum(gpu.counter_j or 0.0 for gpu in gpus))


def _ratio(integral_j: float | None, counter_j: float | None) -> float | None:
    return integral_j / counter_j - 1 if integral_j is not None and counter_j else None


def _baselines(
    series: Mapping[str, GpuSeries], origin_ns: int, events: Sequence[Mapping[str, Any]]
) -> tuple[Baseline, ...]:
    """Power in each baseline phase, measured or taken over: the sum over devices of the median of their samples."""
    windows = phase_windows(events)
    found = []
    for name in BASELINES:
        if name not in windows:
            continue
        begin_s, end_s = ((t_ns - origin_ns) / 1e9 for t_ns in windows[name])
        samples = [one.power.inside(begin_s, end_s) for one in series.values()]
        fewest = min(len(one) for one in samples)
        if fewest >= _MIN_BASELINE_SAMPLES:
            power_w = sum(float(np.median(one)) for one in samples)
            sd_w = float(np.sqrt(sum(float(np.var(one, ddof=1)) for one in samples)))
            found.append(Baseline(name, power_w, sd_w, fewest))
    measured = {one.name for one in found}
    every = (*found, *(one for one in _taken_over(events) if one.name not in measured))
    return tuple(sorted(every, key=lambda one: BASELINES.index(one.name)))


def _taken_over(events: Sequence[Mapping[str, Any]]) -> tuple[Baseline, ...]:
    """The idle power of an earlier cycle, or of its session's start, that this one says it took over."""
    said = next((event for event in events if event.get("event") == "baselines_reused"), {})
    return tuple(Baseline(**one, measured_in=str(said["measured_in"])) for one in said.get("baselines") or ())


_OF_A_BOARD, _OF_THE_CPU = ("board", "module"), ("cpu-package", "estimate")
"""Boundaries of what a meter's joules belong to."""


def of_the_model(energy: EnergyOfWindow, result: CycleResult) -> EnergyOfWindow:
    """The energy, withheld when the meter read another device than the one that the model ran on."""
    why = mismatch(result)
    if why is None or energy.kind == "none":
        return energy
    return EnergyOfWindow(
        energy.kind,
        energy.boundary,
        energy.duration_s,
        baselines=energy.baselines,
        gpus=energy.gpus,
        withheld=(*energy.withheld, Withheld("other_device", why)),
        series=energy.series,
    )


def mismatch(result: CycleResult) -> str | None:
    """Why the meter's joules are not the model's, as one sentence; None when they are, or nobody can tell.

    Any vendor's GPU is ``cuda``, ``xpu`` or the like to PyTorch; a meter of the CPU measures none of them.
    """
    meter, device = result.meter, result.model.get("device")
    if not isinstance(device, str) or not device or device == "meta":
        return None
    if meter.boundary in _OF_A_BOARD and device.startswith("cpu"):
        return f"The model ran on the CPU ({device}), and the meter read {len(meter.devices)} GPU(s)."
    if meter.boundary in _OF_THE_CPU and not device.startswith("cpu"):
        return f"The model ran on {device}, and the meter {meter.kind} knows the CPU only."
    used = result.model.get("gpu_uuids")
    if meter.kind != "nvml" or meter.energy_kind != "measured" or not isinstance(used, list):
        return None
    unread = [uuid for uuid in used if uuid not in meter.devices]
    if unread:
        return f"The model ran on {', '.join(unread)}, which the meter did not read ({', '.join(meter.devices)})."
    return None
