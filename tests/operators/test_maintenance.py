"""The maintenance task removes what no live task owns, by Airflow's own word."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import docker
import pytest

from llem_airflow.operators import LLEMCollectGarbageOperator
from llem_airflow.operators.host import HostSettingsError
from llem_airflow.operators.maintenance import hosts_to_clean, is_alive
from llem_airflow.results import ResultsRoot
from llem_airflow.runners.attempt import LABEL_SESSION, Attempt
from llem_airflow.runners.container_spec import ContainerSettings
from tests import parts
from tests.runners.programs import SPEC, attempt, in_container, program

if TYPE_CHECKING:
    from airflow.sdk import Context

LABELS = {"llem.dag_id": "d", "llem.run_id": "r", "llem.task_id": "t", "llem.map_index": "3"}


def answer(**states: str | None) -> Any:
    def states_of(**asked: Any) -> dict[str, Any]:
        assert asked == {"dag_id": "d", "task_ids": ["t"], "run_ids": ["r"], "map_index": 3}
        return {"r": states} if states else {}

    return states_of


@pytest.mark.parametrize("state", ["running", "queued", "scheduled", "deferred", "up_for_retry", None])
def test_a_task_that_can_come_back_owns_its_container(state: str | None) -> None:
    assert is_alive(answer(t_3=state), LABELS) is True


@pytest.mark.parametrize("state", ["success", "failed", "skipped", "removed"])
def test_a_task_that_is_over_does_not(state: str) -> None:
    assert is_alive(answer(t_3=state), LABELS) is False


@pytest.mark.parametrize(("state", "lives"), [("running", True), (None, True), ("success", False)])
def test_a_session_s_container_is_its_run_s_until_every_task_of_it_is_over(
    state: str | None, lives: bool
) -> None:
    def states_of(**asked: Any) -> dict[str, Any]:
        assert asked == {"dag_id": "d", "run_ids": ["r"]}
        return {"r": {"start_session": "success", "stop_session": state}}

    assert is_alive(states_of, LABELS | {LABEL_SESSION: "s"}) is lives


def test_a_run_that_airflow_does_not_know_is_left_to_its_age() -> None:
    assert is_alive(answer(), LABELS) is None
    assert is_alive(answer(), {"llem.key": "x"}) is None


@pytest.mark.docker
def test_only_what_is_over_and_of_this_installation_goes(
    monkeypatch: pytest.MonkeyPatch, docker_api: docker.APIClient
) -> None:
    mine, other = (f"tests-gc-{uuid.uuid4().hex[:8]}" for _ in range(2))
    monkeypatch.setenv("LLEM_INSTALLATION", mine)

    def volume(task_id: str, installation: str) -> str:
        attempt = Attempt("d", "r", task_id, -1, "e", "0" * 16, 1, 1, installation)
        docker_api.create_volume(attempt.volume_name, labels=attempt.labels)
        return attempt.volume_name

    over, alive, foreign = volume("over", mine), volume("alive", mine), volume("over", other)

    def states(**asked: Any) -> dict[str, Any]:
        (task_id,) = asked["task_ids"]
        return {"r": {task_id: "failed" if task_id == "over" else "running"}}

    context: Any = {"ti": SimpleNamespace(get_task_states=states)}
    try:
        assert LLEMCollectGarbageOperator(task_id="gc").execute(context) >= 1
        there = {v["Name"] for v in docker_api.volumes()["Volumes"]}
        assert {over, alive, foreign} & there == {alive, foreign}
    finally:
        for name in (alive, foreign):
            docker_api.remove_volume(name)


@pytest.mark.docker
def test_a_finished_result_that_nobody_comes_for_is_stored_before_its_container_goes(
    monkeypatch: pytest.MonkeyPatch, docker_api: docker.APIClient, python_image: str, tmp_path: Path
) -> None:
    mine = f"tests-gc-{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("LLEM_INSTALLATION", mine)
    monkeypatch.setenv("AIRFLOW__LLEM__RESULTS_ROOT", str(tmp_path / "results"))
    who = replace(attempt(), installation=mine)

    def killed(_collected: Any) -> None:
        raise SystemExit

    settings, bundle = ContainerSettings(python_image), program(tmp_path, "result()")
    with pytest.raises(SystemExit):
        in_container(docker_api, who, settings, tmp_path / "out", bundle, store=killed)
    run = ResultsRoot(tmp_path / "results").run(SPEC.study, who.run_id)
    state = "up_for_retry"
    context: Any = {
        "ti": SimpleNamespace(get_task_states=lambda **_asked: {who.run_id: {who.task_id: state}})
    }
    assert LLEMCollectGarbageOperator(task_id="gc").execute(context) == 0
    assert not run.is_run()
    state = "failed"
    LLEMCollectGarbageOperator(task_id="gc").execute(context)
    assert [ref.provenance()["adopted"] for ref in run.cycles()] == [True]
    assert parts.left_by(docker_api, mine) == []


def test_airflow_s_database_says_who_is_alive_in_a_process_of_its_own(
    tmp_path: Path,
) -> None:
    labels = LABELS | {"llem.installation": "here"}
    home = tmp_path / "airflow"
    home.mkdir()
    environment = {**os.environ, "AIRFLOW_HOME": str(home), "LLEM_INSTALLATION": "here"}
    environment.pop("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", None)
    ended = subprocess.run(
        [sys.executable, "-m", "llem_airflow.operators.maintenance"],
        input=json.dumps([labels]),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    said = json.loads(ended.stdout.strip().splitlines()[-1])
    assert (said["installation"], said["alive"]) == ("here", None)  # no database has been made yet
    assert "task_instance" in said["why"]


def test_a_connection_that_is_not_there_fails_its_own_task_and_no_other_host_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW__LLEM__HOSTS", "gc_here, gc_away")
    monkeypatch.setenv("AIRFLOW_CONN_GC_HERE", json.dumps({"conn_type": "llem", "extra": {"queue": "q"}}))
    made, context = hosts_to_clean(), cast("Context", {"ti": SimpleNamespace(get_task_states=dict)})
    assert made == {
        "gc_gc_here": {"llem_conn_id": "gc_here", "queue": "q"},
        "gc_gc_away": {"llem_conn_id": "gc_away"},
    }
    with pytest.raises(HostSettingsError, match="there is no connection 'gc_away'"):
        LLEMCollectGarbageOperator(task_id="gc", **made["gc_gc_away"]).execute(context)
