"""One study, two engines: through Airflow, each cycle in a fresh container, compared in one report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.engines.command import run_study

pytestmark = [pytest.mark.docker, pytest.mark.engine, pytest.mark.airflow, pytest.mark.timeout(900)]

STUDY = """\
study_name: two-engines
serving_mode: offline
task:
  model: tiny-llama-random
  max_input_tokens: 32
  max_output_tokens: 8
  dataset: {source: builtin, n_prompts: 2}
measurement: {meter: cpu-estimate, min_window_seconds: 0.5, baseline: {enabled: false}}
offline: {warmup: {n_prompts: 1, convergence_detection: false}}
sweep:
  engine: [transformers, vllm]
transformers: {llem_execution: {batch_size: 2}}
vllm: {engine_params: {enforce_eager: true, max_model_len: 256, max_num_seqs: 2}}
study_execution: {n_cycles: 1}
runners: {transformers: container, vllm: container}
airflow: {retries: 0}
"""
COMPARED = ("energy_per_output_token_j", "ttft_mean_s", "itl_mean_s", "output_tokens_per_s")


@pytest.fixture(scope="module")
def run(
    docker_api: docker.APIClient,
    cpu_image: str,
    vllm_image: str,
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder of the run's results."""
    home = tmp_path_factory.mktemp("two-engines")
    return run_study(home, STUDY, tiny_model.parent, {"transformers": cpu_image, "vllm": vllm_image})


@pytest.fixture(scope="module")
def by_engine(run: Path) -> dict[str, dict[str, Any]]:
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["planned"], summary["valid"], summary["missing"]) == (2, 2, [])
    return {one["engine"]: one for one in summary["experiments"]}


def test_every_cycle_of_both_engines_has_a_result(by_engine: dict[str, dict[str, Any]]) -> None:
    assert set(by_engine) == {"transformers", "vllm"}
    assert {one["valid"] for one in by_engine.values()} == {1}
    assert by_engine["vllm"]["engine_version"].startswith("0.32.0")


def test_every_cycle_ran_in_the_image_of_its_engine(run: Path, cpu_image: str, vllm_image: str) -> None:
    images = {}
    for path in run.glob("experiments/*/cycle-*/provenance.json"):
        said = json.loads(path.read_text())
        assert said["runner"] == "container"
        images[json.loads((path.parent / "result.json").read_text())["engine"]] = said["image"]
    assert images == {"transformers": cpu_image, "vllm": vllm_image}


@pytest.mark.parametrize("metric", COMPARED)
def test_the_report_compares_both_engines_by(metric: str, by_engine: dict[str, dict[str, Any]]) -> None:
    for one in by_engine.values():
        found = {each["name"]: each["all"] for each in one["metrics"]}
        assert found[metric]["n"] == 1
        assert found[metric]["mean"] > 0


def test_the_report_names_both_engines(run: Path) -> None:
    html = (run / "report.html").read_text()
    assert "vllm" in html
    assert "transformers" in html
    assert "estimate" in html
