"""The meter ``cpu-estimate``: two stated wattages and the host's CPU time. An estimate, and labelled so.

Power = idle + (max - idle) x share of the cores that were busy. The CPU time is the whole host's
(``/proc/stat``, which a container sees unchanged), because the stated idle power is the whole host's too.
Where that file is masked, the cgroup's own CPU time stands in, and the note says so.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from llem_airflow.measurement.meters.contract import HostMeter, MeterFacts, MeterUnavailableError, Reading

SERIES = "cpu"


class CpuTime(NamedTuple):
    """CPU time spent so far.

    Attributes:
        busy_s: Core-seconds spent working since some origin.
        cores: How many cores could have worked.
    """

    busy_s: float
    cores: int


class HostCpuTime:
    """CPU time of the whole host, from ``/proc/stat``."""

    name = "CPU time of the whole host (/proc/stat)"

    def __init__(self, path: Path = Path("/proc/stat")) -> None:
        self._path = path
        self._tick_s = 1.0 / os.sysconf("SC_CLK_TCK")

    def read(self) -> CpuTime | None:
        """The time, or None where the file is missing or masked with zeros."""
        try:
            lines = self._path.read_text(encoding="ascii").splitlines()
            total = [int(cell) for cell in lines[0].split()[1:]]
        except (OSError, IndexError, ValueError):
            return None
        if len(total) < 7 or sum(total) == 0:
            return None
        user, nice, system, _idle, _iowait, irq, softirq = total[:7]  # guest time is already in user
        cores = sum(1 for line in lines if line.startswith("cpu") and not line.startswith("cpu "))
        return CpuTime((user + nice + system + irq + softirq) * self._tick_s, cores)


class CgroupCpuTime:
    """CPU time of this container alone, from cgroup v2 ``cpu.stat`` or v1 ``cpuacct.usage``."""

    name = "CPU time of this container only (cgroup), as the host's is masked"

    def __init__(self, root: Path = Path("/sys/fs/cgroup")) -> None:
        self._root = root

    def read(self) -> CpuTime | None:
        """The time, or None without a readable cgroup."""
        cores = os.cpu_count() or 1
        try:
            for line in (self._root / "cpu.stat").read_text(encoding="ascii").splitlines():
                key, _, value = line.partition(" ")
                if key == "usage_usec":
                    return CpuTime(int(value) / 1e6, cores)
        except (OSError, ValueError):
            pass
        try:
            usage_ns = int((self._root / "cpuacct" / "cpuacct.usage").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None
        return CpuTime(usage_ns / 1e9, cores)


class CpuEstimateMeter(HostMeter):
    """Estimates power from CPU time.

    ``power_instant_mw`` is the mean since the previous reading, and ``energy_mj`` its running sum, so that
    the counter loses nothing between readings.
    """

    def __init__(
        self, idle_w: float, max_w: float, sources: tuple[HostCpuTime | CgroupCpuTime, ...] = ()
    ) -> None:
        for source in sources or (HostCpuTime(), CgroupCpuTime()):
            first = source.read()
            if first is not None:
                self._source, self._last = source, first
                break
        else:
            raise MeterUnavailableError(
                "meter cpu-estimate: neither /proc/stat nor a cgroup tells CPU time here; use meter: none"
            )
        self._idle_w, self._span_w = idle_w, max_w - idle_w
        self._last_ns = time.monotonic_ns()
        self._energy_j = 0.0
        self.facts = MeterFacts(
            "cpu-estimate",
            "estimate",
            "estimate",
            (SERIES,),
            f"Estimate, not a measurement: {idle_w:g} W idle to {max_w:g} W with all {first.cores} cores "
            f"busy, "
            f"by {source.name}.",
        )

    def read(self) -> tuple[Reading, ...]:
        """Estimate since the previous reading."""
        before_ns = time.monotonic_ns()
        now = self._source.read()
        after_ns = time.monotonic_ns()
        if now is None:
            return (Reading(before_ns, after_ns, SERIES, error="CpuTimeUnreadable"),)
        elapsed_s = max((after_ns - self._last_ns) / 1e9, 1e-9)
        busy_ratio = min(max((now.busy_s - self._last.busy_s) / (elapsed_s * now.cores), 0.0), 1.0)
        power_w = self._idle_w + self._span_w * busy_ratio
        self._energy_j += power_w * elapsed_s
        self._last, self._last_ns = now, after_ns
        return (
            Reading(
                before_ns,
                after_ns,
                SERIES,
                power_instant_mw=round(power_w * 1e3),
                energy_mj=round(self._energy_j * 1e3),
                utilisation_percent=round(busy_ratio * 100),
            ),
        )
