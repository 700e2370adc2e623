"""Two samplers of one window, one in the container and one on its host: do they agree? They are never averaged."""

from __future__ import annotations

from llem_airflow.analysis.energy import EnergyOfWindow, window_energy
from llem_airflow.analysis.flag import Flag
from llem_airflow.analysis.samples import columns
from llem_airflow.protocol.result import Meter, Window
from llem_airflow.results import CycleRef, ResultReadError

AGREE_RATIO = 0.03
"""As for the counter and the integral: expected agreement over 30 s is 1-3 %."""


def second_sampler(ref: CycleRef, window: Window, energy: EnergyOfWindow) -> tuple[Flag, ...]:
    """A flag when the second sampler of a cycle says something else, or cannot say."""
    try:
        seen = ref.check()
    except ResultReadError as error:
        return (_flag(f"The second sampler's series cannot be read: {error}."),)
    return () if seen is None else compared(seen[0], seen[1], window, energy)


def compared(meter: Meter, power: object, window: Window, energy: EnergyOfWindow) -> tuple[Flag, ...]:
    """The same for its meter and its samples; both are on the one monotonic clock, so the window is the same."""
    if energy.energy_j is None:
        return ()  # said by the withheld reason
    other = window_energy(columns(power), meter, window)
    if other.energy_j is None:
        why = "; ".join(reason.message for reason in other.withheld)
        return (_flag(f"The second sampler has no energy to compare with: {why}"),)
    ratio = other.energy_j / energy.energy_j - 1
    if abs(ratio) <= AGREE_RATIO:
        return ()
    return (_flag(f"The second sampler of the window is {ratio:+.1%} off the one that counts."),)


def _flag(message: str) -> Flag:
    return Flag(
        "samplers_disagree",
        message,
        "See both power files of the cycle; somebody may have shared the clock or the GPU's name.",
        "3 % (expected agreement over 30 s or more is 1-3 %)",
        "warning",
    )
