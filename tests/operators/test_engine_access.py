"""The ways to an engine and a registry that a lab has: TLS files, a login, an engine on another machine."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from llem_airflow.operators import LLEMExperimentOperator
from llem_airflow.operators.host import LLEMHostHook
from llem_airflow.operators.live import live_power
from llem_airflow.operators.placement import EngineAwayError, PlacementError
from llem_airflow.operators.runners import engine_address, engine_of
from llem_airflow.protocol.live import DevicePower, LivePhase, LivePower, phase_record, power_record
from llem_airflow.results import ResultsRoot
from llem_airflow.results.records import Live, is_live, read_live
from llem_airflow.runners.attempt import LABEL_KEY, Attempt
from llem_airflow.runners.container_spec import ContainerSettings
from llem_airflow.runners.engine import EngineAddress
from llem_airflow.runners.failures import AttemptFailedError
from llem_airflow.runners.images import fetch_image
from llem_airflow.study import GpuRequest, load_study_text
from tests import parts
from tests.runners.conftest import left_of
from tests.runners.programs import attempt, in_container, program
from tests.runners.registry import PASSWORD, USER, Registry
from tests.runners.relay import Certificates, Relay, make_certificates
from tests.runners.sshd import SSHServer

pytestmark = pytest.mark.docker

ENGINE = parts.ENGINE_SOCKET
TEXT = """\
study_name: reached
serving_mode: offline
engine: transformers
task: {model: org/model, dataset: {source: builtin, n_prompts: 2}}
measurement: {meter: none}
gpus: {count: 0}
"""


def operator(**kwargs: Any) -> LLEMExperimentOperator:
    study = load_study_text(TEXT, name="reached")
    return LLEMExperimentOperator(task_id="t", study=study, experiment=study.experiments[0], **kwargs)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls") / "lab")


@pytest.fixture
def secure(docker_api: docker.APIClient, certificates: Certificates) -> Iterator[Relay]:
    with Relay(ENGINE, certificates.context()) as relay:
        yield relay


def files(certificates: Certificates) -> dict[str, str]:
    cert, key = map(str, certificates.client)
    return {"tls_ca_cert": str(certificates.ca), "tls_client_cert": cert, "tls_client_key": key}


def test_with_tls_files_the_worker_and_the_triggerer_reach_the_engine(
    secure: Relay, certificates: Certificates, docker_api: docker.APIClient
) -> None:
    task = operator(docker_url=secure.url, **files(certificates))
    name = docker_api.info()["Name"]
    api = engine_of(task)
    assert api.base_url.startswith("https://")
    assert api.info()["Name"] == name
    api.close()
    elsewhere = EngineAddress.from_json(json.loads(json.dumps(engine_address(task).to_json())))
    with elsewhere.connect(10) as there:
        assert there.info()["Name"] == name


def test_without_them_or_with_another_authority_s_nobody_gets_in(
    secure: Relay, certificates: Certificates, tmp_path: Path
) -> None:
    with pytest.raises(EngineAwayError, match="a container needs a Docker engine, and none answers"):
        engine_of(operator(docker_url=secure.url))
    others = make_certificates(tmp_path / "others")
    mixed = {**files(certificates), "tls_ca_cert": str(others.ca)}
    with pytest.raises(EngineAwayError, match="is not signed by the authority in tls_ca_cert"):
        engine_of(operator(docker_url=secure.url, **mixed))
    unchecked = operator(docker_url=secure.url, tls_verify=False, **mixed)
    assert engine_address(unchecked).verify is False


def test_a_host_s_connection_brings_its_tls_files_and_says_what_is_wrong_with_them(
    monkeypatch: pytest.MonkeyPatch, secure: Relay, certificates: Certificates, tmp_path: Path
) -> None:
    def host(**extra: Any) -> LLEMExperimentOperator:
        said = {"conn_type": "llem", "host": secure.url, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_GPU1", json.dumps(said))
        task = operator(llem_conn_id="gpu1")
        task.look_at_host()
        return task

    task = host(**files(certificates))
    with engine_of(task) as api:
        assert api.base_url.startswith("https://")
    assert engine_address(task) == LLEMHostHook("gpu1").settings().address
    assert LLEMHostHook("gpu1").test_connection()[0]
    wrong = {**files(certificates), "tls_ca_cert": str(make_certificates(tmp_path / "others").ca)}
    with pytest.raises(
        EngineAwayError, match="none answers on host gpu1: the engine's certificate is not signed by"
    ):
        engine_of(host(**wrong))
    assert "is not signed by the authority in tls_ca_cert" in LLEMHostHook("gpu1").test_connection()[1]
    away = f"tls_client_key is {tmp_path}/away, which is no file that can be read here: put it there for this user"
    with pytest.raises(EngineAwayError, match=f"none answers on host gpu1: .* {away}"):
        engine_of(host(**{**files(certificates), "tls_client_key": f"{tmp_path}/away"}))
    assert away in LLEMHostHook("gpu1").test_connection()[1]


def test_a_host_behind_ssh_is_reached_by_its_tasks_and_its_form(
    monkeypatch: pytest.MonkeyPatch, docker_api: docker.APIClient, tmp_path: Path
) -> None:
    with SSHServer(tmp_path / "server") as server:
        said = {"conn_type": "llem", "host": f"ssh://{server.user}@127.0.0.1{ENGINE}", "port": server.port}
        monkeypatch.setenv("AIRFLOW_CONN_GPU1", json.dumps(said))
        server.client(monkeypatch)
        task = operator(llem_conn_id="gpu1")
        task.look_at_host()
        with engine_of(task) as api:
            assert api is task.cli
            assert api.info()["ID"] == docker_api.info()["ID"]
        assert engine_address(task) == LLEMHostHook("gpu1").settings().address
        assert LLEMHostHook("gpu1").test_connection() == (True, f"Docker {api_version(docker_api)} answers")
        lab_login(monkeypatch, "registry.invalid", "wrong")
        with pytest.raises(
            EngineAwayError, match="the login to the registry of docker_conn_id 'lab' failed: "
        ):
            engine_of(operator(docker_url=f"{server.address}{ENGINE}", docker_conn_id="lab"))
        monkeypatch.setenv(
            "AIRFLOW_CONN_LAB", json.dumps({"conn_type": "docker", "host": "registry.invalid"})
        )
        with pytest.raises(
            PlacementError, match=r"docker_conn_id 'lab': the connection has no name of a user. It"
        ):
            engine_of(operator(docker_url=f"{server.address}{ENGINE}", docker_conn_id="lab"))
        server.client(monkeypatch, known="nobody")
        refused = operator(llem_conn_id="gpu1")
        refused.look_at_host()
        with pytest.raises(
            EngineAwayError, match=r"none answers on host gpu1: .*: the host's key is not known here"
        ) as away:
            engine_of(refused)
        assert "It is named by connection gpu1: correct that" in str(away.value)
        assert "the host's key is not known here" in LLEMHostHook("gpu1").test_connection()[1]


def api_version(api: docker.APIClient) -> str:
    return str(api.version()["Version"])


def lab_login(monkeypatch: pytest.MonkeyPatch, host: str, password: str) -> None:
    said = {"conn_type": "docker", "host": host, "login": USER, "password": password}
    monkeypatch.setenv("AIRFLOW_CONN_LAB", json.dumps(said))


def test_a_login_that_succeeds_lets_the_engine_pull_from_that_registry(
    monkeypatch: pytest.MonkeyPatch, docker_api: docker.APIClient, tmp_path: Path
) -> None:
    lines: list[str] = []
    with Registry(str(uuid.uuid4())) as registry:
        with pytest.raises(AttemptFailedError) as caught:
            fetch_image(docker_api, registry.image, "missing", lines.append, tmp_path)
        assert (caught.value.failure.category, caught.value.failure.retryable) == ("image_pull", False)
        assert "`docker login`" in caught.value.failure.hint
        lab_login(monkeypatch, registry.host, PASSWORD)
        api = engine_of(operator(docker_conn_id="lab"))
        try:
            assert fetch_image(api, registry.image, "missing", lines.append, tmp_path) == registry.exact
        finally:
            docker_api.remove_image(registry.image, force=True)
            api.close()
    assert lines[-1] == f"Pulled image {registry.image}"
    assert PASSWORD not in "".join(lines)


def test_a_login_that_is_refused_is_a_mistake_that_says_so(
    monkeypatch: pytest.MonkeyPatch, docker_api: docker.APIClient
) -> None:
    with Registry("x") as registry:
        lab_login(monkeypatch, registry.host, "wrong")
        with pytest.raises(
            PlacementError, match="the registry of docker_conn_id 'lab' refuses the login"
        ) as e:
            engine_of(operator(docker_conn_id="lab"))
        assert not isinstance(e.value, EngineAwayError)
        assert registry.refused


@pytest.mark.alone
def test_on_another_machine_s_engine_idle_gpus_are_not_watched_and_the_log_says_so(
    docker_api: docker.APIClient, python_image: str, tmp_path: Path
) -> None:
    lines: list[str] = []
    who: Attempt = attempt()
    settings = ContainerSettings(python_image, gpu_request=GpuRequest(1), gpu_idle_s=1.0)
    code = program(tmp_path, "time.sleep(3); print('done'); result()")
    with Relay(ENGINE) as relay, EngineAddress((relay.url,)).connect(60) as api:
        collected = in_container(api, who, settings, tmp_path / "out", code, on_line=lines.append)
    assert len(collected.gpus) == 1
    assert lines == [
        "max_gpu_idle_s is not watched: the engine is on another machine, whose NVIDIA driver does not answer here",
        "done",
    ]
    assert left_of(docker_api, who) == []


def test_power_of_a_cycle_on_another_machine_s_engine_reaches_the_store_while_it_is_at_work(
    docker_api: docker.APIClient, python_image: str, tmp_path: Path
) -> None:
    """What is told goes over the engine's API alone: the worker writes it where its results root lies."""
    who = attempt()
    power = power_record(
        LivePower(2_000_000_000, "measured", {"GPU-0": DevicePower(199.0, 200.0, 202.5, 20)})
    )
    code = program(
        tmp_path,
        f"""
os.write(1, {phase_record(LivePhase(0, "measure"))!r})
while not os.path.exists(out + "/seen"):
    os.write(1, {power!r})
    time.sleep(0.1)
print("seen")
result()
""",
    )
    run = ResultsRoot(tmp_path / "results").run("reached", "r1")
    seen: list[Live] = []
    lines: list[str] = []

    def watch() -> None:
        while not (told := read_live(run, "tiny", 1)) or not told.gpus:
            time.sleep(0.1)
        seen.append(told)
        (container,) = docker_api.containers(filters={"label": f"{LABEL_KEY}={who.key}"})
        docker_api.exec_start(docker_api.exec_create(container, ["touch", "/run/llem/out/seen"])["Id"])

    watching = threading.Thread(target=watch, daemon=True)
    with (
        Relay(ENGINE) as relay,
        EngineAddress((relay.url,)).connect(60) as api,
        live_power(run, "tiny", 1, 1) as writer,
    ):
        watching.start()
        settings = ContainerSettings(python_image, wall_clock_s=240.0)
        collected = in_container(
            api, who, settings, tmp_path / "out", code, on_line=lines.append, on_live=writer.take
        )
    watching.join(60)
    assert collected.exit_code == 0
    assert lines == ["seen"]
    ((gpu,),) = [one.gpus for one in seen]
    assert (gpu.gpu, gpu.now_w, gpu.high_w[0]) == ("GPU-0", 200.0, 202.5)
    assert [span.name for span in seen[0].phases] == ["measure"]
    assert not is_live(run, "tiny", 1)
    assert left_of(docker_api, who) == []
