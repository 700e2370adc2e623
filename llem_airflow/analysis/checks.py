"""Checks of a cycle: what was measured, beside whom, and how steadily; ``flags`` runs all checks of a cycle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from llem_airflow.analysis.energy import EnergyOfWindow, window_energy
from llem_airflow.analysis.flags import Check, Flag, Seen, add_check, gravity
from llem_airflow.analysis.power_checks import POWER_CHECKS, iteration_bias_ratio, power_drift_ratio
from llem_airflow.analysis.series import columns
from llem_airflow.protocol.gpus import gpus_told
from llem_airflow.protocol.result import CycleResult, Meter, Window
from llem_airflow.results import CycleRef, ResultReadError
from llem_airflow.text.wording import counted

AGREE_RATIO = 0.03
"""As for the counter and the integral: expected agreement over 30 s is 1-3 %."""


def second_sampler(ref: CycleRef, window: Window, energy: EnergyOfWindow) -> tuple[Flag, ...]:
    """A flag when the second sampler of a cycle says something else, or cannot say."""
    try:
        seen = ref.check()
    except ResultReadError as error:
        return (_flag(f"The second sampler's series cannot be read: {error}."),)
    return () if seen is None else compared(seen[0], seen[1], window, energy)


def compared(meter: Meter, power: object, window: Window, energy: EnergyOfWindow) -> tuple[Flag, ...]:
    """The same for its meter and its samples; both are on the one monotonic clock, so the window is the same."""
    if energy.energy_j is None:
        return ()  # said by the withheld reason
    other = window_energy(columns(power), meter, window)
    if other.energy_j is None:
        why = "; ".join(reason.message for reason in other.withheld)
        return (_flag(f"The second sampler has no energy to compare with: {why}"),)
    off_j = other.energy_j - energy.energy_j
    # What both say of their own uncertainty explains that much: in a short window on a busy host more than 3 %.
    doubt_j = (other.uncertainty_j or 0.0) + (energy.uncertainty_j or 0.0)
    if abs(off_j) <= max(AGREE_RATIO * energy.energy_j, doubt_j):
        return ()
    ratio = off_j / energy.energy_j
    return (_flag(f"The second sampler of the measurement window is {ratio:+.1%} off the one that counts."),)


def _flag(message: str) -> Flag:
    return Flag(
        "samplers_disagree",
        message,
        "See both power files of the cycle; somebody may have shared the clock or the GPU's name.",
        "3 %, or the uncertainties of both where these are more",
        "warning",
    )


def restarts(ref: CycleRef) -> tuple[Flag, ...]:
    """A flag when the container of the cycle's session was started again before it."""
    try:
        lives = ref.session().get("lives")
    except ResultReadError as error:
        return (_restarted(f"Whether the container of its session was started again is not known: {error}."),)
    later = lives[1:] if isinstance(lives, list) else []
    if not later:
        return ()
    why = "; ".join(dict.fromkeys(str(one.get("after")) for one in later if isinstance(one, Mapping)))
    return (
        _restarted(
            f"The container of its session had been started again {counted(len(later), 'time')}: {why}."
        ),
    )


def _restarted(message: str) -> Flag:
    return Flag(
        "session_restarted", message, "session.json of the cycle has every check of its health.", "", "info"
    )


_FOREIGN_CPUS = 0.5
_FOREIGN_CPU_RATIO = 0.1
"""What another container may use on average before it is told: it takes both."""

FOREIGN_LOAD_RATIO = 0.1
"""Others may use so much of the host's cores: an idle scheduler and a desktop use less."""


_STEADY = "the gates of the warm-up: scatter, slope, power, temperature"

CYCLE_CHECKS: list[Check] = []
"""Each of the checks below, in their order."""
check = partial(add_check, CYCLE_CHECKS)


@check("stand_in", "warning", "Use it for tests only; these are not results.", "by the device's name")
def _stand_in(seen: Seen) -> str | None:
    names = " ".join(str(gpu.get("name")) for gpu in seen.gpus)
    if "STAND-IN" not in f"{seen.result.meter.note} {names}":
        return None
    return "STAND-IN driver: the power comes from a script, not from a GPU."


