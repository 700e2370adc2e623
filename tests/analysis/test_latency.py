"""Latencies of a recorded event stream, against values worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llem_airflow.analysis.latency import e2el_s, goodput_requests_per_s, itl_s, latency, tpot_s, ttft_s
from llem_airflow.analysis.requests import Requests
from llem_airflow.results.convert import REQUESTS_SCHEMA

# Submitted at 10.000 s; tokens at 10.250, 10.300, 10.400 and 10.550 s.
REQUEST = {
    "t_submit_mono_ns": 10_000_000_000,
    "t_first_mono_ns": 10_250_000_000,
    "t_last_mono_ns": 10_550_000_000,
    "token_mono_ns": [10_250_000_000, 10_300_000_000, 10_400_000_000, 10_550_000_000],
    "output_tokens": 4,
}
ONE_TOKEN = {
    "t_submit_mono_ns": 10_000_000_000,
    "t_first_mono_ns": 10_100_000_000,
    "t_last_mono_ns": 10_100_000_000,
    "token_mono_ns": [10_100_000_000],
    "output_tokens": 1,
}
SILENT = {
    "t_submit_mono_ns": 10_000_000_000,
    "t_first_mono_ns": None,
    "t_last_mono_ns": 11_000_000_000,
    "token_mono_ns": None,
    "output_tokens": 4,
}


def of(*rows: dict[str, Any]) -> Requests:
    measured = [{**row, "phase": "measure"} for row in rows]
    return Requests.of(pa.Table.from_pylist(measured, schema=REQUESTS_SCHEMA))


def test_ttft_is_the_first_token_after_submission() -> None:
    assert ttft_s(of(REQUEST)) == pytest.approx(0.250)


def test_e2el_is_the_last_token_after_submission() -> None:
    assert e2el_s(of(REQUEST)) == pytest.approx(0.550)


def test_tpot_leaves_out_the_first_token() -> None:
    assert tpot_s(of(REQUEST)) == pytest.approx((0.550 - 0.250) / 3)


def test_itl_is_every_gap() -> None:
    assert itl_s(of(REQUEST)) == pytest.approx([0.050, 0.100, 0.150])


def test_one_token_has_no_time_per_output_token_and_no_gap() -> None:
    assert np.isnan(tpot_s(of(ONE_TOKEN))).all()
    assert itl_s(of(REQUEST, ONE_TOKEN, {}, REQUEST)) == pytest.approx([0.050, 0.100, 0.150] * 2)
    assert len(itl_s(of(ONE_TOKEN))) == 0


def test_an_engine_that_gives_no_token_times_has_end_to_end_latency_only() -> None:
    seen = latency(of(SILENT))
    assert (seen.ttft, seen.tpot, seen.itl) == (None, None, None)
    assert seen.e2el is not None
    assert seen.e2el.mean_s == pytest.approx(1.0)


def test_distributions_count_requests_but_itl_counts_gaps() -> None:
    seen = latency(of(REQUEST, ONE_TOKEN, SILENT))
    assert seen.ttft is not None
    assert seen.itl is not None
    assert (seen.ttft.n, seen.itl.n) == (2, 3)
    assert seen.ttft.mean_s == pytest.approx(0.175)
    assert seen.ttft.p95_s == pytest.approx(0.100 + 0.95 * 0.150)
    assert seen.itl.p50_s == pytest.approx(0.100)


def test_goodput_counts_requests_that_meet_every_limit() -> None:
    limits_s = {"ttft": 0.2, "e2el": 2.0}
    assert goodput_requests_per_s(of(REQUEST, ONE_TOKEN, SILENT), 10.0, limits_s) == pytest.approx(0.1)
