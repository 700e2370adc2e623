"""A task that waits for a pod holds no worker: it defers, the pod stays, and it goes on with that pod."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.bases.operator import TRIGGER_FAIL_REPR
from airflow.sdk.exceptions import TaskDeferred
from airflow.triggers.base import BaseTrigger

from llem_airflow.operators import LLEMKubernetesExperimentOperator, pod_trigger, waits
from llem_airflow.operators.pod_trigger import PodTrigger
from llem_airflow.operators.retries import AttemptFinalError, AttemptRetryableError
from llem_airflow.operators.waits import now_epoch_s
from llem_airflow.results import ResultsRoot
from llem_airflow.runners import kubernetes
from llem_airflow.runners.pod_status import is_over
from tests.chaos.world import wait_for
from tests.kubernetes.cluster import Fault, StandInCluster
from tests.kubernetes.tasks import TaskOf, quick
from tests.operators.test_experiment import context
from tests.runners.programs import program

HELD = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
TAINT = "0/3 nodes are available: 3 node(s) had untolerated taint {nvidia.com/gpu: present}."
CREATING = {"reason": "ContainerCreating", "message": ""}
BACK_OFF = {"reason": "ImagePullBackOff", "message": "pull access denied, repository does not exist"}


@pytest.fixture
def task(on_cluster: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskOf:
    """Makes the deferrable task of the study's one cycle; what runs in its pod ends at once with a result."""
    monkeypatch.setattr(waits, "SETTLE_S", 0.0)
    kind = quick(tmp_path)

    def make(**kwargs: Any) -> LLEMKubernetesExperimentOperator:
        made: LLEMKubernetesExperimentOperator = on_cluster(kind, deferrable=True, **kwargs)
        return made

    return make


def deferred(work: Callable[[], object]) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as caught:
        work()
    return caught.value


def again(trigger: BaseTrigger) -> PodTrigger:
    """The trigger as another triggerer has it, perhaps after a restart: from what is stored of it."""
    path, kwargs = trigger.serialize()
    assert path == "llem_airflow.operators.pod_trigger.PodTrigger"
    return PodTrigger(**json.loads(json.dumps(kwargs)))


async def event_of(trigger: PodTrigger) -> dict[str, Any]:
    async for event in trigger.run():
        found: dict[str, Any] = event.payload
        return found
    raise AssertionError("it did not fire")


def fired(trigger: BaseTrigger) -> dict[str, Any]:
    return asyncio.run(asyncio.wait_for(event_of(again(trigger)), 120))


def in_the_meantime(cluster: StandInCluster, watched: int, change: Callable[[], object]) -> threading.Thread:
    """Change something when the pod is watched for that many more times."""
    begun = cluster.watches

    def work() -> None:
        wait_for(lambda: cluster.watches >= begun + watched, 60)
        change()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def stored(tmp_path: Path) -> int:
    return len(ResultsRoot(tmp_path / "results").run("asked", "manual__x").cycles())