@check(
    "attributed",
    "warning",
    "Keep the rest of the board idle, or measure on a whole GPU.",
    "NVML has power for boards only",
)
def _attributed(seen: Seen) -> str | None:
    if seen.energy.kind != "attributed":
        return None
    return f"Energy is attributed to a slice, not measured. {seen.result.meter.note}"


@check(
    "idle_board",
    "warning",
    "Ask for fewer GPUs (`gpus.count`), or spread the model (`device_map: auto`).",
    "any GPU of the experiment that holds no weights",
)
def _idle_board(seen: Seen) -> str | None:
    used, read = seen.result.model.get("gpu_uuids"), seen.result.meter.devices
    if seen.result.meter.kind != "nvml" or not isinstance(used, list):
        return None
    idle = [uuid for uuid in read if uuid not in used]
    return (
        f"The model used {len(used)} of the {counted(len(read), 'GPU')} whose energy counts; idle: {', '.join(idle)}."
        if idle
        else None
    )


@check(
    "offloaded",
    "warning",
    "Use a larger GPU or more of them, so that the whole model is on what is measured.",
    "any weight outside the GPUs",
)
def _offloaded(seen: Seen) -> str | None:
    devices = seen.result.model.get("devices")
    if seen.result.meter.kind != "nvml" or not isinstance(devices, list):
        return None
    outside = [str(one) for one in devices if not str(one).startswith("cuda")]
    return (
        f"A part of the model lay on {', '.join(outside)}, whose energy is not in the number."
        if outside
        else None
    )


@check(
    "estimate",
    "info",
    "Do not compare it with measured joules; use a GPU or RAPL for numbers to publish.",
    "by definition of the meter",
)
def _estimate(seen: Seen) -> str | None:
    if seen.energy.kind != "estimate":
        return None
    how = seen.result.meter.note.removeprefix("Estimate, not a measurement: ")
    return f"Energy is an estimate, not a measurement: {how}"


@check(
    "reported",
    "info",
    "Compare it with runs of that program only; measure here for numbers to check.",
    "by the import",
)
def _reported(seen: Seen) -> str | None:
    if seen.energy.source != "reported":
        return None
    return f"Energy was reported by another program and cannot be computed again. {seen.result.meter.note}"


@check(
    "foreign_process",
    "error",
    "Ask for the GPU exclusively, or repeat when it is free.",
    "any compute process before the engine was loaded",
)
def _foreign_process(seen: Seen) -> str | None:
    pids = [process.get("pid") for gpu in seen.gpus for process in gpu.get("processes") or ()]
    if not pids:
        return None
    names = ", ".join(f"pid {pid}" for pid in pids)
    return f"Somebody else computed on the GPU: {names}. Their energy is in the number."


@check(
    "foreign_load",
    "warning",
    "Measure on an idle machine; `top` shows who computes.",
    f"{FOREIGN_LOAD_RATIO:.0%} of the host's cores",
)
def _foreign_load(seen: Seen) -> str | None:
    """Meters of the CPU count the whole host, whoever uses it."""
    cpu, duration_s = seen.result.cpu, seen.energy.duration_s
    if cpu is None or seen.result.meter.kind not in ("cpu-estimate", "rapl") or duration_s <= 0:
        return None
    others = (cpu.host_s - cpu.own_s) / duration_s
    if others <= FOREIGN_LOAD_RATIO * cpu.cores:
        return None
    return (
        f"Other processes used {others:.1f} of the host's {counted(cpu.cores, 'core')} in the measurement window, "
        f"the experiment {cpu.own_s / duration_s:.1f} cores; their power is in the number."
    )


@check(
    "neighbours",
    "warning",
    "Run one at a time (pool or max_active_cycles 1) where CPU, memory or cooling are shared.",
    "any container of another attempt",
)
def _neighbours(seen: Seen) -> str | None:
    names = [str(name) for name in seen.host.get("neighbours") or ()]
    if "foreign_containers" not in seen.host:  # an older record names every container, a database's too
        names = [name for name in names if name.startswith("llem-")]
    return f"Other experiments ran on this host at the same time: {', '.join(names)}." if names else None


