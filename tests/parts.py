"""Real parts that tests share: the Docker engine, images built here, models made here.

A machine that cannot provide one skips the tests that ask for it, with the reason; in CI, which provides
all of them, that is a failure.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import docker
import pytest
from docker.errors import DockerException

REPOSITORY = Path(__file__).resolve().parents[1]
ENGINE_URL = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
ENGINE_SOCKET = Path(ENGINE_URL.removeprefix("unix://"))
"""Of the Docker engine that tests use."""
MODELS = Path(os.environ.get("LLEM_MODELS_DIR", REPOSITORY / "build" / "models"))


def missing(what: str) -> NoReturn:
    """End the test because this machine lacks something: a skip on a person's machine, a failure in CI."""
    if in_ci():
        pytest.fail(f"CI must provide every part: {what}", pytrace=False)
    pytest.skip(what)


def in_ci() -> bool:
    """Whether a continuous-integration run has said so, as GitHub, GitLab and others do."""
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


@contextmanager
def engine_client() -> Iterator[docker.APIClient]:
    """A client of the engine that DOCKER_HOST (or the default socket) names, once that has answered."""
    try:
        client = docker.APIClient(base_url=ENGINE_URL, version="auto", timeout=120)
    except DockerException as error:
        missing(
            f"no Docker engine answers at {ENGINE_URL} (as root on Debian, .ci/start-engine starts one): {error}"
        )
    try:
        yield client
    finally:
        client.close()


def left_by(api: docker.APIClient, installation: str) -> list[str]:
    """Containers and volumes of one installation that are on the engine, which others may use at the same time."""
    label = {"label": f"llem.installation={installation}"}
    containers = [c["Names"][0] for c in api.containers(all=True, filters=label)]
    return containers + [v["Name"] for v in api.volumes(filters=label)["Volumes"] or []]


@contextmanager
def engine_turn(*, alone: bool) -> Iterator[None]:
    """Hold the right to use this machine's Docker engine, beside others or alone.

    It holds between processes: parallel workers of one test run, and test runs of several clones.
    """
    folder = Path(tempfile.gettempdir())
    with (
        (folder / "llem-tests-gate.lock").open("w") as gate,
        (folder / "llem-tests-engine.lock").open("w") as lock,
    ):
        # Who waits to be alone stands in the gate, so that newcomers cannot pass for ever.
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


PORTS = range(20_000, 30_000)
"""Below those that the kernel gives to whoever connects to something, any of which may be taken at any moment."""


def free_port() -> int:
    """A port of this machine that nobody listens at, and that no other test of any process is told soon."""
    with (Path(tempfile.gettempdir()) / "llem-tests-port").open("a+") as last:
        fcntl.flock(last, fcntl.LOCK_EX)
        last.seek(0)
        port = int(last.read() or 0)
        while True:
            port = port + 1 if port + 1 in PORTS else PORTS[0]
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("", port))  # on every address
                break
        last.truncate(0)
        last.write(str(port))
        return port


def build_image(kind: str) -> str:
    """Build one of our images unless it is there and up to date.

    Args:
        kind: A word that `images/build` knows, such as "cpu".

    Returns:
        The image's name.
    """
    return _last_line([str(REPOSITORY / "images" / "build"), kind])


def make_model(script: str, name: str) -> Path:
    """Make a model folder unless it is there.

    Args:
        script: A script of images/models.
        name: The folder's name.

    Returns:
        The model's folder.
    """
    folder = MODELS / name
    _last_line([sys.executable, str(REPOSITORY / "images" / "models" / script), str(folder)])
    return folder


def _last_line(command: list[str]) -> str:
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode != 0:
        missing(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-1000:]}{done.stderr[-3000:]}"
        )
    return done.stdout.splitlines()[-1] if done.stdout else ""
