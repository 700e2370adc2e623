"""The engine behind a proxy that allows what the page documents, and nothing else."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import docker
import pytest
from docker.errors import APIError

from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.container_spec import ContainerSettings
from llem_airflow.runners.docker import DockerRunner
from llem_airflow.runners.engine import connect
from llem_airflow.runners.failures import AttemptFailedError
from llem_airflow.runners.session import SessionRunner, SessionSettings, start_session, stop_session
from llem_airflow.study import GpuRequest
from tests.runners.engine_proxy import Call, EngineProxy
from tests.runners.programs import SPEC, attempt, in_container, program, see_through
from tests.standins.build import Standins

pytestmark = pytest.mark.docker

PAGE = Path(__file__).parents[2] / "llem_airflow" / "runners" / "README.md"
ROW = re.compile(r"^\| (GET|POST|PUT|DELETE) \| `(/[^`]+)` \|", re.MULTILINE)


def documented(*, sessions: bool) -> list[re.Pattern[str]]:
    """The calls that the page names, as patterns; with those that only sessions need."""
    always, _, more = PAGE.read_text(encoding="utf-8").partition("Only where a study has sessions")
    rows = ROW.findall(always) + (ROW.findall(more) if sessions else [])
    calls = (re.escape(f"{method} {path}") for method, path in rows)
    # A name of an image may hold slashes.
    return [re.compile(call.replace(r"\{name\}", ".+").replace(r"\{id\}", "[^/]+")) for call in calls]


def allowed(call: Call, *, sessions: bool = False) -> bool:
    return any(pattern.fullmatch(str(call)) for pattern in documented(sessions=sessions))


ENGINE = Path(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://"))


@pytest.fixture
def proxy(tmp_path: Path, docker_api: docker.APIClient) -> Iterator[EngineProxy]:
    with EngineProxy(tmp_path / "engine.sock", ENGINE, allowed=allowed) as running:
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


def test_a_session_needs_only_the_documented_calls_and_those_of_sessions(
    python_image: str, tmp_path: Path, this_attempt: Attempt
) -> None:
    settings, session = ContainerSettings(python_image), SessionSettings("s", idle_s=60.0)
    code = program(tmp_path, "print('hello'); result()")
    lines: list[str] = []
    in_sessions = partial(allowed, sessions=True)
    with (
        EngineProxy(tmp_path / "engine.sock", ENGINE, allowed=in_sessions) as proxy,
        connect({"DOCKER_HOST": proxy.url}) as api,
    ):
        try:
            start_session(api, this_attempt, settings, session, SPEC, folder=tmp_path, on_line=lines.append)
            runner = SessionRunner(
                api, this_attempt, settings, session,
                folder=tmp_path / "out", on_line=lines.append, bundle=code,
            )  # fmt: skip
            see_through(runner, tmp_path)
        finally:
            stop_session(api, this_attempt, "s")
        assert lines == ["hello"]
        assert proxy.refused == []
