"""From the meter that was asked for to one that reads: ours, or a third party's through ``llem_airflow.meters``.

A named meter that cannot read is an error, never a fallback.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

from llem_airflow.measurement.meters.amdsmi import AmdSmiMeter
from llem_airflow.measurement.meters.contract import (
    HostMeter,
    Meter,
    MeterFacts,
    MeterUnavailableError,
    Reading,
)
from llem_airflow.measurement.meters.cpu_estimate import CpuEstimateMeter
from llem_airflow.measurement.meters.nvml import NoDriverError, NvmlMeter
from llem_airflow.measurement.meters.rapl import RaplMeter
from llem_airflow.protocol.spec import METER_KINDS, METERS_GROUP, MeterSpec


def open_meter(spec: MeterSpec) -> Meter:
    """Open the meter that the spec names.

    ``auto`` is nvml where a driver shows a GPU, else rapl where the packages can be read, else cpu-estimate.
    A driver that is there but broken is an error even then: the model would run on a GPU that nobody
    measures. Any other meter is used only where it is named.

    Raises:
        MeterUnavailableError: There is no such meter, or it cannot read power here.
    """
    if spec.kind in _OWN:
        return _OWN[spec.kind](spec)
    for entry in importlib.metadata.entry_points(group=METERS_GROUP):
        if entry.name == spec.kind:
            return _theirs(entry, spec)
    raise MeterUnavailableError(f"meter {spec.kind!r} is not known; known: {', '.join(meter_names())}")


def meter_names() -> tuple[str, ...]:
    """Names of the meters that can be asked for here, ours first."""
    installed = importlib.metadata.entry_points(group=METERS_GROUP)
    return (*METER_KINDS, *sorted({entry.name for entry in installed} - set(METER_KINDS)))


def _theirs(entry: importlib.metadata.EntryPoint, spec: MeterSpec) -> Meter:
    try:
        factory: Callable[[MeterSpec], Meter] = entry.load()
    except (ImportError, AttributeError, OSError) as error:  # OSError: a shared library that its module loads
        raise MeterUnavailableError(
            f"meter {entry.name!r}: its module {entry.module!r} does not load here ({error}); what it imports besides "
            "the standard library must be in the image, or in the Python of the process runner"
        ) from error
    meter = factory(spec)
    if meter.facts.kind != entry.name:
        raise MeterUnavailableError(
            f"meter {entry.name!r} calls itself {meter.facts.kind!r}: MeterFacts.kind must be the entry point's name"
        )
    return meter


def _first_available(spec: MeterSpec) -> Meter:
    try:
        return NvmlMeter(spec.gpus)
    except NoDriverError:
        if spec.gpus:
            raise  # GPUs were given, so the joules of a CPU would answer another question
    try:
        return RaplMeter()
    except MeterUnavailableError:
        return CpuEstimateMeter(spec.cpu_idle_w, spec.cpu_max_w)


class NoMeter(HostMeter):
    """Reads nothing."""

    facts = MeterFacts("none", "none", "none", (), "No meter was asked for: energy is not known.")

    def read(self) -> tuple[Reading, ...]:
        """Nothing."""
        return ()


_OWN: dict[str, Callable[[MeterSpec], Meter]] = {
    "auto": _first_available,
    "nvml": lambda spec: NvmlMeter(spec.gpus),
    "amdsmi": lambda spec: AmdSmiMeter(spec.gpus),
    "rapl": lambda _: RaplMeter(),
    "cpu-estimate": lambda spec: CpuEstimateMeter(spec.cpu_idle_w, spec.cpu_max_w),
    "none": lambda _: NoMeter(),
}
