"""A run's runner is decided once, with its reason; an engine that was named and is away is an error, not a process."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import pytest
from airflow.sdk.exceptions import AirflowFailException

from llem_airflow.factory import study_dag
from llem_airflow.operators import LLEMExperimentOperator, LLEMPlanOperator, plan, runners
from llem_airflow.operators.evidence import open_run
from llem_airflow.operators.placement import EngineAwayError, PlacementError
from llem_airflow.operators.prefetch import sharing
from llem_airflow.operators.runners import choose, decide, engine_of, pinned_choices
from llem_airflow.results import ResultsRoot
from llem_airflow.runners.failures import AttemptFailedError
from llem_airflow.study import Study, load_study_text

TEXT = """\
study_name: placed
serving_mode: offline
engine: ENGINES
task: {model: m, dataset: {source: builtin, n_prompts: 2}}
measurement: {meter: none}
"""
NOWHERE = "unix:///nowhere/docker.sock"


def study(engines: str = "vllm", more: str = "") -> Study:
    return load_study_text(TEXT.replace("ENGINES", engines) + more)


def operator(of: Study, **kwargs: Any) -> LLEMExperimentOperator:
    return LLEMExperimentOperator(task_id="t", study=of, experiment=of.experiments[0], **kwargs)


def context() -> Any:
    ti = SimpleNamespace(
        dag_id="placed", run_id="manual__x", task_id="plan", map_index=-1, try_number=1, max_tries=0
    )
    return {"ti": ti, "outlet_events": {}}


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLEM_RESULTS_ROOT", str(tmp_path / "results"))
    monkeypatch.setattr(plan, "_ENGINE_PATIENCE_S", 0.0)
    for name in ("DOCKER_HOST", "LLEM_RUNNER_VLLM", "LLEM_RUNNER_TRANSFORMERS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which nobody has installed Docker."""
    monkeypatch.setattr(runners, "is_installed_here", lambda: False)


def planned(of: Study, **operator_args: Any) -> dict[str, str]:
    said = LLEMPlanOperator(task_id="plan", study=of, operator_args=operator_args).execute(context())
    found: dict[str, str] = said["runners"]
    return found


@pytest.mark.usefixtures("no_docker")
def test_auto_is_processes_where_docker_is_not_installed_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    assert planned(study())["vllm"].startswith("process (auto: there is no Docker engine on this machine")


@pytest.mark.usefixtures("no_docker")
def test_several_engines_need_containers_or_the_plan_fails_with_the_ways_out() -> None:
    with pytest.raises(
        AirflowFailException, match=r"transformers, vllm\), which need containers.*runners: \{"
    ):
        planned(study("[transformers, vllm]"))
    own = "runners: {vllm: process, transformers: process}\n"
    assert planned(study("[transformers, vllm]", own)) == dict.fromkeys(
        ("transformers", "vllm"), "process (the study)"
    )


