"""Energy of prefill and of decoding, where the requests' times let them be told apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from llem_airflow.analysis.power_series import GpuSeries

Times = tuple[float, float, float]
"""Begin of the prefill, end of the prefill, last token, in seconds since the window's begin."""
_TIMES = ("t_submit_mono_ns", "t_first_mono_ns", "t_last_mono_ns")


@dataclass(slots=True)
class _Batch:
    """Times of one iteration: first submit, last first token, last token, earliest second token."""

    submit_ns: int
    first_ns: int
    last_ns: int
    second_ns: float


def prefill_and_decode(
    series: Mapping[str, GpuSeries], origin_ns: int, requests: Sequence[Mapping[str, Any]]
) -> tuple[float | None, float | None]:
    """Joules of all prefills and of all decoding in the measured window.

    Formula: the integral of instant power over [first submit, last first token] of every iteration, and over
    [last first token, last token]. Both are None unless every iteration prefills all its requests before any
    of them decodes (batches, not continuous batching), and the typical prefill spans at least two samples: a
    shorter one is not resolved by the sensor.
    """
    iterations = _iterations(origin_ns, requests)
    curves = [one.instant for one in series.values()]
    if not iterations or any(len(curve.t_s) < 2 for curve in curves):
        return None, None
    period_s = max(float(np.median(np.diff(curve.t_s))) for curve in curves)
    if float(np.median([first - begin for begin, first, _ in iterations])) < 2 * period_s:
        return None, None
    begin_s, end_s = min(times[0] for times in iterations), max(times[2] for times in iterations)
    if not all(curve.covers(begin_s, end_s) for curve in curves):
        return None, None
    prefill_j = sum(curve.integral(begin, first) for curve in curves for begin, first, _ in iterations)
    decode_j = sum(curve.integral(first, last) for curve in curves for _, first, last in iterations)
    return prefill_j, decode_j


def _iterations(origin_ns: int, requests: Sequence[Mapping[str, Any]]) -> list[Times] | None:
    """Times of every measured iteration, or None when prefill and decode overlap or times are missing."""
    batches: dict[Any, _Batch] = {}
    for request in requests:
        if request.get("phase") != "measure":
            continue
        submit_ns, first_ns, last_ns = (request.get(name) for name in _TIMES)
        if submit_ns is None or first_ns is None or last_ns is None:
            return None
        tokens_ns = request.get("token_mono_ns")
        second_ns = tokens_ns[1] if tokens_ns is not None and len(tokens_ns) > 1 else math.inf
        batch = batches.setdefault(request.get("iteration"), _Batch(submit_ns, first_ns, last_ns, second_ns))
        batch.submit_ns, batch.first_ns = min(batch.submit_ns, submit_ns), max(batch.first_ns, first_ns)
        batch.last_ns, batch.second_ns = max(batch.last_ns, last_ns), min(batch.second_ns, second_ns)
    if any(batch.second_ns < batch.first_ns for batch in batches.values()):
        return None
    found = sorted(
        ((one.submit_ns - origin_ns) / 1e9, (one.first_ns - origin_ns) / 1e9, (one.last_ns - origin_ns) / 1e9)
        for one in batches.values()
    )
    overlapping = any(later[0] < earlier[2] for earlier, later in pairwise(found))
    return None if overlapping else found
