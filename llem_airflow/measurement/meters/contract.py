"""The interface of meters: what a meter is, what it gives, and the facts that label its numbers.

A third party's meter is a class of one argument, the ``MeterSpec``, named by an entry point of the group
``llem_airflow.meters``. Its module runs in the sampling process, inside the container, from the bundle: it may import
the standard library, this file, and what the container's image holds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


class MeterUnavailableError(RuntimeError):
    """The meter that was asked for cannot read power here; the message names the meter and says what to do."""


class Reading(NamedTuple):
    """One reading of one device: the columns of power.csv, in their order. None is "not known".

    Attributes:
        t_before_mono_ns: CLOCK_MONOTONIC before the device was asked, in nanoseconds.
        t_after_mono_ns: The same after it answered.
        gpu: UUID of the board, or the name of the host's series.
        power_instant_mw: Power now, in milliwatts.
        power_average_mw: Power averaged by the device over its last second, in milliwatts.
        energy_mj: Energy counter, in millijoules since some origin.
        sm_clock_mhz: Clock of the multiprocessors, in megahertz.
        mem_clock_mhz: Clock of the memory, in megahertz.
        event_reasons: NVML's clock event bits.
        temperature_c: Temperature of the chip, in degrees Celsius.
        mem_temperature_c: Temperature of the memory, in degrees Celsius.
        utilisation_percent: Share of time with a kernel running, in percent.
        memory_used_bytes: Memory in use, in bytes.
        error: Short name of what failed, such as ``GpuIsLost``.
    """

    t_before_mono_ns: int
    t_after_mono_ns: int
    gpu: str
    power_instant_mw: int | None = None
    power_average_mw: int | None = None
    energy_mj: int | None = None
    sm_clock_mhz: int | None = None
    mem_clock_mhz: int | None = None
    event_reasons: int | None = None
    temperature_c: int | None = None
    mem_temperature_c: int | None = None
    utilisation_percent: int | None = None
    memory_used_bytes: int | None = None
    error: str | None = None

    def line(self) -> str:
        """The reading as one line of power.csv, with its newline."""
        return ",".join(["" if cell is None else str(cell) for cell in self]) + "\n"

    @property
    def has_power(self) -> bool:
        """Whether the device told its power."""
        return self.power_instant_mw is not None or self.power_average_mw is not None


@dataclass(frozen=True)
class MeterFacts:
    """What a meter reads and how much its numbers mean.

    Attributes:
        kind: The meter's name, as the study gives it; never ``auto``.
        energy_kind: measured (a sensor of these devices), attributed (a sensor of something larger), estimate, or none.
        boundary: What the joules belong to: board | module | cpu-package | estimate | none.
        devices: Names of its series, as in the ``gpu`` column.
        note: One sentence for people.
    """

    kind: str
    energy_kind: str
    boundary: str
    devices: tuple[str, ...]
    note: str


def refuse_silence(kind: str, reading: Reading, advice: str) -> None:
    """Refuse a device that tells neither power nor energy.

    Args:
        kind: The meter's name.
        reading: The device's first.
        advice: What one can do, in a sentence.

    Raises:
        MeterUnavailableError: It does; silence would read as zero.
    """
    if not reading.has_power and reading.energy_mj is None:
        raise MeterUnavailableError(
            f"meter {kind}: {reading.gpu} tells neither its power nor its energy ({reading.error}). {advice}"
        )


class Meter(Protocol):
    """A meter that is ready to be read.

    Made once, in the sampling process, by ``factory(spec)``, which raises MeterUnavailableError where it cannot read
    power: a missing library, no device, no permission, a GPU of ``spec.gpus`` that it does not see. From then on one
    thread calls it: ``read`` at every deadline (10 times a second unless the study says otherwise), ``counters`` up to
    2,000 times a second for half a second around the edges of the window and every 20 s, ``describe`` once before the
    first phase, ``close`` once at the end.

    ``read`` and ``counters`` never raise for a device that fails: its reading carries ``error`` and no value. What is
    not known is None, never 0. Power is in milliwatts; energy in millijoules since any origin, rising but for a reset;
    times are of CLOCK_MONOTONIC in nanoseconds, around the question.

    Attributes:
        facts: What it reads; fixed from the start.
        ticks: Whether its energy counter moves in visible steps, so that waiting for one makes sense.
    """

    facts: MeterFacts
    ticks: bool

    def read(self) -> Sequence[Reading]:
        """Read every device of ``facts.devices`` once, in their order, with all that it tells."""

    def counters(self) -> Sequence[Reading]:
        """Read only the energy counters, as cheaply as possible; empty where there are none."""

    def describe(self) -> list[dict[str, Any]]:
        """The devices' identity, limits and neighbours, ready for JSON; keys as in ``describe_board``."""

    def close(self) -> None:
        """Let go of the driver."""


class HostMeter(ABC):
    """A meter of the host: it reads no GPU, what it reads is cheap and moves in no steps, and it holds nothing."""

    facts: MeterFacts
    ticks = False

    @abstractmethod
    def read(self) -> tuple[Reading, ...]:
        """As of every meter."""

    def counters(self) -> tuple[Reading, ...]:
        """The same as a reading."""
        return self.read()

    def describe(self) -> list[dict[str, Any]]:
        """No GPU is read."""
        return []

    def close(self) -> None:  # noqa: B027  # nothing, for these
        """Nothing to let go of."""
