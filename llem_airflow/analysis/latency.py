"""Latency of requests, with the names and formulas of vLLM's benchmark.

t0 is the submission, t1 the first token, tn the last token, n the number of generated tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NS_PER_S = 1e9


@dataclass(frozen=True, slots=True)
class Distribution:
    """How a latency is distributed over the requests of one cycle, in seconds.

    Attributes:
        n: Number of values (requests; for ITL, gaps).
        mean_s: Mean.
        p50_s: Median.
        p95_s: 95th percentile.
        p99_s: 99th percentile.
    """

    n: int
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Latencies of one cycle. A member is None when no request can tell it.

    Attributes:
        ttft: Time to first token.
        tpot: Time per output token after the first.
        itl: Gaps between tokens.
        e2el: End-to-end latency.
    """

    ttft: Distribution | None
    tpot: Distribution | None
    itl: Distribution | None
    e2el: Distribution | None


def ttft_s(request: Mapping[str, Any]) -> float | None:
    """Time to first token, in seconds.

    Formula: TTFT = t1 - t0. None when the engine does not tell the first token.
    """
    return _between(request.get("t_submit_mono_ns"), request.get("t_first_mono_ns"))


def e2el_s(request: Mapping[str, Any]) -> float | None:
    """End-to-end latency, in seconds.

    Formula: E2EL = tn - t0.
    """
    return _between(request.get("t_submit_mono_ns"), request.get("t_last_mono_ns"))


def tpot_s(request: Mapping[str, Any]) -> float | None:
    """Time per output token, in seconds.

    Formula: TPOT = (E2EL - TTFT) / (n - 1). None for n < 2 (there is no token after the first).
    """
    tokens = request.get("output_tokens")
    after_first = _between(request.get("t_first_mono_ns"), request.get("t_last_mono_ns"))
    if after_first is None or tokens is None or tokens < 2:
        return None
    return after_first / float(tokens - 1)


def itl_s(requests: Iterable[Mapping[str, Any]]) -> NDArray[np.float64]:
    """Inter-token latencies, in seconds: every gap between two tokens of a request that follow each other.

    Formula: ITL_i = t(i+1) - t(i). Empty when the engine gives no token times.
    """
    times = [found for row in requests if (found := row.get("token_mono_ns"))]
    token_ns: NDArray[np.int64] = np.fromiter(itertools.chain.from_iterable(times), dtype=np.int64)
    gaps_ns = token_ns[1:] - token_ns[:-1]
    last_of_each = np.cumsum([len(found) for found in times], dtype=np.int64)[:-1] - 1
    return np.delete(gaps_ns, last_of_each) / _NS_PER_S


def latency(requests: Iterable[Mapping[str, Any]]) -> Latency:
    """Latencies of the measured requests of one cycle; warm-up requests must be left out before."""
    rows = list(requests)
    return Latency(
        ttft=distribution(ttft_s(row) for row in rows),
        tpot=distribution(tpot_s(row) for row in rows),
        itl=distribution(itl_s(rows)),
        e2el=distribution(e2el_s(row) for row in rows),
    )


def distribution(values_s: Iterable[float | None]) -> Distribution | None:
    """Distribution of the known values; None when there is none. Percentiles interpolate linearly."""
    known = values_s
    if not isinstance(known, np.ndarray):
        known = np.array([value for value in values_s if value is not None], dtype=float)
    if known.size == 0:
        return None
    p50, p95, p99 = np.percentile(known, (50, 95, 99))
    return Distribution(int(known.size), float(known.mean()), float(p50), float(p95), float(p99))


def goodput_requests_per_s(
    requests: Iterable[Mapping[str, Any]], window_s: float, limits_s: Mapping[str, float]
) -> float:
    """Requests that met every limit, per second of the window.

    Args:
        requests: Measured requests.
        window_s: Length of the window, in seconds.
        limits_s: Largest ``ttft``, ``tpot`` and ``e2el``, in seconds; an unknown one fails its limit.
    """
    measured = {"ttft": ttft_s, "tpot": tpot_s, "e2el": e2el_s}
    good = 0
    for row in requests:
        values = [(measured[name](row), limit) for name, limit in limits_s.items()]
        good += all(value is not None and value <= limit for value, limit in values)
    return good / window_s


def _between(begin_ns: int | None, end_ns: int | None) -> float | None:
    return None if begin_ns is None or end_ns is None else (end_ns - begin_ns) / _NS_PER_S
