"""What can pass is tried again, at once or later; what cannot fails at its first try."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import docker
import pytest
import requests
from airflow.sdk import DAG, RetryAction
from airflow.sdk.exceptions import AirflowFailException

import llem_airflow.operators
from llem_airflow.factory import adhoc_dag, study_dag
from llem_airflow.operators.retries import (
    AT_ONCE,
    AttemptFinalError,
    AttemptRetryableError,
    FailureRetryPolicy,
)
from llem_airflow.runners.failures import CATEGORIES, failure
from tests.factory.test_study import write

POLICY = FailureRetryPolicy()


def decision(error: BaseException) -> Any:
    return POLICY.evaluate(error, 1, 2)


@pytest.mark.parametrize("category", sorted(CATEGORIES))
def test_every_kind_of_failure_has_a_decision(category: str) -> None:
    found = failure(category)
    made = decision(AttemptRetryableError("it failed", found))
    assert made.action is (RetryAction.RETRY if found.retryable else RetryAction.FAIL)
    assert category in made.reason


def test_the_page_shows_the_table() -> None:
    page = (Path(llem_airflow.operators.__file__).parent / "README.md").read_text()
    for name, category in CATEGORIES.items():
        when = ("at once" if category.at_once else "after `retry_delay`") if category.retryable else "never"
        assert f"| {name} | {when} | {category.hint} |\n" in page


@pytest.mark.parametrize("category", sorted(AT_ONCE))
def test_what_is_over_is_tried_again_at_once(category: str) -> None:
    assert decision(AttemptRetryableError("", failure(category))).retry_delay.total_seconds() == 0


@pytest.mark.parametrize("category", ["daemon_down", "network", "unknown", "disk_full"])
def test_what_needs_time_waits_for_the_task_s_own_delay(category: str) -> None:
    assert decision(AttemptRetryableError("", failure(category))).retry_delay is None


@pytest.mark.parametrize(
    "category", ["config", "model_access", "out_of_memory_gpu", "out_of_memory_host", "gpu_access"]
)
def test_a_bad_value_a_gated_model_and_want_of_memory_are_not_tried_again(category: str) -> None:
    made = decision(AttemptRetryableError("", failure(category)))
    assert (made.action, made.reason) == (
        RetryAction.FAIL,
        f"{category}: another try cannot help; {CATEGORIES[category][1]}",
    )


def test_a_final_failure_is_one_that_airflow_never_tries_again() -> None:
    assert isinstance(AttemptFinalError("", failure("config")), AirflowFailException)


@pytest.mark.parametrize(
    ("error", "action"),
    [
        (requests.exceptions.ConnectionError("Connection refused"), RetryAction.RETRY),
        (
            docker.errors.DockerException(
                "permission denied while trying to connect to the Docker daemon socket at unix:///x"
            ),
            RetryAction.FAIL,
        ),
        (docker.errors.APIError("manifest for x:1 not found: manifest unknown"), RetryAction.FAIL),
        (ValueError("out of memory"), RetryAction.DEFAULT),
    ],
)
def test_the_engine_s_own_errors_are_told_apart_and_others_left_to_airflow(
    error: BaseException, action: RetryAction
) -> None:
    assert decision(error).action is action


@pytest.mark.parametrize("render", ["static", "mapped"])
def test_every_cycle_of_a_study_has_the_policy(tmp_path: Path, render: str) -> None:
    dags: list[DAG] = [study_dag(write(tmp_path, "two"), render=render), adhoc_dag()]
    for dag in dags:
        cycles = [task for task in dag.tasks if "cycle" in task.task_id]
        assert cycles
        assert all(isinstance(task.retry_policy, FailureRetryPolicy) for task in cycles)
