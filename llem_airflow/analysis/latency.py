"""Latency of requests, with the names and formulas of vLLM's benchmark.

t0 is the submission, t1 the first token, tn the last token, n the number of generated tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llem_airflow.analysis.power_series import Floats
from llem_airflow.analysis.requests import Requests

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


def ttft_s(requests: Requests) -> Floats:
    """Time to first token of each request, in seconds.

    Formula: TTFT = t1 - t0. NaN when the engine does not tell the first token.
    """
    return (requests.first_ns - requests.submit_ns) / _NS_PER_S


def e2el_s(requests: Requests) -> Floats:
    """End-to-end latency of each request, in seconds.

    Formula: E2EL = tn - t0.
    """
    return (requests.last_ns - requests.submit_ns) / _NS_PER_S


def tpot_s(requests: Requests) -> Floats:
    """Time per output token of each request, in seconds.

    Formula: TPOT = (E2EL - TTFT) / (n - 1). NaN for n < 2 (there is no token after the first).
    """
    after_first = np.where(requests.output_tokens >= 2, requests.output_tokens - 1, np.nan)
    return (requests.last_ns - requests.first_ns) / _NS_PER_S / after_first


def itl_s(requests: Requests) -> Floats:
    """Inter-token latencies, in seconds: every gap between two tokens of a request that follow each other.

    Formula: ITL_i = t(i+1) - t(i). Empty when the engine gives no token times.
    """
    within = np.ones(max(len(requests.token_ns) - 1, 0), dtype=bool)
    begins = requests.tokens_from[1:-1]
    within[begins[(begins > 0) & (begins <= len(within))] - 1] = False
    return np.diff(requests.token_ns)[within] / _NS_PER_S


def latency(requests: Requests) -> Latency:
    """Latencies of the measured requests of one cycle."""
    return Latency(
        ttft=distribution(ttft_s(requests)),
        tpot=distribution(tpot_s(requests)),
        itl=distribution(itl_s(requests)),
        e2el=distribution(e2el_s(requests)),
    )


def distribution(values_s: Floats) -> Distribution | None:
    """Distribution of the known values; None when there is none. Percentiles interpolate linearly."""
    known = values_s[~np.isnan(values_s)]
    if known.size == 0:
        return None
    p50, p95, p99 = np.percentile(known, (50, 95, 99))
    return Distribution(int(known.size), float(known.mean()), float(p50), float(p95), float(p99))


def goodput_requests_per_s(requests: Requests, window_s: float, limits_s: Mapping[str, float]) -> float:
    """Requests that met every limit, per second of the window.

    Args:
        requests: Measured requests.
        window_s: Length of the window, in seconds.
        limits_s: Largest ``ttft``, ``tpot`` and ``e2el``, in seconds; an unknown one fails its limit.
    """
    measured = {"ttft": ttft_s, "tpot": tpot_s, "e2el": e2el_s}
    good = np.ones(len(requests), dtype=bool)
    for name, limit_s in limits_s.items():
        good &= measured[name](requests) <= limit_s
    return float(good.sum()) / window_s
