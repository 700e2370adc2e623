"""Latency of requests, with the names and formulas of vLLM's benchmark.

t0 is the submission (of a server, when the schedule had the request due, so that a late client hides no wait), t1 the
first token, tn the last token, n the number of generated tokens. A request whose times run backwards has none of these
latencies (``Requests.disordered`` counts them), nor has one that a server did not answer; an answer without a token has
no TTFT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from llem_airflow.analysis.metrics import P90_FROM, P95_FROM, P99_FROM
from llem_airflow.analysis.series import Floats

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

COLUMNS = (
    "phase",
    "iteration",
    "output_tokens",
    "t_submit_mono_ns",
    "t_first_mono_ns",
    "t_last_mono_ns",
    "token_mono_ns",
)
"""Columns of requests.parquet that are computed with."""

SERVED_COLUMNS = ("t_due_mono_ns", "t_end_mono_ns", "status")
"""More of them where a server was asked; null, or not there, for a batch."""


@dataclass(frozen=True)
class Requests:
    """Requests in the order in which they were recorded. NaN is "not known".

    Times that run backwards (a first token before the submission, a token before the one ahead of it) come from a clock
    that was set or a broken record: of such a request no time but the submission is known.

    Attributes:
        origin_ns: Monotonic nanoseconds that all times are counted from, so that floats hold them exactly.
        iteration: Pass over the prompts; -1 is not known.
        output_tokens: Generated tokens.
        submit_ns: When each was submitted, or was due.
        first_ns: When its first token came.
        last_ns: When its last token came.
        token_ns: When each token came, request by request.
        tokens_from: Where the tokens of each request begin in ``token_ns``, and at last its length.
        failed: Which of them a server did not answer; no time but the first is known of these, and no tokens.
        end_ns: When each was over, also without an answer.
        disordered: Requests whose times ran backwards.
    """

    origin_ns: int
    iteration: Ints
    output_tokens: Floats
    submit_ns: Floats
    first_ns: Floats
    last_ns: Floats
    token_ns: Floats
    tokens_from: Ints
    failed: Flags
    end_ns: Floats
    disordered: int = 0

    @classmethod
    def of(cls, table: Any, phase: str | None = "measure") -> Requests:
        """Those of a table of requests (``COLUMNS``) that were submitted in a phase, by default in the window."""
        rows = (
            table if phase is None else table.filter(pc.equal(table.column("phase").cast(pa.string()), phase))
        )
        submitted = pc.coalesce(_column(rows, "t_due_mono_ns", pa.int64()), rows.column("t_submit_mono_ns"))
        origin_ns = pc.min(submitted).as_py() or 0
        times = rows.column("token_mono_ns").combine_chunks()
        counts = times.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        found = cls(
            origin_ns=origin_ns,
            iteration=rows.column("iteration").fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64),
            output_tokens=_floats(rows.column("output_tokens")),
            submit_ns=_since(submitted, origin_ns),
            first_ns=_since(rows.column("t_first_mono_ns"), origin_ns),
            last_ns=_since(rows.column("t_last_mono_ns"), origin_ns),
            token_ns=_since(times.flatten(), origin_ns),
            tokens_from=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
            failed=_failed(rows),
            end_ns=_since(_column(rows, "t_end_mono_ns", pa.int64()), origin_ns),
        )
        if found.failed.any():  # nothing is known of these but that they were asked
            tokens = np.where(found.failed, np.nan, found.output_tokens)
            found = replace(cls._untimed(found, found.failed), output_tokens=tokens)
        return cls._in_order(found)

    def _in_order(self) -> Requests:
        """The same, without the times of the requests whose times run backwards."""
        owner = np.repeat(np.arange(len(self)), np.diff(self.tokens_from))
        back = (self.first_ns < self.submit_ns) | (self.last_ns < self.submit_ns)
        back |= self.last_ns < self.first_ns
        back[owner[1:][(np.diff(self.token_ns) < 0) & (owner[1:] == owner[:-1])]] = True
        outside = (self.token_ns < self.submit_ns[owner]) | (self.token_ns > self.last_ns[owner])
        back[owner[outside]] = True
        return replace(self._untimed(back), disordered=int(back.sum())) if back.any() else self

    def _untimed(self, rows: Flags) -> Requests:
        """The same, without the times of some requests but their submission."""
        of_tokens = np.repeat(rows, np.diff(self.tokens_from))
        return replace(
            self,
            first_ns=np.where(rows, np.nan, self.first_ns),
            last_ns=np.where(rows, np.nan, self.last_ns),
            token_ns=np.where(of_tokens, np.nan, self.token_ns),
        )

    def __len__(self) -> int:
        return len(self.iteration)

    @property
    def tokens(self) -> int:
        """Generated tokens of all requests together, as far as they are known."""
        return int(np.nansum(self.output_tokens))

    @property
    def second_ns(self) -> Floats:
        """When the second token of each came; infinite where there is none."""
        at = self.tokens_from[:-1] + 1
        has = at < self.tokens_from[1:]
        found = np.full(len(self), np.inf)
        found[has] = self.token_ns[at[has]]
        return found


def _failed(rows: Any) -> Flags:
    status = pc.fill_null(_column(rows, "status", pa.string()).cast(pa.string()), "ok")
    found: Flags = pc.not_equal(status, "ok").to_numpy(zero_copy_only=False)
    return found


def _column(rows: Any, name: str, kind: Any) -> Any:
    """A column that may not be there, then of nulls."""
    return rows.column(name) if name in rows.column_names else pa.chunked_array([pa.nulls(len(rows), kind)])


def _since(times: Any, origin_ns: int) -> Floats:
    return _floats(pc.subtract(times, origin_ns))


def _floats(array: Any) -> Floats:
    found: Floats = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return found


_NS_PER_S = 1e9


@dataclass(frozen=True, slots=True)
class Distribution:
    """How a latency is distributed over the requests of one cycle, in seconds.

    Attributes:
        n: Number of values (requests; for ITL, gaps).
        mean_s: Mean.
        p50_s: Median.
        p90_s: 90th percentile; None below 10 values.
        p95_s: 95th percentile; None below 20 values.
        p99_s: 99th percentile; None below 100 values.
    """

    n: int
    mean_s: float
    p50_s: float
    p90_s: float | None
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
    p50, p90, p95, p99 = (float(value) for value in np.percentile(known, (50, 90, 95, 99)))
    return Distribution(
        n,
        float(known.mean()),
        p50,
        p90 if n >= P90_FROM else None,
        p95 if n >= P95_FROM else None,
        p99 if n >= P99_FROM else None,
    )


def good_requests(requests: Requests, limits_s: Mapping[str, float]) -> Flags:
    """Which requests met every limit. A latency equal to its limit meets it.

    An answer of one token has no TPOT and meets every limit of it, as in vLLM's benchmark, where it counts as 0: no
    token came late. An answer without a token is never good, and neither is a request that failed.

    Args:
        requests: Measured requests.
        limits_s: Largest ``ttft``, ``tpot`` and ``e2el``, in seconds; an unknown one fails its limit.
    """
    measured = {"ttft": ttft_s, "tpot": _tpot_for_limit_s, "e2el": e2el_s}
    good: Flags = (requests.output_tokens != 0) & ~requests.failed
    for name, limit_s in limits_s.items():
        good &= measured[name](requests) <= limit_s
    return good


def goodput_requests_per_s(requests: Requests, window_s: float, limits_s: Mapping[str, float]) -> float:
    """Requests that met every limit, per second of the window; see ``good_requests``.

    Args:
        requests: Measured requests.
        window_s: Length of the window, in seconds.
        limits_s: As for ``good_requests``.
    """
    return float(good_requests(requests, limits_s).sum()) / window_s


def _tpot_for_limit_s(requests: Requests) -> Floats:
    return np.where(requests.output_tokens == 1, 0.0, tpot_s(requests))
