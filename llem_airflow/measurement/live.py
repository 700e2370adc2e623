"""Power for those who watch: the sampling process tells the least, mean and largest of every two seconds.

It costs the inference process nothing, and it never waits: a record that the pipe has no room for is left out.
"""

from __future__ import annotations

import os
import select
from collections.abc import Sequence

from llem_airflow.measurement.meters.contract import MeterFacts, Reading
from llem_airflow.protocol.live import DEVICES_A_RECORD, ENV_LIVE, DevicePower, LivePower, power_record

EVERY_NS = 2_000_000_000


class LiveTeller:
    """Sums up readings and writes a record when one is due.

    Args:
        facts: What the meter reads.
        descriptor: Where records go.
        every_ns: Time between two, in nanoseconds.
    """

    def __init__(self, facts: MeterFacts, descriptor: int, every_ns: int = EVERY_NS) -> None:
        self._kind, self._descriptor, self._every_ns = facts.energy_kind, descriptor, every_ns
        self._due_ns = 0
        self._power_mw: dict[str, list[int]] = {}

    def add(self, readings: Sequence[Reading]) -> None:
        """Take a sweep of all devices."""
        for reading in readings:
            power_mw = reading.power_instant_mw
            if power_mw is None:
                power_mw = reading.power_average_mw
            if power_mw is not None:
                self._power_mw.setdefault(reading.gpu, []).append(power_mw)
        if readings and readings[-1].t_after_mono_ns >= self._due_ns:
            self._tell(readings[-1].t_after_mono_ns)

    def _tell(self, now_ns: int) -> None:
        self._due_ns = now_ns + self._every_ns
        told, self._power_mw = list(self._power_mw.items()), {}
        for begin in range(0, len(told), DEVICES_A_RECORD):
            devices = {
                gpu: DevicePower(min(mw) / 1e3, sum(mw) / len(mw) / 1e3, max(mw) / 1e3, len(mw))
                for gpu, mw in told[begin : begin + DEVICES_A_RECORD]
            }
            self._write(power_record(LivePower(now_ns, self._kind, devices)))

    def _write(self, record: bytes) -> None:
        try:
            if select.select([], [self._descriptor], [], 0)[1]:
                os.write(self._descriptor, record)  # a pipe that can be written takes a record whole
        except OSError:
            self._due_ns = 1 << 63  # nobody reads it any more; the rows still go to power.csv


def teller(facts: MeterFacts, descriptor: int) -> LiveTeller | None:
    """The teller of this process, if its runner wants live records."""
    return LiveTeller(facts, descriptor) if os.environ.get(ENV_LIVE) else None
