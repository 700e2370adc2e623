"""Latencies of a recorded event stream, against values worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llem_airflow.analysis.latency import (
    Latency,
    Requests,
    distribution,
    e2el_s,
    goodput_requests_per_s,
    itl_s,
    latency,
    token_gap_s,
    tpot_s,
    ttft_s,
)
from llem_airflow.results.parquet import REQUESTS_SCHEMA

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
    assert seen.itl.p50_s == pytest.approx(0.100)


def test_percentiles_are_told_from_twenty_and_from_a_hundred_values_on() -> None:
    for n, told in ((19, (False, False)), (20, (True, False)), (99, (True, False)), (100, (True, True))):
        found = distribution(np.arange(n, dtype=float))
        assert found is not None
        assert (found.p95_s is not None, found.p99_s is not None) == told
    nine, ten = (distribution(np.arange(n, dtype=float)) for n in (9, 11))
    assert nine is not None
    assert ten is not None
    assert (nine.p90_s, ten.p90_s) == (None, 9.0)
    hundred = distribution(np.arange(101, dtype=float))
    assert hundred is not None
    assert (hundred.p95_s, hundred.p99_s) == (95.0, 99.0)


# Submitted at 0; three chunks of 2, 3 and 1 tokens at 1.0, 1.6 and 2.0 s.
CHUNKS = {
    "t_submit_mono_ns": 0,
    "t_first_mono_ns": 1_000_000_000,
    "t_last_mono_ns": 2_000_000_000,
    "token_mono_ns": [1_000_000_000] * 2 + [1_600_000_000] * 3 + [2_000_000_000],
    "output_tokens": 6,
}


def test_tokens_of_one_chunk_are_one_gap_of_itl_and_several_gaps_between_tokens() -> None:
    assert itl_s(of(CHUNKS)) == pytest.approx([0.6, 0.4])
    assert token_gap_s(of(CHUNKS)) == pytest.approx([0.0, 0.6, 0.0, 0.0, 0.4])
    seen = latency(of(CHUNKS))
    assert seen.itl is not None
    assert seen.token_gap is not None
    assert (seen.itl.p50_s, seen.token_gap.p50_s) == pytest.approx((0.5, 0.0))
    assert tpot_s(of(CHUNKS)) == pytest.approx(1.0 / 5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"t_submit_mono_ns": 11_000_000_000},
        {"t_first_mono_ns": 9_000_000_000, "token_mono_ns": None},
        {"t_last_mono_ns": 10_200_000_000, "token_mono_ns": None},
        {"token_mono_ns": [10_250_000_000, 10_400_000_000, 10_300_000_000, 10_550_000_000]},
        {"token_mono_ns": [9_000_000_000, 10_300_000_000, 10_400_000_000, 10_550_000_000]},
        {"token_mono_ns": [10_250_000_000, 10_300_000_000, 10_400_000_000, 12_000_000_000]},
    ],
)
def test_a_request_whose_times_run_backwards_has_no_latency_and_is_counted(wrong: dict[str, Any]) -> None:
    alone, beside = of({**REQUEST, **wrong}), of(ONE_TOKEN, {**REQUEST, **wrong}, REQUEST)
    assert alone.disordered == beside.disordered == 1
    assert latency(alone) == Latency(None, None, None, None, None)
    seen = latency(beside)
    assert seen == latency(of(ONE_TOKEN, REQUEST))
    assert beside.tokens == 9


def test_requests_in_order_are_none_that_run_backwards() -> None:
    assert of(REQUEST, ONE_TOKEN, SILENT, CHUNKS, EMPTY).disordered == 0


# An answer whose first token was the end of the text.
EMPTY: dict[str, Any] = {
    "t_submit_mono_ns": 10_000_000_000,
    "t_first_mono_ns": None,
    "t_last_mono_ns": 10_200_000_000,
    "token_mono_ns": [],
    "output_tokens": 0,
}


def test_an_empty_answer_is_a_request_without_a_first_token_and_never_a_good_one() -> None:
    requests = of(REQUEST, EMPTY, EMPTY)
    assert (len(requests), requests.tokens) == (3, 4)
    seen = latency(requests)
    assert seen.ttft is not None
    assert seen.e2el is not None
    assert (seen.ttft.n, seen.e2el.n) == (1, 3)
    for limits_s in ({}, {"e2el": 9.0}, {"tpot": 9.0}, {"ttft": 9.0}):
        assert goodput_requests_per_s(requests, 1.0, limits_s) == 1.0


def test_only_empty_answers_have_no_latency_but_their_end() -> None:
    seen = latency(of(EMPTY))
    assert (seen.ttft, seen.tpot, seen.itl, seen.token_gap) == (None,) * 4
    assert seen.e2el is not None


def test_an_answer_of_one_token_meets_a_limit_of_tpot_as_in_vllm() -> None:
    # https://github.com/vllm-project/vllm, benchmarks/serve.py: "if output_len <= 1, we regard tpot as 0 for goodput"
    assert goodput_requests_per_s(of(ONE_TOKEN), 1.0, {"tpot": 1e-9}) == 1.0
    assert goodput_requests_per_s(of(REQUEST), 1.0, {"tpot": 0.05}) == 0.0
    assert goodput_requests_per_s(of({**SILENT, "output_tokens": 4}), 1.0, {"tpot": 9.0}) == 0.0


def test_goodput_counts_requests_that_meet_every_limit() -> None:
    limits_s = {"ttft": 0.2, "e2el": 2.0}
    assert goodput_requests_per_s(of(REQUEST, ONE_TOKEN, SILENT), 10.0, limits_s) == pytest.approx(0.1)
