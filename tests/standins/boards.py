"""Boards that somebody has seen, played back by the stand-in driver: from a gpu-profile to lines of its script.

The profiles in ``boards/`` are published ones; each names its source. What a profile does not know (null) is left as
the stand-in has it: one clock for all registers, no jitter, no noise, no lag, a counter of whole millijoules.
"""

from __future__ import annotations

from pathlib import Path

from llem_airflow.protocol.gpu_profile import GpuProfile

FOLDER = Path(__file__).parent / "boards"
_FIELD = "field_"
_FAULTS = {
    "NotSupported": "not_supported",
    "NoPermission": "no_permission",
    "Timeout": "timeout",
    "GpuIsLost": "lost",
}


def published() -> dict[str, GpuProfile]:
    """The shipped profiles by the name of their file."""
    return {
        path.stem: GpuProfile.loads(path.read_bytes(), path.name) for path in sorted(FOLDER.glob("*.json"))
    }


def script_of(profile: GpuProfile, index: int = 0) -> str:
    """The lines of the driver's script that make one GPU answer as the board of a profile does.

    Args:
        profile: Measured by ``gpu-check``, or published.
        index: The GPU in the script.
    """
    said = {
        "name": profile.name if "STAND-IN" in profile.name else f"{profile.name} (STAND-IN)",
        "uuid": profile.uuid,
        "limit_w": profile.power_limit_w,
        "idle_w": profile.idle_bare_w,
        "temperature_c": profile.temperature_idle_c,
        "update_ms": _clock(profile.power_period_s, profile.power_jitter_s),
        "counter_update_ms": _clock(profile.counter_period_s, profile.counter_jitter_s),
        "counter_step_mj": profile.counter_step_mj,
        "instant_ms": _ms(profile.instant_window_s),
        "average_ms": _ms(profile.average_window_s),
        "lag_ms": _ms(profile.edge_delay_s),
        "noise_w": _noise(profile),
    }
    lines = [f"gpu.{index}.{key} = {value}" for key, value in said.items() if value is not None]
    return "\n".join([*lines, *_refusals(profile, index), ""])


def _ms(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds * 1e3:.6g}"


def _clock(period_s: float | None, jitter_s: float | None) -> str | None:
    return None if period_s is None else f"{_ms(period_s)} {_ms(jitter_s or 0.0)}"


def _noise(profile: GpuProfile) -> str | None:
    idle_w = profile.noise_idle_w
    load_w = idle_w if profile.noise_load_w is None else profile.noise_load_w
    return None if load_w is None else f"{idle_w or 0.0:.6g} {load_w:.6g}"


def _refusals(profile: GpuProfile, index: int) -> list[str]:
    """``field_185_power_average: NotSupported`` becomes a fault of that field."""
    return [
        f"fault = {_FAULTS.get(answer, 'unknown')} gpu={index} field={question.split('_')[1]}"
        for question, answer in profile.answers.items()
        if question.startswith(_FIELD) and answer != "ok"
    ]
