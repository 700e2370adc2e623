"""Idle phases: how much power the device takes before tokens do.

They are measured in every cycle (strategy ``fresh``), or once per experiment and taken over by its later cycles for
as long as device, driver and limits stay the same (``cached``), or so with a look now and then whether the bare
device still takes as much (``validated``).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llem_airflow.measurement.output import EventLog, seconds_since
from llem_airflow.measurement.recent_power import DeviceRow, last_rows, mean_power_w
from llem_airflow.protocol.spec import UNMEASURED_KINDS, IdlePower, KnownIdlePower
from llem_airflow.protocol.typed_json import to_json

# Clocks fall some seconds after a load has ended; the quiet before keeps that out of the idle power. What is
# only estimated from CPU time has no such tail.
SETTLE_S = 5.0
SETTLE_ESTIMATE_S = 1.0
# The idle power of a live context explains the other two and is not subtracted, so it may be shorter.
CONTEXT_S = 10.0
# A look whether idle power still holds needs to see a drift of some per cent only.
CHECK_S = 5.0
_LINE_EVERY_S = 10.0
_MIN_SAMPLES = 5
LOADED = "baseline_loaded"
SESSION_START = "the session's start"


@dataclass(frozen=True)
class IdleRules:
    """Which idle phases there are.

    Attributes:
        enabled: Whether there are any.
        duration_s: Length of each, in seconds.
        settle_s: Quiet before each but the first, in seconds.
        reuse: Whether idle power of an earlier cycle may be taken over.
        drift_threshold: Largest relative change of the bare device's power that leaves it valid.
    """

    enabled: bool
    duration_s: float
    settle_s: float
    reuse: bool = True
    drift_threshold: float = 0.1


def idle_rules(config: dict[str, Any], meter_kind: str) -> IdleRules:
    """What the study says; unsaid, there are idle phases where power is measured, none where it is estimated.

    Args:
        config: The experiment's canonical configuration.
        meter_kind: The meter in use.
    """
    said = (config.get("measurement") or {}).get("baseline") or {}
    measured = meter_kind not in UNMEASURED_KINDS
    enabled = said.get("enabled")
    if enabled is None:
        enabled = measured
    duration_s = said.get("duration_seconds")
    if duration_s is None:
        duration_s = 30.0 if measured else 5.0
    return IdleRules(
        enabled=bool(enabled) and meter_kind != "none",
        duration_s=float(duration_s),
        settle_s=SETTLE_S if measured else SETTLE_ESTIMATE_S,
        reuse=said.get("strategy", "validated") != "fresh",
        drift_threshold=float(said.get("drift_threshold", 0.1)),
    )


class IdlePhases:
    """The idle phases of one attempt: measured, or taken over from an earlier cycle.

    Args:
        log: Where they are marked.
        rules: Which there are.
        power_csv: Where the sampler writes.
        devices: How many devices it writes of.
        keeps: Whether what is measured before an engine is loaded is read at once, for later attempts of the engine.
    """

    def __init__(
        self, log: EventLog, rules: IdleRules, power_csv: Path, devices: int, *, keeps: bool = False
    ) -> None:
        self._log, self._rules, self._power_csv, self._devices = log, rules, power_csv, devices
        self._keeps = keeps
        self._wanted = rules.enabled
        self._unloaded: list[IdlePower] = []
        self._measured_in = SESSION_START

    def take_over(self, known: KnownIdlePower | None, conditions: tuple[str, ...]) -> None:
        """Decide, before anything else, whether what an earlier cycle measured holds here and now."""
        if not self._wanted or known is None or not self._rules.reuse:
            return
        if known.conditions != conditions:
            self._log.note(
                f"idle power of {known.measured_in} is not used: device, driver, limits or boot differ"
            )
            return
        if known.check and not self._holds(known):
            return
        self._wanted = False
        self._unloaded, self._measured_in = list(known.phases), known.measured_in
        self._log.emit("baselines_reused", measured_in=known.measured_in, baselines=to_json(known.phases))
        self._log.say(f"idle power as measured in {known.measured_in}")

    def measure(self, phase: str, *, settle: bool = True, longest_s: float = float("inf")) -> None:
        """One idle phase, if there are any."""
        if self._wanted:
            settle_s = self._rules.settle_s if settle else 0.0
            duration_s = min(longest_s, self._rules.duration_s)
            idle(self._log, phase, duration_s, settle_s=settle_s)
            if self._keeps and phase != LOADED:
                rows = last_rows(self._power_csv, duration_s, self._devices)
                seen = power_of(phase, rows, self._devices)
                self._unloaded += [] if seen is None else [seen]

    def keep(self, unloaded: Sequence[IdlePower], measured_in: str) -> None:
        """Take over the idle power before the engine was loaded, which lives on: only loaded can it be measured now."""
        if self._wanted and unloaded:
            self._log.emit("baselines_reused", measured_in=measured_in, baselines=to_json(tuple(unloaded)))
            self._log.say(f"idle power without the engine as measured in {measured_in}")

    @property
    def unloaded(self) -> tuple[tuple[IdlePower, ...], str]:
        """The idle power before an engine was loaded, measured here or taken over, and where it was measured."""
        return tuple(one for one in self._unloaded if one.name != LOADED), self._measured_in

    @property
    def wanted(self) -> bool:
        """Whether idle phases are measured here."""
        return self._wanted

    def _holds(self, known: KnownIdlePower) -> bool:
        """Whether the bare device still takes what it took."""
        check_s = min(CHECK_S, self._rules.duration_s)
        idle(self._log, "baseline_check", check_s)
        now_w = mean_power_w(self._power_csv, check_s, self._devices)
        before_w = next((one.power_w for one in known.phases if one.name == "baseline_bare"), None)
        if now_w is None or not before_w:
            self._log.note(f"idle power of {known.measured_in} cannot be checked: it is measured again")
            return False
        drift = now_w / before_w - 1
        holds = abs(drift) <= self._rules.drift_threshold
        verdict = "still holds" if holds else "no longer holds: it is measured again"
        self._log.note(
            f"idle power of {known.measured_in} {verdict}; {now_w:.1f} W now, {before_w:.1f} W then "
            f"({drift:+.1%}, limit {self._rules.drift_threshold:.0%})"
        )
        return holds


def power_of(phase: str, rows: Sequence[DeviceRow], devices: int) -> IdlePower | None:
    """Power of all devices in the samples of an idle phase; None when one of them has too few, or none.

    Formula: the sum over devices of the median, and the root of the sum of the variances.
    """
    by_device: dict[str, list[float]] = {}
    for row in rows:
        by_device.setdefault(row.device, []).append(row.power_mw / 1e3)
    fewest = min(map(len, by_device.values()), default=0)
    if fewest < _MIN_SAMPLES or len(by_device) < devices:
        return None
    power_w = sum(statistics.median(one) for one in by_device.values())
    sd_w = math.sqrt(sum(statistics.variance(one) for one in by_device.values()))
    return IdlePower(phase, power_w, sd_w, fewest)


def idle(log: EventLog, phase: str, duration_s: float, *, settle_s: float = 0.0) -> None:
    """Do nothing for a while, as a phase; the sampler sees what that costs.

    Args:
        log: Where the phase is marked.
        phase: Its name.
        duration_s: Its length, in seconds.
        settle_s: Quiet before it begins, in seconds.
    """
    time.sleep(settle_s)
    with log.phase(phase):
        begin_ns = time.monotonic_ns()
        while (left_s := duration_s - seconds_since(begin_ns)) > 0:
            log.progress(duration_s - left_s, duration_s, f"idle, {left_s:.0f} s left")
            time.sleep(min(left_s, _LINE_EVERY_S))
