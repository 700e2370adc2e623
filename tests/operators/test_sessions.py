"""A session from its first to its last task, in a real container: what is told, what is stored, what is left."""

from __future__ import annotations

import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from llem_airflow.operators import (
    LLEMExperimentOperator,
    LLEMPlanOperator,
    LLEMPlanTextOperator,
    LLEMStartSessionOperator,
    LLEMStopSessionOperator,
)
from llem_airflow.results import CycleRef, ResultsRoot
from llem_airflow.study import Study, load_study_text
from tests.parts import left_by

INSTALLATION = f"tests-session-{uuid.uuid4().hex[:8]}"
TEXT = """\
study_name: shared
serving_mode: offline
study_execution: {n_cycles: 1, isolation: process}
engine: transformers
sampling_preset: deterministic
task:
  model: tiny-llama-random
  max_input_tokens: 32
  dataset: {source: builtin, n_prompts: 2}
measurement: {meter: cpu-estimate, min_window_seconds: 0.2, baseline: {enabled: false}}
offline: {warmup: {enabled: false}}
sweep: {task.max_output_tokens: [4, 8]}
runners: {transformers: container}
"""


def study(more: str = "") -> Study:
    return load_study_text(TEXT + more)


def context(task_id: str, **params: Any) -> Any:
    ti = SimpleNamespace(
        dag_id="shared", run_id="manual__x", task_id=task_id, map_index=-1, try_number=1, max_tries=0
    )
    return {"ti": ti, "params": params}


def around(asked: Study, kind: Any, number: int = 0) -> Any:
    session = asked.plan.sessions[number]
    return kind(task_id="around", study=asked, session=session.id, cycles=session.cycles)


def cycle(asked: Study, index: int, **kwargs: Any) -> LLEMExperimentOperator:
    run = asked.plan.planned_cycles[index]
    return LLEMExperimentOperator(
        task_id=f"cycle_{index}", study=asked, experiment=run.experiment_id, cycle=run.cycle, **kwargs
    )


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    monkeypatch.setenv("LLEM_RESULTS_ROOT", str(tmp_path / "results"))
    monkeypatch.setenv("LLEM_INSTALLATION", INSTALLATION)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if "tiny_model" in request.fixturenames:
        monkeypatch.setenv("LLEM_MODELS_DIR", str(request.getfixturevalue("tiny_model").parent))


def tokens(ref: CycleRef) -> set[tuple[int, tuple[int, ...]]]:
    """What was answered to each prompt: greedy decoding answers alike whenever it is asked."""
    return {(row["prompt_index"], tuple(row["output_token_ids"])) for row in ref.requests().to_pylist()}


@pytest.mark.engine
def test_cycles_of_a_session_share_a_container_and_say_the_same_as_one_alone(
    tmp_path: Path, tiny_model: Path, docker_api: docker.APIClient, cpu_image: str
) -> None:
    asked = study(f"images: {{transformers: '{cpu_image}'}}\n")
    session = asked.plan.sessions[0].id
    starts = around(asked, LLEMStartSessionOperator)
    started = starts.execute(context("start"))
    starts.on_kill()  # of a task that dies late: another try may have gone on with the session
    again = around(asked, LLEMStartSessionOperator).execute(context("start"))
    assert (started["adopted"], again["adopted"]) == (False, True)
    assert again["container"] == started["container"]
    for index in range(2):
        cycle(asked, index, session=session).execute(context(f"cycle_{index}"))
    run = ResultsRoot(tmp_path / "results").run("shared", "manual__x")
    shared = {ref.experiment_id: ref for ref in run.cycles()}
    told = [shared[each.experiment_id].provenance() for each in asked.plan.planned_cycles]
    assert [one["start_kind"] for one in told] == ["exec", "exec"]
    assert [one["session"] for one in told] == [session, session]
    assert [one["position_in_session"] for one in told] == [0, 1]
    around(asked, LLEMStopSessionOperator).execute(context("stop"))
    assert left_by(docker_api, INSTALLATION) == []
    around(asked, LLEMStopSessionOperator).execute(context("stop"))  # quiet where nothing is left

    alone = cycle(asked, 0)
    alone.execute(
        context("alone") | {"ti": SimpleNamespace(**vars(context("alone")["ti"]) | {"run_id": "alone"})}
    )
    (isolated,) = ResultsRoot(tmp_path / "results").run("shared", "alone").cycles()
    assert isolated.provenance()["start_kind"] == "fresh"
    assert tokens(shared[isolated.experiment_id]) == tokens(isolated) != set()
    assert left_by(docker_api, INSTALLATION) == []