def test_a_task_defers_while_no_node_has_room_and_goes_on_with_its_pod(
    cluster: StandInCluster, task: TaskOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.unschedulable = HELD
    waiting = deferred(lambda: task().execute(context()))
    said = capsys.readouterr()
    assert f"{HELD} Waiting in the triggerer, for " in said.out + said.err
    (pod,) = cluster.names("pods")
    uid = cluster.pod(pod)["metadata"]["uid"]
    assert waiting.method_name == "execute_after_wait"
    assert waiting.timeout is not None
    assert 180 < waiting.timeout.total_seconds() <= 240
    free = in_the_meantime(cluster, 1, lambda: setattr(cluster, "unschedulable", ""))
    event = fired(waiting.trigger)
    free.join()
    assert event["later"]["pod"] == pod
    assert cluster.pod(pod)["metadata"]["uid"] == uid, "the wait goes on in the scheduler's queue"
    task().execute_after_wait(context(), event)
    (cycle,) = ResultsRoot(tmp_path / "results").run("asked", "manual__x").cycles()
    assert cycle.provenance()["adopted"] is False, "it is of this try"
    assert cluster.names() == []


def test_an_image_is_pulled_without_a_worker(
    cluster: StandInCluster, task: TaskOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "_LOOK_HERE_S", 0.0)
    monkeypatch.setattr(pod_trigger, "_STARTS_SOON_S", 0.0)
    cluster.unschedulable, cluster.pulls = HELD, CREATING
    for_a_node = deferred(lambda: task().execute(context()))
    cluster.unschedulable = ""
    for_its_start = deferred(lambda: task().execute_after_wait(context(), fired(for_a_node.trigger)))
    kwargs = for_its_start.trigger.serialize()[1]
    assert (kwargs["later"]["phase"], kwargs["begin_epoch_s"]) == (
        "start",
        for_a_node.trigger.serialize()[1]["begin_epoch_s"],
    )
    assert for_its_start.timeout is not None
    assert for_its_start.timeout.total_seconds() > 1700, "the limit of the start counts, not that of the wait"
    pulled = in_the_meantime(cluster, 1, lambda: setattr(cluster, "pulls", {}))
    event = fired(for_its_start.trigger)
    pulled.join()
    task().execute_after_wait(context(), event)
    assert stored(tmp_path) == 1
    assert cluster.names() == []


def test_an_attempt_that_fails_while_its_task_is_deferred_is_told_as_what_it_is(
    cluster: StandInCluster, task: TaskOf, tmp_path: Path
) -> None:
    cluster.unschedulable, cluster.reasons = HELD, {137: "OOMKilled"}
    made = task()
    program(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    waiting = deferred(lambda: made.execute(context()))
    (pod,) = cluster.names("pods")
    cluster.unschedulable = ""
    event = fired(waiting.trigger)
    wait_for(lambda: is_over(cluster.pod(pod), "base"), 60)
    with pytest.raises(AttemptFinalError, match="memory") as caught:
        task().execute_after_wait(context(), event)
    assert caught.value.failure.category == "out_of_memory_host"
    assert cluster.names() == []


def test_an_image_that_cannot_be_pulled_is_told_when_the_task_comes_back(
    cluster: StandInCluster, task: TaskOf
) -> None:
    cluster.unschedulable, cluster.pulls = HELD, BACK_OFF
    waiting = deferred(lambda: task().execute(context()))
    failing = in_the_meantime(cluster, 1, lambda: setattr(cluster, "unschedulable", ""))
    event = fired(waiting.trigger)
    failing.join()
    with pytest.raises(
        AttemptFinalError, match="cannot be pulled: ImagePullBackOff: pull access denied"
    ) as caught:
        task().execute_after_wait(context(), event)
    assert caught.value.failure.category == "image_pull"
    assert cluster.names() == []


def test_a_start_that_takes_too_long_is_told_with_the_nodes_warning(
    cluster: StandInCluster, task: TaskOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "_LOOK_HERE_S", 0.0)
    cluster.pulls = CREATING
    waiting = deferred(lambda: task().execute(context()))
    (pod,) = cluster.names("pods")
    cluster.objects["events", "e1"] = {
        "kind": "Event", "apiVersion": "v1", "type": "Warning", "reason": "FailedMount",
        "message": 'persistentvolumeclaim "models" not found',
        "metadata": {"name": "e1", "namespace": "default"}, "involvedObject": {"name": pod},
    }  # fmt: skip
    kwargs = waiting.trigger.serialize()[1]
    long_ago_s = now_epoch_s() - 4000
    kwargs["later"] |= {"until_epoch_s": long_ago_s, "on_node_epoch_s": long_ago_s}
    event = fired(PodTrigger(**kwargs))
    with pytest.raises(AttemptFinalError, match='"models" not found') as caught:
        task().execute_after_wait(context(), event)
    assert caught.value.failure.category == "config"
    assert cluster.names("pods", "configmaps") == []


@pytest.mark.parametrize(
    ("reason", "kind", "said"),
    [
        (HELD, AttemptRetryableError, "1 nvidia.com/gpu not free after 2"),
        (TAINT, AttemptFinalError, "the scheduler has no node for it: 0/3 nodes"),
    ],
)
def test_when_the_time_is_over_the_error_has_the_schedulers_reason(
    cluster: StandInCluster, task: TaskOf, reason: str, kind: type[Exception], said: str
) -> None:
    cluster.unschedulable = reason
    kwargs = deferred(lambda: task(gpu_wait_s=200).execute(context())).trigger.serialize()[1]
    kwargs["later"]["until_epoch_s"] -= 200
    kwargs["begin_epoch_s"] -= 200
    event = fired(PodTrigger(**kwargs))
    with pytest.raises(kind, match=said):
        task(gpu_wait_s=200).execute_after_wait(context(), event)
    assert cluster.names() == []


def test_a_quota_is_asked_again_and_again(
    cluster: StandInCluster, task: TaskOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_trigger, "_QUOTA_AGAIN_S", 0.0)
    cluster.quota = "exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, used: 4, limited: 4"
    waiting = deferred(lambda: task().execute(context()))
    assert cluster.names() == [], "nothing is kept for a pod that there is not"
    waiting = deferred(lambda: task().execute_after_wait(context(), fired(waiting.trigger)))
    cluster.quota = ""
    task().execute_after_wait(context(), fired(waiting.trigger))
    assert stored(tmp_path) == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault("list", "pods", times=2),
        Fault("list", "pods", status=500),
        Fault("watch", "pods", times=2),
        Fault("watch", "pods", status=410, message="too old resource version"),
        Fault("watch", "pods", status=0),
        None,
    ],
    ids=lambda fault: f"{fault.verb}-{fault.status}" if fault else "forgotten",
)
def test_what_passes_by_itself_does_not_end_the_wait(
    cluster: StandInCluster, task: TaskOf, monkeypatch: pytest.MonkeyPatch, fault: Fault | None
) -> None:
    monkeypatch.setattr(pod_trigger, "_PAUSE_S", 0.01)
    cluster.unschedulable = HELD
    waiting = deferred(lambda: task().execute(context()))
    cluster.faults, cluster.keep_watches_s = [fault] if fault else [], 0.1
    cluster.expires = 0 if fault else 2
    free = in_the_meantime(cluster, 2, lambda: setattr(cluster, "unschedulable", ""))
    event = fired(waiting.trigger)
    free.join()
    assert "here" not in event
    assert fault is None or fault.times == 0
    assert cluster.expires == 0
    task().execute_after_wait(context(), event)
    assert cluster.names() == []


