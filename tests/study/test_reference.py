from __future__ import annotations

from pathlib import Path

import llem_airflow.study
from llem_airflow.study.config.docs import key_reference
from tests.study.texts import report

README = (Path(llem_airflow.study.__file__).parent / "README.md").read_text("utf-8")


def test_the_readme_has_the_key_reference_of_the_tables() -> None:
    assert key_reference() in README, "run python -m llem_airflow.study.config.docs"


def test_the_sample_of_problems_in_the_readme_is_what_is_said() -> None:
    text = report("sweep:\n  vllm.sampling_params.temperature: [-1, -2]\n")
    assert text in README
    said = report("engine: vlm\n", head="study_nme: x\n").splitlines()
    assert next(line for line in said if "study_nme" in line).removeprefix("study.yaml") in README
