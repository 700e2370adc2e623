"""The meter ``none``: no power is read, and every energy is absent."""

from __future__ import annotations

from typing import Any

from llem_airflow.measurement.meters.reading import MeterFacts, Reading


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
