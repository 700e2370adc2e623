"""Requests that got no token, and streams that were not stored as the result says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.integrity import check_run
from llem_airflow.analysis.tables import cycle_rows
from llem_airflow.report.page import report_html
from llem_airflow.results import ResultsRoot, StoredRun
from tests.results.recorded import Recording, experiment_id, plan_json, provenance

HASH = Recording().hash
NAME = experiment_id(1, HASH)


def stored(tmp_path: Path, change: Callable[[Path], None]) -> StoredRun:
    run = ResultsRoot(tmp_path / "results").run("nightly", "manual__1")
    run.write_plan("model: tiny\n", plan_json([(NAME, HASH, {})], cycles=1), {})
    folder = Recording().write(tmp_path / "out")
    change(folder)
    run.commit_cycle(NAME, 1, folder, provenance())
    aggregate_run(run, page=report_html)
    return run


def empty(n: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        rows = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
        nothing = {"output_tokens": 0, "t_first_mono_ns": None, "t_last_mono_ns": None}
        for row in rows[:n]:
            row.update(nothing, token_mono_ns=[], output_token_ids=[])
        (folder / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        result = json.loads((folder / f"{HASH}_result.json").read_text())
        result["window"]["output_tokens"] = sum(row["output_tokens"] for row in rows)
        (folder / f"{HASH}_result.json").write_text(json.dumps(result))

    return change


@pytest.mark.parametrize("n", [1, 20])
def test_empty_answers_count_as_requests_and_have_no_latency(tmp_path: Path, n: int) -> None:
    run = stored(tmp_path, empty(n))
    (row,) = cycle_rows(run)
    assert (row["status"], row["requests"], row["output_tokens"]) == ("valid", 20, 11 * (20 - n))
    assert "empty_answers" in row["flags"]
    assert "requests_disagree" not in row["flags"]
    assert row["energy_per_request_j"] == pytest.approx(8000 / 20)
    if n == 20:
        assert (row["energy_per_output_token_j"], row["ttft_mean_s"], row["e2el_mean_s"]) == (
            None,
            None,
            None,
        )
    else:
        assert row["ttft_mean_s"] == pytest.approx(0.5)
    assert check_run(run) == []


def test_the_check_says_when_requests_were_not_stored(tmp_path: Path) -> None:
    """Token ids that are lists, as they once came of a step with several tokens."""

    def change(folder: Path) -> None:
        rows = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
        rows[3]["output_token_ids"] = [[1, 2], [3]]
        (folder / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    run = stored(tmp_path, change)
    said = [problem.what for problem in check_run(run)]
    assert any("requests.jsonl: kept as it is" in what for what in said)
    assert any("requests.parquet" in what for what in said)


def test_the_check_says_when_requests_and_result_disagree(tmp_path: Path) -> None:
    def change(folder: Path) -> None:
        lines = (folder / "requests.jsonl").read_text().splitlines(keepends=True)
        (folder / "requests.jsonl").write_text("".join(lines[:-2]))

    said = [problem.what for problem in check_run(stored(tmp_path, change))]
    assert any("has 18 requests" in what for what in said)
