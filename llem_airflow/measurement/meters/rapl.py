"""The meter ``rapl``: the energy counters of the CPU packages, as Linux' powercap shows them.

The zones are documented in the kernel's Documentation/power/powercap/powercap.rst. AMD's packages appear
under the same names. Only whole packages are read: the core and uncore zones are parts of them.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from llem_airflow.measurement.meters.contract import HostMeter, MeterFacts, MeterUnavailableError, Reading

ROOTS = (Path("/sys/class/powercap"), Path("/host/sys/class/powercap"))
"""Where the zones lie. Docker masks the first in containers; the second is where it can be mounted for us."""

MAX_PACKAGE_W = 2_000.0
"""No CPU package draws so much for a tenth of a second; the largest are rated at 600 W."""
SHORTEST_S = 0.01
"""The registers are written about every millisecond: readings closer than this may show a part of it at once."""


@dataclass
class _Package:
    name: str
    path: Path
    wraps_at_uj: int
    last_uj: int
    last_ns: int
    total_uj: int = 0

    def advance(self, now_uj: int, now_ns: int) -> int | None:
        """Add what was used since the last reading, through a wrap of the counter; in microjoules.

        A counter that went back without a wrap that the package could have drawn was reset, or read while it was
        written. What was used until then is not known: None, and the total begins again at 0.
        """
        elapsed_s = (now_ns - self.last_ns) / 1e9
        used_uj = now_uj - self.last_uj
        if used_uj < 0:
            used_uj += self.wraps_at_uj
        self.last_uj, self.last_ns = now_uj, now_ns
        if not 0 <= used_uj <= MAX_PACKAGE_W * 1e6 * max(elapsed_s, SHORTEST_S):
            self.total_uj = 0
            return None
        self.total_uj += used_uj
        return used_uj


class RaplMeter(HostMeter):
    """Reads CPU packages. ``power_instant_mw`` is the mean since the previous reading."""

    def __init__(self, roots: tuple[Path, ...] = ROOTS) -> None:
        self._packages = next(filter(None, map(_packages, roots)), [])
        if not self._packages:
            raise MeterUnavailableError(
                f"meter rapl: no readable CPU package counter under {' or '.join(str(r) for r in roots)}. "
                f"Run as root, "
                "mount the host's powercap folder read-only, or use meter: cpu-estimate (labelled an "
                "estimate)"
            )
        names = tuple(package.name for package in self._packages)
        self.facts = MeterFacts(
            "rapl",
            "measured",
            "cpu-package",
            names,
            f"Energy of {len(names)} CPU package(s) by RAPL: processor only, without memory, GPU or the "
            f"rest of the host.",
        )

    def read(self) -> tuple[Reading, ...]:
        """Read every package."""
        return tuple(self._read(package) for package in self._packages)

    @staticmethod
    def _read(package: _Package) -> Reading:
        before_ns = time.monotonic_ns()
        try:
            now_uj = int((package.path / "energy_uj").read_text(encoding="ascii"))
        except (OSError, ValueError) as error:
            return Reading(before_ns, time.monotonic_ns(), package.name, error=type(error).__name__)
        after_ns = time.monotonic_ns()
        elapsed_s = max((after_ns - package.last_ns) / 1e9, 1e-9)
        used_uj = package.advance(now_uj, after_ns)
        if used_uj is None:
            return Reading(before_ns, after_ns, package.name, energy_mj=0, error="CounterReset")
        power_mw = round(used_uj / 1e3 / elapsed_s)
        return Reading(
            before_ns,
            after_ns,
            package.name,
            power_instant_mw=power_mw,
            energy_mj=round(package.total_uj / 1e3),
        )


def _packages(root: Path) -> list[_Package]:
    found: dict[str, _Package] = {}
    for zone in sorted(root.glob("intel-rapl:*")):
        if not re.fullmatch(r"intel-rapl:\d+", zone.name):
            continue
        try:
            name = (zone / "name").read_text(encoding="ascii").strip()
            now_uj = int((zone / "energy_uj").read_text(encoding="ascii"))
            wraps_at_uj = int((zone / "max_energy_range_uj").read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
        if name.startswith("package-"):  # psys, the whole platform, contains the packages
            found[name] = _Package(f"cpu-{name}", zone, wraps_at_uj, now_uj, time.monotonic_ns())
    return list(found.values())
