"""What a server did under its load: rates, good requests, queue, saturation, and the client's own doubts.

Definitions. Offered and achieved rate, goodput and the latencies are those of vLLM's ``benchmarks/serve.py``; that a
latency counts from the time at which the schedule had the request due, and that the bound is on a tail percentile, is
the server scenario of MLPerf Inference (Poisson arrivals, TTFT and TPOT at their 99th percentile). The names in
OpenTelemetry's conventions for generative AI are ``gen_ai.server.time_to_first_token`` (TTFT),
``gen_ai.server.time_per_output_token`` (TPOT) and ``gen_ai.server.request.duration`` (E2EL). A request belongs to the
window by its due time, a token and a joule by when they came and were used.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from llem_airflow.analysis.energy import EnergyOfWindow
from llem_airflow.analysis.flags import Flag
from llem_airflow.analysis.latency import Requests, good_requests, goodput_requests_per_s, ttft_s
from llem_airflow.analysis.series import Floats
from llem_airflow.protocol.result import CycleResult, Served, Window
from llem_airflow.text.wording import counted

BLOCKS = 10
"""Parts of the window whose mean backlogs are compared: requests that wait together are one observation."""

GROWTH_RATIO = 0.05
"""A backlog that grows by this share of the window's requests is no chance: so many were not served in it."""

GROWTH_REQUESTS = 3.0
SLOPE_P = 0.01
LATE_RATIO = 0.05
"""The client may be late by this share of the median time to first token."""

LATE_S = 0.001
COUNTERS = frozenset({"preemptions", "prompt_tokens", "generation_tokens"})
"""Columns of server.csv that only grow."""

BUSY_RATIO = 0.8
"""Share of a core from which the client, one process, has no room left."""


@dataclass(frozen=True)
class Slo:
    """Bounds of a study.

    Attributes:
        ttft_s: Longest time to first token, in seconds, or None.
        tpot_s: Longest time per output token, in seconds, or None.
        percentile: Share of requests that have to meet them.
    """

    ttft_s: float | None
    tpot_s: float | None
    percentile: float

    @property
    def limits_s(self) -> dict[str, float]:
        """The bounds that are set, in seconds."""
        return {name: s for name, s in (("ttft", self.ttft_s), ("tpot", self.tpot_s)) if s is not None}


def slo_of(config: Mapping[str, Any]) -> Slo | None:
    """The bounds of an experiment's configuration; None where it has none."""
    said = ((config.get("server") or {}).get("traffic") or {}).get("slo") or {}
    bounds = [None if said.get(key) is None else said[key] / 1e3 for key in ("ttft_ms", "tpot_ms")]
    return None if bounds == [None, None] else Slo(bounds[0], bounds[1], float(said.get("percentile", 0.99)))


@dataclass(frozen=True)
class Backlog:
    """Requests that were due and not yet done, through the window.

    Attributes:
        t_s: Instants, in seconds since the window's begin.
        requests: How many there were.
        slope_per_s: Least-squares slope of the means of ``BLOCKS`` parts, in requests a second.
        p: One-sided probability of such a slope where there is none; None where it cannot be told.
    """

    t_s: Floats
    requests: Floats
    slope_per_s: float
    p: float | None

    def saturated(self, window_s: float, due: int) -> bool:
        """Whether it grows through the window: then latencies are those of the window's length, not of the rate."""
        growth = self.slope_per_s * window_s
        return self.p is not None and self.p < SLOPE_P and growth >= max(GROWTH_RATIO * due, GROWTH_REQUESTS)


