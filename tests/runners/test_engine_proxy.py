"""The engine behind a proxy that allows what the page documents, and nothing else."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest
from docker.errors import APIError

from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.container_spec import ContainerSettings
from llem_airflow.runners.docker import DockerRunner
from llem_airflow.runners.engine import connect
from llem_airflow.runners.failures import AttemptFailedError
from llem_airflow.study import GpuRequest
from tests.runners.engine_proxy import Call, EngineProxy
from tests.runners.programs import attempt, in_container, program
from tests.standins.build import Standins

pytestmark = pytest.mark.docker

PAGE = Path(__file__).parents[2] / "llem_airflow" / "runners" / "README.md"
ROW = re.compile(r"^\| (GET|POST|PUT|DELETE) \| `(/[^`]+)` \|", re.MULTILINE)


def documented() -> list[re.Pattern[str]]:
    """The calls that the page names, as patterns."""
    calls = (re.escape(f"{method} {path}") for method, path in ROW.findall(PAGE.read_text(encoding="utf-8")))
    # A name of an image may hold slashes.
    return [re.compile(call.replace(r"\{name\}", ".+").replace(r"\{id\}", "[^/]+")) for call in calls]


def allowed(call: Call) -> bool:
    return any(pattern.fullmatch(str(call)) for pattern in documented())


@pytest.fixture
def proxy(tmp_path: Path, docker_api: docker.APIClient) -> Iterator[EngineProxy]:
    engine = Path(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://"))
    with EngineProxy(tmp_path / "engine.sock", engine, allowed=allowed) as running:
        yield running


@pytest.fixture
def through(proxy: EngineProxy) -> Iterator[docker.APIClient]:
    with connect({"DOCKER_HOST": proxy.url}) as api:
        yield api


def test_a_whole_attempt_needs_only_the_documented_calls(
    through: docker.APIClient,
    proxy: EngineProxy,
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
    assert proxy.refused == []


def test_taking_over_and_ending_need_only_the_documented_calls(
    through: docker.APIClient,
    proxy: EngineProxy,
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
    assert proxy.refused == []


def test_a_connection_that_breaks_while_the_container_ends_loses_no_line(
    docker_api: docker.APIClient, python_image: str, tmp_path: Path, this_attempt: Attempt, clean: None
) -> None:
    broken: list[str] = []

    def break_the_first(call: Call) -> None:
        if call.path.endswith("/logs") and not broken:
            broken.append(call.path)
            docker_api.wait(call.path.split("/")[2], timeout=60)
            raise ConnectionResetError

    engine = Path(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://"))
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


def test_what_is_not_documented_does_not_pass(
    through: docker.APIClient, proxy: EngineProxy, python_image: str
) -> None:
    with pytest.raises(APIError) as caught:
        through.exec_create("any", ["id"])
    assert caught.value.status_code == 403
    assert [str(call) for call in proxy.refused] == ["POST /containers/any/exec"]
