"""What stored cycles say of energy: one line for a task's log, and the idle power that later cycles take over."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from llem_airflow.protocol.gpus import gpus_told, idle_conditions
from llem_airflow.protocol.spec import IdlePower, KnownIdlePower
from llem_airflow.results import CycleRef, ResultReadError, StoredRun
from llem_airflow.study import Experiment
from llem_airflow.text.wording import counted

if TYPE_CHECKING:
    from llem_airflow.analysis.cycle import Cycle


def cycle_row(ref: CycleRef) -> Cycle:
    """What a stored cycle says."""
    # NumPy and Arrow only now, after the measurement.
    from llem_airflow.analysis.cycle import read_cycle  # noqa: PLC0415

    row, _ = read_cycle(ref, position=None, failed_attempts=0)
    return row


def line_of(row: Cycle) -> str:
    """The line of a cycle: ``Energy 12.3 J (counter, board, not characterised), 384 output tokens, 32 mJ/token``."""
    if row.status == "damaged":
        return f"The stored result cannot be read: {row.reason}"
    said = [_energy(row), counted(round(row.measures.get("output_tokens") or 0), "output token")]
    per_token_j = row.measures.get("energy_per_output_token_j")
    if per_token_j is not None:
        said.append(_per_token(per_token_j))
    return ", ".join(said)


def _energy(row: Cycle) -> str:
    joules = row.measures.get("energy_j")
    if joules is None:
        return f"No energy ({row.reason or 'the study asks for no meter'})"
    uncertainty = f" ± {_number(row.energy_uncertainty_j)}" if row.energy_uncertainty_j else ""
    # An estimate has no other source than its meter; what is measured need not say so.
    kind = None if row.energy_kind == "measured" else row.energy_kind
    sources = [kind, row.energy_source, row.energy_boundary, row.characterised]
    if row.energy_kind == "estimate":
        sources = [kind, row.fingerprint.get("meter")]
    return f"Energy {_number(joules)}{uncertainty} J ({', '.join(str(each) for each in sources if each)})"


def _per_token(joules: float) -> str:
    return f"{_number(joules)} J/token" if joules >= 0.1 else f"{_number(joules * 1000)} mJ/token"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def known_idle_power(run: StoredRun, experiment: Experiment, cycle: int) -> KnownIdlePower | None:
    """The idle power of the newest earlier cycle of this run that measured it, where it may be taken over.

    The study's strategy decides whether it may, and its age.

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


def _known(ref: CycleRef, *, check: bool) -> KnownIdlePower | None:
    from llem_airflow.analysis.cycle import read_cycle  # noqa: PLC0415 - NumPy and Arrow, for those who need it only

    _, reading = read_cycle(ref, position=None, failed_attempts=0)
    phases = reading.energy.baselines if reading else ()
    if not phases:
        return None
    environment = ref.environment()
    return KnownIdlePower(
        measured_in=f"cycle {ref.cycle}",
        conditions=idle_conditions(environment.get("boot_id"), gpus_told(environment)),
        phases=tuple(IdlePower(one.name, one.power_w, one.sd_w, one.samples) for one in phases),
        check=check,
    )
