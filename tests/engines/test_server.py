"""vLLM's own server, through Airflow: Poisson arrivals at a rate, more than it can serve, another rate, and users."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import docker
import pyarrow.parquet as pq
import pytest

from llem_airflow.frames import cycles_df
from llem_airflow.measurement.load.arrivals import arrival_times
from llem_airflow.protocol.result import CycleResult
from tests.engines.command import run_study

pytestmark = [pytest.mark.docker, pytest.mark.engine, pytest.mark.airflow, pytest.mark.timeout(900)]

RATES = (1, 4)
FLOOD, USERS = 64, 2
TOKENS = 16
RAMP_S, WINDOW_S = 2, 6
STUDY = f"""\
study_name: served
serving_mode: server
engine: vllm
task:
  model: tiny-llama-random
  max_input_tokens: 32
  max_output_tokens: {TOKENS}
  dataset: {{source: builtin, n_prompts: 20}}
measurement: {{meter: cpu-estimate, baseline: {{enabled: false}}}}
server:
  traffic:
    window_seconds: {WINDOW_S}
    ramp_exclusion_seconds: {RAMP_S}
    slo: {{ttft_ms: 2000, tpot_ms: 500, percentile: 0.9}}
  warmup: {{mode: fixed, duration_seconds: 2}}
sweep:
  load:
    - {{server.traffic.rate: {RATES[0]}, server.traffic.seed: 5}}
    - server.traffic.rate: {FLOOD}
      server.traffic.request_timeout_seconds: 6
      server.max_failed_ratio: 1
      task.max_output_tokens: 200
    - {{server.traffic.rate: {RATES[1]}, server.traffic.seed: 5}}
    - server.traffic.concurrency: {USERS}
      task.dataset: {{source: "synthetic:24x{TOKENS}", n_prompts: 20, range_ratio: 0.25, prefix_tokens: 8}}
vllm: {{engine_params: {{enforce_eager: true, max_model_len: 256, max_num_seqs: 4, enable_prefix_caching: true}}}}
study_execution: {{n_cycles: 1, isolation: engine}}
runners: {{vllm: container}}
airflow: {{retries: 0}}
"""
"""12,800 tokens/s, four sequences at a time, are beyond any CPU."""


@pytest.fixture(scope="module")
def run(
    docker_api: docker.APIClient,
    vllm_image: str,
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder of the run's results."""
    home = tmp_path_factory.mktemp("served")
    return run_study(home, STUDY, tiny_model.parent, {"vllm": vllm_image})


@pytest.fixture(scope="module")
def cycles(run: Path) -> dict[int | None, Path]:
    """The stored cycle of each rate, and of the users."""
    found = {}
    for path in run.glob("experiments/*/cycle-1"):
        found[traffic(path).get("rate")] = path
    assert set(found) == {*RATES, FLOOD, None}
    return found


def traffic(cycle: Path) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((cycle / "config.json").read_text())["config"]["server"]["traffic"]
    return said


def result(cycle: Path) -> CycleResult:
    return CycleResult.loads((cycle / "result.json").read_text())


