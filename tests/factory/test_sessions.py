"""The tasks of a study in sessions: what surrounds the cycles, what waits for what, what is refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, TriggerRule

from llem_airflow.factory import StudyTaskGroup, study_dag
from llem_airflow.factory.study import build_dag
from llem_airflow.study import Study, StudyFileError, load_study_text

TEXT = """
study_name: warm
serving_mode: offline
task: {model: org/model}
measurement: {meter: cpu-estimate}
sweep:
  transformers.engine_params.dtype: [float32, bfloat16]
  transformers.llem_execution.batch_size: [1, 2]
"""


def study(more: str = "", *, airflow: str = "", cycles: int = 2) -> Study:
    execution = f"study_execution: {{n_cycles: {cycles}, isolation: process{more}}}\n"
    return load_study_text(f"{TEXT}{execution}{airflow}")


def checked(dag: DAG) -> DAG:
    """A DAG that Airflow takes with its setups and teardowns."""
    dag.validate_setup_teardown()  # type: ignore[no-untyped-call]  # Airflow leaves it untyped
    return dag


def task(dag: DAG, task_id: str) -> Any:
    return dag.get_task(task_id)


def after(dag: DAG, task_id: str) -> set[str]:
    return set(dag.get_task(task_id).upstream_task_ids)


@pytest.fixture(scope="module")
def made() -> DAG:
    return study_dag(study())


def test_every_session_has_a_start_before_its_cycles_and_a_stop_after(made: DAG) -> None:
    plan = study().plan
    assert len(plan.sessions) == 4
    checked(made)
    for session in plan.sessions:
        group = f"session-{session.id}"
        start, stop = task(made, f"{group}.start_session"), task(made, f"{group}.stop_session")
        cycles = [f"{group}.{run.experiment_id}.cycle_{run.cycle}" for run in session.cycles]
        assert (start.is_setup, stop.is_teardown, stop.on_failure_fail_dagrun) == (True, True, True)
        assert after(made, cycles[0]) == {start.task_id}
        assert after(made, cycles[1]) == {cycles[0]}
        assert after(made, stop.task_id) == {start.task_id, cycles[1]}
        assert task(made, cycles[1]).trigger_rule == TriggerRule.ALL_DONE
        assert {task(made, each).session for each in cycles} == {session.id}


def test_one_session_after_the_other_whatever_becomes_of_them(made: DAG) -> None:
    groups = [f"session-{each.id}" for each in study().plan.sessions]
    assert after(made, f"{groups[0]}.start_session") == {"plan", "prefetch_1"}
    for before, now in pairwise(groups):
        assert after(made, f"{now}.start_session") == {"plan", "prefetch_1", f"{before}.ended"}
        assert after(made, f"{before}.ended") == {f"{before}.stop_session"}
        assert task(made, f"{before}.ended").trigger_rule == TriggerRule.ALL_DONE
    assert f"{groups[-1]}.ended" not in made.task_ids, (
        "the run is red when the last session cannot be removed"
    )


def test_so_many_sessions_live_at_a_time_as_cycles_may_run() -> None:
    both = study(airflow="airflow: {max_active_cycles: 2}\n")
    groups = [f"session-{each.id}" for each in both.plan.sessions]
    dag = study_dag(both)
    assert after(dag, f"{groups[1]}.start_session") == {"plan", "prefetch_1"}
    assert after(dag, f"{groups[2]}.start_session") == {"plan", "prefetch_1", f"{groups[0]}.ended"}
    chained = study_dag(both, chain=True)
    assert after(chained, f"{groups[1]}.start_session") == {"plan", "prefetch_1", f"{groups[0]}.ended"}


def test_every_cycle_comes_before_the_aggregate_and_is_known_to_the_plan(made: DAG) -> None:
    plan = task(made, "plan")
    assert set(plan.cycles) == {(run.experiment_id, run.cycle) for run in study().plan.planned_cycles}
    assert after(made, "aggregate") == {task_id for task_id, _ in plan.cycles.values()}
    assert set(plan.sessions) == {each.id for each in study().plan.sessions}


def test_a_worker_makes_only_the_cycle_that_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    session = study().plan.sessions[1]
    run = session.cycles[0]
    wanted = f"session-{session.id}.{run.experiment_id}.cycle_{run.cycle}"
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "warm")
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_TASK_ID", wanted)
    dag = build_dag(study())
    assert set(dag.task_ids) == {"plan", "aggregate", wanted}
    assert task(dag, wanted).session == session.id
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_TASK_ID", f"session-{session.id}.stop_session")
    assert f"session-{session.id}.stop_session" in build_dag(study()).task_ids


def test_a_session_waits_for_the_canary_of_its_cycles() -> None:
    gated = study(", canary: true")
    dag = study_dag(gated)
    first, *others = gated.plan.sessions
    canary = f"session-{first.id}.{first.cycles[0].experiment_id}.cycle_1"
    assert canary not in after(dag, f"session-{first.id}.start_session")
    for session in others:
        start = task(dag, f"session-{session.id}.start_session")
        assert canary in start.upstream_task_ids
        assert start.trigger_rule == TriggerRule.NONE_FAILED
    checked(dag)


def test_the_stop_waits_for_no_slot_of_the_pool() -> None:
    dag = study_dag(study(airflow="airflow: {pool: gpus}\n"))
    group = f"session-{study().plan.sessions[0].id}"
    assert task(dag, f"{group}.start_session").pool == "gpus"
    assert task(dag, f"{group}.stop_session").pool == "default_pool"
    assert task(dag, f"{group}.stop_session").priority_weight > max(
        each.priority_weight for each in dag.tasks if ".cycle_" in each.task_id
    )


def test_cycles_in_sessions_are_not_mapped() -> None:
    with pytest.raises(ValueError, match="render='static'"):
        study_dag(study(), render="mapped")


def test_processes_have_no_sessions() -> None:
    with pytest.raises(StudyFileError, match="`runners` says process for transformers"):
        study_dag(study(airflow="runners: {transformers: process}\n"))


def test_a_study_in_sessions_is_a_group_of_another_dag() -> None:
    with DAG("own") as dag:
        StudyTaskGroup(study(), group_id="energy")
    checked(dag)
    session = study().plan.sessions[0]
    assert f"energy.session-{session.id}.start_session" in dag.task_ids


def test_the_study_is_read_from_the_cache_with_its_sessions(tmp_path: Path) -> None:
    from llem_airflow.factory.plan_cache import cached_study  # noqa: PLC0415  # beside what it is compared with

    path = tmp_path / "warm.yaml"
    path.write_text(study().text)
    fresh, again = (cached_study(path, tmp_path / "cache").plan for _ in range(2))
    assert again.sessions == fresh.sessions != ()
