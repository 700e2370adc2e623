"""Latency of requests, with the names and formulas of vLLM's benchmark.

t0 is the submission, t1 the first token, tn the last token, n the number of generated tokens. A request whose times run
backwards has none of these latencies (``Requests.disordered`` counts them); an answer without a token has no TTFT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llem_airflow.analysis.metrics import P95_FROM, P99_FROM
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
        p95_s: 95th percentile; None below 20 values.
        p99_s: 99th percentile; None below 100 values.
    """

    n: int
    mean_s: float
    p50_s: float
    p95_s: float | None
    p99_s: float | None


@dataclass(frozen=True, slots=True)
class Latency:
    """Latencies of one cycle. A member is None when no request can tell it.

    Attributes:
        ttft: Time to first token.
        tpot: Time per output token after the first.
        itl: Gaps between chunks of tokens.
        token_gap: Gaps between tokens.
        e2el: End-to-end latency.
    """

    ttft: Distribution | None
    tpot: Distribution | None
    itl: Distribution | None
    token_gap: Distribution | None
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
    """Inter-token latencies, in seconds: every gap between two chunks of a request that follow each other.

    Formula: ITL_i = t(i+1) - t(i). Tokens with one time came in one chunk and count once, as in vLLM's benchmark, which
    takes the time between two messages of the stream, whatever number of tokens each holds. Empty when the engine gives
    no token times.
    """
    gaps_s = token_gap_s(requests)
    return gaps_s[gaps_s > 0]


def token_gap_s(requests: Requests) -> Floats:
    """Gaps between tokens, in seconds: every gap between two tokens of a request that follow each other.

    Formula: t(i+1) - t(i), which is 0 between two tokens of one chunk. Empty when the engine gives no token times.
    """
    within = np.ones(max(len(requests.token_ns) - 1, 0), dtype=bool)
    begins = requests.tokens_from[1:-1]
    within[begins[(begins > 0) & (begins <= len(within))] - 1] = False
    gaps_s = np.diff(requests.token_ns)[within] / _NS_PER_S
    return gaps_s[~np.isnan(gaps_s)]


def latency(requests: Requests) -> Latency:
    """Latencies of the measured requests of one cycle."""
    return Latency(
        ttft=distribution(ttft_s(requests)),
        tpot=distribution(tpot_s(requests)),
        itl=distribution(itl_s(requests)),
        token_gap=distribution(token_gap_s(requests)),
        e2el=distribution(e2el_s(requests)),
    )


def distribution(values_s: Floats) -> Distribution | None:
    """Distribution of the known values; None when there is none. Percentiles interpolate linearly."""
    known = values_s[~np.isnan(values_s)]
    if known.size == 0:
        return None
    n = int(known.size)
    p50, p95, p99 = (float(value) for value in np.percentile(known, (50, 95, 99)))
    return Distribution(
        n, float(known.mean()), p50, p95 if n >= P95_FROM else None, p99 if n >= P99_FROM else None
    )


def goodput_requests_per_s(requests: Requests, window_s: float, limits_s: Mapping[str, float]) -> float:
    """Requests that met every limit, per second of the window.

    An answer of one token has no TPOT and meets every limit of it, as in vLLM's benchmark, where it counts as 0: no
    token came late. An answer without a token is never good.

    Args:
        requests: Measured requests.
        window_s: Length of the window, in seconds.
        limits_s: Largest ``ttft``, ``tpot`` and ``e2el``, in seconds; an unknown one fails its limit.
    """
    measured = {"ttft": ttft_s, "tpot": _tpot_for_limit_s, "e2el": e2el_s}
    good = requests.output_tokens != 0
    for name, limit_s in limits_s.items():
        good &= measured[name](requests) <= limit_s
    return float(good.sum()) / window_s


def _tpot_for_limit_s(requests: Requests) -> Floats:
    return np.where(requests.output_tokens == 1, 0.0, tpot_s(requests))
