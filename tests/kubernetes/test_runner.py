"""Pods on a stand-in cluster: places, faults of the API server, ends that only the cluster knows of.

What every runner does is in tests/runners/test_contract.py, which runs on the same stand-in.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from kubernetes.client import Configuration, CoreV1Api

from llem_airflow.protocol.spec import Prompts
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.base import KILL_S, Busy, Collected, Wait
from llem_airflow.runners.cluster import client_of
from llem_airflow.runners.failures import AttemptFailedError
from llem_airflow.runners.kubernetes import KubernetesRunner
from llem_airflow.runners.pod_spec import PART_BYTES, PodSettings
from tests.kubernetes.cluster import Fault, Object, StandInCluster
from tests.kubernetes.fixtures import RunnerOf
from tests.runners.programs import HASH, RESULT, SPEC, attempt, see_through

HELD = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
TAINT = "0/3 nodes are available: 3 node(s) had untolerated taint {nvidia.com/gpu: present}."
COUNTS = "for n in range(200): print('line', n, flush=True); time.sleep(0.002)\nresult()"


def failed(runner: KubernetesRunner, folder: Path, wait: Wait = Wait()) -> AttemptFailedError:  # noqa: B008  # frozen
    with pytest.raises(AttemptFailedError) as caught:
        see_through(runner, folder, wait=wait)
    return caught.value


def test_devices_are_asked_for_and_held_until_the_end(
    cluster: StandInCluster, runner: RunnerOf, this_attempt: Attempt, tmp_path: Path
) -> None:
    first = runner("time.sleep(60)", gpus=2)
    assert not isinstance(first.place(SPEC), Busy)
    other = replace(this_attempt, task_id="other")
    busy = runner(who=other, gpus=1).place(SPEC, Wait(1.0))
    assert isinstance(busy, Busy)
    assert busy.later is None
    assert f"1 nvidia.com/gpu not free after 1 s: {HELD}" in busy.text
    assert busy.error(tmp_path).failure.retryable
    waiter = runner(who=other, gpus=1)
    freed = threading.Timer(0.5, first.kill)
    freed.start()
    collected = see_through(waiter, tmp_path, wait=Wait(30.0))
    freed.join()
    assert collected.host["name"] == "node-1"
    assert cluster.names() == []


def test_a_pod_for_which_no_node_fits_fails_with_the_schedulers_reason(
    cluster: StandInCluster, runner: RunnerOf, tmp_path: Path
) -> None:
    cluster.unschedulable = TAINT
    error = failed(runner(), tmp_path)
    assert (error.failure.category, error.failure.retryable) == ("config", False)
    assert TAINT in error.headline
    assert "`tolerations`" in error.failure.hint
    assert cluster.names() == []


def test_a_quota_is_waited_for_and_named(cluster: StandInCluster, runner: RunnerOf) -> None:
    cluster.quota = "exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, used: 4, limited: 4"
    busy = runner(gpus=1).place(SPEC, Wait(1.0))
    assert isinstance(busy, Busy)
    assert cluster.quota in busy.text
    assert cluster.names() == []


@pytest.mark.parametrize(
    "fault",
    [
        Fault("create", "pods", times=2),
        Fault("create", "configmaps", status=503),
        Fault("create", "pods", status=0, after=True),
        Fault("get", "pods", times=3, status=500),
        Fault("watch", "pods", times=3),
        Fault("watch", "pods", status=0),
        Fault("get", "pods/log", status=0),
        Fault("get", "pods/exec", status=500),
        Fault("stream", "pods/exec", status=0),
        Fault("list", "pods"),
        Fault("delete", "pods", times=2),
        Fault("delete", "pods", status=409),
        Fault("delete", "pods", status=0, after=True),
        Fault("deletecollection", "configmaps"),
    ],
    ids=lambda fault: f"{fault.verb}-{fault.resource}-{fault.status}{'-answer' if fault.after else ''}",
)
def test_what_passes_by_itself_costs_no_attempt(
    cluster: StandInCluster, runner: RunnerOf, lines: list[str], tmp_path: Path, fault: Fault
) -> None:
    cluster.faults = [fault]
    stored: list[Collected] = []
    see_through(runner("print('hello', flush=True); result()"), tmp_path, store=stored.append)
    assert [(each.folder / f"{HASH}_result.json").read_text() for each in stored] == [RESULT]
    assert fault.times == 0
    assert lines == ["hello"]
    assert cluster.names() == []


def test_no_line_is_lost_and_none_comes_twice_over_connections_that_break(
    cluster: StandInCluster, runner: RunnerOf, lines: list[str], tmp_path: Path
) -> None:
    cluster.faults = [Fault("follow", "pods/log", status=0, times=0)]
    cut = cluster.faults[0]
    seen = lines.append

    def hear(line: str) -> None:
        seen(line)
        if len(lines) in (5, 60, 120):
            cut.times = 1

    made = runner(COUNTS)
    made._sink._on_line = hear  # where a line is heard
    see_through(made, tmp_path)
    assert lines == [f"line {n}" for n in range(200)]


def test_watches_that_end_early_and_versions_that_are_forgotten(
    cluster: StandInCluster, runner: RunnerOf, tmp_path: Path, this_attempt: Attempt
) -> None:
    cluster.keep_watches_s, cluster.expires = 0.05, 3
    cluster.unschedulable = HELD
    done: list[Collected] = []
    work = threading.Thread(
        target=lambda: see_through(runner(), tmp_path, wait=Wait(60.0), store=done.append)
    )
    work.start()
    deadline_s = time.monotonic() + 30
    while not (cluster.watches >= 2 and cluster.expires == 0) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert cluster.expires == 0
    cluster.unschedulable = ""
    work.join(60)
    assert len(done) == 1


def test_a_try_that_has_lost_its_pod_to_a_later_one_leaves_it_alone(
    cluster: StandInCluster, runner: RunnerOf, this_attempt: Attempt, tmp_path: Path
) -> None:
    first = runner("time.sleep(0.5); result()")
    first.place(SPEC)
    later = attempt(2, this_attempt)
    second = runner("sys.exit('measured twice')", who=later)
    place = second.place(SPEC)
    assert not isinstance(place, Busy)
    assert place.adopted
    first.kill()
    stored: list[Collected] = []
    second.run(place, SPEC, stored.append)
    assert len(stored) == 1
    assert stored[0].adopted
    assert cluster.names() == []


def test_a_pod_that_somebody_removes_is_cancelled(
    cluster: StandInCluster, runner: RunnerOf, api: CoreV1Api, this_attempt: Attempt, tmp_path: Path
) -> None:
    made = runner("print('up', flush=True); time.sleep(60)")

    def hear(line: str) -> None:
        if line == "up":
            api.delete_namespaced_pod(this_attempt.container_name, "default", grace_period_seconds=0)

    made._sink._on_line = hear  # where a line is heard
    error = failed(made, tmp_path)
    assert error.failure.category == "cancelled"
    assert cluster.names() == []


def test_memory_that_ran_out_is_said_with_its_limit(
    cluster: StandInCluster, runner: RunnerOf, tmp_path: Path
) -> None:
    cluster.reasons = {137: "OOMKilled"}
    pod = {"spec": {"containers": [{"name": "base", "resources": {"limits": {"memory": "64Mi"}}}]}}
    error = failed(runner("os.kill(os.getpid(), signal.SIGKILL)", pod=pod), tmp_path)
    assert error.failure.category == "out_of_memory_host"
    assert "64Mi" in error.headline
    assert json.loads((error.folder / "inspect.json").read_text())["status"]


def test_a_cycle_that_never_starts_ends_with_the_nodes_warning(
    cluster: StandInCluster, runner: RunnerOf, this_attempt: Attempt, tmp_path: Path
) -> None:
    cluster.stops_at = lambda _: {"containerStatuses": []}
    cluster.objects["events", "e1"] = {
        "kind": "Event", "apiVersion": "v1", "type": "Warning", "reason": "FailedMount",
        "message": 'MountVolume.SetUp failed for volume "models": hostPath type check failed',
        "metadata": {"name": "e1", "namespace": "default"}, "involvedObject": {"name": this_attempt.container_name},
    }  # fmt: skip
    error = failed(runner(start_limit_s=0.5), tmp_path)
    assert error.failure.category == "config"
    assert "hostPath type check failed" in error.headline
    assert cluster.names("pods", "configmaps") == []


def test_an_evicted_pod_is_said_to_be(cluster: StandInCluster, runner: RunnerOf, tmp_path: Path) -> None:
    def evicted(_: Object) -> Object:
        return {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}

    cluster.stops_at = evicted
    error = failed(runner(), tmp_path)
    assert (error.failure.category, error.failure.retryable) == ("out_of_memory_host", True)
    assert cluster.names() == []


def test_secrets_stand_in_a_secret_alone_and_long_prompts_in_several_config_maps(
    cluster: StandInCluster, runner: RunnerOf, this_attempt: Attempt, tmp_path: Path
) -> None:
    text = f"assert len(json.load(open(os.environ['LLEM_CONFIG_PATH']))['prompts']['items'][0]) == {3 * PART_BYTES}\n"
    made = runner(
        text + "print('token', os.environ['HF_TOKEN'], flush=True); result()",
        private_environment={"HF_TOKEN": "hf_canary1234567890"},
    )
    long = replace(SPEC, prompts=Prompts("long", "0" * 64, ("x" * 3 * PART_BYTES,), 1))
    place = made.place(long)
    assert not isinstance(place, Busy)
    kinds = dict(cluster.objects)
    maps = [each for (kind, _), each in kinds.items() if kind == "configmaps"]
    assert len(maps) == 4 + 1
    assert all(sum(map(len, each["binaryData"].values())) * 3 / 4 < 1 << 20 for each in maps)
    said = json.dumps([each for (kind, _), each in kinds.items() if kind != "secrets"])
    assert "hf_canary1234567890" not in said
    made.run(place, long, lambda _: None)
    assert cluster.names() == []


def test_kill_takes_no_longer_when_the_server_does_not_answer(this_attempt: Attempt, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        api = client_of(Configuration(host=f"http://127.0.0.1:{silent.getsockname()[1]}"))
        runner = KubernetesRunner(
            api, this_attempt, PodSettings("x"), folder=tmp_path, on_line=lambda _: None
        )
        began_s = time.monotonic()
        with pytest.raises(Exception, match="timed out"):
            runner.kill()
        assert time.monotonic() - began_s < KILL_S + 1
        api.api_client.rest_client.pool_manager.clear()
