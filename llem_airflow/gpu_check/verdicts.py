"""A verdict on each number of a profile and of the measuring path: as expected, other than expected, or not known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from llem_airflow.protocol.gpu_profile import Finding, GpuProfile, MeasuringPath


@dataclass(frozen=True)
class _Line:
    """What is expected of one number.

    Attributes:
        field: Of the profile.
        what: In words.
        unit: In which it is shown.
        scale: From the profile's unit to that.
        low: Least that is expected, in the shown unit.
        high: Most.
        says: The expectation and whose it is.
        differs: What follows when it is another.
        unknown: Why it may not be known.
        off: The field that tells how far it may be off.
    """

    field: str
    what: str
    unit: str
    scale: float
    low: float
    high: float
    says: str
    differs: str
    unknown: str
    off: str = ""


_SLOW = "the register changed too seldom, too fast or at no steady time"
_NO_LOAD = "there was no load"
_LINES = (
    _Line("counter_period_s", "update period of the energy counter", "ms", 1e3, 98.5, 101.5,
          "100 ms +- 1.5 %, taken where no profile is", "results of this board use the period found here", _SLOW,
          "counter_period_uncertainty_s"),
    _Line("counter_jitter_s", "jitter of the energy counter's writes", "ms", 1e3, 0, 5, "under 5 ms",
          "energies of short windows are less certain", _SLOW),
    _Line("counter_step_mj", "step of the energy counter", "mJ", 1, 1, 1, "1 mJ, NVML's unit",
          "windows must hold many steps", "the counter rose too seldom"),
    _Line("counter_to_integral_ratio", "counter / integral of instant power", "", 1, 0.97, 1.03, "1 +- 0.03",
          "counter and power disagree: trust neither alone", _NO_LOAD),
    _Line("power_period_s", "update period of the power registers", "ms", 1e3, 98.5, 101.5,
          "100 ms (arXiv 2312.02741: A100, H100, GeForce)", "choose power_hz by it", _SLOW,
          "power_period_uncertainty_s"),
    _Line("power_jitter_s", "jitter of the power registers' writes", "ms", 1e3, 0, 5, "under 5 ms",
          "edges are seen less sharply", _SLOW),
    _Line("instant_window_s", "averaging window of instant power", "ms", 1e3, 24, 26,
          "25 ms (arXiv 2312.02741: A100, H100)", "results of this board use the window found here", _NO_LOAD,
          "instant_window_uncertainty_s"),
    _Line("average_window_s", "averaging window of averaged power", "ms", 1e3, 970, 1030, "1 s (nvml.h)",
          "averaged power is later or earlier than usual", _NO_LOAD, "average_window_uncertainty_s"),
    _Line("edge_delay_s", "delay from an edge of the load to power", "ms", 1e3, 0, 50, "at most 50 ms",
          "the ends of a window are off by the difference", _NO_LOAD, "edge_delay_uncertainty_s"),
    _Line("idle_bare_w", "idle power, no context", "W", 1, 3, 150, "3 to 150 W", "is the board idle?",
          "no power was told"),
    _Line("idle_context_w", "idle power with a CUDA context", "W", 1, 3, 250, "3 to 250 W", "is the board idle?",
          "there was no CUDA context"),
    _Line("load_w", "power at full load", "W", 1, 30, 1500, "30 to 1500 W", "is the load a load?", _NO_LOAD),
    _Line("noise_idle_w", "noise of idle power", "W", 1, 0, 5, "under 5 W", "other work may run on the board",
          "too few readings"),
    _Line("noise_load_w", "noise of loaded power", "W", 1, 0, 15, "under 15 W", "the load or the clocks are unsteady",
          _NO_LOAD),
    _Line("thermal_time_constant_s", "thermal time constant", "s", 1, 3, 300, "3 to 300 s", "warm up for longer",
          "the temperature rose too little, or the load was too short for it"),
    _Line("throttled_ratio", "share of the load slowed by heat or hardware", "", 1, 0, 0.01, "under 0.01",
          "cool the board before benchmarks", _NO_LOAD),
    _Line("power_capped_ratio", "share of the load at the power cap", "", 1, 0, 1, "any: usual at full load", "",
          _NO_LOAD),
    _Line("repeat_cv_ratio", "variation of a load that is repeated (CV)", "", 1, 0, 0.01, "under 0.01",
          "more cycles are needed for the same precision",
          "no load, or one too short for the register: use more --minutes"),
)  # fmt: skip
_MOST_CORE_RATIO = {"10": 0.02, "20": 0.04, "100": 0.15}
_MOST_CALL_US = 5_000.0


def findings(profile: GpuProfile, why: Mapping[str, str]) -> GpuProfile:
    """The profile with its findings.

    Args:
        profile: The numbers.
        why: Why a field is not known, where more can be said than what is usual.
    """
    lines = [_found(profile, line, why.get(line.field, "")) for line in _LINES]
    return replace(profile, findings=(*_answers(profile), *lines, *_costs(profile)))


def _found(profile: GpuProfile, line: _Line, why: str) -> Finding:
    number: float | None = getattr(profile, line.field)
    if number is None:
        return Finding(line.what, "", line.says, "unknown", why or line.unknown)
    off = getattr(profile, line.off) if line.off else None
    shown = number * line.scale
    slack = off * line.scale if off is not None else 0.0
    value = f"{_certain(shown, slack)} {line.unit}".rstrip()
    expected = line.low - slack <= shown <= line.high + slack
    return Finding(
        line.what, value, line.says, "expected" if expected else "differs", "" if expected else line.differs
    )


def _certain(number: float, off: float) -> str:
    """A number with as many decimals as two digits of what it may be off by; four digits where that is not told."""
    if not off:
        return f"{number:.4g}"
    decimals = min(max(1 - math.floor(math.log10(off)), 0), 6)
    return f"{number:.{decimals}f} +- {off:.{decimals}f}"


def _answers(profile: GpuProfile) -> list[Finding]:
    refused = sorted(name for name, said in profile.answers.items() if said != "ok")
    if not profile.answers:
        return [Finding("what NVML answers", "", "all questions", "unknown", "the board was not asked")]
    value = (
        ", ".join(f"{name}: {profile.answers[name]}" for name in refused)
        or f"all {len(profile.answers)} questions"
    )
    verdict = "differs" if set(refused) - {"mig_mode", "field_82_memory_temperature"} else "expected"
    return [
        Finding("what NVML refuses" if refused else "what NVML answers", value, "power and energy", verdict)
    ]


def _costs(profile: GpuProfile) -> list[Finding]:
    found = []
    if profile.call_cost_us:
        slowest = max(profile.call_cost_us, key=lambda name: profile.call_cost_us[name])
        worst_us = profile.call_cost_us[slowest]
        value = ", ".join(f"{name} {cost:.0f}" for name, cost in profile.call_cost_us.items()) + " us"
        slow = worst_us > _MOST_CALL_US
        verdict, why = ("differs", f"{slowest} is slow") if slow else ("expected", "")
        found.append(Finding("cost of each call", value, "under 5 ms", verdict, why))
    for rate, ratio in sorted(profile.sampler_core_ratio.items(), key=lambda item: float(item[0])):
        most = _MOST_CORE_RATIO.get(rate, 1.0)
        verdict = "expected" if ratio <= most else "differs"
        found.append(Finding(f"sampler at {rate} Hz", f"{ratio:.2%} of a core", f"under {most:.0%}", verdict))
    return found


_CERTAIN = 0.05
"""Share of the energy of a token that its interval may be, from windows of seconds."""
_CHEAP, _AGREE, _SHOWN = 0.02, 0.03, 0.1
_PEER_AGREES = {"nvidia-smi": _SHOWN, "zeus": _AGREE, "codecarbon": _AGREE}
"""How far another tool's joules may be from ours; what nvidia-smi shows is a mean of the last second on many boards."""
_WHAT = "measuring path on a model with random weights"


