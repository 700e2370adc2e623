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


def test_there_are_two_dozen_of_them() -> None:
    assert len(FILES) == 24


def test_points_that_only_the_peer_would_run_are_told() -> None:
    """It plans 6 runs with beams or several sequences, which cannot stream a time per token here."""
    plan = load_study_text(BEAMS, name="beams.yaml").plan
    assert len(plan.planned_cycles) == 3
    assert len(plan.skipped) == 3
    assert all(point.reason for point in plan.skipped)
