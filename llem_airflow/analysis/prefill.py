"""Energy of prefill and of decoding, where the requests' times let them be told apart."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llem_airflow.analysis.power_series import Floats, GpuSeries
from llem_airflow.analysis.requests import Requests


def prefill_and_decode(
    series: Mapping[str, GpuSeries], origin_ns: int, requests: Requests | None
) -> tuple[float | None, float | None]:
    """Joules of all prefills and of all decoding in the measured window.

    Formula: the integral of instant power over [first submit, last first token] of every iteration, and over
    [last first token, last token]. Both are None unless every iteration prefills all its requests before any
    of them decodes (batches, not continuous batching), and the typical prefill spans at least two samples: a
    shorter one is not resolved by the sensor.
    """
    iterations = _iterations(requests) if requests else None
    curves = [one.instant for one in series.values()]
    if requests is None or iterations is None or any(len(curve.t_s) < 2 for curve in curves):
        return None, None
    begin_s, first_s, last_s = (times + (requests.origin_ns - origin_ns) / 1e9 for times in iterations)
    period_s = max(float(np.median(np.diff(curve.t_s))) for curve in curves)
    if float(np.median(first_s - begin_s)) < 2 * period_s:
        return None, None
    if not all(curve.covers(float(begin_s[0]), float(last_s.max())) for curve in curves):
        return None, None
    times = list(zip(begin_s.tolist(), first_s.tolist(), last_s.tolist(), strict=True))
    prefill_j = sum(curve.integral(begin, first) for curve in curves for begin, first, _ in times)
    decode_j = sum(curve.integral(first, last) for curve in curves for _, first, last in times)
    return prefill_j, decode_j


def _iterations(requests: Requests) -> tuple[Floats, Floats, Floats] | None:
    """First submit, last first token and last token of every iteration, in seconds since the requests' origin.

    None when prefill and decode overlap or times are missing.
    """
    known = (requests.submit_ns, requests.first_ns, requests.last_ns)
    if not len(requests) or any(np.isnan(times).any() for times in known):
        return None
    order = np.argsort(requests.iteration, kind="stable")
    starts = np.flatnonzero(np.diff(requests.iteration[order], prepend=-2))
    submit, first, last, second = (times[order] for times in (*known, requests.second_ns))
    begin_ns, first_ns = np.minimum.reduceat(submit, starts), np.maximum.reduceat(first, starts)
    last_ns, second_ns = np.maximum.reduceat(last, starts), np.minimum.reduceat(second, starts)
    if (second_ns < first_ns).any():
        return None
    by_time = np.argsort(begin_ns, kind="stable")
    if (begin_ns[by_time][1:] < last_ns[by_time][:-1]).any():
        return None
    return begin_ns[by_time] / 1e9, first_ns[by_time] / 1e9, last_ns[by_time] / 1e9
