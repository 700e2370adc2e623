"""vLLM's own server in a container, through Airflow: users in a closed loop, and the highest rate that meets an SLO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import docker
import pyarrow.parquet as pq
import pytest

from llem_airflow.frames import cycles_df
from llem_airflow.protocol.result import CycleResult
from tests.engines.command import run_study

pytestmark = [pytest.mark.docker, pytest.mark.engine, pytest.mark.airflow, pytest.mark.timeout(900)]

USERS, LOWEST, BETWEEN, HIGHEST = 2, 1, 8, 64
TOKENS = 48
STUDY = f"""\
study_name: searched
serving_mode: server
engine: vllm
task:
  model: tiny-llama-random
  max_input_tokens: 32
  max_output_tokens: {TOKENS}
  dataset: {{source: "synthetic:24x{TOKENS}", n_prompts: 20, range_ratio: 0.25, prefix_tokens: 8}}
measurement: {{meter: cpu-estimate, baseline: {{enabled: false}}}}
server:
  traffic: {{window_seconds: 4, ramp_exclusion_seconds: 1, request_timeout_seconds: 6}}
  warmup: {{mode: fixed, duration_seconds: 1}}
sweep:
  load:
    - {{server.traffic.concurrency: {USERS}}}
    - server.traffic.find_rate:
        from: {LOWEST}
        to: {HIGHEST}
        max_probes: 3
        tolerance: 1
        slo: {{ttft_ms: 3000, tpot_ms: 500, percentile: 0.9}}
vllm: {{engine_params: {{enforce_eager: true, max_model_len: 256, max_num_seqs: 1, enable_prefix_caching: true}}}}
study_execution: {{n_cycles: 1}}
runners: {{vllm: container}}
airflow: {{retries: 0}}
"""
"""One sequence at a time: 3,000 tokens/s one after the other are beyond any CPU, 48 a second are within."""


@pytest.fixture(scope="module")
def run(
    docker_api: docker.APIClient, vllm_image: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of the run's results."""
    home = tmp_path_factory.mktemp("searched")
    return run_study(home, STUDY, tiny_model.parent, {"vllm": vllm_image})


def cycle(run: Path, name: str) -> tuple[CycleResult, list[dict[str, Any]]]:
    """What the cycle of an experiment observed, and its requests."""
    (folder,) = run.glob(f"experiments/vllm-{name}-*/cycle-1")
    return CycleResult.loads((folder / "result.json").read_text()), pq.read_table(
        folder / "requests.parquet"
    ).to_pylist()


def test_no_more_requests_are_under_way_than_there_are_users(run: Path) -> None:
    result, rows = cycle(run, f"concurrency-{USERS}")
    assert result.window.requests > 0
    edges = sorted(
        edge for row in rows for edge in ((row["t_submit_mono_ns"], 1), (row["t_end_mono_ns"], -1)) if edge[0]
    )
    under_way = most = 0
    for _, step in edges:
        under_way += step
        most = max(most, under_way)
    assert most == USERS


def test_prompts_and_answers_have_lengths_of_their_own(run: Path) -> None:
    _, rows = cycle(run, f"concurrency-{USERS}")
    answered = [row for row in rows if row["status"] == "ok"]
    outputs = {row["output_tokens"] for row in answered}
    assert len(outputs) > 1
    assert outputs <= set(range(TOKENS * 3 // 4, TOKENS * 5 // 4 + 1))
    assert {row["input_tokens"] for row in answered} <= set(range(18 + 8, 30 + 8 + 1))


def test_the_search_ends_between_a_rate_that_met_the_slo_and_one_that_missed_it(run: Path) -> None:
    rows = cycles_df(str(run))
    rates = {
        int(row["experiment"].split("-")[2]): row
        for row in rows.to_dict("records")
        if row["experiment"].startswith("vllm-rate-")
    }
    assert {rate for rate, row in rates.items() if row["status"] == "valid"} == {LOWEST, BETWEEN, HIGHEST}
    assert rates[LOWEST]["slo_met_ratio"] == 1
    assert rates[HIGHEST]["slo_met_ratio"] == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["missing"] == []
    met = rates[BETWEEN]["slo_met_ratio"] == 1 and "saturated" not in list(rates[BETWEEN]["flags"])
    found = BETWEEN if met else LOWEST
    assert f"the highest rate that meets the SLO is {found}/s" in (run / "report.html").read_text()
