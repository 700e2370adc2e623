"""Power samples as numpy columns: one series for each device, its integral, its phases on absolute time.

``delay_s`` learns how late averaged power is. NVML's average power is the mean of the last second on most boards, the
same as the instant power on an A100 (where both look at 25 ms of every 100 ms), and exponentially smoothed on others
(arXiv 2312.02741). A mean over a window W tells the power of W / 2 earlier, an exponential filter with the time
constant tau that of tau earlier.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numpy.typing import NDArray

from llem_airflow.protocol.gpu_profile import Sensor
from llem_airflow.protocol.result import Anchor
from llem_airflow.results import CycleRef, ResultReadError, layout
from llem_airflow.results.parquet import POWER_SCHEMA, TableFile


@dataclass(frozen=True, slots=True)
class Labels:
    """A column of texts that repeat.

    Attributes:
        codes: For each row its position in ``names``; -1 is "not known".
        names: The distinct texts.
    """

    codes: NDArray[np.int64]
    names: tuple[str, ...]

    @classmethod
    def of(cls, items: Iterable[Any]) -> Labels:
        """The labels of a list; what is not a text is not known."""
        seen: dict[str, int] = {}
        codes = [seen.setdefault(item, len(seen)) if isinstance(item, str) else -1 for item in items]
        return cls(np.array(codes, dtype=np.int64), tuple(seen))

    def __getitem__(self, row: int) -> str | None:
        code = self.codes[row]
        return self.names[code] if code >= 0 else None

    def __iter__(self) -> Iterator[str | None]:
        return (self.names[code] if code >= 0 else None for code in self.codes.tolist())

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: NDArray[np.int64] | slice) -> Labels:
        """Some of the rows."""
        return Labels(self.codes[rows], self.names)


def columns(table: Any) -> dict[str, Any]:
    """Each column of power.parquet: numbers as arrays (NaN is "not known"), texts as ``Labels``."""
    return {name: column(table, name) for name in table.schema.names}


def column(table: Any, name: str) -> Any:
    """One column, as in ``columns``."""
    found = table.column(name)
    if pa.types.is_dictionary(found.type):
        return labels(table, name)
    if found.null_count:
        return found.cast("float64").to_numpy(zero_copy_only=False)
    return found.to_numpy()


def labels(table: Any, name: str) -> Labels:
    """A dictionary-coded column."""
    found = table.column(name).unify_dictionaries().combine_chunks()
    if isinstance(found, pa.ChunkedArray):  # an empty table keeps its chunks
        found = found.chunk(0) if found.num_chunks else pa.array([], found.type)
    codes: NDArray[np.int64] = found.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return Labels(codes, tuple(found.dictionary.to_pylist()))


Floats = npt.NDArray[np.float64]

UNCHARACTERISED = Sensor()
"""Nobody has looked at this board's meter."""
OUTSIDE = "between"
"""Phase of a moment that lies in no phase."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of an attempt.

    Attributes:
        name: One of ``protocol.files.PHASES``.
        begin_mono_ns: Its begin, on the monotonic clock, in nanoseconds.
        end_mono_ns: Its end.
    """

    name: str
    begin_mono_ns: int
    end_mono_ns: int

    @property
    def length_s(self) -> float:
        """Its length, in seconds."""
        return (self.end_mono_ns - self.begin_mono_ns) / 1e9


def phases(events: Sequence[Mapping[str, Any]]) -> tuple[Phase, ...]:
    """Phases by their begin and end marks; one without an end (it was killed) ends at the last event."""
    last = max((int(row["t_mono_ns"]) for row in events), default=0)
    found, begun = _marked(events)
    found += [Phase(name, at, last) for name, at in begun.items()]
    return tuple(sorted(found, key=lambda phase: (phase.begin_mono_ns, phase.end_mono_ns)))


