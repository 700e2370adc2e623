"""A host's connection says what its containers look like; a mistake in it is said with the field."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest
from airflow.sdk.exceptions import AirflowFailException

import llem_airflow
from llem_airflow.factory import study_dag
from llem_airflow.operators import LLEMExperimentOperator
from llem_airflow.operators.host import HostSettings, HostSettingsError, LLEMHostHook, read_settings
from llem_airflow.operators.placement import PlacementError, choose_image, container_settings
from llem_airflow.runners.choice import Choice, Layers
from llem_airflow.runners.container_spec import ContainerSettings
from llem_airflow.study import Study, load_study_text
from tests.factory.test_study import write
from tests.operators.test_experiment import context

DS01 = {
    "labels": '{"ds01.user": "ada", "ds01.managed": "true"}',
    "cgroup_parent": "ds01.slice",
    "gpu_quota": "2",
    "shm_size": "2g",
    "images": {"vllm": "registry/vllm:1"},
    "gpu_wait_s": 60,
    "max_runtime_s": 300,
    "max_idle_s": 120,
}


def study(gpus: str = "{count: 1}", *, engine: str = "vllm") -> Study:
    return load_study_text(
        f"study_name: hosted\nserving_mode: offline\nengine: {engine}\n"
        f"task: {{model: m, dataset: {{source: builtin, n_prompts: 2}}}}\ngpus: {gpus}\n"
    )


def hosted(fields: dict[str, Any], *, gpus: str = "{count: 1}", **kwargs: Any) -> LLEMExperimentOperator:
    """The study's only cycle on a host with these fields."""
    asked = study(gpus)
    task = LLEMExperimentOperator(task_id="x", study=asked, experiment=asked.experiments[0], **kwargs)
    task.host = read_settings("gpu1", fields)
    return task


def placed(fields: dict[str, Any], *, gpus: str = "{count: 1}", **kwargs: Any) -> ContainerSettings:
    """The container of the study's only cycle on a host with these fields."""
    return container_settings(hosted(fields, gpus=gpus, **kwargs), None)


def test_what_the_host_asks_for_is_applied_to_the_container() -> None:
    made = placed(DS01)
    assert made.extra_labels == {"ds01.user": "ada", "ds01.managed": "true"}
    assert (made.cgroup_parent, made.shm_size, made.gpu_quota) == ("ds01.slice", "2g", 2)
    assert hosted(DS01).gpu_wait_s == 60
    assert (made.wall_clock_s, made.silence_s) == (300, 120)


def test_the_study_s_limits_hold_when_they_are_narrower_than_the_host_s() -> None:
    made = placed({"max_runtime_s": 10**6, "max_idle_s": 10**6})
    assert (made.wall_clock_s, made.silence_s) == (600, 300)


def test_the_operator_s_arguments_go_before_the_host_s() -> None:
    made = placed(DS01, shm_size="8g", labels={"ds01.user": "bob"})
    assert (made.shm_size, made.extra_labels["ds01.user"]) == ("8g", "bob")
    assert hosted(DS01, gpu_wait_s=7).gpu_wait_s == 7


@pytest.mark.parametrize(
    ("connection", "argument", "found"), [(60, 0, 0), (0, None, 0), (60, None, 60), (None, None, 180)]
)
def test_no_time_to_wait_is_a_time_of_its_own(
    connection: float | None, argument: float | None, found: float
) -> None:
    assert hosted({"gpu_wait_s": connection}, gpu_wait_s=argument).gpu_wait_s == found


@pytest.mark.parametrize(
    ("connection", "arguments", "found"),
    [
        (True, {}, True),
        ("true", {"keep_failed": False}, False),
        (None, {"keep_failed": True}, True),
        (None, {"auto_remove": "success"}, True),
        (None, {"auto_remove": "force"}, False),
        (True, {"auto_remove": "force"}, False),
        (None, {}, False),
    ],
)
def test_a_failed_container_is_kept_as_the_argument_says_then_the_host(
    connection: object, arguments: dict[str, Any], found: bool
) -> None:
    assert placed({"keep_failed": connection}, **arguments).keep_failed is found


