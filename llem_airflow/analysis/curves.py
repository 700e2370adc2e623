"""The power curve of a cycle, thinned for drawing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llem_airflow.analysis.cycle import Reading
from llem_airflow.analysis.merge import midpoints_ns

_BUCKETS = 300


@dataclass(frozen=True, slots=True)
class Curve:
    """What is drawn of one cycle. Times are seconds since the begin of its first phase.

    Attributes:
        experiment: ``<slug>-<hash8>``.
        cycle: Which repetition.
        phases: (name, begin, end).
        series: By GPU: times and powers, in seconds and watts.
        estimate: Whether the powers are estimates.
    """

    experiment: str
    cycle: int
    phases: tuple[tuple[str, float, float], ...]
    series: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
    estimate: bool


def curve(experiment: str, cycle: int, reading: Reading) -> Curve:
    """The curve of a cycle: at most 600 points a GPU, with the extremes of each bucket: no peak is lost."""
    table = reading.power
    mono = midpoints_ns(table) if table.num_rows else np.array([], dtype=np.int64)
    origin = min([phase.begin_mono_ns for phase in reading.phases] or mono.tolist()[:1] or [0])
    gpus = np.array(table.column("gpu").cast("string").to_pylist(), dtype=object)
    watts = _watts(table)
    series = {}
    for gpu in sorted({name for name in gpus if name is not None}):
        kept = (gpus == gpu) & ~np.isnan(watts)
        if kept.any():
            series[str(gpu)] = thinned((mono[kept] - origin) / 1e9, watts[kept])
    marks = tuple(
        (phase.name, (phase.begin_mono_ns - origin) / 1e9, (phase.end_mono_ns - origin) / 1e9)
        for phase in reading.phases
    )
    return Curve(experiment, cycle, marks, series, reading.energy.kind == "estimate")


def thinned(
    t_s: NDArray[np.float64], values: NDArray[np.float64], buckets: int = _BUCKETS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest value of each of ``buckets`` equal runs of samples, in their order."""
    if len(values) <= 2 * buckets:
        return t_s, values
    kept = set()
    for part in np.array_split(np.arange(len(values)), buckets):
        kept |= {int(part[np.argmin(values[part])]), int(part[np.argmax(values[part])])}
    index = np.array(sorted(kept | {0, len(values) - 1}))
    return t_s[index], values[index]


def _watts(table: object) -> NDArray[np.float64]:
    """Instant power, else the average that the driver gives; NaN marks what is not known."""
    for name in ("power_instant_mw", "power_average_mw"):
        column = table.column(name)  # type: ignore[attr-defined]  # a pyarrow.Table, which has no annotations
        if column.null_count < len(column):
            milliwatts: NDArray[np.float64] = column.cast("float64").to_numpy(zero_copy_only=False)
            return milliwatts / 1e3
    return np.full(len(table.column("gpu")), np.nan)  # type: ignore[attr-defined]  # as above
