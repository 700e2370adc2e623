"""The columns of power.csv as arrays, one series for each device, and the integral of a sampled curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from llem_airflow.analysis.averaging import delay_s
from llem_airflow.analysis.samples import Labels

Floats = npt.NDArray[np.float64]


class UnreadableSeriesError(ValueError):
    """The power samples cannot be understood; the message says which column and why."""


@dataclass(frozen=True)
class Curve:
    """A quantity known at some instants and straight in between.

    Attributes:
        t_s: Seconds since the window's begin, ascending.
        y: Value at each.
    """

    t_s: Floats
    y: Floats

    def covers(self, begin_s: float, end_s: float) -> bool:
        """Whether there is a sample at or before the begin and one at or after the end."""
        return len(self.t_s) > 1 and bool(self.t_s[0] <= begin_s and end_s <= self.t_s[-1])

    def integral(self, begin_s: float, end_s: float) -> float:
        """Integral by the trapezoid rule with both edges interpolated.

        Formula: F(end) - F(begin), F(t) the running trapezoid sum up to the last sample before t, plus the
        trapezoid from there to the straight line's value at t. Every sample counts; repeated values are not
        dropped.
        """
        return self._running(end_s) - self._running(begin_s)

    def at(self, t_s: float) -> float:
        """Value at an instant; the nearest sample's beyond the ends."""
        return float(np.interp(t_s, self.t_s, self.y))

    def inside(self, begin_s: float, end_s: float) -> Floats:
        """Values of the samples in a window."""
        return self.y[rows_between(self.t_s, begin_s, end_s)]

    def longest_gap_s(self, begin_s: float, end_s: float) -> float:
        """Longest time between two neighbouring samples that overlaps the window."""
        first = max(int(np.searchsorted(self.t_s, begin_s, side="right")) - 1, 0)
        last = int(np.searchsorted(self.t_s, end_s, side="left"))
        steps = np.diff(self.t_s[first : last + 1])
        return float(steps.max()) if len(steps) else 0.0

    @cached_property
    def _sums(self) -> Floats:
        """The running trapezoid sum at each sample."""
        found = np.zeros(len(self.t_s))
        np.cumsum((self.t_s[1:] - self.t_s[:-1]) * (self.y[1:] + self.y[:-1]) / 2, out=found[1:])
        return found

    def _running(self, t_s: float) -> float:
        k = min(max(int(self.t_s.searchsorted(t_s, side="right")) - 1, 0), len(self.t_s) - 2)
        whole = float(self._sums[k])
        begin_s, y = float(self.t_s[k]), float(self.y[k])
        step_s, left_s = float(self.t_s[k + 1]) - begin_s, t_s - begin_s
        if step_s <= 0:
            return whole
        slope = (float(self.y[k + 1]) - y) / step_s
        return whole + y * left_s + slope * left_s**2 / 2


@dataclass(frozen=True)
class GpuSeries:
    """What was read of one device.

    Attributes:
        gpu: Its name in power.csv.
        t_s: Midpoint of each reading, in seconds since the window's begin.
        call_s: Duration of each reading, in seconds.
        instant_w: Instant power in watts, NaN where not known.
        average_w: Averaged power in watts, NaN where not known.
        counter_j: Energy counter in joules, NaN where not known.
        event_reasons: Clock event bits, NaN where not known.
        temperature_c: Chip temperature, NaN where not known.
        utilisation_percent: Share of time busy, NaN where not known.
        errors: Short name of the failure of each reading.
    """

    gpu: str
    t_s: Floats
    call_s: Floats
    instant_w: Floats
    average_w: Floats
    counter_j: Floats
    event_reasons: Floats
    temperature_c: Floats
    utilisation_percent: Floats
    errors: Labels

    def curve(self, y: Floats, *, shift_s: float = 0.0) -> Curve:
        """The readings that have a value, as a curve."""
        known = ~np.isnan(y)
        if known.all():
            return Curve(self.t_s + shift_s if shift_s else self.t_s, y)
        return Curve(self.t_s[known] + shift_s, y[known])

    @cached_property
    def instant(self) -> Curve:
        """Instant power."""
        return self.curve(self.instant_w)

    @cached_property
    def average_delay_s(self) -> float:
        """How late averaged power is, in seconds; 0 where the readings do not tell."""
        return delay_s(self.t_s, self.instant_w, self.average_w)

    @cached_property
    def average(self) -> Curve:
        """Averaged power, moved back by its delay."""
        return self.curve(self.average_w, shift_s=-self.average_delay_s)

    @property
    def power(self) -> Curve:
        """The best power there is: instant, else averaged."""
        instant = self.instant
        return instant if len(instant.t_s) else self.average

    @cached_property
    def counter(self) -> Curve:
        """The energy counter."""
        return self.curve(self.counter_j)

    @property
    def answered_t_s(self) -> Floats:
        """Times of the readings that told power or energy."""
        told = ~np.isnan(self.instant_w) | ~np.isnan(self.average_w) | ~np.isnan(self.counter_j)
        return self.t_s[told]


