"""The engine behind the compose stack's proxy, which allows what the page documents and nothing else."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest
import requests
from docker.errors import APIError

from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.base import Place
from llem_airflow.runners.container_spec import ContainerSettings
from llem_airflow.runners.docker import DockerRunner
from llem_airflow.runners.doctor import OK, may_execute, sessions
from llem_airflow.runners.engine import connect, containers_of
from llem_airflow.runners.failures import AttemptFailedError
from llem_airflow.runners.session import SessionRunner
from llem_airflow.runners.session_container import (
    SessionContainer,
    SessionSettings,
    session_of,
    stop_session,
)
from llem_airflow.study import GpuRequest
from tests import parts
from tests.runners.engine_proxy import Call, EngineProxy
from tests.runners.haproxy import CALLS, SESSIONS, Haproxy, haproxy
from tests.runners.programs import SPEC, attempt, in_container, program, see_through
from tests.standins.build import Standins

pytestmark = pytest.mark.docker

PAGE = Path(__file__).parents[2] / "llem_airflow" / "runners" / "README.md"
ROW = re.compile(r"^\| (GET|POST|PUT|DELETE) \| `(/[^`]+)` \|", re.MULTILINE)
ALWAYS, _, MORE = PAGE.read_text(encoding="utf-8").partition("Only where a study has sessions")
DOCUMENTED, OF_SESSIONS = ROW.findall(ALWAYS), ROW.findall(MORE)


def allowed_with_sessions(call: Call) -> bool:
    """Whether the page names a call."""
    # A name of an image may hold slashes.
    rows = (re.escape(f"{method} {path}") for method, path in (*DOCUMENTED, *OF_SESSIONS))
    patterns = (row.replace(r"\{name\}", ".+").replace(r"\{id\}", "[^/]+") for row in rows)
    return any(re.fullmatch(pattern, str(call)) for pattern in patterns)


@pytest.fixture(scope="module")
def proxy(docker_api: docker.APIClient) -> Iterator[Haproxy]:
    with haproxy(docker_api) as running:
        yield running


@pytest.fixture
def through(proxy: Haproxy) -> Iterator[docker.APIClient]:
    with connect({"DOCKER_HOST": proxy.url}) as api:
        yield api


@pytest.fixture
def none_refused(proxy: Haproxy) -> Iterator[None]:
    before = proxy.refused
    yield
    assert proxy.refused == before


def test_a_whole_attempt_needs_only_the_documented_calls(
    through: docker.APIClient,
    none_refused: None,
    python_image: str,
    standin: Standins,
    tmp_path: Path,
    this_attempt: Attempt,
    clean: None,
) -> None:
    settings = ContainerSettings(
        python_image, gpu_request=GpuRequest(count=1), user=None, direct_volume=False
    )
    code = program(tmp_path, "print('hello'); result()")
    lines: list[str] = []
    in_container(through, this_attempt, settings, tmp_path / "out", code, on_line=lines.append)
    assert "hello" in lines


def test_taking_over_and_ending_need_only_the_documented_calls(
    through: docker.APIClient,
    proxy: Haproxy,
    none_refused: None,
    python_image: str,
    tmp_path: Path,
    this_attempt: Attempt,
    clean: None,
) -> None:
    began = threading.Event()
    later = attempt(2, like=this_attempt)
    lines: list[str] = []
    settings = ContainerSettings(python_image, wall_clock_s=120, direct_volume=False)
    code = program(tmp_path, "print('on', flush=True); time.sleep(600)")

    def first_try() -> None:
        with pytest.raises(AttemptFailedError), connect({"DOCKER_HOST": proxy.url}) as api:
            in_container(api, this_attempt, settings, tmp_path / "1", code, on_line=lambda _: began.set())

    thread = threading.Thread(target=first_try)
    thread.start()
    assert began.wait(60)
    with pytest.raises(AttemptFailedError, match="silence limit"):
        in_container(through, later, replace(settings, silence_s=1, stop_grace_s=1), tmp_path / "2", code)
    thread.join(60)
    DockerRunner(through, later, settings, folder=tmp_path / "3", on_line=lines.append).kill()


def test_a_connection_that_breaks_while_the_container_ends_loses_no_line(
    docker_api: docker.APIClient, python_image: str, tmp_path: Path, this_attempt: Attempt, clean: None
) -> None:
    broken: list[str] = []

    def break_the_first(call: Call) -> None:
        if call.path.endswith("/logs") and not broken:
            broken.append(call.path)
            docker_api.wait(call.path.split("/")[2], timeout=60)
            raise ConnectionResetError

    engine = parts.ENGINE_SOCKET
    settings = ContainerSettings(python_image, user=None, direct_volume=False)
    code = program(tmp_path, "for i in range(2000): print('line', i)\nresult()")
    lines: list[str] = []
    with (
        EngineProxy(tmp_path / "engine.sock", engine, after=break_the_first) as proxy,
        connect({"DOCKER_HOST": proxy.url}) as api,
    ):
        in_container(api, this_attempt, settings, tmp_path / "out", code, on_line=lines.append)
    assert broken
    assert lines == [f"line {i}" for i in range(2000)]


def test_what_is_not_documented_does_not_pass(through: docker.APIClient) -> None:
    with pytest.raises(APIError, match=r"403.*calls\.lst"):
        through.exec_create("any", ["id"])
    refused = may_execute(through)
    assert refused.text.startswith("commands in containers are refused: ")
    assert "calls.lst" in refused.text
    assert "`LLEM_SESSIONS=on`" in refused.fix


def test_a_session_needs_only_the_documented_calls_and_those_of_sessions(
    docker_api: docker.APIClient, python_image: str, tmp_path: Path, this_attempt: Attempt
) -> None:
    settings, session = (
        ContainerSettings(python_image, direct_volume=False),
        SessionSettings("s", idle_s=60.0),
    )
    code = program(tmp_path, "print('hello'); result()")
    lines: list[str] = []
    with haproxy(docker_api, sessions=True) as proxy, connect({"DOCKER_HOST": proxy.url}) as api:
        try:
            starts = SessionContainer(
                api, this_attempt, settings, session, folder=tmp_path, on_line=lines.append
            )
            assert isinstance(starts.begin(SPEC), Place)
            runner = SessionRunner(
                api, this_attempt, settings, session,
                folder=tmp_path / "out", on_line=lines.append, bundle=code,
            )  # fmt: skip
            see_through(runner, tmp_path)
            assert may_execute(api).status == OK
            assert f"s of DAG {this_attempt.dag_id} (Up " in sessions(api).text
            (container,) = containers_of(docker_api, session_of(this_attempt, "s"))
            docker_api.kill(container["Id"])
            ended = sessions(api)
            assert f"s of DAG {this_attempt.dag_id} (Exited (137) " in ended.text.partition("ended: ")[2]
            assert "`llem-airflow gc --yes`" in ended.fix
        finally:
            stop_session(api, this_attempt, "s")
        assert lines == ["hello"]
        assert proxy.refused == 0
        more = {"Cmd": ["id"], "Privileged": True}
        assert created(proxy, json.dumps(more), "containers/any/exec") == 403
        each_rule_is_needed(proxy, SESSIONS, OF_SESSIONS)


@pytest.mark.parametrize(
    "path", ["/containers/any/exec", "/containers/any%2Fexec", "/build", "/images/x/push"]
)
def test_no_other_call_passes_however_it_is_written(proxy: Haproxy, path: str) -> None:
    base = proxy.url.replace("tcp", "http")
    for before in ("", "/v1.41", "/v1.23", "/x/..", "//x"):
        request = requests.Request("POST", f"{base}{before}{path}", json={}).prepare()
        request.url = f"{base}{before}{path}"  # as it is written
        with requests.Session() as session:
            assert session.send(request, timeout=60, allow_redirects=False).status_code == 403


HARMLESS = {"Image": "llem/none", "Cmd": ["true"], "Labels": {"llem.key": "1"}}
OUTWARD: dict[str, dict[str, Any]] = {
    "privileged": {"HostConfig": {"Privileged": True}},
    "a host's folder": {"HostConfig": {"Binds": ["/:/host"]}},
    "a host's folder as a mount": {
        "HostConfig": {"Mounts": [{"Type": "bind", "Source": "/", "Target": "/host"}]}
    },
    "a host's folder as a volume's options": {
        "HostConfig": {
            "Mounts": [
                {
                    "Type": "volume",
                    "Target": "/x",
                    "VolumeOptions": {"DriverConfig": {"Options": {"device": "/"}}},
                }
            ]
        }
    },
    "the host's network": {"HostConfig": {"NetworkMode": "host"}},
    "another's network": {"HostConfig": {"NetworkMode": "container:postgres"}},
    "a network of the stack": {"NetworkingConfig": {"EndpointsConfig": {"llem-airflow_default": {}}}},
    "the host's processes": {"HostConfig": {"PidMode": "host"}},
    "the host's memory": {"HostConfig": {"IpcMode": "host"}},
    "the host's users": {"HostConfig": {"UsernsMode": "host"}},
    "capabilities": {"HostConfig": {"CapAdd": ["SYS_ADMIN"]}},
    "devices": {"HostConfig": {"Devices": [{"PathOnHost": "/dev/sda"}]}},
    "all devices": {"HostConfig": {"DeviceCgroupRules": ["a *:* rwm"]}},
    "another's volumes": {"HostConfig": {"VolumesFrom": ["postgres"]}},
    "without seccomp": {"HostConfig": {"SecurityOpt": ["no-new-privileges", "seccomp=unconfined"]}},
    "another runtime": {"HostConfig": {"Runtime": "evil"}},
    "in another case": {"hostconfig": {"privileged": True}},
}


def created(proxy: Haproxy, body: str | bytes, kind: str = "containers", **headers: str) -> int:
    """The status of the answer to a call that makes something of this body."""
    call = kind if "/" in kind else f"{kind}/create"
    url = f"{proxy.url.replace('tcp', 'http')}/v1.41/{call}"
    return requests.post(
        url, body, headers={"Content-Type": "application/json", **headers}, timeout=60
    ).status_code


def test_a_container_without_a_way_out_passes(proxy: Haproxy) -> None:
    assert created(proxy, json.dumps(HARMLESS)) == 404  # there is no such image


@pytest.mark.parametrize("what", OUTWARD)
def test_no_container_with_a_way_to_the_host_is_made(proxy: Haproxy, what: str) -> None:
    assert created(proxy, json.dumps({**HARMLESS, **OUTWARD[what]})) == 403


def test_a_body_is_read_as_the_engine_reads_it(proxy: Haproxy) -> None:
    outward = json.dumps({**HARMLESS, **OUTWARD["privileged"]})
    assert created(proxy, outward.replace("Privileged", "Pr\\u0069vileged")) == 403
    assert created(proxy, outward.replace('": ', '"\n\t : ')) == 403
    assert created(proxy, outward.replace('"Privileged"', '"llem.x": "\\\\", "Privileged"')) == 403
    long = json.dumps({"Env": ["X=" + "x" * 200_000], **HARMLESS, **OUTWARD["privileged"]})
    assert created(proxy, long) == 403
    chunks = requests.post(
        f"{proxy.url.replace('tcp', 'http')}/containers/create",
        iter([json.dumps(HARMLESS).encode()]),  # an iterator has no length: it is sent in chunks
        headers={"Content-Type": "application/json"},
        timeout=60,
    )
    assert chunks.status_code == 403


def test_text_that_looks_like_options_is_only_text(proxy: Haproxy) -> None:
    text = json.dumps(OUTWARD["privileged"])
    assert (
        created(proxy, json.dumps({**HARMLESS, "Env": [f"X={text}"], "Cmd": [":", '"Privileged":', "\\"]}))
        == 404
    )


def test_no_volume_stands_for_a_folder_of_the_host(proxy: Haproxy) -> None:
    options = {"type": "none", "o": "bind", "device": "/"}
    assert created(proxy, json.dumps({"Name": "llem-x", "DriverOpts": options}), "volumes") == 403


def concrete(method: str, path: str) -> tuple[str, str]:
    """A call of a row of the page, of something that is not there."""
    return method, path.replace("{name}", "llem-none").replace("{id}", "llem-none")


def asked(proxy: Haproxy, method: str, path: str) -> bool:
    """Whether a call passes."""
    url = f"{proxy.url.replace('tcp', 'http')}/v1.41{path}"
    with requests.request(method, url, data="{}", timeout=60, stream=True) as answer:
        return answer.status_code != 403


def each_rule_is_needed(proxy: Haproxy, file: str, rows: list[tuple[str, str]]) -> None:
    """Take the rules away one by one: each time the row of the page that it stands for does not pass any more."""
    calls = [concrete(*row) for row in rows]  # in the order of the rules
    assert all(asked(proxy, *call) for call in calls)
    for rule, call, others in zip(proxy.rules(file), calls, [*calls[1:], None], strict=True):
        proxy.ask(f"del acl {file} {rule}")
        assert not asked(proxy, *call)
        assert others is None or asked(proxy, *others)


def test_each_rule_lets_one_call_of_the_page_pass_and_without_it_that_is_refused(
    docker_api: docker.APIClient,
) -> None:
    with haproxy(docker_api) as own:
        assert not any(asked(own, *concrete(*row)) for row in OF_SESSIONS)
        each_rule_is_needed(own, CALLS, DOCUMENTED)