def test_a_server_that_forgets_even_what_is_now_is_asked_with_pauses_and_not_for_ever(
    cluster: StandInCluster, task: TaskOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_trigger, "_PAUSE_S", 0.2)
    monkeypatch.setattr(pod_trigger, "_PATIENCE_S", 1.0)
    cluster.unschedulable = HELD
    waiting = deferred(lambda: task().execute(context()))
    cluster.faults = [fault := Fault("list", "pods", status=410, message="too old", times=1000)]
    assert fired(waiting.trigger)["here"] is True
    assert 2 <= 1000 - fault.times <= 7


def test_a_triggerer_that_may_not_look_sends_the_task_back_which_tells_what_it_meets_itself(
    cluster: StandInCluster, task: TaskOf
) -> None:
    cluster.unschedulable = HELD
    waiting = deferred(lambda: task().execute(context()))
    refused = Fault(
        "list", "pods", status=403, message='pods is forbidden: User "llem" cannot get resource "pods"'
    )
    cluster.faults = [refused]
    event = fired(waiting.trigger)
    assert event["here"] is True
    cluster.faults = [Fault("list", "pods", status=403, message=refused.message, times=9)]
    with pytest.raises(AttemptFinalError, match='User "llem" cannot get resource') as caught:
        task().execute_after_wait(context(), event)
    assert caught.value.failure.category == "permission"


def test_a_triggerer_without_the_workers_kubeconfig_sends_the_task_back_to_wait_itself(
    cluster: StandInCluster, task: TaskOf, tmp_path: Path
) -> None:
    cluster.unschedulable = HELD
    kwargs = deferred(lambda: task().execute(context())).trigger.serialize()[1]
    event = fired(PodTrigger(**{**kwargs, "config_file": str(tmp_path / "nowhere")}))
    assert event["here"] is True
    free = threading.Timer(0.3, lambda: setattr(cluster, "unschedulable", ""))
    free.start()
    task().execute_after_wait(context(), event)
    free.join()
    assert stored(tmp_path) == 1