def series_by_gpu(power: Any, origin_ns: int) -> dict[str, GpuSeries]:
    """Split power samples into one time-ordered series for each device.

    Args:
        power: The columns of power.csv, null meaning "not known": ``samples.columns``, a pyarrow Table, a
            pandas DataFrame or a dict of lists.
        origin_ns: Monotonic nanoseconds that become 0 s.

    Raises:
        UnreadableSeriesError: A column is missing, not numeric or not finite.
    """
    columns = {name: _numbers(power, name) for name in _NUMERIC}
    before, after = columns["t_before_mono_ns"], columns["t_after_mono_ns"]
    if np.isnan(before).any() or np.isnan(after).any():
        raise UnreadableSeriesError("power samples: a row has no time")
    t_s = ((before - origin_ns) + (after - origin_ns)) / 2e9
    gpus, errors = _labels(power, "gpu"), _labels(power, "error")
    order, ends = _by_gpu_and_time(gpus.codes, t_s)
    taken = {name: columns[name][order] for name in _NUMERIC}
    errors = errors.take(order)
    call_s = (taken["t_after_mono_ns"] - taken["t_before_mono_ns"]) / 1e9
    instant_w, average_w = taken["power_instant_mw"] / 1e3, taken["power_average_mw"] / 1e3
    t_s, counter_j = t_s[order], taken["energy_mj"] / 1e3
    event_reasons, temperature_c = _floats(taken["event_reasons"]), _floats(taken["temperature_c"])
    utilisation_percent = _floats(taken["utilisation_percent"])
    parts = sorted(
        (slice(begin, end) for begin, end in pairwise(ends)), key=lambda rows: order[rows].min(initial=0)
    )
    found = {}
    for rows in parts:
        gpu = str(gpus[int(order[rows.start])])
        found[gpu] = GpuSeries(
            gpu=gpu,
            t_s=t_s[rows],
            call_s=call_s[rows],
            instant_w=instant_w[rows],
            average_w=average_w[rows],
            counter_j=counter_j[rows],
            event_reasons=event_reasons[rows],
            temperature_c=temperature_c[rows],
            utilisation_percent=utilisation_percent[rows],
            errors=errors.take(rows),
        )
    return found


def _by_gpu_and_time(codes: npt.NDArray[np.int64], t_s: Floats) -> tuple[npt.NDArray[np.int64], list[int]]:
    """Rows device by device, each in time order, and where one device ends and the next begins."""
    order = np.argsort(codes.astype(np.int16), kind="stable")  # 16 bits are sorted by radix, in linear time
    sorted_codes, steps_s = codes[order], np.diff(t_s[order])
    begins = np.flatnonzero(sorted_codes[1:] != sorted_codes[:-1]) + 1
    steps_s[begins - 1] = 0.0
    if (steps_s < 0).any():
        order = np.lexsort((t_s, codes))
    return order, [0, *begins.tolist(), len(order)] if len(order) else [0]


def rows_between(t_s: Floats, begin_s: float, end_s: float) -> slice:
    """Rows of ascending times that lie in a window, both ends included."""
    return slice(int(t_s.searchsorted(begin_s)), int(t_s.searchsorted(end_s, side="right")))


_NUMERIC = (
    "t_before_mono_ns",
    "t_after_mono_ns",
    "power_instant_mw",
    "power_average_mw",
    "energy_mj",
    "event_reasons",
    "temperature_c",
    "utilisation_percent",
)
COLUMNS = (*_NUMERIC, "gpu", "error")
"""Columns of power.csv that are computed with."""


def _numbers(power: Any, name: str) -> Any:
    """A column as whole numbers where it has them all, else as floats."""
    try:
        column = power[name]
        if isinstance(column, np.ndarray) and column.dtype.kind == "i":
            return column
        if hasattr(column, "isna"):  # pandas, whose own missing value numpy does not know
            column = column.to_numpy(dtype="float64", na_value=np.nan)
        numbers = np.asarray(column, dtype=np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableSeriesError(
            f"power samples: column {name} is missing or not numeric ({error})"
        ) from error
    if np.isinf(numbers).any():
        raise UnreadableSeriesError(f"power samples: column {name} holds an infinite value")
    return numbers


def _floats(column: Any) -> Floats:
    found: Floats = column.astype(np.float64, copy=False)
    return found


def _labels(power: Any, name: str) -> Labels:
    try:
        column = power[name]
    except KeyError as error:
        raise UnreadableSeriesError(f"power samples: column {name} is missing") from error
    if isinstance(column, Labels):
        return column
    return Labels.of(column.to_pylist() if hasattr(column, "to_pylist") else list(column))


def phase_windows(events: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Begin and end of each phase that has both, from rows of events.jsonl, in monotonic nanoseconds.

    A phase that occurs twice counts as its last occurrence.
    """
    begun: dict[str, int] = {}
    windows: dict[str, tuple[int, int]] = {}
    for event in events:
        phase, t_ns = event.get("phase"), event.get("t_mono_ns")
        if not isinstance(phase, str) or not isinstance(t_ns, int):
            continue
        if event.get("event") == "phase_begin":
            begun[phase] = t_ns
        elif event.get("event") == "phase_end" and phase in begun:
            windows[phase] = (begun[phase], t_ns)
    return windows