def requests(cycle: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(cycle / "requests.parquet").to_pylist()
    return rows


def server_rows(cycle: Path) -> list[dict[str, str]]:
    with (cycle / "server.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("rate", RATES)
def test_every_request_was_due_as_the_schedule_said_and_was_answered_in_full(
    cycles: dict[int | None, Path], rate: int
) -> None:
    rows = [row for row in requests(cycles[rate]) if row["phase"] != "warmup"]
    drawn = arrival_times("poisson", rate_per_s=rate, duration_s=RAMP_S + WINDOW_S + 1, seed=5)
    plan = json.loads((cycles[rate] / "load.json").read_text())
    assert plan["due_s"] == drawn
    due_ns = sorted(row["t_due_mono_ns"] for row in rows)
    assert due_ns == [plan["start_mono_ns"] + round(at_s * 1e9) for at_s in drawn]
    assert {(row["status"], row["output_tokens"], len(row["token_mono_ns"])) for row in rows} == {
        ("ok", TOKENS, TOKENS)
    }


@pytest.mark.parametrize("rate", RATES)
def test_token_counts_are_the_server_s_own(cycles: dict[int | None, Path], rate: int) -> None:
    rows = requests(cycles[rate])
    answered = [row for row in rows if row["phase"] != "warmup"]
    first, last = server_rows(cycles[rate])[0], server_rows(cycles[rate])[-1]
    generated = int(last["generation_tokens"]) - int(first["generation_tokens"])
    prompts = int(last["prompt_tokens"]) - int(first["prompt_tokens"])
    # What the warm-up left unanswered was aborted: the server may have counted some of its tokens.
    cut = [row for row in rows if row["status"] == "cut"]
    warm = [row for row in rows if row["phase"] == "warmup" and row["status"] == "ok"]
    known = sum(row["output_tokens"] for row in (*answered, *warm))
    assert known <= generated <= known + TOKENS * len(cut)
    asked = sum(row["input_tokens"] for row in (*answered, *warm))
    assert asked <= prompts <= asked + 32 * len(cut)


@pytest.mark.parametrize("rate", RATES)
def test_the_window_s_numbers_are_those_of_its_rows(cycles: dict[int | None, Path], rate: int) -> None:
    found, rows = result(cycles[rate]), requests(cycles[rate])
    window = found.window
    begin_ns, end_ns = window.t_begin_mono_ns, window.t_end_mono_ns
    due = [row for row in rows if begin_ns <= row["t_due_mono_ns"] < end_ns]
    assert [row["phase"] for row in due] == ["measure"] * len(due)
    assert found.served is not None
    assert (window.requests, found.served.scheduled) == (len(due), len(due))
    came = [t for row in rows if row["phase"] != "warmup" for t in row["token_mono_ns"]]
    assert window.output_tokens == sum(begin_ns <= t < end_ns for t in came)
    assert found.engine_version.startswith("0.32.0")


def test_the_summary_has_rates_goodput_and_energy_of_each(run: Path, cycles: dict[int | None, Path]) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["planned"], summary["valid"], summary["missing"]) == (4, 4, [])
    ids = {cycles[rate].parent.name for rate in RATES}
    at_rates = [experiment for experiment in summary["experiments"] if experiment["id"] in ids]
    assert len(at_rates) == len(RATES)
    for experiment in at_rates:
        found = {each["name"]: each["all"]["mean"] for each in experiment["metrics"]}
        assert found["failed_ratio"] == 0
        assert found["offered_requests_per_s"] == pytest.approx(found["requests_per_s"])
        assert 0 < found["slo_attainment_ratio"] <= 1
        assert found["energy_per_good_request_j"] > 0
        assert 0 < found["ttft_p50_s"] < found["e2el_p50_s"]


def test_one_server_lives_on_over_all_loads_and_forgets_what_it_has_cached(
    cycles: dict[int | None, Path],
) -> None:
    places = {
        json.loads((path / "provenance.json").read_text())["position_in_session"]: path
        for path in cycles.values()
    }
    assert [traffic(path).get("rate") for _, path in sorted(places.items())] == [
        RATES[0],
        FLOOD,
        RATES[1],
        None,
    ]
    loads = [
        any(
            json.loads(line).get("phase") == "load"
            for line in (path / "events.jsonl").read_text().splitlines()
        )
        for _, path in sorted(places.items())
    ]
    assert loads == [True, False, False, False]
    emptied = [
        "its prefix cache emptied" in (path / "container.log").read_text()
        for _, path in sorted(places.items())
    ]
    assert emptied == [False, True, True, True]
    assert {json.loads((path / "session.json").read_text())["start_kind"] for path in cycles.values()} == {
        "warm"
    }


def test_the_command_passes_the_study_s_parameters_through(cycles: dict[int | None, Path]) -> None:
    for path in cycles.values():
        served = result(path).served
        assert served is not None
        command = served.command
        assert command[command.index("--max-num-seqs") + 1] == "4"
        assert "--enforce-eager" in command
    logs = [(path / "server.log").read_text() for path in cycles.values()]
    assert any(logs), "what the server printed as it started"


def test_no_more_requests_are_under_way_than_there_are_users(cycles: dict[int | None, Path]) -> None:
    assert result(cycles[None]).window.requests > 0
    edges = sorted(
        edge
        for row in requests(cycles[None])
        for edge in ((row["t_submit_mono_ns"], 1), (row["t_end_mono_ns"], -1))
        if edge[0]
    )
    under_way = most = 0
    for _, step in edges:
        under_way += step
        most = max(most, under_way)
    assert most == USERS


def test_prompts_and_answers_have_lengths_of_their_own(cycles: dict[int | None, Path]) -> None:
    answered = [row for row in requests(cycles[None]) if row["status"] == "ok"]
    outputs = {row["output_tokens"] for row in answered}
    assert len(outputs) > 1
    assert outputs <= set(range(TOKENS * 3 // 4, TOKENS * 5 // 4 + 1))
    assert {row["input_tokens"] for row in answered} <= set(range(18 + 8, 30 + 8 + 1))


def test_a_rate_that_is_too_high_is_measured_and_misses_the_slo(
    run: Path, cycles: dict[int | None, Path]
) -> None:
    (row,) = (
        row
        for row in cycles_df(str(run)).to_dict("records")
        if row["experiment"] == cycles[FLOOD].parent.name
    )
    assert row["status"] == "valid"
    assert row["slo_met_ratio"] == 0
    assert "saturated" in list(row["flags"])