def backlog(due_ns: Floats, end_ns: Floats, window: Window) -> Backlog:
    """The backlog of a window.

    Args:
        due_ns: When each request was due, of ramp and window, in nanoseconds of the monotonic clock.
        end_ns: When each was over; NaN is not known.
        window: The measured window.
    """
    window_s = window.duration_s
    t_s = np.linspace(0.0, window_s, BLOCKS * 20, endpoint=False)
    at_ns = window.t_begin_mono_ns + t_s * 1e9
    begun = np.searchsorted(np.sort(due_ns), at_ns, side="right")
    ended = np.searchsorted(np.sort(end_ns[~np.isnan(end_ns)]), at_ns, side="right")
    requests = (begun - ended).astype(float)
    means = requests.reshape(BLOCKS, -1).mean(axis=1)
    if np.ptp(means) == 0:
        return Backlog(t_s, requests, 0.0, None)
    middle_s = t_s.reshape(BLOCKS, -1).mean(axis=1)
    fit = stats.linregress(middle_s, means, alternative="greater")
    return Backlog(t_s, requests, float(fit.slope), float(fit.pvalue))


def server_rows(text: str, window: Window) -> dict[str, Floats]:
    """The columns of server.csv within the window, a counter's from the last row before it on; NaN is not known.

    Args:
        text: The file.
        window: The measured window.
    """
    rows = list(csv.DictReader(io.StringIO(text)))
    found = {
        name: np.array([float(row[name]) if row.get(name) else np.nan for row in rows])
        for name in (rows[0] if rows else ())
    }
    if not rows:
        return {}
    inside = (found["t_mono_ns"] >= window.t_begin_mono_ns) & (found["t_mono_ns"] <= window.t_end_mono_ns)
    from_before = inside.copy()  # what a counter grew by in the window needs its value at the begin
    from_before[:-1] |= inside[1:] & ~inside[:-1]
    return {name: column[from_before if name in COUNTERS else inside] for name, column in found.items()}


@dataclass(frozen=True)
class Serving:
    """What only a server under load has.

    Attributes:
        measures: Metric name to value.
        flags: Reasons to doubt.
    """

    measures: dict[str, float | None]
    flags: tuple[Flag, ...]


def serving(
    table: Any, result: CycleResult, energy: EnergyOfWindow, config: Mapping[str, Any], server_csv: str
) -> Serving:
    """Metrics and flags of a server's cycle; nothing for a batch.

    Args:
        table: The requests of all phases.
        result: What the attempt observed.
        energy: Energy of the window.
        config: The experiment's configuration.
        server_csv: Text of server.csv.
    """
    served, window = result.served, result.window
    if served is None:
        return Serving({}, ())
    requests, every = Requests.of(table), Requests.of(table, phase=None)
    loaded = next((one.power_w for one in energy.baselines if one.name == "baseline_loaded"), None)
    measures = serving_measures(
        requests,
        served,
        window,
        slo=slo_of(config),
        energy_j=energy.energy_j,
        idle_w=loaded,
        server=server_rows(server_csv, window),
    )
    seen = backlog(every.submit_ns + every.origin_ns, every.end_ns + every.origin_ns, window)
    return Serving(measures, tuple(serving_flags(requests, served, window, seen)))


def serving_measures(
    requests: Requests,
    served: Served,
    window: Window,
    *,
    slo: Slo | None,
    energy_j: float | None,
    idle_w: float | None,
    server: Mapping[str, Floats],
) -> dict[str, float | None]:
    """The metrics that only a server under load has; None where one is not known.

    Formulas: offered rate = requests due in the window / its length (not of a closed loop: there the server sets the
    rate); failed = 1 - answered / due; goodput = good requests / length of the window; SLO attainment = good / due,
    met from the bounds' ``percentile`` on; energy per good request = energy of the window / good requests; idle share
    = power of the loaded idle server x length of the window / energy of the window.

    Args:
        requests: Those due in the window.
        served: What the attempt says.
        window: The measured window.
        slo: Bounds of the study.
        energy_j: Energy of the window, in joules.
        idle_w: Power of the loaded server without requests, in watts.
        server: Columns of server.csv in the window.
    """
    window_s = window.duration_s
    due = len(requests)
    good = None if slo is None else int(good_requests(requests, slo.limits_s).sum())
    return {
        "offered_requests_per_s": served.scheduled / window_s if served.users is None else None,
        "concurrency_users": None if served.users is None else float(served.users),
        "failed_ratio": float(requests.failed.mean()) if due else None,
        "goodput_requests_per_s": None
        if slo is None
        else goodput_requests_per_s(requests, window_s, slo.limits_s),
        "slo_attainment_ratio": None if good is None or not due else good / due,
        "slo_met_ratio": None
        if good is None or slo is None or not due
        else float(good / due >= slo.percentile),
        "energy_per_good_request_j": energy_j / good if energy_j is not None and good else None,
        "idle_power_w": idle_w,
        "idle_share_ratio": idle_w * window_s / energy_j if idle_w is not None and energy_j else None,
        "kv_cache_usage_mean_ratio": _known(server, "kv_cache_usage_ratio", np.nanmean),
        "kv_cache_usage_max_ratio": _known(server, "kv_cache_usage_ratio", np.nanmax),
        "queue_mean_requests": _known(server, "waiting", np.nanmean),
        "queue_max_requests": _known(server, "waiting", np.nanmax),
        "preemptions": _known(server, "preemptions", lambda values: np.nanmax(values) - np.nanmin(values), 2),
        "client_lateness_p99_s": None if served.lateness_p99_ms is None else served.lateness_p99_ms / 1e3,
    }


