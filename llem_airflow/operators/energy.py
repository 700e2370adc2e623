"""``measurement.require_energy``: a stored cycle without a defensible energy fails its task."""

from __future__ import annotations

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from llem_airflow.results import CycleRef
from llem_airflow.study import Experiment


def without_required_energy(experiment: Experiment, ref: CycleRef) -> tuple[str, str] | None:
    """Code and sentence of why a stored cycle has no energy although its study requires one; None when all is well."""
    if not experiment.config["measurement"].get("require_energy"):
        return None
    from llem_airflow.analysis.cycle import read_cycle  # noqa: PLC0415 - NumPy and Arrow, for those who ask only

    row, reading = read_cycle(ref, position=None, failed_attempts=0)
    if row.measures.get("energy_j") is not None:
        return None
    withheld = reading.energy.withheld if reading else ()
    code = withheld[0].code if withheld else row.status
    return code, "; ".join(reason.message for reason in withheld) or row.reason


def require_energy(experiment: Experiment, ref: CycleRef | None) -> None:
    """Fail the task of a cycle that is stored and has no energy.

    Raises:
        AirflowException: Its energy is withheld; another try measures again.
        AirflowFailException: Nothing was asked to measure energy, so that no try would.
    """
    found = without_required_energy(experiment, ref) if ref else None
    if found is None or ref is None:
        return
    code, why = found
    text = (
        f"{ref.experiment_id} cycle {ref.cycle}: stored, but its energy is withheld and the study says "
        f"`measurement.require_energy: true`. {code}: {why}\nEvidence: {ref.folder.url}"
    )
    if code == "no_meter":
        raise AirflowFailException(f"{text}\nChoose another `measurement.meter` than `none`.")
    raise AirflowException(text)