@check(
    "foreign_container",
    "warning",
    "Repeat it when that container is gone, or bind it to CPUs and GPUs of its own.",
    f"the same GPU, or on average {_FOREIGN_CPUS:g} CPUs and {_FOREIGN_CPU_RATIO:.0%} of the host's",
)
def _foreign_container(seen: Seen) -> str | None:
    told = [
        f"container {one.get('name')} ({one.get('image')}) {did}"
        for one in seen.host.get("foreign_containers") or ()
        if (did := _took(one, seen.host.get("cpus")))
    ]
    return f"Beside it on this host: {'; '.join(told)}." if told else None


@check(
    "neighbours_unknown",
    "info",
    "Let the engine (or the proxy before it) answer the calls that the runners' page lists.",
    "a look that failed is not an empty host",
)
def _neighbours_unknown(seen: Seen) -> str | None:
    why = seen.host.get("neighbours_unknown")
    return f"What else ran on this host could not be seen in full: {why}" if why else None


@check(
    "on_cpu",
    "warning",
    "Say `gpus: {count: 1}` where it must fail instead, or `gpus: {count: 0}` where the CPU is meant.",
    "the kernel's driver or the engine names GPUs",
)
def _on_cpu(seen: Seen) -> str | None:
    why = seen.host.get("on_cpu")
    return f"It ran on the CPU of a host that has GPUs: {why}." if why else None


@check(
    "privileged",
    "info",
    "Leave `privileged` out, or give what it needs by `cap_add` and `device_requests`.",
    "any privileged container",
)
def _privileged(seen: Seen) -> str | None:
    return (
        "Its container was privileged: it could reach every GPU and change the host's settings."
        if seen.host.get("privileged")
        else None
    )


@check(
    "warmup_not_converged",
    "warning",
    "Raise the warm-up's caps (of a server, server.warmup.timeout_seconds).",
    _STEADY,
)
def _warmup_not_converged(seen: Seen) -> str | None:
    warmup = seen.result.warmup
    if not warmup.outcome.startswith("cap_"):
        return None
    spread = "" if warmup.cv is None else f" (CV of the last ones {warmup.cv:.1%})"
    after = counted(warmup.iterations, "iteration" if seen.result.served is None else "request")
    return f"The warm-up ended without being steady after {after}{spread}: {warmup.reason}"


@check(
    "warmup_not_checked",
    "info",
    "Turn convergence detection on (of a server, server.warmup.mode: composite).",
    _STEADY,
)
def _warmup_not_checked(seen: Seen) -> str | None:
    outcome = seen.result.warmup.outcome
    if outcome == "converged" or outcome.startswith("cap_"):
        return None
    return f"The warm-up was {outcome}; nobody looked whether it was steady."


@check(
    "drift",
    "warning",
    "Warm up longer; the measurement window was not in a steady state.",
    "2 % of the mean by MSER-5 (White 1997), or 5 % of power between thirds",
)
def _drift(seen: Seen) -> str | None:
    bias = iteration_bias_ratio(seen.events)
    if bias is not None and abs(bias) > 0.02:
        return (
            f"The first iterations of the measurement window move the mean duration by {bias:+.1%} (MSER-5)."
        )
    drift = power_drift_ratio(seen.series.values(), seen.energy.duration_s)
    if drift is not None and abs(drift) > 0.05:
        return f"Power changed by {drift:+.1%} from the first to the last third of the measurement window."
    return None


@check(
    "baseline_above_load",
    "error",
    "Somebody used the device while idle power was measured; repeat on an idle host.",
    "active energy above 0",
)
def _baseline(seen: Seen) -> str | None:
    active_j = seen.energy.active_j
    if active_j is None or active_j > 0:
        return None
    return (
        f"The idle power {seen.energy.active_over} was above the power under load: active energy is "
        f"{active_j:.1f} J."
    )