def test_of_two_limits_of_idle_time_the_narrower_counts() -> None:
    assert placed({"max_gpu_idle_s": 900}, max_gpu_idle_s=60).gpu_idle_s == 60
    assert placed({"max_gpu_idle_s": 30}, max_gpu_idle_s=60).gpu_idle_s == 30
    assert placed({}).gpu_idle_s is None


def test_more_gpus_than_the_quota_is_a_mistake_and_no_wait() -> None:
    with pytest.raises(
        PlacementError, match=r"asks for 3 GPUs and the host's quota is 2: lower `gpus.count`"
    ):
        placed(DS01, gpus="{count: 3}")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("gpu_quota", 0, "gpu_quota: found 0; allowed: a whole number from 1"),
        ("gpu_quota", "1.5", "gpu_quota: found '1.5'; "),
        ("gpu_wait_s", -1, "gpu_wait_s: found -1; allowed: a number of seconds from 0"),
        ("max_gpu_idle_s", 0, "max_gpu_idle_s: found 0; allowed: a number above 0"),
        ("keep_failed", "maybe", "keep_failed: found 'maybe'; allowed: true or false"),
        ("labels", {"llem.gpus": "0"}, "labels that begin with llem. are ours"),
        ("labels", "ada", "labels: found 'ada'; "),
        ("labels", {"user": 7}, "allowed: a JSON object of texts"),
        ("cgroup", "x", "'cgroup' is not known; known are: cgroup_parent, docker_host, gpu_kinds, gpu_quota"),
    ],
)
def test_a_mistake_names_the_connection_the_field_and_what_is_allowed(
    field: str, value: Any, said: str
) -> None:
    with pytest.raises(HostSettingsError, match="connection 'gpu1': ") as caught:
        read_settings("gpu1", {field: value})
    assert said in str(caught.value)


