"""A meter for llem-airflow: Intel GPUs, by the energy counter of the kernel's drivers i915 and xe.

``energy1_input`` is the energy of the card in microjoules (Documentation/ABI/testing/sysfs-driver-intel-i915-hwmon and
sysfs-driver-intel-xe-hwmon).
"""

import os
import time
from pathlib import Path
from typing import Any

from llem_airflow.measurement.meters.contract import MeterFacts, MeterUnavailableError, Reading
from llem_airflow.protocol.spec import MeterSpec

FOLDER = "/sys/class/hwmon"


class IntelHwmonMeter:
    ticks = False  # the counter moves at every look

    def __init__(self, spec: MeterSpec) -> None:
        folder = Path(os.environ.get("LLEM_HWMON", FOLDER))
        self._cards = [card for card in sorted(folder.glob("hwmon*")) if _is_intel(card)]
        if not self._cards:
            raise MeterUnavailableError(
                f"meter intel-hwmon: no energy counter of an Intel GPU under {folder}. Mount the host's folder "
                "read-only, or choose meter: cpu-estimate"
            )
        self._last = {card: (time.monotonic_ns(), _energy_uj(card)) for card in self._cards}
        names = tuple(card.name for card in self._cards)
        self.facts = MeterFacts(
            "intel-hwmon", "measured", "board", names, f"{len(names)} Intel GPU(s) by hwmon."
        )

    def read(self) -> tuple[Reading, ...]:
        return tuple(self._read(card) for card in self._cards)

    def counters(self) -> tuple[Reading, ...]:
        return self.read()

    def describe(self) -> list[dict[str, Any]]:
        return [{"uuid": card.name, "name": (card / "name").read_text().strip()} for card in self._cards]

    def close(self) -> None: ...

    def _read(self, card: Path) -> Reading:
        before_ns = time.monotonic_ns()
        try:
            energy_uj = _energy_uj(card)
        except (OSError, ValueError) as error:  # a device that fails is told, never raised
            return Reading(before_ns, time.monotonic_ns(), card.name, error=type(error).__name__)
        after_ns = time.monotonic_ns()
        last_ns, last_uj = self._last[card]
        self._last[card] = after_ns, energy_uj
        # Microjoules per nanosecond are kilowatts; None where nothing can be said of the time between.
        power_mw = round((energy_uj - last_uj) / (after_ns - last_ns) * 1e6) if energy_uj >= last_uj else None
        return Reading(before_ns, after_ns, card.name, power_instant_mw=power_mw, energy_mj=energy_uj // 1000)


def _is_intel(card: Path) -> bool:
    try:
        return (card / "name").read_text().strip() in ("i915", "xe") and _energy_uj(card) >= 0
    except (OSError, ValueError):
        return False


def _energy_uj(card: Path) -> int:
    return int((card / "energy1_input").read_text())
