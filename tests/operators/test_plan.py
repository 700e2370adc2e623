"""The task `plan` refuses, before any container starts, what no cycle could end well with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from llem_airflow.operators import LLEMPlanOperator
from llem_airflow.study import load_study

TEXT = """\
study_name: planned
serving_mode: offline
engine: transformers
task: {model: m, dataset: {source: SOURCE, n_prompts: 2}}
measurement: {meter: none}
runners: {transformers: process}
"""


def plan(folder: Path, source: str, more: str = "") -> None:
    path = folder / "s.yaml"
    path.write_text(TEXT.replace("SOURCE", source) + more)
    run = SimpleNamespace(dag_id="planned", run_id="manual__1", task_id="plan", map_index=-1, try_number=1)
    context: Any = {"params": {}, "ti": run, "dag_run": None}
    LLEMPlanOperator(task_id="plan", study=load_study(path)).execute(context)


def test_a_results_root_that_cannot_be_written_is_told_with_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AIRFLOW__LLEM__RESULTS_ROOT", str(tmp_path / "file" / "results"))
    with pytest.raises(
        AirflowFailException, match=r"file/results cannot be written: .*; correct its rights, or set"
    ):
        plan(tmp_path, "builtin")


def test_prompts_that_no_engine_could_take_are_told_with_file_and_row(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "a\\ud83d b"}\n')
    with pytest.raises(
        AirflowFailException, match=r"s\.yaml:4:\d+: task\.dataset\.source: p\.jsonl:2: prompt has U\+D83D"
    ):
        plan(tmp_path, "p.jsonl")


def test_limits_that_end_every_cycle_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        AirflowFailException, match=r"it ends a cycle after 10 s, and each takes 30 s at least"
    ):
        plan(tmp_path, "builtin", "study_execution: {experiment_timeout_seconds: 10}\n")
