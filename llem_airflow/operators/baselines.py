"""Idle power that an earlier cycle of the same experiment measured, for the next one to take over."""

from __future__ import annotations

import time

from llem_airflow.protocol.spec import IdlePower, KnownBaselines, idle_conditions
from llem_airflow.results import CycleRef, ResultReadError, StoredRun
from llem_airflow.study import Experiment


def known_baselines(run: StoredRun, experiment: Experiment, cycle: int) -> KnownBaselines | None:
    """What the newest earlier cycle of this run measured, if the study's strategy takes it over and it is not too old.

    Whether it holds on the device that this cycle is given, only the attempt itself can see.
    """
    said = experiment.config["measurement"]["baseline"]
    if said["strategy"] == "fresh" or said["enabled"] is False:
        return None
    reuses = 0
    for number in range(cycle - 1, 0, -1):
        ref = run.cycle(experiment.id, number)
        if ref is None:
            continue
        try:
            kinds = {str(event.get("phase")) for event in ref.events() if event.get("event") == "phase_end"}
            if "baseline_bare" not in kinds:
                reuses += 1
                continue
            if time.time_ns() - int(ref.provenance()["finished_epoch_ns"]) > said["cache_ttl_seconds"] * 1e9:
                return None
            due = said["strategy"] == "validated" and (reuses + 1) % said["validation_interval"] == 0
            return _known(ref, check=due)
        except (ResultReadError, KeyError):
            return None
    return None


def _known(ref: CycleRef, *, check: bool) -> KnownBaselines | None:
    from llem_airflow.analysis.cycle import read_cycle  # noqa: PLC0415 - NumPy and Arrow, for those who need it only

    _, reading = read_cycle(ref, position=None, failed_attempts=0)
    phases = reading.energy.baselines if reading else ()
    if not phases:
        return None
    environment = ref.environment()
    return KnownBaselines(
        measured_in=f"cycle {ref.cycle}",
        conditions=idle_conditions(environment.get("boot_id"), environment.get("gpus") or ()),
        phases=tuple(IdlePower(one.name, one.power_w, one.sd_w, one.samples) for one in phases),
        check=check,
    )
