"""The metrics of a cycle: name, unit, what is better, meaning. Tables, reports, comparisons use this list."""

from __future__ import annotations

import math
from dataclasses import dataclass

P95_FROM = 20
P99_FROM = 100
"""Smallest numbers of values that have a 95th (and 5th) and a 99th percentile: below them less than one value lies
beyond it, and the percentile only says what the largest value was."""


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
        ("p95", f"95th percentile (from {P95_FROM} values on)"),
        ("p99", f"99th percentile (from {P99_FROM} values on)"),
    )
    return tuple(
        Metric(f"{name}_{key}_s", f"{label} {key}", "s", "lower", f"{text} over requests of {definition}")
        for key, text in shares
    )


METRICS: tuple[Metric, ...] = (
    Metric(
        "energy_per_output_token_j",
        "Energy per output token",
        "J/token",
        "lower",
        "energy of the window / tokens generated in it",
        energy=True,
    ),
    Metric(
        "energy_per_total_token_j",
        "Energy per token",
        "J/token",
        "lower",
        "energy of the window / (prompt + generated tokens)",
        energy=True,
    ),
    Metric(
        "energy_per_request_j",
        "Energy per request",
        "J",
        "lower",
        "energy of the window / requests completed in it",
        energy=True,
    ),
    Metric(
        "output_tokens_per_j",
        "Output tokens per joule",
        "token/J",
        "higher",
        "tokens generated in the window / energy of the window",
        energy=True,
    ),
    Metric("energy_j", "Energy of the window", "J", "-", "total energy of the measured window", energy=True),
    Metric(
        "energy_active_j",
        "Active energy of the window",
        "J",
        "-",
        "energy of the window - baseline power x its length; the baseline is named beside it",
        energy=True,
        signed=True,
    ),
    Metric(
        "average_power_w", "Mean power", "W", "-", "energy of the window / length of the window", energy=True
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
        "generated tokens of the window / length of the window",
    ),
    Metric(
        "total_tokens_per_s",
        "Tokens per second",
        "token/s",
        "higher",
        "(prompt + generated tokens) / length of the window",
    ),
    Metric(
        "requests_per_s",
        "Requests per second",
        "1/s",
        "higher",
        "requests completed in the window / length of the window",
    ),
    *_latencies("ttft", "TTFT", "t1 - t0"),
    *_latencies("tpot", "TPOT", "(E2EL - TTFT) / (n - 1)"),
    *_latencies("itl", "ITL", "every gap between two chunks; tokens that came together are one chunk"),
    *_latencies("token_gap", "Token gap", "every gap between two tokens, 0 within a chunk"),
    *_latencies("e2el", "E2EL", "tn - t0"),
    Metric("window_s", "Measured window", "s", "-", "length of the measured window"),
    Metric("output_tokens", "Output tokens", "tokens", "-", "tokens generated in the window"),
    Metric("input_tokens", "Input tokens", "tokens", "-", "prompt tokens of the window"),
    Metric("requests", "Requests", "requests", "-", "requests completed in the window"),
    Metric("load_s", "Model load", "s", "-", "length of the phase load, outside the window"),
    Metric("warmup_s", "Warm-up", "s", "-", "length of the warm-up, outside the window"),
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
