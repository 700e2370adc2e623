"""What the readings of a steady load or of none tell: steps of the counter, noise, warming, repeatability."""

from __future__ import annotations

import numpy as np

from llem_airflow.gpu_check.register import Floats, Writes

_FEWEST_RISES = 8
_LEAST_RISE_C = 5.0
_PERIODS = 15.0
"""A load that lasts so many periods of its register is known to well under a hundredth."""


def counter_step(counter_mj: Floats) -> float | None:
    """The unit in which a counter counts, in its own unit; None when it rose too seldom to tell.

    Formula: the greatest common divisor of its rises. Eight rises that have one by chance are as rare as 1 in 256.
    """
    rises = np.diff(counter_mj)
    rises = rises[rises > 0].astype(np.int64)
    return float(np.gcd.reduce(rises)) if len(rises) >= _FEWEST_RISES else None


def noise(values: Floats) -> float | None:
    """Standard deviation of a register's values around a slow drift; None for fewer than 8.

    Formula: standard deviation of the differences of neighbours / sqrt(2).
    """
    return float(np.diff(values).std() / np.sqrt(2)) if len(values) >= 8 else None


def counter_to_integral(counter: Writes, power_w: Writes) -> float | None:
    """Rise of the counter (in joules) over the integral of power between its first and last write; None without."""
    if len(counter.t_s) < 2 or len(power_w.t_s) < 2:
        return None
    begin_s, end_s = (max(counter.t_s[0], power_w.t_s[0]), min(counter.t_s[-1], power_w.t_s[-1]))
    if end_s <= begin_s:
        return None
    inside = power_w.t_s[(power_w.t_s > begin_s) & (power_w.t_s < end_s)]
    at_s = np.concatenate([[begin_s], inside, [end_s]])
    integral_j = float(np.trapezoid(np.interp(at_s, power_w.t_s, power_w.values), at_s))
    rise_j = float(np.diff(np.interp((begin_s, end_s), counter.t_s, counter.values))[0])
    return rise_j / integral_j if integral_j > 0 and rise_j > 0 else None


def thermal_time_constant(t_s: Floats, temperature_c: Floats) -> float | None:
    """Time constant of warming after a load began at 0 s, in seconds; None when the span does not tell it.

    Formula: temperature = end - rise exp(-t / tau) by least squares over a grid of tau. It is told by a rise of 5 C or
    more, by a tau that the span holds at least once, and by a curve that explains more than a straight line does.
    """
    if len(t_s) < 20 or float(np.ptp(temperature_c)) < _LEAST_RISE_C:
        return None
    length_s = float(t_s[-1] - t_s[0])
    taus_s = np.geomspace(length_s / 100, 4 * length_s, 200)
    left = [_left(np.exp(-t_s / tau_s), temperature_c) for tau_s in taus_s]
    best = int(np.argmin(left))
    curved = left[best] < 0.7 * _left(t_s, temperature_c)
    return float(taus_s[best]) if curved and best > 0 and taus_s[best] < length_s else None


def _left(shape: Floats, values: Floats) -> float:
    """What a straight line over a shape leaves unexplained."""
    line = np.column_stack([np.ones_like(shape), shape])
    residual = values - line @ np.linalg.lstsq(line, values, rcond=None)[0]
    return float(residual @ residual)


def repeat_cv(counter: Writes, begin_s: Floats, end_s: Floats) -> float | None:
    """Coefficient of variation of the mean power of equal loads, by the counter.

    None for fewer than three, and for loads so short that what the register hides at their edges would be most of it.
    """
    inside = (
        (begin_s >= counter.t_s[0]) & (end_s <= counter.t_s[-1])
        if len(counter.t_s)
        else np.zeros(0, dtype=bool)
    )
    if inside.sum() < 3 or float(np.min(end_s - begin_s)) < _PERIODS * float(np.median(np.diff(counter.t_s))):
        return None
    rises_j = np.interp(end_s[inside], counter.t_s, counter.values) - np.interp(
        begin_s[inside], counter.t_s, counter.values
    )
    powers_w = rises_j / (end_s[inside] - begin_s[inside])
    return float(powers_w.std(ddof=1) / powers_w.mean()) if powers_w.mean() > 0 else None
