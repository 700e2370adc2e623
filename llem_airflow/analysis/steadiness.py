"""Was the measured window in a steady state?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from llem_airflow.analysis.power_series import Floats, GpuSeries

_MIN_ITERATIONS = 20
_MIN_SAMPLES = 30
_BATCH = 5


def mser5_cut(values: Sequence[float]) -> int | None:
    """How many values at the begin are not yet steady, by MSER-5; None when it cannot tell.

    Formula: means of batches of 5; the cut d minimises sum((z_i - mean(z_i, i > d))^2) / (k - d)^2 over d <=
    k / 2. A minimum at the last allowed d means that steadiness was never seen. (White, "An effective
    truncation heuristic for bias reduction in simulation output", Simulation 69, 1997.)
    """
    batches = [float(np.mean(values[i : i + _BATCH])) for i in range(0, len(values) - _BATCH + 1, _BATCH)]
    k = len(batches)
    if k < 4:
        return None
    scores = [float(np.var(batches[d:])) / (k - d) for d in range(k // 2 + 1)]
    best = int(np.argmin(scores))
    return best * _BATCH if best < k // 2 else None


def iteration_bias_ratio(events: Sequence[Mapping[str, Any]]) -> float | None:
    """How far the window's first, unsteady iterations move the mean duration.

    Formula: mean of all durations / mean of those that MSER-5 keeps - 1. Where MSER-5 finds no steady
    state: mean of the first half / mean of the second half - 1. Only iterations with the most common number
    of output tokens count: a smaller last batch of each pass is no drift.
    """
    iterations = [
        (event.get("output_tokens"), float(event["duration_s"]))
        for event in events
        if event.get("event") == "iteration" and event.get("phase") == "measure" and event.get("duration_s")
    ]
    usual = Counter(tokens for tokens, _ in iterations).most_common(1)
    durations = [duration_s for tokens, duration_s in iterations if tokens == usual[0][0]]
    if len(durations) < _MIN_ITERATIONS:
        return None
    cut = mser5_cut(durations)
    half = len(durations) // 2
    if cut is None:
        return float(np.mean(durations[:half]) / np.mean(durations[half:]) - 1)
    return float(np.mean(durations) / np.mean(durations[cut:]) - 1)


def power_drift_ratio(series: Iterable[GpuSeries], duration_s: float) -> float | None:
    """Change of power over the window.

    Formula: median power of the last third / median of the first third - 1, summed over devices.
    """
    first, last = 0.0, 0.0
    for one in series:
        power = one.power
        thirds: list[Floats] = [
            power.inside(0, duration_s / 3),
            power.inside(duration_s * 2 / 3, duration_s),
        ]
        if min(map(len, thirds)) < _MIN_SAMPLES / 3:
            return None
        first += float(np.median(thirds[0]))
        last += float(np.median(thirds[1]))
    return last / first - 1 if first > 0 else None