def phase_windows(events: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Begin and end of each phase that has both, from rows of events.jsonl, in monotonic nanoseconds.

    A phase that occurs twice counts as its last occurrence.
    """
    return {one.name: (one.begin_mono_ns, one.end_mono_ns) for one in _marked(events)[0]}


def _marked(events: Sequence[Mapping[str, Any]]) -> tuple[list[Phase], dict[str, int]]:
    """The phases that have both marks, and when those began that have no end."""
    found: list[Phase] = []
    begun: dict[str, int] = {}
    for event in events:
        name, t_ns = event.get("phase"), event.get("t_mono_ns")
        if not isinstance(name, str) or not isinstance(t_ns, int):
            continue
        if event.get("event") == "phase_begin":
            begun[name] = t_ns
        elif event.get("event") == "phase_end" and name in begun:
            found.append(Phase(name, begun.pop(name), t_ns))
    return found, begun


def epoch_ns(mono_ns: NDArray[np.int64], anchors: Sequence[Anchor]) -> NDArray[np.int64]:
    """Absolute times of monotonic ones.

    The difference of the two clocks is interpolated between the anchors, so that a slow correction of the
    wall clock (NTP) is followed and a series stays in order; outside them the nearest difference holds.
    """
    ordered = sorted(anchors, key=lambda anchor: anchor.mono_ns)
    first = ordered[0].epoch_ns - ordered[0].mono_ns
    at = np.array([anchor.mono_ns for anchor in ordered], dtype=np.float64)
    drift = np.array([anchor.epoch_ns - anchor.mono_ns - first for anchor in ordered], dtype=np.float64)
    moved: NDArray[np.int64] = mono_ns + first + np.rint(np.interp(mono_ns, at, drift)).astype(np.int64)
    return moved


def phase_codes(mono_ns: NDArray[np.int64], found: Sequence[Phase]) -> tuple[NDArray[np.int32], list[str]]:
    """For each moment the position of its phase in the returned list of names.

    Phases do not overlap, but for measuring inside another: the one that began last holds.
    """
    names = [OUTSIDE, *dict.fromkeys(phase.name for phase in found)]
    codes = np.zeros(len(mono_ns), dtype=np.int32)
    for phase in found:
        codes[(mono_ns >= phase.begin_mono_ns) & (mono_ns <= phase.end_mono_ns)] = names.index(phase.name)
    return codes, names


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
_NEARLY_RATIO = 0.98
"""Flights over this share of the largest change are as good as the one over the largest."""
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
    goes_w = np.abs(np.interp(t_s + _FLIGHT_S, t_s, y) - y)
    largest = int(
        np.flatnonzero(goes_w >= _NEARLY_RATIO * goes_w.max())[-1]
    )  # the later it begins, the more has landed
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
        return float(np.diff(self.around(begin_s, end_s).t_s).max(initial=0.0))

    def around(self, begin_s: float, end_s: float) -> Curve:
        """The samples of a window, and one to each side."""
        first = max(int(np.searchsorted(self.t_s, begin_s, side="right")) - 1, 0)
        last = int(np.searchsorted(self.t_s, end_s, side="left")) + 1
        return Curve(self.t_s[first:last], self.y[first:last])

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
        sensor: What gpu-check found out about its meter, where it did.
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
    sensor: Sensor = UNCHARACTERISED

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
        """How late averaged power is, in seconds; 0 where neither a profile nor the readings tell."""
        if self.sensor.average_window_s is not None:
            return self.sensor.average_window_s / 2
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
        power: The columns of power.csv, null meaning "not known": ``columns``, a pyarrow Table, a
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


@dataclass(frozen=True, slots=True)
class StoredPower:
    """Power samples of one cycle.

    Attributes:
        columns: As ``columns``; without rows when the series is absent or damaged.
        table: Every column, as it is stored; None when there are no samples.
        as_committed: Whether the file is, byte for byte, what was committed; None where nobody kept its hash.
        problem: Why there are no samples although there should be, or None.
    """

    columns: Mapping[str, Any]
    table: Any | None
    as_committed: bool | None
    problem: str | None


def stored_power(ref: CycleRef, record: Mapping[str, Any], *, expected: bool) -> StoredPower:
    """Read the power samples of a cycle.

    Args:
        ref: The cycle.
        record: Its provenance, which has the hashes.
        expected: Whether there should be samples.
    """
    where = f"{ref.folder.url}/{layout.POWER}"
    try:
        data = ref.power_file()
        as_committed = _is_committed(data, record)
        table = TableFile(data, where).read(schema=POWER_SCHEMA)
        _require_times(table, where)
    except ResultReadError as error:
        return StoredPower(columns(POWER_SCHEMA.empty_table()), None, None, str(error) if expected else None)
    needed = columns(table.select([name for name in COLUMNS if name in table.column_names]))
    return StoredPower(needed, table if table.num_rows else None, as_committed, None)


def _require_times(table: Any, where: str) -> None:
    for name in ("t_before_mono_ns", "t_after_mono_ns"):
        if name not in table.column_names:
            raise ResultReadError(f"{where}: there is no column {name}")
        if table.column(name).null_count:
            raise ResultReadError(f"{where}: a row has no time")


def _is_committed(data: bytes, record: Mapping[str, Any]) -> bool | None:
    hashes = record.get("sha256")
    known = hashes.get(layout.POWER) if isinstance(hashes, Mapping) else None
    return None if known is None else hashlib.sha256(data).hexdigest() == known
