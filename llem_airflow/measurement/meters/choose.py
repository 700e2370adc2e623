"""From the meter that was asked for to one that reads.

A named meter that cannot read is an error, never a fallback.
"""

from __future__ import annotations

from typing import Any

from llem_airflow.measurement.meters.cpu_estimate import CpuEstimateMeter
from llem_airflow.measurement.meters.nvml import NoDriverError, NvmlMeter
from llem_airflow.measurement.meters.rapl import RaplMeter
from llem_airflow.measurement.meters.reading import MeterFacts, MeterUnavailableError, OpenMeter, Reading
from llem_airflow.protocol.spec import METER_KINDS, MeterSpec


def open_meter(spec: MeterSpec) -> OpenMeter:
    """Open the meter that the spec names.

    ``auto`` is nvml where a driver shows a GPU, else rapl where the packages can be read, else cpu-estimate.
    A driver that is there but broken is an error even then: the model would run on a GPU that nobody
    measures.

    Raises:
        MeterUnavailableError: It cannot read power here.
    """
    if spec.kind == "auto":
        return _first_available(spec)
    if spec.kind == "nvml":
        return NvmlMeter(spec.gpus)
    if spec.kind == "rapl":
        return RaplMeter()
    if spec.kind == "cpu-estimate":
        return CpuEstimateMeter(spec.cpu_idle_w, spec.cpu_max_w)
    if spec.kind == "none":
        return NoMeter()
    raise MeterUnavailableError(f"meter {spec.kind!r} is not known; known: {', '.join(METER_KINDS)}")


def _first_available(spec: MeterSpec) -> OpenMeter:
    try:
        return NvmlMeter(spec.gpus)
    except NoDriverError:
        if spec.gpus:
            raise  # GPUs were given, so the joules of a CPU would answer another question
    try:
        return RaplMeter()
    except MeterUnavailableError:
        return CpuEstimateMeter(spec.cpu_idle_w, spec.cpu_max_w)


class NoMeter:
    """Reads nothing."""

    ticks = False
    facts = MeterFacts("none", "none", "none", (), "No meter was asked for: energy is not known.")

    def read(self) -> tuple[Reading, ...]:
        """Nothing."""
        return ()

    def counters(self) -> tuple[Reading, ...]:
        """Nothing."""
        return ()

    def describe(self) -> list[dict[str, Any]]:
        """Nothing."""
        return []

    def close(self) -> None:
        """Nothing to let go of."""
