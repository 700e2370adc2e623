"""Idle phases: how much power the device takes before tokens do."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from llem_airflow.measurement.clock import seconds_since
from llem_airflow.measurement.events import EventLog
from llem_airflow.measurement.warmup import MEASURED_KINDS

# Clocks fall some seconds after a load has ended; the quiet before keeps that out of the baseline. What is
# only estimated from CPU time has no such tail.
SETTLE_S = 5.0
SETTLE_ESTIMATE_S = 1.0
# The context baseline explains the other two and is not subtracted, so it may be shorter.
CONTEXT_S = 10.0
_LINE_EVERY_S = 10.0


@dataclass(frozen=True)
class BaselineRules:
    """Which idle phases there are.

    Attributes:
        enabled: Whether there are any.
        duration_s: Length of each, in seconds.
        settle_s: Quiet before each but the first, in seconds.
    """

    enabled: bool
    duration_s: float
    settle_s: float


def baseline_rules(config: dict[str, Any], meter_kind: str) -> BaselineRules:
    """What the study says; unsaid, there are baselines where power is measured, none where it is estimated.

    Args:
        config: The experiment's canonical configuration.
        meter_kind: The meter in use.
    """
    said = (config.get("measurement") or {}).get("baseline") or {}
    measured = meter_kind in MEASURED_KINDS
    enabled = said.get("enabled")
    if enabled is None:
        enabled = measured
    duration_s = said.get("duration_seconds")
    if duration_s is None:
        duration_s = 30.0 if measured else 5.0
    return BaselineRules(
        enabled=bool(enabled) and meter_kind != "none",
        duration_s=float(duration_s),
        settle_s=SETTLE_S if measured else SETTLE_ESTIMATE_S,
    )


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