@check("clock_step", "info", "Let NTP settle before comparing absolute times with other hosts.", "0.5 s")
def _clock_step(seen: Seen) -> str | None:
    anchors = seen.result.anchors
    if len(anchors) < 2:
        return None
    first, last = anchors[0], anchors[-1]
    step_s = ((last.epoch_ns - first.epoch_ns) - (last.mono_ns - first.mono_ns)) / 1e9
    if abs(step_s) <= 0.5:
        return None
    return (
        f"The wall clock was set by {step_s:+.1f} s during the cycle; durations are monotonic and not "
        f"affected."
    )


def _took(one: Mapping[str, Any], host_cpus: Any) -> str:
    """What a foreign container took that can change the numbers; empty for nothing."""
    gpus, cpus = one.get("gpus") or (), one.get("cpus")
    did = [f"holds the same GPU {', '.join(map(str, gpus))}"] if gpus else []
    if cpus is not None and cpus >= max(_FOREIGN_CPUS, _FOREIGN_CPU_RATIO * (host_cpus or 0)):
        of = f" of the host's {host_cpus}" if host_cpus else ""
        did.append(f"used {cpus:.1f}{of} CPUs")
    return " and ".join(did)


def flags(
    result: CycleResult,
    energy: EnergyOfWindow,
    *,
    events: Sequence[Mapping[str, Any]] = (),
    environment: Mapping[str, Any] | None = None,
    host: Mapping[str, Any] | None = None,
) -> tuple[Flag, ...]:
    """All flags one cycle, the gravest first.

    Args:
        result: What the cycle observed.
        energy: What ``window_energy`` made of its power samples.
        events: Rows of events.jsonl.
        environment: The cycle's environment.json; ``gpus`` is what the devices said before the engine was
            loaded.
        host: What the outside saw: ``neighbours``, a list of names;
            ``foreign_containers``, what each took; ``on_cpu`` and ``neighbours_unknown``, reasons;
            ``privileged``, whether its container was.
    """
    seen = Seen(result, energy, energy.series, events, gpus_told(environment or {}), host or {})
    found = _withheld(energy) + [
        flag for one in (*CYCLE_CHECKS, *POWER_CHECKS) if (flag := one(seen)) is not None
    ]
    return tuple(sorted(found, key=lambda flag: gravity(flag.severity)))


_NULL = "energy is null, never 0, where it is not known"
_NEXT_STEP_OF_WITHHELD = {
    "no_meter": "Choose a meter (`meter: auto`) to get energy.",
    "gpu_missing": "See the attempt's log for the sampler's messages; repeat the cycle.",
    "gpu_lost": "See the host's kernel log for Xid errors and repeat the cycle on another GPU.",
    "not_bracketed": "See whether the sampler ended early in the attempt's log; repeat the cycle.",
    "gap_without_counter": "Look for what stalled the host; repeat the cycle.",
    "sources_disagree": "Repeat the cycle, and compare the board's counter with another meter.",
    "implausible_counter": "Repeat the cycle; do not trust this counter before it agrees with another meter.",
    "other_device": "Choose the meter of the device that computes, or give the engine the GPUs that are measured.",
    "unreadable_series": "Look at the cycle's power file; repeat the cycle.",
    "duration_mismatch": "Report it with the cycle's folder: the attempt's marks contradict each other.",
    "no_energy": "Check with nvidia-smi that the GPU tells its power.",
}


def _withheld(energy: EnergyOfWindow) -> list[Flag]:
    """One flag for each reason; what was asked for is information, the rest takes the number away."""
    found: dict[str, Flag] = {}
    for reason in energy.withheld:
        severity = "info" if reason.code == "no_meter" else "withheld"
        message = f"Energy is not known: {reason.message}"
        if reason.code in found:
            message = f"{found[reason.code].message} {reason.message}"
        found[reason.code] = Flag(reason.code, message, _NEXT_STEP_OF_WITHHELD[reason.code], _NULL, severity)
    return list(found.values())
