"""GPU leases: who gets what, who waits, and that no GPU is ever given twice."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import docker
import pytest
from docker.types import DeviceRequest

from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.base import Wait
from llem_airflow.runners.claims import Ticket
from llem_airflow.runners.failures import AttemptFailedError, GPUUnavailableError
from llem_airflow.runners.gpus import (
    Gpu,
    GpuRequestError,
    Inventory,
    candidates,
    has_nvidia,
    inventory,
)
from llem_airflow.runners.holders import OBSERVERS, Holder, holders
from llem_airflow.runners.leases import Demand, advice, choose, over_quota, said, settle
from llem_airflow.study import GpuRequest
from tests.runners.conftest import RunContainer

GB = 10**9
A = Gpu("GPU-aaaaaaaa-0", "0", "A100", 80 * GB)
B = Gpu("GPU-bbbbbbbb-0", "1", "A100", 80 * GB)
C = Gpu("GPU-cccccccc-0", "2", "A100", 80 * GB)
C0 = Gpu("MIG-cccccccc-0", "2:0", "A100 MIG 1g.10gb", 10 * GB, C.id)
C1 = Gpu("MIG-cccccccc-1", "2:1", "A100 MIG 2g.20gb", 20 * GB, C.id)
HOST = Inventory((A, B, C, C0, C1), 12)


def holder(name: str, *gpus: Gpu, state: str = "running", ticket: str = "", host: bool = False) -> Holder:
    return Holder(name, name, tuple(gpu.id for gpu in gpus), state, ticket, host, "an image")


@pytest.mark.parametrize("wanted", [A.id, "0", "GPU-aaaaaaaa", "nvidia.com/gpu=0", f"nvidia.com/gpu={A.id}"])
def test_a_gpu_is_found_by_every_name_it_has(wanted: str) -> None:
    assert HOST.find(wanted) == A


def test_a_slice_is_found_by_uuid_and_by_index() -> None:
    assert HOST.find("2:1") == HOST.find(C1.id) == C1


def test_a_gpu_and_its_slices_exclude_each_other_and_slices_do_not() -> None:
    assert HOST.overlap(C.id, C0.id)
    assert HOST.overlap(C0.id, "2")
    assert not HOST.overlap(C0.id, C1.id)
    assert not HOST.overlap(A.id, B.id)


def test_ids_that_the_host_does_not_know_exclude_only_themselves() -> None:
    assert HOST.overlap("GPU-x", "GPU-x")
    assert not HOST.overlap("GPU-x", "GPU-y")


def test_the_smallest_that_fits_comes_first_and_a_split_gpu_is_not_given_whole() -> None:
    assert candidates(GpuRequest(1), HOST) == (C0, C1, A, B)
    assert candidates(GpuRequest(1, kind="full"), HOST) == (A, B)
    assert candidates(GpuRequest(1, kind="mig"), HOST) == (C0, C1)
    assert candidates(GpuRequest(1, memory_gb=15), HOST) == (C1, A, B)


def test_ids_mean_exactly_these() -> None:
    assert candidates(GpuRequest(2, ids=("1", A.id)), HOST) == (B, A)


def test_more_than_the_host_has_is_said_with_what_it_has() -> None:
    with pytest.raises(
        GpuRequestError, match=r"3 GPU\(s\) of kind full asked for; the host has: GPU-aaaaaaaa-0"
    ):
        candidates(GpuRequest(3, kind="full"), HOST)
    with pytest.raises(GpuRequestError, match="the host has no GPU 7"):
        candidates(GpuRequest(1, ids=("7",)), HOST)
    with pytest.raises(GpuRequestError, match="the host has: none"):
        candidates(GpuRequest(1), Inventory())


def wants(count: int, *gpus: Gpu, host: bool = False) -> Demand:
    return Demand(count, gpus or (A, B), host)


def test_a_free_gpu_is_chosen_and_a_held_one_is_not() -> None:
    assert choose(wants(1), [], [], HOST) == (A.id,)
    assert choose(wants(1), [holder("x", A)], [], HOST) == (B.id,)
    assert choose(wants(2), [holder("x", A)], [], HOST) is None


def test_a_claim_that_has_not_started_holds_too() -> None:
    assert choose(wants(1), [holder("x", A, state="created", ticket="1")], [], HOST) == (B.id,)


def test_a_slice_in_use_keeps_its_gpu_from_being_given() -> None:
    assert choose(wants(1, C), [holder("x", C0)], [], HOST) is None
    assert choose(wants(1, C0, C1), [holder("x", C)], [], HOST) is None
    assert choose(wants(1, C0, C1), [holder("x", C0)], [], HOST) == (C1.id,)


def test_what_is_free_is_kept_for_the_claim_ahead_even_if_it_is_not_enough_for_it() -> None:
    assert choose(wants(1), [holder("x", A)], [wants(2)], HOST) is None


def test_the_claim_behind_gets_what_the_one_ahead_cannot_use() -> None:
    assert choose(wants(1, A, B, C0), [holder("x", A)], [wants(2)], HOST) == (C0.id,)


def test_a_host_for_one_alone_excludes_every_experiment_and_no_foreigner() -> None:
    cpu_only = holder("x", ticket="1")
    assert choose(wants(1, host=True), [cpu_only], [], HOST) is None
    assert choose(wants(1, host=True), [holder("foreign", B)], [], HOST) == (A.id,)
    assert choose(Demand(), [holder("x", A, ticket="1", host=True)], [], HOST) is None
    assert choose(Demand(), [], [wants(1, host=True)], HOST) is None
    assert choose(Demand(), [cpu_only], [], HOST) == ()


def looks(*lists: list[Holder]) -> Callable[[], list[Holder]]:
    rest = iter(lists)
    return lambda: next(rest)


MINE = holder("mine", A, state="created", ticket="5")


def decide(*lists: list[Holder]) -> tuple[bool, Holder | None]:
    return settle(looks(*lists), MINE, HOST, pause=lambda: None, give_up_after=len(lists))


def test_alone_it_starts() -> None:
    assert decide([MINE, holder("x", B)]) == (True, None)


def test_against_one_that_runs_it_loses() -> None:
    assert decide([MINE, holder("x", A)]) == (False, None)


def test_the_later_ticket_steps_back() -> None:
    assert decide([MINE, holder("x", A, state="created", ticket="4")]) == (False, None)


def test_the_earlier_ticket_waits_until_the_later_one_has_gone() -> None:
    later = holder("x", A, state="created", ticket="6")
    assert decide([MINE, later], [MINE, later], [MINE]) == (True, None)


def test_the_earlier_ticket_loses_when_the_later_one_had_already_started() -> None:
    later = holder("x", A, state="created", ticket="6")
    assert decide([MINE, later], [MINE, holder("x", A, ticket="6")]) == (False, None)


def test_a_rival_that_never_starts_is_named_as_dead() -> None:
    later = holder("x", A, state="created", ticket="6")
    assert decide([MINE, later], [MINE, later]) == (False, later)


@pytest.mark.parametrize("seed", range(200))
def test_in_no_order_of_events_do_two_claims_win(seed: int) -> None:
    """Two to four claims of one GPU: every step of each (show, look, start or leave) happens in a random order."""
    order = random.Random(seed)
    visible: dict[str, Holder] = {}
    started: list[str] = []

    def claim(ticket: str) -> Callable[[], bool]:
        mine = holder(f"c{ticket}", A, state="created", ticket=ticket)
        steps = iter(range(10**6))
        state = {"shown": False, "may": False}

        def step() -> bool:
            next(steps)
            if not state["shown"]:
                visible[mine.name] = mine
                state["shown"] = True
                return True
            if state["may"]:
                started.append(mine.name)
                visible[mine.name] = holder(mine.name, A, ticket=ticket)
                return False
            won, dead = settle(
                lambda: list(visible.values()), mine, HOST, pause=lambda: None, give_up_after=1
            )
            if won:
                state["may"] = True
                return True
            if dead is not None:
                return True  # looks again later: nobody is dead here
            del visible[mine.name]
            return False

        return step

    tickets = order.sample("123456789", order.randint(2, 4))
    alive = [claim(ticket) for ticket in tickets]
    while alive:
        one = order.choice(alive)
        if not one():
            alive.remove(one)
    assert len(started) == 1


def test_watchers_of_gpus_hold_none() -> None:
    assert OBSERVERS.search("nvcr.io/nvidia/k8s/dcgm-exporter:4.2")
    assert not OBSERVERS.search("vllm/vllm-openai:v0.33.0")


def test_holders_are_named_for_people() -> None:
    assert said([holder("llem-x-try1", A)]) == f"{A.id}: container llem-x-try1 (an image)"


@pytest.fixture
def host_gpus(docker_api: docker.APIClient, python_image: str) -> Inventory:
    found = inventory(docker_api, python_image)
    if len(found.gpus) < 5:
        pytest.skip("the engine gives no GPUs: start it with the stand-in driver")
    return found


def test_what_one_can_do_names_whom_to_ask_what_to_look_at_and_what_to_stop() -> None:
    ours = holder("llem-1-try1", A, ticket="1")
    theirs = replace(holder("train", B), owner="ada")
    bare = replace(holder("process 7 (python, 3.0 GB)", C), container="", owner="bob", pid=7)
    text = advice([ours, theirs, bare])
    assert "llem-1-try1 is an experiment (an image): wait for its end, or end its task in Airflow" in text
    assert "train: ask ada, look (`docker top train`), stop it (`docker stop train`)" in text
    assert "process 7: ask bob, look (`ps -o user,etime,args -p 7`)" in text
    assert text.endswith("raise gpu_wait_s, or ask for fewer (`gpus`)")
    many = [holder(f"x{number}", A) for number in range(5)]
    assert "and 2 more" in advice(many)
    assert advice([]).startswith("`llem-airflow gpus` shows all holders")


def test_a_quota_that_is_used_up_is_told() -> None:
    held = [holder("x", A, ticket="1"), holder("y", B)]
    assert over_quota(Demand(1, (C,), quota=1), held) == (
        "experiments hold 1 of the 1 that the host's gpu_quota allows; "
    )
    assert over_quota(Demand(1, (C,), quota=2), held) == ""
    assert over_quota(Demand(quota=1), held) == ""


@pytest.mark.docker
def test_the_hosts_gpus_are_found_with_their_slices(
    docker_api: docker.APIClient, python_image: str, host_gpus: Inventory
) -> None:
    assert has_nvidia(docker_api, python_image)
    assert [gpu.index for gpu in host_gpus.gpus] == ["0", "1", "2", "2:0", "2:1"]
    assert host_gpus.cuda_major


@pytest.mark.docker
@pytest.mark.alone
def test_a_box_gets_exactly_the_gpu_that_it_claimed(
    run_container: RunContainer, host_gpus: Inventory
) -> None:
    lines: list[str] = []
    collected = run_container(
        "spec = json.load(open(os.environ['LLEM_CONFIG_PATH']))\n"
        "print(os.environ['NVIDIA_VISIBLE_DEVICES'], spec['meter']['gpus'])\n"
        "result()",
        lines=lines,
        gpu_request=GpuRequest(1, ids=("1",)),
    )
    uuid_ = host_gpus.gpus[1].id
    assert collected.gpus == (uuid_,)
    assert lines == [f"{uuid_} ['{uuid_}']"]


@pytest.mark.docker
@pytest.mark.alone
def test_a_gpu_of_a_foreign_container_is_respected_and_its_holder_named(
    run_container: RunContainer, docker_api: docker.APIClient, python_image: str, host_gpus: Inventory
) -> None:
    name = f"foreign-{uuid.uuid4()}"
    foreign = docker_api.create_container(
        python_image,
        ["python3", "-c", "import time; time.sleep(300)"],
        name=name,
        host_config=docker_api.create_host_config(
            device_requests=[DeviceRequest(device_ids=["0"], capabilities=[["gpu"]])], init=True
        ),
    )["Id"]
    docker_api.start(foreign)
    lines: list[str] = []
    try:
        with pytest.raises(GPUUnavailableError, match="held by: 0: container foreign-") as caught:
            run_container("result()", lines=lines, gpu_request=GpuRequest(1, ids=("0",)), wait=Wait(1.5))
        assert f"stop it (`docker stop {name}`)" in caught.value.failure.hint
        assert run_container("result()", gpu_request=GpuRequest(1, kind="full")).gpus == (
            host_gpus.gpus[1].id,
        )
        by_hand = (DeviceRequest(count=1, capabilities=[["gpu"]]),)  # the first one
        with pytest.raises(
            GPUUnavailableError, match=r"1 GPU\(s\) not free after 0 s; held by: 0: container"
        ):
            run_container("result()", device_requests=by_hand, wait=Wait(0.0))
    finally:
        docker_api.remove_container(foreign, force=True)
    assert caught.value.failure.retryable
    assert lines[0].startswith("Waiting for 1 GPU(s), ")


@pytest.mark.docker
@pytest.mark.alone
def test_requests_by_hand_replace_our_choice_and_are_leased_all_the_same(
    run_container: RunContainer, host_gpus: Inventory
) -> None:
    lines: list[str] = []
    found = run_container(
        "spec = json.load(open(os.environ['LLEM_CONFIG_PATH']))\n"
        "print(os.environ['NVIDIA_VISIBLE_DEVICES'], spec['meter']['gpus'])\n"
        "result()",
        lines=lines,
        gpu_request=GpuRequest(2, ids=("0", "2:0")),
        device_requests=(DeviceRequest(device_ids=["1"], capabilities=[["gpu", "utility"]]),),
    )
    uuid_ = host_gpus.gpus[1].id
    assert found.gpus == (uuid_,)
    assert lines == [f"1 ['{uuid_}']"]


@pytest.mark.docker
def test_more_gpus_than_there_are_fails_at_once(run_container: RunContainer, host_gpus: Inventory) -> None:
    with pytest.raises(AttemptFailedError, match=r"9 GPU\(s\) asked for") as caught:
        run_container("result()", gpu_request=GpuRequest(9))
    assert caught.value.failure.retryable is False


@pytest.mark.docker
def test_a_ticket_keeps_its_place_and_a_stale_one_does_not(
    docker_api: docker.APIClient, this_attempt: Attempt, clean: None
) -> None:
    ahead = Ticket(docker_api, this_attempt, "0001", wants(2))
    behind = Ticket(docker_api, this_attempt, "0002", wants(1))
    ahead.hold()
    try:
        listed = docker_api.volumes(filters={"label": "llem.ticket"})["Volumes"]
        assert [
            v["Labels"]["llem.ticket"] for v in listed if v["Labels"]["llem.key"] == this_attempt.key
        ] == ["0001"]
        assert behind.ahead(HOST, time.time(), ())[0] == wants(2)  # noqa: TID251  # the engine's clock is wall time
        assert behind.ahead(HOST, time.time(), ("0001",)) == []  # noqa: TID251
        assert behind.ahead(HOST, time.time() + 3600, ()) == []  # noqa: TID251
    finally:
        ahead.give_back()


@pytest.mark.docker
@pytest.mark.alone
def test_many_claims_of_several_processes_never_share_a_gpu_and_all_finish(
    python_image: str, host_gpus: Inventory, docker_api: docker.APIClient
) -> None:
    """Four devices: two GPUs and the two slices of a third; every fifth claim wants two."""
    root = Path(__file__).parent.parent.parent
    name = str(uuid.uuid4())
    each = int(os.environ.get("LLEM_TEST_CLAIMS", "4"))
    counts = [[2 if (worker + index) % 5 == 0 else 1 for index in range(each)] for worker in range(10)]
    workers = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.runners.claimant",
                python_image,
                f"{name}-{worker}",
                ",".join(str(count) for count in row),
            ],
            cwd=root,
            stdout=subprocess.PIPE,
            text=True,
        )
        for worker, row in enumerate(counts)
    ]
    ran = [entry for worker in workers for entry in json.loads(worker.communicate(timeout=550)[0])]
    assert len(ran) == 10 * each
    assert sum(len(gpus) for _, _, gpus, _ in ran) == sum(itertools.chain(*counts))
    by_gpu: dict[str, list[tuple[int, int]]] = {}
    for begin_ns, end_ns, gpus, _ in ran:
        for gpu in gpus:
            by_gpu.setdefault(gpu, []).append((begin_ns, end_ns))
    assert len(by_gpu) == 4
    for times in by_gpu.values():
        for (_, end_ns), (begin_ns, _) in itertools.pairwise(sorted(times)):
            assert end_ns <= begin_ns
    mine = [held for held in holders(docker_api, host_gpus) if held.what == "claim of DAG claims"]
    assert mine == []