@pytest.mark.parametrize("named", ["DOCKER_HOST", "docker_url", "connection"])
def test_an_engine_that_is_named_and_does_not_answer_is_an_error_that_says_who_named_it(
    named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {}
    if named == "DOCKER_HOST":
        monkeypatch.setenv("DOCKER_HOST", NOWHERE)
    elif named == "docker_url":
        arguments["docker_url"] = NOWHERE
    else:
        monkeypatch.setenv("AIRFLOW_CONN_GPU1", json.dumps({"conn_type": "llem", "host": NOWHERE}))
        arguments["llem_conn_id"] = "gpu1"
    with pytest.raises(AirflowFailException) as caught:
        planned(study(), **arguments)
    text = str(caught.value)
    assert (
        "cannot connect to the Docker daemon at unix:///nowhere/docker.sock: No such file or directory"
        in text
    )
    assert f"named by {'connection gpu1' if named == 'connection' else ''}" in text
    assert named in text
    assert "runners: {<engine>: process}" in text


def test_a_default_socket_that_nobody_answers_is_no_missing_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = operator(study())
    asked.docker_url = NOWHERE  # the default one, on a machine whose engine has stopped
    monkeypatch.setattr(runners, "is_installed_here", lambda: True)
    with pytest.raises(EngineAwayError, match="Start it; or say"):
        decide(asked, asked.study.experiments)


@pytest.mark.docker
@pytest.mark.parametrize(
    ("connection", "said"),
    [
        (None, "docker_conn_id 'registry'"),
        ({"conn_type": "docker"}, "No Docker Registry URL provided"),
        ({"conn_type": "docker", "host": "x"}, "No Docker Registry username provided"),
    ],
)
def test_a_registry_s_connection_that_is_missing_or_wrong_is_a_mistake(
    connection: dict[str, str] | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    docker_api: docker.APIClient,
) -> None:
    if connection is not None:
        monkeypatch.setenv("AIRFLOW_CONN_REGISTRY", json.dumps(connection))
    asked = operator(study(), docker_conn_id="registry")
    with pytest.raises(PlacementError) as caught:
        engine_of(asked)
    assert not isinstance(caught.value, EngineAwayError)
    assert said in str(caught.value)
    assert "airflow connections add registry" in str(caught.value)


@pytest.mark.docker
def test_a_registry_that_cannot_be_asked_is_no_reason_for_a_process(
    monkeypatch: pytest.MonkeyPatch, docker_api: docker.APIClient, tmp_path: Path
) -> None:
    conn = {"conn_type": "docker", "host": "127.0.0.1:1", "login": "ada", "password": "x"}
    monkeypatch.setenv("AIRFLOW_CONN_REGISTRY", json.dumps(conn))
    asked = operator(study(), docker_conn_id="registry")
    with pytest.raises(
        AttemptFailedError, match="the login to the registry of docker_conn_id 'registry'"
    ) as caught:
        choose(asked, open_run(asked.study, context()), tmp_path)
    assert caught.value.failure.retryable


@pytest.mark.docker
def test_auto_is_containers_where_an_engine_answers_for_every_engine_and_the_cycles_keep_to_it(
    monkeypatch: pytest.MonkeyPatch, docker_api: docker.APIClient, tmp_path: Path
) -> None:
    asked = study("[transformers, vllm]")
    said = planned(asked)
    version = docker_api.version()["Version"]
    assert {text.partition(" at ")[0] for text in said.values()} == {
        f"container (auto: Docker {version} answers"
    }
    monkeypatch.setenv("DOCKER_HOST", NOWHERE)  # a cycle later: it fails, it does not run as a process
    run = ResultsRoot(tmp_path / "results").run("placed", "manual__x")
    with pytest.raises(AttemptFailedError, match="cannot connect to the Docker daemon") as caught:
        choose(operator(asked), run, tmp_path)
    assert caught.value.failure.category == "daemon_down"
    assert caught.value.failure.retryable


def test_a_decision_holds_for_a_run_until_it_is_planned_again_without_results(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLEM_RUNNER_VLLM", "local")
    asked = study()
    planned(asked)
    monkeypatch.setenv("LLEM_RUNNER_VLLM", "docker:my/image")
    run = ResultsRoot(tmp_path / "results").run("placed", "manual__x")
    chosen = choose(operator(asked), run, tmp_path)
    assert (chosen.runner, chosen.layers["runner_by"]) == ("process", "LLEM_RUNNER_VLLM")
    planned(asked)
    assert pinned_choices(run)["vllm"].images == (("my/image", "LLEM_RUNNER_VLLM"),)


def test_without_a_plan_task_the_first_cycle_decides_for_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLEM_RUNNER_VLLM", "local")
    asked = study()
    run = open_run(asked, context())
    assert choose(operator(asked), run, tmp_path).runner == "process"
    monkeypatch.delenv("LLEM_RUNNER_VLLM")
    assert choose(operator(asked), run, tmp_path).layers["runner_by"] == "LLEM_RUNNER_VLLM"


@pytest.mark.docker
def test_image_and_its_layer_are_recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, docker_api: docker.APIClient
) -> None:
    asked = study(more="runners: {vllm: docker:of/study}\n")
    run = open_run(asked, context())
    chosen = choose(operator(asked), run, tmp_path)
    assert str(chosen) == "Runner: container (the study), image of/study (the study)"
    monkeypatch.setenv("LLEM_IMAGE_VLLM", "of/worker")
    named = choose(operator(asked, runner="docker:of/argument"), run, tmp_path)
    assert named.layers == {
        "runner_by": "the operator's argument `runner`",
        "runner_why": "",
        "image_by": "the operator's argument `runner`",
    }
    assert named.image == "of/argument"
    named = choose(operator(asked, image="of/argument"), run, tmp_path)
    assert (named.image, named.layers["image_by"]) == ("of/argument", "the operator's argument `image`")
    assert choose(operator(asked), run, tmp_path).image == "of/study"


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ({"LLEM_RUNNER_VLLM": "dokcer"}, "LLEM_RUNNER_VLLM: found 'dokcer'; allowed: process, container"),
        ({"AIRFLOW__LLEM__RUNNERS": '{"vllm": "x"}'}, "[llem] runners: vllm: found 'x'"),
        (
            {
                "AIRFLOW_CONN_LLEM_DEFAULT": json.dumps(
                    {"conn_type": "llem", "extra": {"runners": {"vllm": "x"}}}
                )
            },
            "connection 'llem_default': runners: found",
        ),
    ],
)
def test_a_wrong_layer_fails_the_plan_with_its_name(
    layer: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in layer.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AirflowFailException) as caught:
        planned(study())
    assert said in str(caught.value)


def test_installation_and_connection_name_a_runner_and_the_connection_goes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW__LLEM__RUNNERS", '{"vllm": "docker:of/installation", "pytorch": "local"}')
    assert planned(study("[transformers, vllm]")) == {
        "transformers": "process ([llem] runners)",
        "vllm": "container ([llem] runners)",
    }
    conn = {"conn_type": "llem", "extra": {"runners": {"vllm": "local"}}}
    monkeypatch.setenv("AIRFLOW_CONN_LLEM_DEFAULT", json.dumps(conn))
    assert planned(study())["vllm"] == "process (the host's connection (runners))"


def test_the_dag_s_page_says_what_is_known_and_that_the_rest_is_decided_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = study_dag(study("[transformers, vllm]", "runners: {pytorch: docker:my/image}\n")).doc_md or ""
    assert "| transformers | container (the study), image my/image (the study) |" in page
    assert "| vllm | auto: containers where a Docker engine answers, else processes; decided once" in page
    monkeypatch.setenv("LLEM_RUNNER_VLLM", "dokcer")
    assert "No run can be planned: `LLEM_RUNNER_VLLM: found 'dokcer'" in (study_dag(study()).doc_md or "")


def test_what_an_older_word_names_as_a_process_is_not_fetched_for() -> None:
    assert sharing(study(), "local") == []
    assert len(sharing(study(), "docker:image")) == 1
