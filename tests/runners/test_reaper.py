"""The reaper removes what nobody owns and touches nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping

import docker
import pytest

from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.gc import find_leftovers, remove_leftovers
from tests.runners.conftest import left_of

pytestmark = pytest.mark.docker


@pytest.fixture
def ours(docker_api: docker.APIClient, python_image: str, this_attempt: Attempt, clean: None) -> None:
    docker_api.create_volume(this_attempt.volume_name, labels=this_attempt.labels)
    mount = docker.types.Mount("/run/llem", this_attempt.volume_name)
    docker_api.create_container(
        python_image,
        ["true"],
        name=this_attempt.container_name,
        labels=this_attempt.labels,
        host_config=docker_api.create_host_config(mounts=[mount]),
    )


@pytest.fixture
def foreign(docker_api: docker.APIClient, python_image: str) -> Iterator[tuple[str, str]]:
    """Somebody else's container and volume; the image's labels begin like ours, and so does the name."""
    name = f"llem-{uuid.uuid4().hex[:8]}"
    docker_api.create_volume(name, labels={"llem.other": "1"})
    mount = docker.types.Mount("/data", name)
    identity = docker_api.create_container(
        python_image,
        ["true"],
        name=name,
        labels={"llem.recipe": "x", "owner": "somebody"},
        host_config=docker_api.create_host_config(mounts=[mount]),
    )["Id"]
    yield identity, name
    docker_api.remove_container(identity, force=True)
    docker_api.remove_volume(name)


def nobody(labels: Mapping[str, str]) -> bool | None:
    return labels["llem.installation"] != "tests"


def test_what_no_task_owns_goes_and_the_foreign_stays(
    docker_api: docker.APIClient, this_attempt: Attempt, ours: None, foreign: tuple[str, str]
) -> None:
    left = find_leftovers(docker_api, alive=nobody, older_than_s=0.0, installation="tests")
    names = {one.name for one in left}
    assert {this_attempt.container_name, this_attempt.volume_name} <= names
    assert foreign[1] not in names
    remove_leftovers(docker_api, [one for one in left if this_attempt.key in one.name])
    assert left_of(docker_api, this_attempt) == []
    assert docker_api.inspect_container(foreign[0])["State"]["Status"] == "created"
    assert docker_api.inspect_volume(foreign[1])["Name"] == foreign[1]


def test_what_a_live_task_owns_stays(docker_api: docker.APIClient, this_attempt: Attempt, ours: None) -> None:
    left = find_leftovers(docker_api, alive=lambda labels: True, older_than_s=0.0)
    assert not [one for one in left if this_attempt.key in one.name]
    docker_api.remove_container(this_attempt.container_name)
    docker_api.remove_volume(this_attempt.volume_name)


def test_where_nobody_can_be_asked_age_decides(
    docker_api: docker.APIClient, this_attempt: Attempt, ours: None
) -> None:
    young = find_leftovers(docker_api, older_than_s=3600.0)
    assert not [one for one in young if this_attempt.key in one.name]
    old = find_leftovers(docker_api, older_than_s=-60.0, installation="tests")
    assert {one.kind for one in old if this_attempt.key in one.name} == {"container", "volume"}
    others = find_leftovers(docker_api, older_than_s=-60.0, installation="another")
    assert not [one for one in others if this_attempt.key in one.name]
    docker_api.remove_container(this_attempt.container_name)
    docker_api.remove_volume(this_attempt.volume_name)
