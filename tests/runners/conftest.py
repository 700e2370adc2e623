"""Nothing of ours may be left on the engine, whatever a test did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import docker
import pytest

from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.runners.attempt import LABEL_KEY, Attempt
from llem_airflow.runners.base import Collected, Wait
from llem_airflow.runners.container_spec import ContainerSettings
from tests.parts import in_ci
from tests.runners.programs import SPEC, attempt, in_container, program

RunContainer = Callable[..., Collected]


@pytest.fixture
def this_attempt() -> Attempt:
    return attempt()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Any]:
    """A stand-in cluster."""
    if not (find_spec("kubernetes") or in_ci()):
        pytest.skip("the extra `kubernetes` is not installed")
    from tests.kubernetes.cluster import StandInCluster  # noqa: PLC0415  # an extra

    with StandInCluster(tmp_path / "cluster").running() as made:
        yield made


def left_of(api: docker.APIClient, one: Attempt) -> list[str]:
    """Names of the containers and volumes of an attempt's cycle that are there."""
    wanted = {"label": f"{LABEL_KEY}={one.key}"}
    containers = [str(found["Names"]) for found in api.containers(all=True, filters=wanted)]
    return containers + [found["Name"] for found in api.volumes(filters=wanted)["Volumes"] or []]


@pytest.fixture
def clean(docker_api: docker.APIClient, this_attempt: Attempt) -> Iterator[None]:
    """Checks that nothing is left, and removes what is."""
    yield
    left = left_of(docker_api, this_attempt)
    wanted = {"label": f"{LABEL_KEY}={this_attempt.key}"}
    for container in docker_api.containers(all=True, filters=wanted):
        docker_api.remove_container(container["Id"], force=True)
    for volume in docker_api.volumes(filters=wanted)["Volumes"] or []:
        docker_api.remove_volume(volume["Name"])
    assert left == []


@pytest.fixture
def run_container(
    docker_api: docker.APIClient, python_image: str, tmp_path: Path, this_attempt: Attempt, clean: None
) -> RunContainer:
    """Runs a program in a container: ``run_container("print(1)", wall_clock_s=3)``."""

    def run(
        text: str,
        *,
        lines: list[str] | None = None,
        who: Attempt = this_attempt,
        wait: Wait = Wait(180.0),  # noqa: B008  # frozen
        spec: ExperimentSpec = SPEC,
        store: Callable[[Collected], object] = lambda _: None,
        **settings: Any,
    ) -> Collected:
        return in_container(
            docker_api,
            who,
            replace(ContainerSettings(python_image, direct_volume=False), **settings),
            tmp_path / "collected",
            program(tmp_path, text),
            on_line=(lines if lines is not None else []).append,
            wait=wait,
            spec=spec,
            store=store,
        )

    return run
