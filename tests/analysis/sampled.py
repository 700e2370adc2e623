"""Power samples of a scripted device, as the sampler would have written them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llem_airflow.analysis.series import Curve, GpuSeries, series_by_gpu
from llem_airflow.protocol.files import POWER_COLUMNS
from llem_airflow.protocol.result import Anchor, CycleResult, Meter, Warmup, Window

T0_NS = 5_000_000_000_000
"""Begin of the window on the monotonic clock."""
GPU = "GPU-00000000-0000-0000-0000-000000000000"

Profile = Callable[[float], float]


def at_ns(t_s: float) -> int:
    return T0_NS + round(t_s * 1e9)


def columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row.get(name) for row in rows] for name in POWER_COLUMNS}


def row(t_s: float, gpu: str = GPU, **cells: Any) -> dict[str, Any]:
    return {"t_before_mono_ns": at_ns(t_s), "t_after_mono_ns": at_ns(t_s), "gpu": gpu, **cells}


def curve(*points: tuple[float, float]) -> Curve:
    return Curve(np.array([t for t, _ in points]), np.array([y for _, y in points]))


def read(*rows: dict[str, Any]) -> GpuSeries:
    return series_by_gpu(columns(rows), T0_NS)[GPU]


def samples(
    power_w: Profile,
    integral_j: Profile | None = None,
    *,
    begin_s: float = -1.5,
    end_s: float = 11.5,
    hz: float = 10.0,
    gpu: str = GPU,
    register_s: float = 0.0,
    ticks_s: Sequence[float] = (),
) -> list[dict[str, Any]]:
    """Rows at a steady rate; with an integral, also its counter, held by a register.

    Args:
        power_w: Power at a time since the window's begin, in watts.
        integral_j: Its integral, in joules.
        begin_s: First sample.
        end_s: Last sample.
        hz: Samples per second.
        gpu: Name of the device.
        register_s: Period of the counter's register; 0 for one that flows.
        ticks_s: Moves of the register to catch sharply, as the sampler does around the window's edges.
    """

    def counter_mj(t_s: float) -> int | None:
        if integral_j is None:
            return None
        held_s = math.floor(t_s / register_s + 1e-9) * register_s if register_s else t_s
        return round((integral_j(held_s) + 1e4) * 1e3)

    rows = [
        row(t_s, gpu, power_instant_mw=round(power_w(t_s) * 1e3), energy_mj=counter_mj(t_s))
        for i in range(round((end_s - begin_s) * hz) + 1)
        for t_s in (begin_s + i / hz,)
    ]
    for tick_s in ticks_s:
        rows += [row(t, gpu, energy_mj=counter_mj(t)) for t in (tick_s - 0.0005, tick_s + 0.0005)]
    return sorted(rows, key=lambda one: int(one["t_before_mono_ns"]))


def meter(
    kind: str = "nvml", energy_kind: str = "measured", devices: tuple[str, ...] = (GPU,), **changes: Any
) -> Meter:
    facts: dict[str, Any] = {
        "kind": kind,
        "energy_kind": energy_kind,
        "boundary": "board" if kind == "nvml" else "estimate",
        "devices": devices,
        "requested_hz": 10.0,
        "achieved_hz": 10.0,
        "samples": 100,
        "failed_reads": 0,
        "call_p50_s": 0.0005,
        "sampler_cpu_s": 0.1,
        "note": "",
        **changes,
    }
    return Meter(**facts)


def window(duration_s: float = 10.0, begin_s: float = 0.0) -> Window:
    return Window(at_ns(begin_s), at_ns(begin_s + duration_s), 10, 10, 100, 1000)


def cycle_result(the_window: Window, the_meter: Meter, warmup_outcome: str = "converged") -> CycleResult:
    return CycleResult(
        schema_version=1,
        experiment_hash="0" * 16,
        cycle=1,
        engine="transformers",
        engine_version="5",
        window=the_window,
        warmup=Warmup(warmup_outcome, 12, 5.0, 0.01, "the last 10 iterations are steady"),
        meter=the_meter,
        anchors=(Anchor(at_ns(-20), 10**18), Anchor(at_ns(20), 10**18 + 40 * 10**9)),
        model={},
        memory={},
        bundle_version="0",
    )


def phase(name: str, begin_s: float, end_s: float) -> list[dict[str, Any]]:
    return [
        {"t_mono_ns": at_ns(begin_s), "event": "phase_begin", "phase": name},
        {"t_mono_ns": at_ns(end_s), "event": "phase_end", "phase": name},
    ]


def asked(due_s: float, first_s: float = 0.5, end_s: float = 1.0, *, status: str = "ok") -> dict[str, Any]:
    """A request of a server that was due at a time since the window's begin, with three tokens."""
    due_ns = at_ns(due_s)
    times = [due_ns + round((first_s + k * (end_s - first_s) / 2) * 1e9) for k in range(3)]
    return {
        "phase": "measure",
        "status": status,
        "t_due_mono_ns": due_ns,
        "t_submit_mono_ns": due_ns,
        "t_first_mono_ns": times[0],
        "t_last_mono_ns": times[-1],
        "t_end_mono_ns": times[-1],
        "token_mono_ns": times,
        "output_tokens": 3,
    }
