"""The metrics of a cycle: name, unit, what is better, meaning; their formulas; carbon and cost.

Tables, reports and comparisons use this list. The standard library only: DAG files load this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

P90_FROM = 10
P95_FROM = 20
P99_FROM = 100
"""Smallest numbers of values that have a 90th, a 95th (and 5th) and a 99th percentile: below them less than one value
lies beyond it, and the percentile only says what the largest value was."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: Column name, ending in its unit.
        label: Name for people.
        unit: Unit for people.
        better: ``lower``, ``higher`` or ``-`` (a fact without a direction).
        meaning: Formula or definition.
        energy: Whether it derives from energy, and so is an estimate when the energy is one.
        signed: Whether it can be negative.
    """

    name: str
    label: str
    unit: str
    better: str
    meaning: str
    energy: bool = False
    signed: bool = False


def _latencies(name: str, label: str, definition: str) -> tuple[Metric, ...]:
    shares = (
        ("mean", "mean"),
        ("p50", "median"),
        ("p90", f"90th percentile (from {P90_FROM} values on)"),
        ("p95", f"95th percentile (from {P95_FROM} values on)"),
        ("p99", f"99th percentile (from {P99_FROM} values on)"),
    )
    return tuple(
        Metric(f"{name}_{key}_s", f"{label} {key}", "s", "lower", f"{text} over requests of {definition}")
        for key, text in shares
    )


_SERVED: tuple[Metric, ...] = (
    Metric(
        "energy_per_good_request_j",
        "Energy per good request",
        "J",
        "lower",
        "energy of the measurement window / requests due in it that met every bound of server.traffic.slo",
        energy=True,
    ),
    Metric(
        "offered_requests_per_s",
        "Offered rate",
        "1/s",
        "-",
        "requests due in the measurement window / length of the measurement window; none in a closed loop",
    ),
    Metric(
        "concurrency_users",
        "Users",
        "",
        "-",
        "users of a closed loop, each of whom asks again when it was answered; none in an open loop",
    ),
    Metric(
        "goodput_requests_per_s",
        "Goodput",
        "1/s",
        "higher",
        "requests due in the measurement window that met every bound of "
        "server.traffic.slo / length of the measurement window",
    ),
    Metric(
        "slo_attainment_ratio",
        "SLO attainment",
        "ratio",
        "higher",
        "requests due in the measurement window that met every bound of server.traffic.slo / all that were due in it",
    ),
    Metric(
        "slo_met_ratio",
        "SLO met",
        "ratio",
        "-",
        "1 in a cycle whose attainment is at least server.traffic.slo.percentile, else 0",
    ),
    Metric(
        "failed_ratio",
        "Failed requests",
        "ratio",
        "-",
        "1 - requests answered / requests due in the measurement window",
    ),
    Metric(
        "idle_power_w", "Idle server", "W", "-", "power of the loaded server without a request", energy=True
    ),
    Metric(
        "idle_share_ratio",
        "Idle share",
        "ratio",
        "-",
        "power of the loaded server without a request x length of the measurement window "
        "/ energy of the measurement window",
        energy=True,
    ),
    Metric(
        "kv_cache_usage_mean_ratio",
        "KV cache in use, mean",
        "",
        "-",
        "mean use of the key-value cache, by the server's metrics page once a second",
    ),
    Metric(
        "kv_cache_usage_max_ratio",
        "KV cache in use, most",
        "",
        "-",
        "largest use of the key-value cache, by the server's metrics page once a second",
    ),
    Metric(
        "queue_mean_requests",
        "Queue, mean",
        "requests",
        "-",
        "mean of the waiting requests, by the server's metrics page",
    ),
    Metric(
        "queue_max_requests",
        "Queue, longest",
        "requests",
        "-",
        "most waiting requests, by the server's metrics page",
    ),
    Metric(
        "preemptions",
        "Preemptions",
        "requests",
        "-",
        "requests preempted in the measurement window, by the server's metrics page",
    ),
    Metric(
        "client_lateness_p99_s",
        "Client lateness p99",
        "s",
        "-",
        "99th percentile of how late the load client turned to a request; latencies hold it",
    ),
)
"""Of a server under load alone."""

METRICS: tuple[Metric, ...] = (
    Metric(
        "energy_per_output_token_j",
        "Energy per output token",
        "J/token",
        "lower",
        "energy of the measurement window / tokens generated in it",
        energy=True,
    ),
    Metric(
        "energy_per_total_token_j",
        "Energy per token",
        "J/token",
        "lower",
        "energy of the measurement window / (prompt + generated tokens)",
        energy=True,
    ),
    Metric(
        "energy_per_request_j",
        "Energy per request",
        "J",
        "lower",
        "energy of the measurement window / requests completed in it",
        energy=True,
    ),
    Metric(
        "output_tokens_per_j",
        "Output tokens per joule",
        "token/J",
        "higher",
        "tokens generated in the measurement window / energy of the measurement window",
        energy=True,
    ),
    Metric(
        "energy_j",
        "Energy of the measurement window",
        "J",
        "-",
        "total energy of the measurement window",
        energy=True,
    ),
    Metric(
        "energy_active_j",
        "Active energy",
        "J",
        "-",
        "energy of the measurement window - idle power x its length; which idle power is told by active_over",
        energy=True,
        signed=True,
    ),
    Metric(
        "average_power_w",
        "Mean power",
        "W",
        "-",
        "energy of the measurement window / length of the measurement window",
        energy=True,
    ),
    Metric(
        "energy_delay_product_j_s",
        "Energy-delay product",
        "J s",
        "lower",
        "energy per request x mean end-to-end latency",
        energy=True,
    ),
    Metric(
        "output_tokens_per_s",
        "Output tokens per second",
        "token/s",
        "higher",
        "generated tokens of the measurement window / length of the measurement window",
    ),
    Metric(
        "total_tokens_per_s",
        "Tokens per second",
        "token/s",
        "higher",
        "(prompt + generated tokens) / length of the measurement window",
    ),
    Metric(
        "requests_per_s",
        "Requests per second",
        "1/s",
        "higher",
        "requests completed in the measurement window / length of the measurement window",
    ),
    *_latencies("ttft", "TTFT", "t1 - t0"),
    *_latencies("tpot", "TPOT", "(E2EL - TTFT) / (n - 1)"),
    *_latencies("itl", "ITL", "every gap between two chunks; tokens that came together are one chunk"),
    *_latencies("token_gap", "Token gap", "every gap between two tokens, 0 within a chunk"),
    *_latencies("e2el", "E2EL", "tn - t0"),
    Metric("window_s", "Measurement window", "s", "-", "length of the measurement window"),
    Metric("output_tokens", "Output tokens", "tokens", "-", "tokens generated in the measurement window"),
    Metric("input_tokens", "Input tokens", "tokens", "-", "prompt tokens of the measurement window"),
    Metric("requests", "Requests", "requests", "-", "requests completed in the measurement window"),
    Metric("load_s", "Model load", "s", "-", "length of the phase load, outside the measurement window"),
    Metric("warmup_s", "Warm-up", "s", "-", "length of the warm-up, outside the measurement window"),
    *_SERVED,
)
"""Every metric, the headline first."""

BY_NAME = {metric.name: metric for metric in METRICS}

HEADLINE = (
    "energy_per_output_token_j",
    "output_tokens_per_s",
    "ttft_mean_s",
    "tpot_mean_s",
    "itl_mean_s",
    "e2el_mean_s",
    "average_power_w",
)
"""Columns of the first table of a report."""


def deciding_metric(name: str) -> str:
    """The name of a metric that can decide a comparison: one of which less or more is better.

    Raises:
        ValueError: It is none; the text lists those that there are.
    """
    known = [metric.name for metric in METRICS if metric.better != "-"]
    if name not in known:
        raise ValueError(f"metric {name!r} cannot decide a comparison; choose one of: {', '.join(known)}")
    return name


def positive_threshold(ratio: object) -> float:
    """The smallest relative difference that matters.

    Raises:
        ValueError: It is not a finite number above 0.
    """
    if not isinstance(ratio, int | float) or not 0 < ratio < math.inf:
        raise ValueError(f"threshold {ratio!r}: a number above 0; 0.02 is 2 %")
    return ratio


def output_tokens_per_s(output_tokens: int, window_s: float) -> float | None:
    """Output token throughput, in tokens per second; None for a window without a length.

    Formula: generated tokens of the window / length of the window. Prompt tokens do not count.
    """
    return _over(output_tokens, window_s)


def total_tokens_per_s(input_tokens: int, output_tokens: int, window_s: float) -> float | None:
    """Prompt and generated tokens per second; None for a window without a length.

    Formula: (input tokens + output tokens) / length of the window.
    """
    return _over(input_tokens + output_tokens, window_s)


def requests_per_s(requests: int, window_s: float) -> float | None:
    """Request throughput, in requests per second; None for a window without a length.

    Formula: requests completed in the window / length of the window.
    """
    return _over(requests, window_s)


def energy_per_output_token_j(energy_j: float, output_tokens: int) -> float | None:
    """Energy per output token, in joules per token; None where the window produced none.

    Formula: energy of the window / tokens generated in it.
    """
    return _over(energy_j, output_tokens)


def energy_per_total_token_j(energy_j: float, input_tokens: int, output_tokens: int) -> float | None:
    """Energy per token of prompt or answer, in joules per token; None where the window saw none.

    Formula: energy of the window / (input tokens + output tokens).
    """
    return _over(energy_j, input_tokens + output_tokens)


def energy_per_request_j(energy_j: float, requests: int) -> float | None:
    """Energy per request, in joules; None where the window completed none.

    Formula: energy of the window / requests completed in it.
    """
    return _over(energy_j, requests)


def output_tokens_per_j(energy_j: float, output_tokens: int) -> float | None:
    """Output tokens per joule; None where the energy is not positive.

    Formula: tokens generated in the window / energy of the window.
    """
    return _over(output_tokens, energy_j)


def energy_delay_product_j_s(energy_per_request: float, e2el_s: float) -> float:
    """Energy-delay product, in joule seconds: lower is better in energy and in latency together.

    Formula: energy per request, in joules, x mean end-to-end latency, in seconds.
    """
    return energy_per_request * e2el_s


def co2e_g(energy_j: float, intensity_g_per_kwh: float) -> float:
    """Greenhouse gas of an energy, in grams of CO2 equivalent: an estimate.

    Formula: energy in kWh x stated carbon intensity of the electricity, in g per kWh.
    """
    return energy_j / 3.6e6 * intensity_g_per_kwh


def cost(energy_j: float, price_per_kwh: float) -> float:
    """Cost of an energy in the currency of the price: an estimate.

    Formula: energy in kWh x stated price per kWh.
    """
    return energy_j / 3.6e6 * price_per_kwh


def _over(value: float, by: float) -> float | None:
    """The quotient; None, and not 0, where there is nothing to divide by."""
    return value / by if by > 0 else None


TOKENS = 1_000_000
"""Output tokens that a derived number is about."""


@dataclass(frozen=True, slots=True)
class Derived:
    """A number that follows from energy and a rate of the study. Every one is an estimate.

    Attributes:
        name: ``co2e_g_per_million_output_tokens`` or ``cost_per_million_output_tokens``.
        label: Name for people.
        unit: ``g CO2e`` or the currency.
        mean: Of the mean energy per output token.
        low: Of the lower end of its 95 % t interval; the uncertainty of the rate is not in it. None below 3
            cycles.
        high: Of its upper end.
        basis: The rate, with source and year.
    """

    name: str
    label: str
    unit: str
    mean: float
    low: float | None
    high: float | None
    basis: str


class _Ends(Protocol):
    """An interval: ``statistics.Interval``, which this module cannot import (it needs SciPy)."""

    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


class _Described(Protocol):
    """A mean over cycles with its interval: ``statistics.Description``."""

    @property
    def mean(self) -> float: ...
    @property
    def shown_interval(self) -> _Ends | None: ...


def derived(rates: Mapping[str, Any], energy_per_output_token_j: _Described | None) -> tuple[Derived, ...]:
    """CO2e and cost of a million output tokens.

    Args:
        rates: ``stated`` of plan.json: ``carbon`` with g_per_kwh, ``price`` with per_kwh and currency, both with
            source and year.
        energy_per_output_token_j: Over the cycles of one experiment.
    """
    energy = energy_per_output_token_j
    if energy is None:
        return ()
    shown = energy.shown_interval
    ends = (energy.mean, *((shown.low, shown.high) if shown else (None, None)))
    found = []
    if carbon := rates.get("carbon"):
        values = [None if e is None else co2e_g(e * TOKENS, float(carbon["g_per_kwh"])) for e in ends]
        name, label = "co2e_g_per_million_output_tokens", "CO2e per million output tokens"
        found.append(_derived(name, label, "g CO2e", values, basis_of("carbon", carbon)))
    if price := rates.get("price"):
        values = [None if e is None else cost(e * TOKENS, float(price["per_kwh"])) for e in ends]
        name, label = "cost_per_million_output_tokens", "Electricity per million output tokens"
        found.append(_derived(name, label, str(price["currency"]), values, basis_of("price", price)))
    return tuple(found)


def basis_of(kind: str, rate: Mapping[str, Any]) -> str:
    """The rate, with source and year."""
    source = f"{rate['source']}, {rate['year']}"
    if kind == "carbon":
        return f"{rate['g_per_kwh']:g} g CO2e/kWh ({source})"
    return f"{rate['per_kwh']:g} {rate['currency']}/kWh ({source})"


def _derived(name: str, label: str, unit: str, values: list[float | None], basis: str) -> Derived:
    mean, low, high = values
    return Derived(name, label, unit, mean or 0.0, low, high, basis)
