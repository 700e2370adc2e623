"""Who asked first is not overtaken by who asks for less, and a quota is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.base import Busy, Wait
from llem_airflow.runners.claims import Ticket, demand_of
from llem_airflow.runners.container_spec import ContainerSettings
from llem_airflow.runners.docker import DockerRunner
from llem_airflow.runners.failures import GPUUnavailableError
from llem_airflow.runners.leases import Demand, choose
from llem_airflow.study import GpuRequest
from tests.runners.conftest import RunContainer
from tests.runners.programs import SPEC
from tests.runners.test_leases import HOST, A, B, C, holder

LIMITED = Demand(1, (A, B, C), quota=2)


def test_over_the_quota_a_claim_waits_although_gpus_are_free() -> None:
    ours = [holder("x", A, ticket="1"), holder("y", B, ticket="2")]
    assert choose(LIMITED, ours, [], HOST) is None
    assert choose(LIMITED, ours[:1], [], HOST) == (B.id,)


def test_what_others_hold_does_not_count_for_our_quota() -> None:
    assert choose(LIMITED, [holder("foreign", A), holder("other", B)], [], HOST) == (C.id,)


def test_without_gpus_there_is_no_quota() -> None:
    ours = [holder("x", A, ticket="1"), holder("y", B, ticket="2")]
    assert choose(Demand(quota=2), ours, [], HOST) == ()


def test_a_ticket_carries_all_of_the_demand(this_attempt: Attempt) -> None:
    for demand in (LIMITED, Demand(exclusive_host=True), Demand(2, (A, B))):
        labels = Ticket(docker.APIClient(version="1.41"), this_attempt, "1", demand).labels
        assert demand_of(labels, HOST) == demand


@pytest.fixture
def host_wanted(docker_api: docker.APIClient, this_attempt: Attempt) -> Iterator[Ticket]:
    """Another attempt waits for the whole host."""
    waiting = replace(this_attempt, task_id="waits", installation="tests-turns")
    ticket = Ticket(docker_api, waiting, "0001", Demand(exclusive_host=True))
    ticket.hold()
    yield ticket
    ticket.give_back()


@pytest.mark.docker
@pytest.mark.alone
def test_an_attempt_without_gpus_does_not_overtake_one_that_waits_for_the_host(
    run_container: RunContainer, host_wanted: Ticket
) -> None:
    with pytest.raises(GPUUnavailableError, match=r"the host not free after 1 s"):
        run_container("result()", wait=Wait(1.0))
    host_wanted.give_back()
    assert run_container("result()", wait=Wait(1.0)).exit_code == 0


@pytest.mark.docker
@pytest.mark.alone
def test_who_may_not_wait_here_gets_the_ticket_to_wait_elsewhere(
    run_container: RunContainer,
    host_wanted: Ticket,
    docker_api: docker.APIClient,
    python_image: str,
    this_attempt: Attempt,
    tmp_path: Path,
) -> None:
    settings = ContainerSettings(python_image, gpu_request=GpuRequest(0, exclusive="host"))
    runner = DockerRunner(
        docker_api, this_attempt, settings, folder=tmp_path / "asked", on_line=lambda _: None
    )
    busy = runner.place(SPEC, Wait(180.0, here=False))
    host_wanted.give_back()
    assert isinstance(busy, Busy)
    assert busy.later is not None
    assert demand_of(busy.later["ticket"], HOST) == Demand(exclusive_host=True)
    wait = Wait(180.0, later=json.loads(json.dumps(busy.later)))
    assert run_container("result()", wait=wait, gpu_request=settings.gpu_request).exit_code == 0
