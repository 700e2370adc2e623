"""The cheapest experiment of a group goes first, and when it fails the others are skipped."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from llem_airflow.factory import study_dag
from llem_airflow.operators import LLEMAggregateOperator, LLEMExperimentOperator, LLEMPlanOperator
from llem_airflow.operators.gates import Candidate, check
from llem_airflow.results import ResultsRoot, StoredRun
from llem_airflow.study import Experiment, load_study_text
from tests.results.recorded import Recording, provenance, variant

STUDY = load_study_text("""\
study_name: gated
serving_mode: offline
engine: transformers
task: {dataset: {source: builtin, n_prompts: 2}}
sweep:
  task.model: [a, b]
  task.max_output_tokens: [64, 8]
study_execution: {n_cycles: 2, experiment_order: interleave, canary: true}
airflow: {retries: 1}
runners: {transformers: process}
""")
SMALL = {each.model: each for each in STUDY.experiments if each.config["task"]["max_output_tokens"] == 8}
LARGE = {each.model: each for each in STUDY.experiments if each.config["task"]["max_output_tokens"] == 64}
CONTEXT: Any = {
    "ti": SimpleNamespace(dag_id="gated", run_id="manual__x", try_number=1),
    "outlet_events": {},
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StoredRun:
    monkeypatch.setenv("LLEM_RESULTS_ROOT", str(tmp_path))
    monkeypatch.setenv("AIRFLOW_VAR_LLEM_QUARANTINE", "")
    LLEMPlanOperator(task_id="plan", study=STUDY).execute(CONTEXT)
    return ResultsRoot(tmp_path).run("gated", "manual__x")


def fail(run: StoredRun, model: str, attempt: int = 2, *, retryable: bool = True) -> None:
    failure = {"category": "model", "message": "no such model", "retryable": retryable}
    run.commit_failed(SMALL[model].id, 1, attempt, Path("nothing"), {"failure": failure})


def begin(run: StoredRun, experiment: Experiment) -> None:
    assert check(Candidate(STUDY, run, experiment, 1, CONTEXT, retries=1)) is None


def test_the_canaries_come_first_in_the_plan_and_each_cycle_is_planned_once() -> None:
    first = [(run.experiment_id, run.cycle) for run in STUDY.plan.planned_cycles[:2]]
    assert first == [(SMALL["a"].id, 1), (SMALL["b"].id, 1)]
    assert (
        len({(run.experiment_id, run.cycle) for run in STUDY.plan.planned_cycles})
        == len(STUDY.plan.planned_cycles)
        == 8
    )
    assert [run.position for run in STUDY.plan.planned_cycles] == list(range(8))


def test_airflow_starts_no_other_task_of_the_group_when_the_canary_has_failed() -> None:
    tasks = {
        (task.experiment.id, task.cycle): task
        for task in study_dag(STUDY).tasks
        if isinstance(task, LLEMExperimentOperator)
    }
    canary = tasks[SMALL["a"].id, 1]
    assert canary.upstream_task_ids == {"plan"}
    for key in ((SMALL["a"].id, 2), (LARGE["a"].id, 1), (LARGE["a"].id, 2)):
        assert tasks[key].upstream_task_ids == {"plan", canary.task_id}
        assert tasks[key].trigger_rule == "none_failed"


def test_what_has_no_such_task_before_it_is_skipped_with_the_reason(run: StoredRun) -> None:
    fail(run, "a")
    with pytest.raises(
        AirflowSkipException, match=rf"skipped: the canary {SMALL['a'].id} failed: no such model"
    ):
        begin(run, LARGE["a"])
    begin(run, SMALL["a"])
    begin(run, LARGE["b"])


def test_a_canary_that_is_tried_again_gates_nothing_yet(run: StoredRun) -> None:
    fail(run, "a", attempt=1)
    begin(run, LARGE["a"])
    fail(run, "b", attempt=1, retryable=False)
    with pytest.raises(AirflowSkipException):
        begin(run, LARGE["b"])


def test_a_canary_that_was_measured_after_all_or_is_in_quarantine_gates_nothing(
    run: StoredRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(run, "a")
    fail(run, "b")
    variant(Recording(), hash=SMALL["a"].hash, config=SMALL["a"].config).write(tmp_path / "out")
    run.commit_cycle(SMALL["a"].id, 1, tmp_path / "out", provenance())
    begin(run, LARGE["a"])
    monkeypatch.setenv("AIRFLOW_VAR_LLEM_QUARANTINE", SMALL["b"].id)
    begin(run, LARGE["b"])


def test_the_run_says_of_each_cycle_that_it_is_missing_because_of_its_canary(run: StoredRun) -> None:
    fail(run, "a")
    fail(run, "b")
    with pytest.raises(AirflowFailException) as failed:
        LLEMAggregateOperator(task_id="aggregate", study=STUDY).execute(CONTEXT)
    lines = str(failed.value).splitlines()
    assert f"  {LARGE['b'].id} cycle 2: skipped: the canary {SMALL['b'].id} failed: no such model" in lines
    assert sum("skipped: " in line for line in lines) == 6
