"""The worker of an attempt in a session gets SIGKILL at each call of the engine: one result, and nothing is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.base import Collected
from llem_airflow.runners.container_spec import ContainerSettings
from llem_airflow.runners.docker import ContainerPlace
from llem_airflow.runners.session import SessionRunner
from llem_airflow.runners.session_container import (
    SessionContainer,
    SessionSettings,
    session_of,
    stop_session,
)
from tests import parts
from tests.runners.conftest import left_of
from tests.runners.engine_proxy import Call, EngineProxy
from tests.runners.programs import SPEC, attempt, program, see_through
from tests.runners.test_contract import in_session

pytestmark = pytest.mark.docker

ROOT = Path(__file__).parents[2]
ENGINE = parts.ENGINE_SOCKET
SESSION = SessionSettings("kills", idle_s=600.0)

WORKER = """
import sys
from pathlib import Path
from llem_airflow.runners.engine import connect
from tests.runners import test_session_kills as t
who = t.Attempt(*{attempt!r})
runner = t.runner(connect(), {image!r}, who, Path({folder!r}))
print("begins", flush=True)
t.see_through(runner, Path({folder!r}), store=lambda _: print("stored", flush=True))
"""


def runner(api: docker.APIClient, image: str, who: Attempt, folder: Path) -> SessionRunner:
    """Of one try; its attempt says when it ends, so that one which was measured twice is found out."""
    folder.mkdir(exist_ok=True)
    text = "open(out + '/requests.jsonl', 'a').write('ran'); time.sleep(0.3); result()"
    return SessionRunner(
        api, who, ContainerSettings(image), SESSION,
        folder=folder / "out", on_line=lambda _: None, bundle=program(folder, text),
    )  # fmt: skip


@pytest.fixture(scope="module")
def of_run(
    docker_api: docker.APIClient, python_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Attempt, str]]:
    """Any attempt of a run that has a living session, and the session's container."""
    who, folder = attempt(), tmp_path_factory.mktemp("session")
    settings = ContainerSettings(python_image)
    try:
        container = SessionContainer(
            docker_api, who, settings, SESSION, folder=folder, on_line=lambda _: None
        )
        started = container.begin(SPEC)
        assert isinstance(started, ContainerPlace)
        yield who, started.container
    finally:
        stop_session(docker_api, who, SESSION.session_id)
    assert left_of(docker_api, session_of(who, SESSION.session_id)) == []


MOMENTS = {
    "takes its turn": (r"POST /exec/\w+/start", 1),
    "hands bundle and spec in": (r"PUT /containers/\w+/archive", 1),
    "runs": (r"POST /exec/\w+/start", 2),
    "collects": (r"GET /containers/\w+/archive", 1),
    "has stored": (r"POST /containers/\w+/exec", 3),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_worker_that_is_killed_at_a_call_leaves_one_result_and_nothing_else(
    docker_api: docker.APIClient, python_image: str, of_run: tuple[Attempt, str], tmp_path: Path, moment: str
) -> None:
    run_of, container = of_run
    who = replace(run_of, task_id=f"task-{uuid.uuid4()}")
    pattern, nth = MOMENTS[moment]
    seen: list[Call] = []

    def kill(call: Call) -> None:
        if re.fullmatch(pattern, str(call)):
            seen.append(call)
            if len(seen) == nth:
                os.kill(call.pid, signal.SIGKILL)

    with EngineProxy(tmp_path / "e.sock", ENGINE, after=kill) as proxy:
        code = WORKER.format(
            attempt=tuple(getattr(who, name) for name in Attempt.__slots__),
            image=python_image,
            folder=str(tmp_path / "first"),
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "DOCKER_HOST": proxy.url}
        ended = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    stored = ended.stdout.count("stored")
    assert stored == (moment == "has stored")
    second = runner(docker_api, python_image, replace(who, try_number=2), tmp_path / "second")
    if stored:
        second.release()
    else:
        results: list[Collected] = []
        collected = see_through(second, tmp_path, store=results.append)
        assert len(results) == 1
        assert (collected.folder / "requests.jsonl").read_text() == "ran"
        if moment != "runs":  # whether it has started by then is the container's affair
            assert collected.adopted is (moment == "collects")
    assert [name for name in in_session(docker_api, container) if who.key in name] == []