def test_where_no_triggerer_runs_the_task_waits_itself_with_the_pod_that_it_has(
    cluster: StandInCluster, task: TaskOf, tmp_path: Path
) -> None:
    cluster.unschedulable = HELD
    deferred(lambda: task().execute(context()))
    created = [version for version, kind, _ in cluster.history if kind == "ADDED"]
    free = threading.Timer(0.3, lambda: setattr(cluster, "unschedulable", ""))
    free.start()
    task().resume_execution(TRIGGER_FAIL_REPR, {"error": "timeout"}, context())
    free.join()
    assert stored(tmp_path) == 1
    assert created == [version for version, kind, _ in cluster.history if kind == "ADDED"]


@pytest.mark.parametrize(
    "fault", [None, Fault("delete", "pods", status=409), Fault("delete", "pods", status=429)]
)
def test_a_person_who_ends_the_task_while_it_is_deferred_ends_its_pod(
    cluster: StandInCluster, task: TaskOf, fault: Fault | None
) -> None:
    cluster.unschedulable = HELD
    waiting = deferred(lambda: task().execute(context()))
    cluster.faults = [fault] if fault else []
    asyncio.run(again(waiting.trigger).on_kill())
    ended(cluster)


def ended(cluster: StandInCluster) -> None:
    """Wait until a pod that is being deleted has gone, and nothing else is left."""
    wait_for(lambda: not cluster.names("pods"), 60)
    assert cluster.names() == []


def test_one_who_ends_a_task_late_leaves_the_pod_of_its_next_try_alone(
    cluster: StandInCluster, task: TaskOf
) -> None:
    cluster.unschedulable = HELD
    first = deferred(lambda: task().execute(context()))
    (pod,) = cluster.names("pods")
    cluster.change(pod, lambda made: made["metadata"]["labels"].update({"llem.owner": "try2"}))
    asyncio.run(again(first.trigger).on_kill())
    assert cluster.names("pods") == [pod]
    assert "deletionTimestamp" not in cluster.pod(pod)["metadata"]


def test_a_cleared_task_begins_with_a_pod_of_its_own(
    cluster: StandInCluster, task: TaskOf, tmp_path: Path
) -> None:
    cluster.unschedulable = HELD
    deferred(lambda: task().execute(context()))
    (old,) = cluster.names("pods")
    waiting = deferred(lambda: task().execute(context(try_number=2, max_tries=1)))
    cluster.unschedulable = ""
    event = fired(waiting.trigger)
    assert event["later"]["pod"] != old
    task().execute_after_wait(context(try_number=2, max_tries=1), event)
    ended(cluster)
    assert stored(tmp_path) == 1


def test_a_pod_that_somebody_removes_while_it_waits_is_cancelled(
    cluster: StandInCluster, task: TaskOf
) -> None:
    cluster.unschedulable = HELD
    waiting = deferred(lambda: task().execute(context()))
    (pod,) = cluster.names("pods")
    with cluster.api() as api:
        gone = in_the_meantime(
            cluster, 1, lambda: api.delete_namespaced_pod(pod, "default", grace_period_seconds=0)
        )
        event = fired(waiting.trigger)
        gone.join()
    wait_for(lambda: not cluster.names("pods"), 60)
    with pytest.raises(AttemptRetryableError, match="was removed while it waited") as caught:
        task().execute_after_wait(context(), event)
    assert caught.value.failure.category == "cancelled"


def test_a_wait_of_no_time_is_none(cluster: StandInCluster, task: TaskOf) -> None:
    cluster.unschedulable = HELD
    with pytest.raises(AttemptRetryableError, match="not free after 0 s"):
        task(gpu_wait_s=0).execute(context())
    assert cluster.names() == []


def test_it_does_not_fire_before_the_scheduler_can_know_that_the_task_was_deferred(
    cluster: StandInCluster, task: TaskOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.unschedulable = HELD
    waiting = deferred(lambda: task().execute(context()))
    cluster.unschedulable = ""
    monkeypatch.setattr(waits, "SETTLE_S", 1.0)
    began_s = time.monotonic()
    fired(waiting.trigger)
    assert time.monotonic() - began_s >= 1.0
