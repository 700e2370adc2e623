"""The highest rate that meets an SLO, through Airflow; the server is a stand-in: vLLM's own is in test_server.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from llem_airflow.frames import cycles_df
from tests.engines.command import run_study
from tests.measurement.test_server_attempt import STUB

pytestmark = [pytest.mark.airflow, pytest.mark.timeout(900)]

LOWEST, BETWEEN, HIGHEST = 1, 8, 64
STUDY = f"""\
study_name: searched
serving_mode: server
engine: vllm
task:
  model: tiny-llama-random
  max_input_tokens: 32
  max_output_tokens: 24
  dataset: {{source: builtin, n_prompts: 20}}
measurement: {{meter: cpu-estimate, baseline: {{enabled: false}}}}
server:
  traffic:
    window_seconds: 4
    ramp_exclusion_seconds: 1
    request_timeout_seconds: 6
    find_rate:
      from: {LOWEST}
      to: {HIGHEST}
      max_probes: 3
      tolerance: 1
      slo: {{ttft_ms: 3000, tpot_ms: 500, percentile: 0.9}}
  warmup: {{mode: fixed, duration_seconds: 1}}
study_execution: {{n_cycles: 1}}
runners: {{vllm: process}}
airflow: {{retries: 0}}
"""
"""The stand-in takes 5 ms a token, one request at a time: 1,536 tokens/s are eight times what it can, 24 are within."""


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run's results."""
    home = tmp_path_factory.mktemp("searched")
    python = home / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={STUB} STUB_SERVER=in-turn exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return run_study(home, STUDY, tiny_model.parent, {}, AIRFLOW__LLEM__PYTHON=str(python))


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