def path_findings(path: MeasuringPath | None) -> list[Finding]:
    """The lines of the page; one that says why, where the path was not walked."""
    if path is None:
        return [
            Finding(
                _WHAT, "", "", "unknown", "it was not walked: --minutes or --model-seconds left it no time"
            )
        ]
    if path.n_parameters is None:
        return [Finding(_WHAT, "", "", "unknown", path.problem)]
    where = f"{path.n_parameters / 1e9:.2g} B, {path.dtype}, on {path.device}"
    return [
        Finding(
            _WHAT,
            f"{where}; {path.windows} windows",
            "",
            "unknown" if path.problem else "expected",
            path.problem,
        ),
        _energy(path),
        _harness(path),
        _ratio(
            "counter / integral of power while the model runs",
            path.counter_to_integral_ratio,
            _AGREE,
            path.problem,
        ),
        *(_peer(path, tool, most) for tool, most in _PEER_AGREES.items()),
    ]


def _energy(path: MeasuringPath) -> Finding:
    what, says = "energy of a token of that model", f"known within {_CERTAIN:.0%}"
    energy_j, off_j = path.energy_per_token_j, path.energy_per_token_uncertainty_j
    if energy_j is None or off_j is None:
        return Finding(
            what, "", says, "unknown", path.problem or "the meter does not tell how certain its energies are"
        )
    certain = off_j <= _CERTAIN * energy_j
    why = "" if certain else "the windows were short or other work ran: use more --minutes"
    value = f"{energy_j:.4g} +- {off_j:.2g} J"
    if path.device == "cpu":
        return Finding(
            what, value, says, "unknown", "not real: its work ran on the CPU, its power is a script's"
        )
    return Finding(what, value, says, "expected" if certain else "differs", why)


def _harness(path: MeasuringPath) -> Finding:
    what, says = "tokens per second, harness / bare loop", f"at least {1 - _CHEAP:.0%}"
    ratio, off = path.harness_to_bare_ratio, path.harness_to_bare_uncertainty_ratio
    if ratio is None or off is None:
        return Finding(what, "", says, "unknown", path.problem)
    value = f"{ratio:.2%} +- {off:.2%}"
    if path.device == "cpu":
        return Finding(
            what, value, says, "unknown", "not real: on the CPU model, harness and meter share the cores"
        )
    verdict = (
        "expected" if ratio - off >= 1 - _CHEAP else "differs" if ratio + off < 1 - _CHEAP else "unknown"
    )
    why = {
        "expected": "",
        "differs": "the harness slows this model down: use larger batches",
        "unknown": "other work on this machine hides it",
    }[verdict]
    return Finding(what, value, says, verdict, why)


def _peer(path: MeasuringPath, tool: str, most: float) -> Finding:
    return _ratio(
        f"{tool} / this meter, in the same windows",
        path.peer_ratios.get(tool),
        most,
        path.peer_problems.get(tool) or path.problem or "the meter told no energy of its windows",
    )


def _ratio(what: str, ratio: float | None, most: float, unknown: str) -> Finding:
    says = f"1 +- {most:g}"
    if ratio is None:
        return Finding(what, "", says, "unknown", unknown or "one of them told nothing")
    fine = abs(ratio - 1) <= most
    return Finding(
        what,
        f"{ratio:.4f}",
        says,
        "expected" if fine else "differs",
        "" if fine else "they disagree: a wall meter tells which is right",
    )