def _known(server: Mapping[str, Floats], name: str, of: Any, fewest: int = 1) -> float | None:
    """A number of a column; None below so many values: one value of a counter tells no growth."""
    values = server.get(name, np.array([]))
    return float(of(values)) if np.isfinite(values).sum() >= fewest else None


def serving_flags(requests: Requests, served: Served, window: Window, seen: Backlog) -> Sequence[Flag]:
    """Reasons to doubt that only a server under load has.

    Args:
        requests: Those due in the window.
        served: What the attempt says.
        window: The measured window.
        seen: The backlog.
    """
    window_s = window.duration_s
    found = []
    # Users who wait for their answers never ask for more than the server does: the backlog is their number.
    if served.users is None and seen.saturated(window_s, len(requests)):
        found.append(
            Flag(
                "saturated",
                f"The backlog grew by {counted(round(seen.slope_per_s * window_s), 'request')} through the window, of "
                f"{counted(len(requests), 'request')}: the server does not keep up with this rate, and its latencies "
                "are not those of a steady state.",
                "Lower server.traffic.rate.",
                f"a slope of the backlog above 0 with p < {SLOPE_P:g}, and {GROWTH_RATIO:.0%} of the requests",
                "warning",
            )
        )
    found += _client(requests, served)
    if failed := int(requests.failed.sum()):
        found.append(
            Flag(
                "requests_failed",
                f"{failed} of {counted(len(requests), 'request')} of the window failed. They count in rates, "
                "attainment and energy, and have no latency.",
                "See the columns status and error_text of requests.parquet, and server.log.",
                "none expected; server.max_failed_ratio fails the cycle",
                "warning",
            )
        )
    return found


def _client(requests: Requests, served: Served) -> list[Flag]:
    """Whether the client, and not the server, was slow."""
    found = []
    late_s = None if served.lateness_p99_ms is None else served.lateness_p99_ms / 1e3
    known = ttft_s(requests)
    known = known[~np.isnan(known)]
    typical_s = float(np.median(known)) if known.size else None
    if late_s is not None and late_s > max(LATE_S, LATE_RATIO * (typical_s or 0.0)):
        against = (
            "no first token"
            if typical_s is None
            else f"a median time to first token of {typical_s * 1e3:.1f} ms"
        )
        found.append(
            Flag(
                "client_late",
                f"The load client sent requests late (99th percentile {late_s * 1e3:.1f} ms, against {against}): "
                "latencies hold its delay.",
                "Give the attempt more cores, or lower the rate.",
                f"{LATE_RATIO:.0%} of the median time to first token",
                "warning",
            )
        )
    busy = 0.0 if served.client_cpu_s is None else served.client_cpu_s / max(served.client_wall_s, 1e-9)
    if busy > BUSY_RATIO:
        found.append(
            Flag(
                "client_busy",
                f"The load client used {busy:.0%} of a core: it may not keep up with this rate.",
                "Lower the rate.",
                f"{BUSY_RATIO:.0%} of a core",
                "warning",
            )
        )
    return found
