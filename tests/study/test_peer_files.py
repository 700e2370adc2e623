"""Study files in llenergymeasure's grammar plan as many runs as ``llem study plan`` of its release 0.7.0 says.

The numbers of ``peer_files.txt`` were made by that release itself on 2026-11-27 (its ``load_study`` with its command's
own defaults).
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llem_airflow.study import load_study_text

_PARTS = re.split(
    r"^=== (\w+): (\d+) runs\n", (Path(__file__).parent / "peer_files.txt").read_text(), flags=re.MULTILINE
)
FILES = list(zip(_PARTS[1::3], map(int, _PARTS[2::3]), _PARTS[3::3], strict=True))
BEAMS = """\
serving_mode: offline
task: {model: org/model}
sweep:
  transformers.sampling_params.num_beams: [1, 4]
  transformers.sampling_params.num_return_sequences: [1, 2]
"""


@pytest.mark.parametrize(("name", "runs", "text"), FILES, ids=[name for name, _, _ in FILES])
def test_the_peer_s_files_plan_the_same_number_of_runs(name: str, runs: int, text: str) -> None:
    assert len(load_study_text(text, name=f"{name}.yaml").plan.planned_cycles) == runs


def test_there_are_dozens_of_them_a_third_of_servers() -> None:
    assert len(FILES) == 44
    assert sum("serving_mode: server" in text for *_, text in FILES) == 21


SERVER = """\
serving_mode: server
engine: vllm
task: {model: org/model}
server: {traffic: {rate: 1}, warmup: {mode: %s}}
"""


@pytest.mark.parametrize(
    ("warmup", "sweep", "runs", "peer_runs"),
    [
        ("composite", "server.traffic.burstiness: [0.5, 2.0]", 3, 6),
        ("fixed", "server.warmup.timeout_seconds: [300, 600]", 3, 6),
        ("composite", "server.warmup.duration_seconds: [60, 120]", 3, 6),
        ("fixed", "vllm.sampling_params.temperature: [0.0]\n  vllm.sampling_params.top_p: [0.9, 1.0]", 3, 6),
    ],
)
def test_what_has_no_effect_is_measured_once_here_and_told(
    warmup: str, sweep: str, runs: int, peer_runs: int
) -> None:
    """Of offline files both merge such points; of server files the peer measures each of them."""
    plan = load_study_text(f"{SERVER % warmup}sweep:\n  {sweep}\n", name="idle.yaml").plan
    assert len(plan.planned_cycles) == runs
    assert plan.valid * plan.cycles == peer_runs
    [group] = plan.duplicates
    assert len(group.members) == 2
    assert group.ignored
    assert all(any(key in one.message for one in plan.warnings) for key in group.ignored)


def test_points_that_only_the_peer_would_run_are_told() -> None:
    """It plans 6 runs with beams or several sequences, which cannot stream a time per token here."""
    plan = load_study_text(BEAMS, name="beams.yaml").plan
    assert len(plan.planned_cycles) == 3
    assert len(plan.skipped) == 3
    assert all(point.reason for point in plan.skipped)