def test_the_connection_is_read_as_airflow_stores_it(monkeypatch: pytest.MonkeyPatch) -> None:
    conn = {"conn_type": "llem", "host": "tcp://gpu1:2375", "password": "hf_secret", "extra": DS01}
    monkeypatch.setenv("AIRFLOW_CONN_GPU1", json.dumps(conn))
    read = LLEMHostHook("gpu1").settings()
    assert read.hub_token == "hf_secret"
    assert "hf_secret" not in repr(read)
    assert replace(read, hub_token=None) == read_settings("gpu1", {"docker_host": "tcp://gpu1:2375", **DS01})


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        ("gpu1", None, "tcp://gpu1:2375"),
        ("gpu1", 2376, "tcp://gpu1:2376"),
        ("gpu1:2376", None, "tcp://gpu1:2376"),
        ("tcp://gpu1", None, "tcp://gpu1:2375"),
        ("tcp://gpu1:1", 2, "tcp://gpu1:1"),
        ("https://gpu1", 2376, "https://gpu1:2376"),
        ("10.0.0.7", None, "tcp://10.0.0.7:2375"),
        ("fe80::1", None, "tcp://[fe80::1]:2375"),
        ("ssh://ada@gpu1", None, "ssh://ada@gpu1"),
        ("unix:///run/docker.sock", None, "unix:///run/docker.sock"),
        ("/run/docker.sock", None, "unix:///run/docker.sock"),
        ("", 2375, None),
    ],
)
def test_host_and_port_of_a_connection_name_the_engine(
    monkeypatch: pytest.MonkeyPatch, host: str, port: int | None, url: str | None
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_GPU1", json.dumps({"conn_type": "llem", "host": host, "port": port}))
    assert LLEMHostHook("gpu1").settings().docker_host == url


@pytest.mark.parametrize("host", ["gpu1:99999", "tcp://gpu1:x"])
def test_a_port_that_cannot_be_is_a_mistake_of_the_connection(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_GPU1", json.dumps({"conn_type": "llem", "host": host}))
    with pytest.raises(HostSettingsError, match=r"host: found .* allowed: a name or URL"):
        LLEMHostHook("gpu1").settings()


def test_without_a_connection_everything_is_as_usual_and_a_missing_one_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_LLEM_DEFAULT", json.dumps({"conn_type": "llem"}))
    assert LLEMHostHook().settings() == HostSettings(name="llem_default")


def test_a_bad_connection_fails_the_task_with_what_to_correct(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_GPU1", json.dumps({"conn_type": "llem", "extra": {"gpu_quota": "many"}}))
    monkeypatch.setenv("LLEM_RESULTS_ROOT", str(tmp_path))
    asked = study()
    task = LLEMExperimentOperator(
        task_id="x", study=asked, experiment=asked.experiments[0], llem_conn_id="gpu1"
    )
    with pytest.raises(AirflowFailException, match="connection 'gpu1': gpu_quota: found 'many'"):
        task.execute(context())


@pytest.mark.docker
def test_the_form_s_test_button_asks_the_engine(
    monkeypatch: pytest.MonkeyPatch, docker_api: docker.APIClient
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_GPU1", json.dumps({"conn_type": "llem"}))
    assert LLEMHostHook("gpu1").test_connection()[0]
    monkeypatch.setenv("AIRFLOW_CONN_GPU1", json.dumps({"conn_type": "llem", "host": "unix:///nowhere.sock"}))
    assert LLEMHostHook("gpu1").test_connection()[0] is False


def test_the_form_is_drawn_without_importing_docker_or_airflow() -> None:
    code = (
        "import sys, llem_airflow; info = llem_airflow.get_provider_info()['connection-types'][0];"
        "print(sorted(info['conn-fields'])); assert not {'docker', 'airflow'} & set(sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "cgroup_parent" in said


def test_the_form_has_every_field_that_is_read() -> None:
    (form,) = llem_airflow.get_provider_info()["connection-types"]
    read_settings("x", dict.fromkeys(form["conn-fields"]))
    standard = {"name", "docker_host", "hub_token"}  # id, host and password
    assert set(form["conn-fields"]) == set(HostSettings.__slots__) - standard
    assert not {"host", "port", "password"} & set(form["ui-field-behaviour"]["hidden-fields"])


def image(environ: dict[str, str], study_image: str | None = None) -> tuple[str, str]:
    (experiment,) = study().experiments
    layers = Layers(environ=environ, connection_images={"vllm": "host:1"})
    return choose_image(layers.choice("vllm", image=study_image), experiment)


def test_an_image_comes_from_the_study_then_the_host_then_the_worker() -> None:
    worker = {"LLEM_IMAGE_VLLM": "worker:1"}
    assert image(worker, "study:1") == ("study:1", "the study")
    assert image(worker) == ("host:1", "the host's connection (images)")
    assert Layers(environ=worker).choice("vllm").images == (("worker:1", "LLEM_IMAGE_VLLM"),)


def test_the_default_image_fits_the_driver_s_cuda_and_is_the_cpu_s_without_a_gpu() -> None:
    def default(gpus: str, cuda: int | None) -> str:
        (experiment,) = study(gpus, engine="transformers").experiments
        return choose_image(Choice("container", ""), experiment, cuda_major=lambda: cuda)[0]

    assert default("{count: 1}", 13).endswith("latest-cuda13")
    assert default("{count: 1}", 12).endswith("pytorch:latest")
    assert "cpu" in default("{count: 0}", 13)


@pytest.mark.parametrize("render", ["static", "mapped"])
def test_a_pool_slot_is_a_gpu(tmp_path: Path, render: str) -> None:
    text = write(tmp_path, "two").read_text() + "gpus: {count: 2}\n"
    dag = study_dag(write(tmp_path, "two", text), render=render, pool="gpu1", llem_conn_id="gpu1")
    tasks = [task for task in dag.tasks if "cycle" in task.task_id]
    assert {(task.pool, task.pool_slots) for task in tasks} == {("gpu1", 2)}
    usual = study_dag(write(tmp_path, "two", text), render=render)
    assert {task.pool_slots for task in usual.tasks} == {1}
