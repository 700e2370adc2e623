"""Metrics that a study may name: those of ``analysis.metrics`` for which less or more is better.

This room imports none of the others, so a study is checked without NumPy; a test holds the two lists together.
"""

from __future__ import annotations

METRIC_NAMES = (
    "energy_per_output_token_j",
    "energy_per_total_token_j",
    "energy_per_request_j",
    "output_tokens_per_j",
    "energy_delay_product_j_s",
    "output_tokens_per_s",
    "total_tokens_per_s",
    "requests_per_s",
    *(
        f"{latency}_{of_requests}_s"
        for latency in ("ttft", "tpot", "itl", "token_gap", "e2el")
        for of_requests in ("mean", "p50", "p95", "p99")
    ),
)