@pytest.mark.engine
def test_four_experiments_in_two_sessions_whose_engine_lives_on_say_the_same_as_alone(
    tmp_path: Path, tiny_model: Path, docker_api: docker.APIClient, cpu_image: str
) -> None:
    text = TEXT.replace("isolation: process", "isolation: engine").replace(
        "[4, 8]}", "[8, 4], transformers.engine_params.dtype: [float32, bfloat16]}"
    )
    asked = load_study_text(f"{text}images: {{transformers: '{cpu_image}'}}\n")
    assert [len(session.cycles) for session in asked.plan.sessions] == [2, 2]
    index = 0
    for number, session in enumerate(asked.plan.sessions):
        around(asked, LLEMStartSessionOperator, number).execute(context(f"start_{number}"))
        for _ in session.cycles:
            cycle(asked, index, session=session.id).execute(context(f"cycle_{index}"))
            index += 1
        around(asked, LLEMStopSessionOperator, number).execute(context(f"stop_{number}"))
    run = ResultsRoot(tmp_path / "results").run("shared", "manual__x")
    warm = {ref.experiment_id: ref for ref in run.cycles()}
    order = [warm[each.experiment_id] for each in asked.plan.planned_cycles]
    assert [ref.provenance()["start_kind"] for ref in order] == ["warm"] * 4
    assert [ref.provenance()["position_in_session"] for ref in order] == [0, 1] * 2
    loaded = [any(event.get("phase") == "load" for event in ref.events()) for ref in order]
    assert loaded == [True, False] * 2, "a session loads once"
    dtypes = [ref.environment()["model"]["dtype"] for ref in order]
    assert dtypes == [dtypes[0]] * 2 + [dtypes[2]] * 2
    assert set(dtypes) == {"float32", "bfloat16"}
    for index in (1, 3):
        ti = SimpleNamespace(**vars(context(f"alone_{index}")["ti"]) | {"run_id": "alone"})
        cycle(asked, index).execute(context("alone") | {"ti": ti})
    isolated = list(ResultsRoot(tmp_path / "results").run("shared", "alone").cycles())
    assert {ref.provenance()["start_kind"] for ref in isolated} == {"fresh"}
    for ref in isolated:
        assert tokens(warm[ref.experiment_id]) == tokens(ref) != set()
    assert left_by(docker_api, INSTALLATION) == []


def test_a_run_that_asks_for_no_cycle_of_a_session_starts_none(tmp_path: Path) -> None:
    asked = study()
    params = dict.fromkeys(("experiments", "engines", "models", "cycles", "n_prompts"), None)
    with pytest.raises(AirflowSkipException, match="dry run"):
        around(asked, LLEMStartSessionOperator).execute(context("start", **params, dry_run=True))


def test_a_session_that_cannot_start_is_the_reason_of_every_cycle(
    tmp_path: Path, tiny_model: Path, docker_api: docker.APIClient
) -> None:
    asked = study("images: {transformers: 'llem-airflow/there-is-none:0'}\n")
    with pytest.raises(AirflowException, match="session transformers-tiny-llama-random"):
        around(asked, LLEMStartSessionOperator).execute(context("start"))
    missing = ResultsRoot(tmp_path / "results").run("shared", "manual__x").skipped(needed=True)
    assert set(missing) == {(run.experiment_id, run.cycle) for run in asked.plan.planned_cycles}
    assert left_by(docker_api, INSTALLATION) == []


def test_a_runner_without_containers_has_no_sessions(tiny_model: Path) -> None:
    asked = load_study_text(TEXT.replace("runners: {transformers: container}\n", ""))
    plan = LLEMPlanOperator(task_id="plan", study=asked, operator_args={"runner": "process"})
    with pytest.raises(AirflowFailException, match="whose sessions are living containers"):
        plan.execute(context("plan"))


def test_a_pasted_study_has_no_sessions(tiny_model: Path) -> None:
    plan = LLEMPlanTextOperator(task_id="plan")
    with pytest.raises(AirflowFailException, match="a pasted study are one mapped task"):
        plan.execute(context("plan", study=TEXT))


def test_the_plan_skips_the_tasks_around_sessions_without_cycles() -> None:
    asked = study()
    (session,) = asked.plan.sessions
    keys = [(run.experiment_id, run.cycle) for run in session.cycles]
    plan = LLEMPlanOperator(task_id="plan", study=asked, cycles={key: (f"t{key[0]}", -1) for key in keys})
    plan.sessions = {session.id: ("start", "stop")}
    assert set(plan._skipped(asked, set(keys), dry_run=False)) == {f"t{key[0]}" for key in keys} | {
        "start",
        "stop",
    }
    assert set(plan._skipped(asked, set(keys[:1]), dry_run=False)) == {f"t{keys[0][0]}"}
