"""Every argument of DockerOperator is honoured by the container that a real engine makes, or refused by name."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import docker
import pytest
from airflow.providers.docker.operators.docker import DockerOperator
from airflow.sdk import DAG
from docker.types import DeviceRequest, Mount, Ulimit

from llem_airflow.factory import study_dag, study_dags
from llem_airflow.operators import LLEMExperimentOperator, LLEMTextCycleOperator
from llem_airflow.operators.arguments import ARGUMENTS, ArgumentError, Honoured, Refused, table
from llem_airflow.operators.placement import container_settings
from llem_airflow.operators.runners import engine_of
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.container_spec import create_arguments
from llem_airflow.study import Study, load_study_text
from tests.runners.programs import HASH, attempt

PAGE = Path(__file__).parents[2] / "llem_airflow/operators/README.md"
TEXT = """\
study_name: asked
serving_mode: offline
engine: transformers
task: {model: org/model, dataset: {source: builtin, n_prompts: 2}}
measurement: {meter: none}
gpus: {count: 0}
"""
REFUSED = {
    "command": "echo hi",
    "container_name": "mine",
    "host_tmp_dir": "/srv/tmp",
    "tls_hostname": "gpu1",
    "tls_ssl_version": "TLSv1.2",
    "mount_tmp_dir": True,
    "tmp_dir": "/elsewhere",
    "xcom_all": True,
    "tty": True,
    "retrieve_output": True,
    "retrieve_output_path": "/out.pkl",
    "skip_on_exit_code": 0,
    "port_bindings": {8000: 8000},
}
CREATED: dict[str, tuple[Any, str, Any]] = {
    # argument: value, where the engine's inspection has it, what it says there
    "cpus": (2.5, "HostConfig.CpuShares", 2560),
    "mem_limit": ("64m", "HostConfig.Memory", 64 << 20),
    "network_mode": ("host", "HostConfig.NetworkMode", "host"),
    "user": ("1000:1000", "Config.User", "1000:1000"),
    "entrypoint": ("nice -n 5 python3", "Config.Entrypoint", ["nice", "-n", "5", "python3"]),
    "working_dir": ("/run", "Config.WorkingDir", "/run"),
    "dns": (["10.0.0.53"], "HostConfig.Dns", ["10.0.0.53"]),
    "dns_search": (["lab.example"], "HostConfig.DnsSearch", ["lab.example"]),
    "shm_size": (128 << 20, "HostConfig.ShmSize", 128 << 20),
    "hostname": ("bench", "Config.Hostname", "bench"),
    "privileged": (True, "HostConfig.Privileged", True),
    "cap_add": (["SYS_NICE"], "HostConfig.CapAdd", ["SYS_NICE"]),
    "extra_hosts": ({"hub.lab": "10.0.0.7"}, "HostConfig.ExtraHosts", ["hub.lab:10.0.0.7"]),
    "log_opts_max_size": ("5m", "HostConfig.LogConfig.Config.max-size", "5m"),
    "log_opts_max_file": ("7", "HostConfig.LogConfig.Config.max-file", "7"),
    "ipc_mode": ("host", "HostConfig.IpcMode", "host"),
    "ulimits": (
        [Ulimit(name="memlock", soft=-1, hard=-1)],
        "HostConfig.Ulimits",
        [{"Name": "memlock", "Soft": -1, "Hard": -1}],
    ),
    "labels": (["team", "night"], "Config.Labels.night", ""),
    "environment": ({"A": "{{ 1 + 1 }}", "N": 4}, "Config.Env", ["A=2", "N=4"]),
    "env_file": ("A=file\nB=$A-more\n# no\n", "Config.Env", ["A=file", "B=$A-more"]),
    "private_environment": ({"MY_PASS": "hush-hush"}, "Config.Env", ["MY_PASS=hush-hush"]),
    "device_requests": (
        [DeviceRequest(device_ids=["1"], capabilities=[["gpu", "utility"]])],
        "HostConfig.DeviceRequests",
        [{"Driver": "", "Count": 0, "DeviceIDs": ["1"], "Capabilities": [["gpu", "utility"]], "Options": {}}],
    ),
    "image": (None, "Config.Image", None),  # the one that it is made with
}
TESTED_ELSEWHERE = {
    # How the engine is reached, and what is done with the container: no field of its inspection.
    "api_version", "docker_url", "timeout", "tls_ca_cert", "tls_client_cert", "tls_client_key", "tls_verify",
    "docker_conn_id", "force_pull", "auto_remove", "mounts",
}  # fmt: skip


def study() -> Study:
    return load_study_text(TEXT)


def operator(**kwargs: Any) -> LLEMExperimentOperator:
    asked = study()
    return LLEMExperimentOperator(task_id="t", study=asked, experiment=asked.experiments[0], **kwargs)


def created(api: docker.APIClient, task: LLEMExperimentOperator, who: Attempt) -> dict[str, Any]:
    """What the engine says of the container that it makes for a task."""
    task.render_template_fields({})
    arguments = create_arguments(api, who, HASH, container_settings(task, None))
    identity = str(api.create_container(**arguments)["Id"])
    try:
        found: dict[str, Any] = api.inspect_container(identity)
        return found
    finally:
        api.remove_container(identity, force=True)
        api.remove_volume(who.volume_name)


def at(inspection: dict[str, Any], path: str) -> Any:
    found: Any = inspection
    for name in path.split("."):
        found = found[name]
    return found


def test_the_table_has_every_argument_and_no_other() -> None:
    names = set(inspect.signature(DockerOperator.__init__).parameters) - {"self", "kwargs"}
    assert len(names) == 47
    assert set(ARGUMENTS) == names
    assert {name for name, entry in ARGUMENTS.items() if isinstance(entry, Refused)} == set(REFUSED)
    honoured = {name for name, entry in ARGUMENTS.items() if isinstance(entry, Honoured)}
    assert honoured == {*CREATED, *TESTED_ELSEWHERE}


def test_the_page_has_the_table_as_the_code_has_it() -> None:
    assert table() in PAGE.read_text(), "python -m llem_airflow.operators.arguments prints it"


@pytest.mark.docker
@pytest.mark.parametrize("name", CREATED)
def test_an_argument_reaches_the_container_that_the_engine_makes(
    name: str, docker_api: docker.APIClient, python_image: str
) -> None:
    value, path, expected = CREATED[name]
    given = {} if name == "image" else {name: value}
    found = at(created(docker_api, operator(image=python_image, **given), attempt()), path)
    if name == "image":
        assert found == python_image
    elif path == "Config.Env":
        assert set(expected) <= set(found)
    else:
        assert found == expected


def test_a_request_for_devices_that_is_a_dict_is_one_as_well() -> None:
    asked: dict[str, Any] = {"device_ids": ["1"], "capabilities": [["gpu"]]}
    (made,) = container_settings(operator(device_requests=[asked]), None).device_requests
    assert made == DeviceRequest(**asked)  # what it names is leased


@pytest.mark.docker
@pytest.mark.parametrize(
    "mount",
    [
        Mount("/data", "{{ 'scr' }}atch", type="volume"),
        {"target": "/data", "source": "{{ 'scr' }}atch", "type": "volume"},
    ],
)
def test_mounts_are_templated_whichever_way_they_are_written(
    mount: Any, docker_api: docker.APIClient, python_image: str
) -> None:
    found = created(docker_api, operator(image=python_image, mounts=[mount]), attempt())
    (data,) = (each for each in found["HostConfig"]["Mounts"] if each["Target"] == "/data")
    assert (data["Source"], data["Type"]) == ("scratch", "volume")


@pytest.mark.docker
def test_without_arguments_a_container_is_as_isolated_as_ever(
    docker_api: docker.APIClient, python_image: str
) -> None:
    host = created(docker_api, operator(image=python_image), attempt())["HostConfig"]
    assert host["Privileged"] is False
    assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], None)
    assert host["ReadonlyRootfs"] is True
    assert (host["CpuShares"], host["NetworkMode"]) == (0, "bridge")
    assert host["LogConfig"]["Config"] == {"max-size": "256m", "max-file": "2"}
    added = created(docker_api, operator(image=python_image, cap_add=["SYS_NICE"]), attempt())["HostConfig"]
    assert (added["CapDrop"], added["CapAdd"]) == (["ALL"], ["SYS_NICE"])


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_argument_is_named_with_the_reason_and_the_alternative(name: str) -> None:
    entry = ARGUMENTS[name]
    assert isinstance(entry, Refused)
    with pytest.raises(ArgumentError) as caught:
        operator(**{name: REFUSED[name]})
    assert str(caught.value) == f"{name}={REFUSED[name]!r} is refused: {entry.why}. Instead: {entry.instead}"
    with pytest.raises(ArgumentError, match=f"^{name}="):
        LLEMTextCycleOperator(task_id="t", experiment="x", **{name: REFUSED[name]})
    with pytest.raises(ArgumentError, match=f"^{name}="):
        LLEMExperimentOperator.partial(task_id="t", **{name: REFUSED[name]})


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ArgumentError) as caught:
        operator(command="x", tty=True, cpus=0)
    assert [name in str(caught.value) for name in ("command=", "tty=", "cpus=0: allowed")] == [True] * 3


def test_what_asks_for_nothing_is_accepted() -> None:
    signature = inspect.signature(DockerOperator.__init__).parameters
    usual = {name: signature[name].default for name in REFUSED} | {"mount_tmp_dir": False}
    assert operator(**usual).mount_tmp_dir is False
    assert operator(port_bindings={}).port_bindings == {}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"auto_remove": "never"}, "auto_remove='never' is refused: a later try takes over"),
        ({"auto_remove": "maybe"}, "auto_remove='maybe': allowed: 'force' or 'success'"),
        ({"tls_ca_cert": "ca.pem"}, "work together only, and tls_verify with them; found: tls_ca_cert"),
        ({"tls_verify": False}, "found: tls_verify=False"),
        ({"cpus": -1}, "cpus=-1: allowed: a number above 0"),
        ({"shm_size": 0}, "shm_size=0: allowed: a number above 0"),
        ({"labels": {"llem.gpus": "0"}}, "labels: 'llem.gpus' is ours"),
        ({"labels": ["llem.key"]}, "labels: 'llem.key' is ours"),
        ({"labels": "team=night"}, "labels='team=night': allowed: a dict or a list of names"),
        ({"ulimits": "nofile=1"}, "ulimits='nofile=1': Invalid type for ulimits param"),
        ({"extra_hosts": ["hub"], "mem_limit": "8x"}, "mem_limit='8x': "),
        ({"shm_size": "much"}, "shm_size='much': "),
        ({"device_requests": [{"count": "all"}]}, "device_requests=[{'count': 'all'}]: "),
        ({"gpu_wait_s": -1}, "gpu_wait_s=-1: allowed: seconds from 0 (do not wait)"),
        ({"max_gpu_idle_s": 0}, "max_gpu_idle_s=0: allowed: seconds above 0"),
    ],
)
def test_a_value_that_would_be_ignored_is_a_mistake(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        operator(**arguments)
    assert said in str(caught.value)


def test_default_args_of_a_dag_are_arguments_as_well() -> None:
    with DAG("d", default_args={"image": "of/dag", "docker_url": "tcp://x:1", "cpus": 3}):
        task = operator()
    assert (task.image, task.engine_given, task.cpus) == ("of/dag", True, 3)
    assert operator(docker_url=None).engine_given is False  # the host's connection names it
    with DAG("d2", default_args={"command": "x"}), pytest.raises(ArgumentError, match="command='x'"):
        operator()


@pytest.mark.parametrize("render", ["static", "mapped"])
def test_a_refused_argument_fails_the_dag_file_not_the_cycle(render: str) -> None:
    with pytest.raises(ArgumentError, match="command='x' is refused"):
        study_dag(study(), render=render, command="x")


def test_in_a_folder_of_studies_it_is_said_on_the_page_of_the_dag(tmp_path: Path) -> None:
    (tmp_path / "asked.yaml").write_text(TEXT)
    (dag,) = study_dags(tmp_path, {}, command="x").values()
    assert "llem:invalid" in dag.tags
    assert "is refused: the bundle that measures is the command" in (dag.doc_md or "")


def test_the_argument_s_environment_goes_before_the_worker_s_and_private_before_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_worker")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert container_settings(operator(), None).private_environment == {"HF_TOKEN": "hf_of_the_worker"}
    assert container_settings(operator(), None).network_mode == "none"
    own = {"HF_TOKEN": "hf_of_the_dag", "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "2"}
    box = container_settings(operator(environment=own, env_file="OMP_NUM_THREADS=3\nC=1"), None)
    assert box.private_environment == {}
    assert {name: box.environment[name] for name in (*own, "C")} == {**own, "C": "1"}
    assert "hf_of_the_dag" in box.secrets()
    assert box.network_mode == "bridge"
    private = container_settings(operator(environment=own, private_environment={"HF_TOKEN": "p"}), None)
    assert private.private_environment == {"HF_TOKEN": "p"}


def test_how_the_engine_is_reached_is_as_in_dockeroperator(docker_api: docker.APIClient) -> None:
    url = docker_api.base_url.replace("http+docker://localhost", "unix:///var/run/docker.sock")
    task = operator(docker_url=url, api_version="1.40", timeout=17)
    api = engine_of(task)
    try:
        assert (api.api_version, api.timeout) == ("1.40", 17)
    finally:
        api.close()
