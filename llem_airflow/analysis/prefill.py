"""Energy of prefill and of decoding, where the requests' times let them be told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from llem_airflow.analysis.power_series import GpuSeries

Times = tuple[float, ...]
"""Begin of the prefill, end of the prefill, last token, in seconds since the window's begin."""


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
    by_iteration: dict[Any, list[Mapping[str, Any]]] = {}
    for request in requests:
        if request.get("phase") == "measure":
            by_iteration.setdefault(request.get("iteration"), []).append(request)
    found = []
    for batch in by_iteration.values():
        times = _times(origin_ns, batch)
        if times is None:
            return None
        found.append(times)
    found.sort()
    overlapping = any(later[0] < earlier[2] for earlier, later in pairwise(found))
    return None if overlapping else found


def _times(origin_ns: int, batch: Sequence[Mapping[str, Any]]) -> Times | None:
    columns: list[list[Any]] = [
        [request.get(f"t_{name}_mono_ns") for request in batch] for name in ("submit", "first", "last")
    ]
    if any(None in column for column in columns):
        return None
    submit_ns, first_ns, last_ns = columns
    prefilled_ns = max(first_ns)
    for request in batch:
        tokens = request.get("token_mono_ns")
        if tokens is not None and len(tokens) > 1 and tokens[1] < prefilled_ns:
            return None
    return tuple((t_ns - origin_ns) / 1e9 for t_ns in (min(submit_ns), prefilled_ns, max(last_ns)))
