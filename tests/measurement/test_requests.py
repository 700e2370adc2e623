from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llem_airflow.measurement.engines.contract import Completion, Prompt
from llem_airflow.measurement.output import RequestLog
from llem_airflow.protocol.files import REQUEST_FIELDS

BATCH = (Prompt(0, (5, 6, 7), 2), Prompt(1, (5,), 2))
DONE = (
    Completion(1, (8, 9), 1_000, (1_500, 3_000), "length"),
    Completion(0, (4, 4), 1_000, (2_000, 2_500), "length"),
)


def test_a_row_has_the_fields_of_the_protocol_and_one_time_per_token(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "requests.jsonl")
    log.write("measure", 3, BATCH, DONE)
    rows = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [set(REQUEST_FIELDS)] * 2
    assert [row["request_id"] for row in rows] == ["measure-0", "measure-1"]
    assert [(row["phase"], row["iteration"]) for row in rows] == [("measure", 3)] * 2
    first = rows[0]
    assert first["prompt_index"] == 1
    assert (first["input_tokens"], first["output_tokens"], first["batch_size"]) == (1, 2, 2)
    assert (first["t_first_mono_ns"], first["t_last_mono_ns"]) == (1_500, 3_000)
    assert first["token_mono_ns"] == [1_500, 3_000]
    log.close()


def test_totals_of_a_batch_span_from_first_hand_over_to_last_token(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "requests.jsonl")
    totals = log.write("measure", 0, BATCH, DONE)
    assert (totals.requests, totals.input_tokens, totals.output_tokens) == (2, 4, 4)
    assert totals.duration_s == 2e-6
    assert replace(totals, t_last_mono_ns=3 * 10**9 + 1_000).duration_s == 3.0
    assert (totals.t_first_mono_ns, totals.t_prefill_end_mono_ns) == (1_500, 2_000)
    log.close()


def test_a_lost_request_is_an_error_and_not_a_smaller_number(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "requests.jsonl")
    with pytest.raises(RuntimeError, match="answered 1 of 2 prompts"):
        log.write("measure", 0, BATCH, DONE[:1])
    log.close()


def test_a_token_without_a_time_is_an_error(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "requests.jsonl")
    with pytest.raises(RuntimeError, match="2 tokens but 1 times"):
        log.write("measure", 0, BATCH[:1], [Completion(0, (4, 4), 1, (2,), "length")])
    log.close()


def test_an_empty_answer_is_a_request_without_tokens(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "requests.jsonl")
    empty = Completion(0, (), 1_000, (), "stop")
    totals = log.write("measure", 0, BATCH, (empty, DONE[0]))
    assert (totals.requests, totals.output_tokens) == (2, 2)
    assert (totals.t_first_mono_ns, totals.t_prefill_end_mono_ns, totals.t_last_mono_ns) == (
        1_500,
        1_500,
        3_000,
    )
    row = json.loads((tmp_path / "requests.jsonl").read_text().splitlines()[0])
    assert (row["output_tokens"], row["token_mono_ns"]) == (0, [])
    assert (row["t_first_mono_ns"], row["t_last_mono_ns"]) == (None, None)
    log.close()


def test_a_batch_of_empty_answers_lasts_until_it_returned(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "requests.jsonl")
    begun_ns = time.monotonic_ns()
    totals = log.write("measure", 0, BATCH[:1], [Completion(0, (), begun_ns, (), "stop")])
    assert totals.t_first_mono_ns is None
    assert totals.duration_s > 0
    log.close()


def test_the_first_and_the_last_of_many_tokens_are_its_ends(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "requests.jsonl")
    totals = log.write("warmup", 1, BATCH[:1], [Completion(0, (7, 8, 9), 10, (20, 30, 40), "stop")])
    log.close()
    row = json.loads((tmp_path / "requests.jsonl").read_text())
    assert (row["t_submit_mono_ns"], row["t_first_mono_ns"], row["t_last_mono_ns"]) == (10, 20, 40)
    assert (totals.t_submit_mono_ns, totals.t_first_mono_ns, totals.t_last_mono_ns) == (10, 20, 40)
    assert (row["output_token_ids"], row["finish_reason"]) == ([7, 8, 9], "stop")
