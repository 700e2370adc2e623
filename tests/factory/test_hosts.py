"""A study over hosts becomes tasks with the queue and the pool of each host's connection."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.sdk import DAG

from llem_airflow.cli.airflow_checks import dag_problems
from llem_airflow.factory import study_dag
from llem_airflow.study import StudyFileError, load_study_text

TEXT = """\
study_name: spread
serving_mode: offline
engine: transformers
task: {model: org/model, dataset: {source: builtin, n_prompts: 2}}
measurement: {meter: cpu-estimate}
sweep: {transformers.llem_execution.batch_size: [1, 2]}
study_execution: {n_cycles: 2MORE}
gpus: {count: 1}
runners: {transformers: container}
airflow: {hosts: [gpu1, gpu2]AIRFLOW}
"""
TLS = {"tls_ca_cert": "/c/ca", "tls_client_cert": "/c/cert", "tls_client_key": "/c/key"}
GPU1 = {"host": "tcp://gpu1:2376", "extra": {"queue": "q1", "pool": "p1", "gpu_kinds": "A100", **TLS}}
GPU2 = {"host": "tcp://gpu2:2376", "extra": {"queue": "q2", "pool": "p2", "gpu_kinds": "A100", **TLS}}


@pytest.fixture
def two_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, gpu1=GPU1, gpu2=GPU2)


def connect(monkeypatch: pytest.MonkeyPatch, **said: dict[str, Any]) -> None:
    for name, each in said.items():
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps({"conn_type": "llem", **each}))


def text(airflow: str = "", more: str = "") -> str:
    return TEXT.replace("AIRFLOW", airflow).replace("MORE", more)


def dag_of(airflow: str = "", more: str = "", **arguments: Any) -> DAG:
    return study_dag(load_study_text(text(airflow, more), name="spread.yaml"), **arguments)


def tasks(dag: DAG) -> list[Any]:
    return list(dag.tasks)


def cycles(dag: DAG) -> list[Any]:
    return [task for task in tasks(dag) if ".cycle_" in task.task_id]


def places(dag: DAG) -> list[tuple[str, str, str]]:
    return [(task.llem_conn_id, task.queue, task.pool) for task in cycles(dag)]


def test_each_cycle_has_the_queue_and_the_pool_of_its_host(two_hosts: None) -> None:
    dag = dag_of()
    assert places(dag) == [
        ("gpu1", "q1", "p1"),
        ("gpu2", "q2", "p2"),
        ("gpu2", "q2", "p2"),
        ("gpu1", "q1", "p1"),
    ]
    assert dag.max_active_tasks == 2, "one on each host at a time"
    plan: Any = dag.get_task("plan")
    assert (plan.queue, plan.operator_args["llem_conn_id"]) == ("q1", "gpu1")


def test_image_and_model_are_fetched_once_on_each_host(two_hosts: None) -> None:
    dag = dag_of()
    fetches = [task for task in tasks(dag) if task.task_id.startswith("prefetch")]
    assert [(each.task_id, each.llem_conn_id, each.queue) for each in fetches] == [
        ("prefetch_1_gpu1", "gpu1", "q1"),
        ("prefetch_1_gpu2", "gpu2", "q2"),
    ]
    for cycle in cycles(dag):
        assert {name for name in cycle.upstream_task_ids if "prefetch" in name} == {
            f"prefetch_1_{cycle.llem_conn_id}"
        }


def test_a_dag_s_own_arguments_go_before_the_study_s_and_these_before_the_connection_s(
    two_hosts: None,
) -> None:
    assert set(places(dag_of(llem_conn_id="lab"))) == {("lab", "default", "default_pool")}
    assert dag_of(llem_conn_id="lab").max_active_tasks == 1
    assert {(queue, pool) for _, queue, pool in places(dag_of(queue="mine", pool="ours"))} == {
        ("mine", "ours")
    }
    assert {pool for _, _, pool in places(dag_of(", pool: study"))} == {"study"}


def test_a_host_without_a_queue_takes_nobody_else_s(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, gpu1=GPU1, gpu2={"host": "tcp://gpu2:2376", "extra": {"pool": "p2"}})
    assert places(dag_of())[1] == ("gpu2", "default", "p2")


def test_sessions_follow_one_another_on_each_host(two_hosts: None) -> None:
    dag = dag_of(more=", isolation: process")
    starts = [task for task in tasks(dag) if task.task_id.endswith(".start_session")]
    assert [(each.llem_conn_id, each.queue, each.pool) for each in starts] == [
        ("gpu1", "q1", "p1"),
        ("gpu2", "q2", "p2"),
    ]
    stops = [task for task in tasks(dag) if task.task_id.endswith(".stop_session")]
    assert [(each.llem_conn_id, each.queue, each.pool) for each in stops] == [
        ("gpu1", "q1", "default_pool"),
        ("gpu2", "q2", "default_pool"),
    ]
    assert not [task for task in tasks(dag) if task.task_id.endswith(".ended")], "both at the same time"


@pytest.mark.parametrize(
    ("gpu2", "airflow", "said"),
    [
        (None, "", "there is no connection 'gpu2': `airflow connections add gpu2 --conn-type llem"),
        ({"conn_type": "docker"}, "", "connection 'gpu2' is of type 'docker', and a GPU host's is 'llem'"),
        ({"extra": {"gpu_quota": "x"}}, "", "connection 'gpu2': gpu_quota: found 'x'"),
        (GPU1, "", "connections 'gpu1' and 'gpu2' have the same engine and queue: they are one host"),
        ({"host": "gpu2"}, "", '`airflow pools set gpu2 1 "GPUs of gpu2"`, and `pool` in the connection'),
        (
            {"host": "gpu2", "extra": {"pool": "p", "gpu_kinds": "H100"}},
            "",
            "different kinds of GPU (gpu1: A100; gpu2: H100), and a comparison is made on one kind",
        ),
        ({"host": "gpu2", "extra": {"pool": "p", "gpu_kinds": "H100"}}, ", mixed_gpus: true", None),
        ({"host": "gpu2"}, ", pool: lab", None),
    ],
)
def test_what_is_wrong_with_a_host_is_told_when_the_dag_is_made(
    monkeypatch: pytest.MonkeyPatch, gpu2: dict[str, Any] | None, airflow: str, said: str | None
) -> None:
    connect(monkeypatch, gpu1=GPU1, **({"gpu2": gpu2} if gpu2 is not None else {}))
    if said is None:
        assert len(cycles(dag_of(airflow))) == 4
        return
    with pytest.raises(StudyFileError) as caught:
        dag_of(airflow)
    assert "spread:10:" in str(caught.value)
    assert said in str(caught.value)


def test_a_study_can_be_checked_where_its_hosts_are_not_known() -> None:
    assert dag_problems(load_study_text(text(), name="spread.yaml")) == ()


def test_one_mapped_task_cannot_be_on_several_hosts(two_hosts: None) -> None:
    with pytest.raises(
        ValueError, match="one queue and pool, and the study is spread over the hosts gpu1, gpu2"
    ):
        dag_of(render="mapped")
