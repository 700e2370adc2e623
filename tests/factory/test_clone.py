"""A task that was copied is the task that its constructor would have made."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk import DAG, TaskGroup
from airflow.serialization.serialized_objects import OperatorSerialization

from llem_airflow.factory import study_dag
from llem_airflow.factory.clone import clone
from llem_airflow.operators import LLEMExperimentOperator
from llem_airflow.study import Study, load_study_text

STUDY = """\
study_name: two
serving_mode: offline
engine: transformers
task: {model: m, dataset: {source: builtin, n_prompts: 2}}
measurement: {meter: cpu-estimate}
sweep: {transformers.llem_execution.batch_size: [1, 2]}
study_execution: {n_cycles: 2}
runners: {transformers: process}
"""
SHARED: dict[str, Any] = {
    "mem_limit": "4g",
    "environment": {"A": "1"},
    "pool": "gpu",
    "weight_rule": "absolute",
    "on_failure_callback": [print],
}


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study_text(STUDY, name="two")


def dag_of(study: Study, *, copied: bool) -> DAG:
    first, second = study.experiments
    with DAG("d", default_args={"retries": 2, "owner": "ada"}, params={"p": 1}) as dag:
        one = LLEMExperimentOperator(
            task_id="cycle_1",
            task_display_name="first",
            task_group=TaskGroup("one"),
            study=study,
            experiment=first,
            **SHARED,
        )
        other: dict[str, Any] = {
            "task_id": "cycle_2",
            "task_display_name": "the second",
            "task_group": TaskGroup("two"),
            "experiment": second,
            "cycle": 2,
            "gap_before_s": 3.0,
            "doc_md": "second",
            "priority_weight": 7,
            "image": "engine:2",
        }
        if copied:
            clone(one, derived={"experiment_id": second.id}, **other)
        else:
            LLEMExperimentOperator(study=study, **SHARED, **other)
    return dag


def test_every_attribute_of_a_copied_task_is_what_the_constructor_makes_of_its_arguments(
    study: Study,
) -> None:
    made, copied = (vars(dag_of(study, copied=each).get_task("two.cycle_2")) for each in (False, True))
    assert set(copied) == set(made)
    skipped = {"_dag", "task_group", "_BaseOperator__init_kwargs", "_log"}  # these hold the DAG itself
    assert {name: copied[name] for name in copied if name not in skipped} == {
        name: made[name] for name in made if name not in skipped
    }
    ours, theirs = copied["_BaseOperator__init_kwargs"], made["_BaseOperator__init_kwargs"]
    assert {k: v for k, v in ours.items() if k not in {"dag", "task_group", "default_args"}} == {
        k: v for k, v in theirs.items() if k not in {"dag", "task_group", "default_args"}
    }
    assert copied["task_group"].group_id == made["task_group"].group_id == "two"


def test_airflow_stores_a_copied_task_as_it_stores_a_constructed_one(study: Study) -> None:
    made, copied = (
        OperatorSerialization.serialize_operator(dag_of(study, copied=each).get_task("two.cycle_2"))
        for each in (False, True)
    )
    assert copied == made


def test_changing_a_copied_task_changes_no_other(study: Study) -> None:
    dag = dag_of(study, copied=True)
    one, two = dag.get_task("one.cycle_1"), dag.get_task("two.cycle_2")
    assert isinstance(one, LLEMExperimentOperator)
    assert isinstance(two, LLEMExperimentOperator)
    two.environment["A"] = "2"
    two.params["p"] = 2
    two.retries = 9
    two.set_upstream(one)
    assert one.environment == {"A": "1"}
    assert one.params["p"] == 1
    assert one.retries == 2
    assert one.upstream_task_ids == set()
    assert one.task_group is not None
    assert set(one.task_group.children) == {"one.cycle_1"}


def test_tasks_of_a_study_are_before_and_after_one_another_as_airflow_s_own_operator_makes_them(
    study: Study,
) -> None:
    dag = study_dag(study)
    plan, aggregate = dag.get_task("plan"), dag.get_task("aggregate")
    before = [(task.task_id, task.upstream_task_ids, task.downstream_task_ids) for task in dag.tasks]
    cycles = [task for task in dag.tasks if isinstance(task, LLEMExperimentOperator)]
    for task in dag.tasks:
        task.upstream_task_ids, task.downstream_task_ids = set(), set()
    plan >> cycles >> aggregate
    assert before == [(task.task_id, task.upstream_task_ids, task.downstream_task_ids) for task in dag.tasks]
