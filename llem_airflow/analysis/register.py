"""When a device's counter moved: the clock of its register, from all readings of it.

NVML's energy counter is exact, but only at the instants at which its register is written, about every 100 ms.
Two readings a millisecond or two apart with different values pin such an instant down: a *sharp move*. The
register keeps its own steady time, so a few sharp moves anywhere in the series tell all of them, and each
reading becomes a point of the exact energy curve: its value, at the last move before it was read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llem_airflow.analysis.power_series import Floats

REGISTER_S = 0.1
"""Period of the power registers: 100-101 ms on A100, H100 and GeForce, 20 ms on V100 (arXiv 2312.02741)."""
PERIOD_OFF_RATIO = 0.015
"""How far the period may be from that before the moves themselves tell it."""
_SHARP_S = 0.02
"""Two readings that are at most so far apart can show a move sharply; the sharpest near an edge is used."""


@dataclass(frozen=True)
class Register:
    """The sharp moves of one device's counter, and the period between its moves.

    Attributes:
        moves_s: Instant of each sharp move: the middle of the two readings around it.
        off_s: How far the true instant may be from that.
        period_s: Time between two moves, seen or not.
        period_off_s: How far the true period may be from that.
    """

    moves_s: Floats
    off_s: Floats
    period_s: float
    period_off_s: float

    def anchor(self, t_s: float) -> tuple[float, float]:
        """The sharp move that tells best when the register moved around an instant, and how far it may be off."""
        off_s = self.off_s + np.abs(self.moves_s - t_s) / self.period_s * self.period_off_s
        best = int(np.argmin(off_s))
        return float(self.moves_s[best]), float(off_s[best])


def find_register(t_s: Floats, call_s: Floats, counter_j: Floats) -> Register | None:
    """The register's moves from readings of the counter; None when no two readings show one sharply.

    Args:
        t_s: Middle of each reading, ascending.
        call_s: Duration of each reading.
        counter_j: Value of each.
    """
    if len(t_s) < 2:
        return None
    apart_s = np.diff(t_s) + (call_s[:-1] + call_s[1:]) / 2
    sharp = np.flatnonzero((np.diff(counter_j) > 0) & (apart_s <= _SHARP_S))
    if not len(sharp):
        return None
    moves_s = (t_s[sharp] - call_s[sharp] / 2 + t_s[sharp + 1] + call_s[sharp + 1] / 2) / 2
    off_s = apart_s[sharp] / 2
    period_s, period_off_s = _period(moves_s, off_s)
    return Register(moves_s, off_s, period_s, period_off_s)


def _period(moves_s: Floats, off_s: Floats) -> tuple[float, float]:
    """The period and how far it may be off.

    Formula: time between two sharp moves / number of periods between them, from near pairs to far ones: each
    narrows the period enough to count the periods of the next. A far pair that fits no whole number within
    the narrowed bounds, or that could be one of two numbers, tells nothing and is left out.
    """
    apart_s, doubt_s = np.diff(moves_s), off_s[:-1] + off_s[1:]
    period_s, period_off_s = REGISTER_S, REGISTER_S * PERIOD_OFF_RATIO
    short = (apart_s > 4 * doubt_s) & (apart_s < 0.75 * REGISTER_S)
    if short.any():  # a faster register
        first = int(np.argmin(np.where(short, apart_s, np.inf)))
        period_s, period_off_s = float(apart_s[first]), float(doubt_s[first])
    for i in np.argsort(apart_s):
        periods = round(float(apart_s[i]) / period_s)
        if periods < 1 or periods * period_off_s + doubt_s[i] > period_s / 3:
            continue
        if abs(apart_s[i] - periods * period_s) > periods * period_off_s + doubt_s[i]:
            continue
        if doubt_s[i] / periods < period_off_s:
            period_s, period_off_s = float(apart_s[i]) / periods, float(doubt_s[i]) / periods
    return period_s, period_off_s
