"""From what was read of a board to its profile, with a verdict on every number."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from llem_airflow import __version__
from llem_airflow.gpu_check import steady
from llem_airflow.gpu_check.collect import Seen
from llem_airflow.gpu_check.register import Clock, Writes, find_clock, writes
from llem_airflow.gpu_check.verdicts import findings
from llem_airflow.gpu_check.window import Window, find_window
from llem_airflow.protocol.gpu_profile import PROFILE_VERSION, GpuProfile
from llem_airflow.protocol.gpus import POWER_CAP_BIT, SLOWDOWN_BITS

_MILLI = 1e-3
NOT_TOLD = "the driver does not tell it"
_OF_LEVELS = ("idle_bare_w", "idle_context_w", "load_w", "noise_idle_w", "noise_load_w")
_OF_COUNTER = ("counter_period_s", "counter_jitter_s", "counter_step_mj", "repeat_cv_ratio")
_TELLS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("energy_mj",): (*_OF_COUNTER, "counter_to_integral_ratio"),
    ("power_instant_mw",): ("instant_window_s", "edge_delay_s", "counter_to_integral_ratio"),
    ("power_average_mw",): ("average_window_s",),
    ("power_instant_mw", "power_average_mw"): ("power_period_s", "power_jitter_s", *_OF_LEVELS),
    ("temperature_c",): ("thermal_time_constant_s",),
    ("event_reasons",): ("throttled_ratio", "power_capped_ratio"),
}
"""What cannot be known where none of some columns has a reading."""
_PHASE_OF = {
    **dict.fromkeys(("idle_bare_w", "noise_idle_w"), "bare"),
    "idle_context_w": "context",
    **dict.fromkeys(("instant_window_s", "average_window_s", "edge_delay_s"), "square"),
    **dict.fromkeys(("load_w", "noise_load_w", "thermal_time_constant_s"), "full"),
    **dict.fromkeys(("throttled_ratio", "power_capped_ratio", "counter_to_integral_ratio"), "full"),
    "repeat_cv_ratio": "repeat",
}
"""The part of the plan in which a field is measured."""


def profile_of(seen: Seen) -> GpuProfile:
    """The profile of one board."""
    facts, described = seen.facts, seen.facts["described"]
    counter = find_clock(seen.readings("energy_mj", _MILLI))
    power = find_clock(seen.readings("power_instant_mw", _MILLI))
    average = find_clock(seen.readings("power_average_mw", _MILLI))
    windows = {
        "instant": _window(seen, "power_instant_mw", power),
        "average": _window(seen, "power_average_mw", average),
    }
    numbers: dict[str, Any] = {
        **_clock("counter", counter),
        **_clock("power", power or average),
        **_windows(windows),
        **_levels(seen, counter, power),
        **_heat(seen),
    }
    profile = GpuProfile(
        PROFILE_VERSION,
        facts["uuid"],
        facts["name"],
        "measured",
        note=_note(facts),
        made_epoch_ns=time.time_ns(),
        made_by=f"llem-airflow {__version__}",
        driver=described.get("driver_version"),
        power_limit_w=described.get("enforced_power_limit_w"),
        load=facts["load"] if facts["edges"] else "none",
        sampler_core_ratio=facts["sampler_core_ratio"],
        answers=facts["answers"],
        call_cost_us=facts["call_cost_us"],
        **numbers,
    )
    return findings(profile, _reasons(seen, windows))


def _reasons(seen: Seen, windows: Mapping[str, Window]) -> dict[str, str]:
    """Why a field of the profile is not known, where more can be said than what its line says by itself."""
    facts = seen.facts
    if facts["refused"]:
        return dict.fromkeys((one.name for one in fields(GpuProfile)), "the board was not checked")
    why = {f"{name}_window_s": window.why for name, window in windows.items()}
    why["edge_delay_s"] = windows["instant"].why
    reached = {phase["name"] for phase in facts["phases"]}
    if facts["lost"]:
        not_reached = [field for field, phase in _PHASE_OF.items() if phase not in reached]
        why |= dict.fromkeys(not_reached, "the board stopped answering before")
    for columns, of in _TELLS.items():
        if not any(len(seen.readings(column, 1.0).values) for column in columns):
            why |= dict.fromkeys(of, NOT_TOLD)
    return why


def _note(facts: Mapping[str, Any]) -> str:
    said = [
        f"Not checked: {facts['refused']}" if facts["refused"] else "",
        f"The board stopped answering before the end ({facts['lost']}): what follows is from before. "
        "See dmesg for NVIDIA's Xid; a board that is lost comes back with a restart of the machine."
        if facts["lost"]
        else "",
        facts["load_note"],
    ]
    return " ".join(text for text in said if text)


def _clock(name: str, clock: Clock | None) -> dict[str, float]:
    if clock is None:
        return {}
    return {
        f"{name}_period_s": clock.period_s,
        f"{name}_period_uncertainty_s": clock.uncertainty_s,
        f"{name}_jitter_s": clock.jitter_s,
    }


def _window(seen: Seen, column: str, clock: Clock | None) -> Window:
    readings = seen.readings(column, _MILLI, "square")
    if not len(readings.values):
        return Window(None, why=NOT_TOLD)
    load = seen.load("square")
    if not len(load.on_s):
        return Window(None, why="there was no load whose edges are known")
    if clock is None:
        return Window(None, why="the register's period is not known")
    return find_window(writes(readings, clock), load)


def _windows(windows: Mapping[str, Window]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name, window in windows.items():
        found |= {
            f"{name}_window_s": window.window_s,
            f"{name}_window_uncertainty_s": window.window_uncertainty_s,
        }
    instant = windows["instant"]
    return found | {"edge_delay_s": instant.lag_s, "edge_delay_uncertainty_s": instant.lag_uncertainty_s}


def _levels(seen: Seen, counter: Clock | None, power: Clock | None) -> dict[str, float | None]:
    """Idle and loaded power, their noise, the counter's unit, and whether it is the integral."""
    column = "power_instant_mw" if len(seen.readings("power_instant_mw", 1).values) else "power_average_mw"
    levels = {phase: _writes(seen, column, power, phase) for phase in ("bare", "context", "full")}
    loaded = len(seen.load("full").on_s) > 0
    full = levels["full"].values[len(levels["full"].values) // 3 : -len(levels["full"].values) // 5 or None]
    joules = _writes(seen, "energy_mj", counter, "full")
    repeats, all_joules = seen.load("repeat"), _writes(seen, "energy_mj", counter, "repeat")
    return {
        "idle_bare_w": _median(levels["bare"].values),
        "idle_context_w": _median(levels["context"].values)
        if seen.facts["load"] == "torch" and loaded
        else None,
        "load_w": _median(full) if loaded else None,
        "noise_idle_w": steady.noise(levels["bare"].values),
        "noise_load_w": steady.noise(full) if loaded else None,
        "counter_step_mj": steady.counter_step(seen.readings("energy_mj", 1.0).values),
        "counter_to_integral_ratio": steady.counter_to_integral(joules, levels["full"]),
        "repeat_cv_ratio": steady.repeat_cv(all_joules, repeats.on_s, repeats.off_s),
    }


def _writes(seen: Seen, column: str, clock: Clock | None, phase: str) -> Writes:
    readings = seen.readings(column, _MILLI, phase)
    return writes(readings, clock) if len(readings.values) else Writes(readings.before_s, readings.values)


def _median(values: Any) -> float | None:
    return float(np.median(values)) if len(values) else None


def _heat(seen: Seen) -> dict[str, float | None]:
    """What the load does to the temperature and the clocks."""
    load, temperature = seen.load("full"), seen.readings("temperature_c", 1.0)
    idle = temperature.between(*seen.phase_s("bare")).values
    if not len(load.on_s):
        return {"temperature_idle_c": _median(idle)}
    on_s, off_s = float(load.on_s[0]), float(load.off_s[0])
    warm = temperature.between(on_s, off_s)
    reasons = seen.readings("event_reasons", 1.0).between(on_s, off_s).values.astype(np.int64)
    return {
        "temperature_idle_c": _median(idle),
        "temperature_load_c": float(warm.values.max()) if len(warm.values) else None,
        "thermal_time_constant_s": steady.thermal_time_constant(warm.before_s - on_s, warm.values),
        "throttled_ratio": float(((reasons & SLOWDOWN_BITS) != 0).mean()) if len(reasons) else None,
        "power_capped_ratio": float(((reasons & POWER_CAP_BIT) != 0).mean()) if len(reasons) else None,
    }
