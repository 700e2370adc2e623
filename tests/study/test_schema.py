from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from llem_airflow.study import StudyFileError, load_study_text
from llem_airflow.study.config.schema import json_schema
from llem_airflow.study.file.yaml import Source
from tests.study.texts import HEAD

SCHEMA = Draft202012Validator(json_schema())
ROOT = Path(__file__).parents[2]
SHIPPED = [
    *sorted((ROOT / "dags" / "studies").glob("*.y*ml")),
    ROOT / "llem_airflow" / "cli" / "starter.yaml",
]


def _value(text: str) -> Any:
    return Source("t.yaml", text).value


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_study_loads_and_is_accepted_by_the_schema(path: Path) -> None:
    text = path.read_text("utf-8")
    load_study_text(text, folder=path.parent)
    SCHEMA.validate(_value(text))


def _visible_problems() -> list[str]:
    text = (Path(__file__).parent / "problems.txt").read_text("utf-8")
    bodies = [body for body, _ in re.findall(r"^((?:(?!=> |#).+\n)+)=> (.+)$", text, re.MULTILINE)]
    # What needs more than one key, or a format of ours, is beyond a schema.
    beyond = [
        "gpu_indices: [0, 0]",
        "gpu_indices: [-1]",
        "dockr",
        "schedule",
        "start_date",
        "soon",
    ]
    beyond += ["dag_id", "min_cycles", "regression", "passthrough", "thermal_floor", "server:", "pytorch: {}"]
    return [body for body in bodies if not any(word in body for word in beyond)]


@pytest.mark.parametrize("body", _visible_problems())
def test_the_schema_refuses_every_problem_that_a_schema_can_see(body: str) -> None:
    assert not SCHEMA.is_valid(_value(HEAD + body))


@pytest.mark.parametrize(
    "body",
    [
        "sweep:\n  task.max_output_tokens: [1, 2]\n",
        "sweep:\n  task.max_output_tokens: {pow2: {min: 1, max: 8}}\n",
        "sweep:\n  pytorch.engine_params.dtype: [float16]\n",
        "sweep:\n  vllm.engine_params.anything.nested: [1]\n",
        "sweep:\n  group: [{}, {a: 1}]\n",
        "sweep: {engine: [vllm, transformers]}\n",
        "engine: [vllm]\n",
        "pytorch: {llem_execution: {batch_size: null}}\n",
        "experiments: [{task: {model: m}}]\nversions: [{name: v}]\n",
    ],
)
def test_the_schema_accepts_the_whole_grammar(body: str) -> None:
    SCHEMA.validate(_value(HEAD + body))


@pytest.mark.parametrize(
    "body",
    [
        "sweep:\n  task.max_output_tokens: []\n",
        "sweep:\n  task.max_output_tokens: [0]\n",
        "sweep:\n  task.max_output_token: [1]\n",
        "sweep:\n  task.max_output_tokens: {min: 1, max: 2}\n",
    ],
)
def test_the_schema_refuses_axes_that_the_checker_refuses(body: str) -> None:
    assert not SCHEMA.is_valid(_value(HEAD + body))
    with pytest.raises(StudyFileError):
        load_study_text(HEAD + body)
