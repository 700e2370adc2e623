"""The power curve of a cycle, thinned for drawing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem_airflow.analysis.cycle import Reading
from llem_airflow.analysis.merge import midpoints_ns
from llem_airflow.analysis.samples import Labels

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
    power = reading.power.columns
    mono = midpoints_ns(power)
    origin = min([phase.begin_mono_ns for phase in reading.phases] or mono.tolist()[:1] or [0])
    gpus: Labels = power["gpu"]
    watts = _watts(power)
    series = {}
    for code, gpu in sorted(enumerate(gpus.names), key=lambda item: item[1]):
        kept = (gpus.codes == code) & ~np.isnan(watts)
        if kept.any():
            series[gpu] = thinned((mono[kept] - origin) / 1e9, watts[kept])
    marks = tuple(
        (phase.name, (phase.begin_mono_ns - origin) / 1e9, (phase.end_mono_ns - origin) / 1e9)
        for phase in reading.phases
    )
    return Curve(experiment, cycle, marks, series, reading.energy.kind == "estimate")


def thinned(
    t_s: NDArray[np.float64], values: NDArray[np.float64], buckets: int = _BUCKETS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest value of each of ``buckets`` equal runs of samples, in their order, and both ends."""
    if len(values) <= 2 * buckets:
        return t_s, values
    width = -(-len(values) // buckets)
    padded = np.pad(values, (0, width * -(-len(values) // width) - len(values)), mode="edge").reshape(
        -1, width
    )
    starts = np.arange(len(padded)) * width
    ends = np.array([0, len(values) - 1])
    index = np.unique(np.concatenate([starts + padded.argmin(axis=1), starts + padded.argmax(axis=1), ends]))
    index = index[index < len(values)]
    return t_s[index], values[index]


def _watts(power: Mapping[str, Any]) -> NDArray[np.float64]:
    """Instant power, else the average that the driver gives; NaN marks what is not known."""
    instant: NDArray[np.float64] = power["power_instant_mw"] / 1e3
    average: NDArray[np.float64] = power["power_average_mw"] / 1e3
    return average if np.isnan(instant).all() else instant
