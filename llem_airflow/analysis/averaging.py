"""How late a device's averaged power is: learnt from the readings, never assumed.

NVML's average power is the mean of the last second on most boards, the same as the instant power on an A100 (where
both look at 25 ms of every 100 ms), and exponentially smoothed on others (arXiv 2312.02741). A mean over a window W
tells the power of W / 2 earlier, an exponential filter with the time constant tau that of tau earlier.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LONGEST_S = 2.0
"""Longest averaging window, and twice the longest time constant, that is looked for."""
_STEP_S = 0.05
_FEWEST, _COMPARED = 30, 400
"""Readings that are compared, around the sharpest change of instant power."""
_MOVES_RATIO = 0.01
"""Power that moves by less than this tells nothing about its averaging."""
_FITS_RATIO = 0.1
"""Squared residuals over squared movement, up to which a filter explains the averaged power."""
_FLIGHT_S = 2.5
_SHORTEST_S = 0.5
"""A step that rises faster may be the load's own: clocks and power of a board need some tenths of a second."""
_WRITTEN_S = 0.1
"""Two readings may lie further apart in the board's own time by one period of its register."""
_STEP_RATIO = 0.3
"""A change by so much of the highest power, within the flight, shows the shape of the averaging."""


def delay_s(t_s: Floats, instant_w: Floats, average_w: Floats) -> float:
    """How late averaged power is, in seconds; 0 where the readings do not tell.

    By its likeness to instant power, else by its own response to a step.

    Args:
        t_s: Time of each reading, ascending.
        instant_w: Instant power, NaN where not known.
        average_w: Averaged power, NaN where not known.
    """
    both = np.flatnonzero(~np.isnan(instant_w) & ~np.isnan(average_w))
    if len(both) > _FEWEST:
        sharpest = int(np.argmax(np.abs(np.diff(instant_w[both]))))
        both = both[max(sharpest - _COMPARED // 2, 0) :][:_COMPARED]
        found = _compared(t_s[both], instant_w[both], average_w[both])
        if found is not None:
            return found
    known = ~np.isnan(average_w)
    return _after_a_step(t_s[known], average_w[known]) if known.sum() > _FEWEST else 0.0


def _compared(t_s: Floats, instant_w: Floats, average_w: Floats) -> float | None:
    """Delay of the filter of instant power that is most like the averaged power; None where none is like it.

    Formula: least squares over boxcars and exponential filters of instant power.
    """
    told = t_s >= t_s[0] + LONGEST_S
    if told.sum() < _FEWEST // 3 or np.std(average_w[told]) < _MOVES_RATIO * np.mean(average_w[told]):
        return None
    smallest, delay = min(
        (float(((filtered - average_w)[told] ** 2).sum()), delay)
        for delay, filtered in _filters(t_s, instant_w)
    )
    moved = float(np.var(average_w[told]) * told.sum())
    return delay if smallest <= _FITS_RATIO * moved else None


def _filters(t_s: Floats, y: Floats) -> Iterator[tuple[float, Floats]]:
    """Delay and result of each filter."""
    yield 0.0, y
    steps_s = np.diff(t_s, prepend=t_s[0])
    sums = np.cumsum(steps_s * (y + np.concatenate([y[:1], y[:-1]])) / 2)
    for window_s in np.arange(2 * _STEP_S, LONGEST_S + _STEP_S, _STEP_S).tolist():
        yield window_s / 2, (sums - np.interp(t_s - window_s, t_s, sums)) / window_s
    for tau_s in np.arange(2 * _STEP_S, LONGEST_S / 2 + _STEP_S, _STEP_S).tolist():
        smooth = [float(y[0])]
        for power_w, kept in zip(y[1:].tolist(), np.exp(-steps_s[1:] / tau_s).tolist(), strict=True):
            smooth.append(smooth[-1] * kept + power_w * (1 - kept))
        yield tau_s, np.array(smooth)


def _after_a_step(t_s: Floats, y: Floats) -> float:
    """The delay by the response to the largest step; 0 where there is none, or it looks like neither filter.

    Formula: a mean over W moves by at most (highest power) x time / W from one reading to the next, which bounds W. It
    rises straight to the new power in W, so from 10 % over 50 to 90 % in 0.4 W and 0.4 W; an exponential filter in
    0.59 and 1.61 time constants.
    """
    steps_s, moves_w = np.diff(t_s), np.abs(np.diff(y))
    moved = (steps_s > 0) & (moves_w > 0)
    longest_s = (
        float((y.max() * (steps_s + _WRITTEN_S)[moved] / moves_w[moved]).min()) if moved.any() else 0.0
    )
    if longest_s < _SHORTEST_S:
        return 0.0
    largest = int(np.argmax(np.abs(np.interp(t_s + _FLIGHT_S, t_s, y) - y)))
    flight = (t_s >= t_s[largest]) & (t_s <= t_s[largest] + _FLIGHT_S)
    landed_w = y[flight & (t_s >= t_s[largest] + _FLIGHT_S / 2)]
    step_w = float(np.median(landed_w)) - y[largest] if len(landed_w) else 0.0
    if abs(step_w) < _STEP_RATIO * y.max():
        return 0.0
    risen = np.maximum.accumulate((y[flight] - y[largest]) / step_w)
    tenth_s, half_s, most_s = map(float, np.interp((0.1, 0.5, 0.9), risen, t_s[flight]))
    rise_s, rest_s = half_s - tenth_s, most_s - half_s
    if rise_s + rest_s < 0.8 * _SHORTEST_S:
        return 0.0
    if 0.6 * rise_s < rest_s < 1.7 * rise_s:
        return min((rise_s + rest_s) / 0.8, longest_s) / 2
    return min((rise_s + rest_s) / 2.2, longest_s) if rest_s > 2 * rise_s else 0.0
