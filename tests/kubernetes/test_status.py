"""What a pod's status means: our category of each end, and whether another try can help."""

from __future__ import annotations

from typing import Any

import pytest

from llem_airflow.runners.pod_status import (
    cannot_be_placed,
    others_hold,
    why_ended,
    why_not_started,
    why_stuck,
)

NOT_FOUND = 'rpc error: code = NotFound desc = failed to resolve reference "r.lab/x:1": r.lab/x:1: not found'


def waits(reason: str, message: str = "", kind: str = "containerStatuses") -> dict[str, Any]:
    return {
        "phase": "Pending",
        kind: [{"name": "base", "state": {"waiting": {"reason": reason, "message": message}}}],
    }


def ended(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    return {"phase": "Failed", "reason": reason, "message": message, **more}


def failed_init(code: int, reason: str, message: str) -> dict[str, Any]:
    state = {"terminated": {"exitCode": code, "reason": reason, "message": message}}
    return {"phase": "Failed", "initContainerStatuses": [{"name": "llem-hand-in", "state": state}]}


DISRUPTED = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
STATUSES: list[tuple[dict[str, Any], str, bool]] = [
    (waits("ImagePullBackOff", NOT_FOUND), "image_pull", False),
    (waits("ImagePullBackOff", "pull access denied, repository does not exist"), "image_pull", False),
    (waits("ImagePullBackOff", "dial tcp: lookup r.lab on 10.0.0.53:53: no such host"), "image_pull", True),
    (waits("ImagePullBackOff", 'Back-off pulling image "x"', "initContainerStatuses"), "image_pull", False),
    (waits("InvalidImageName", 'couldn\'t parse image name "X:": invalid reference format'), "image_config", False),
    (waits("ErrImageNeverPull", "Container image is not present with pull policy of Never"), "image_pull", False),
    (waits("CreateContainerConfigError", 'secret "hub" not found'), "config", False),
    (waits("CreateContainerConfigError", "container has runAsNonRoot and image will run as root"), "config", False),
    (waits("RunContainerError", 'exec: "python3": executable file not found in $PATH'), "image_config", False),
    (waits("CreateContainerError", "nvidia-container-cli: initialization error"), "gpu_access", False),
    (failed_init(127, "StartError", 'exec: "python3": executable file not found in $PATH'), "image_config", False),
    (failed_init(1, "Error", ""), "image_config", False),
    (ended("Evicted", "The node was low on resource: memory. Threshold quantity: 100Mi"), "out_of_memory_host", True),
    (ended("Evicted", 'Usage of EmptyDir volume "llem-exchange" exceeds the limit "1Gi".'), "disk_full", True),
    (ended("Evicted", 'Usage of EmptyDir volume "llem-shm" exceeds the limit "2Gi".'), "out_of_memory_host", False),
    (ended("Evicted", "The node was low on resource: ephemeral-storage."), "disk_full", True),
    (ended("UnexpectedAdmissionError", "Allocate failed due to devices unavailable"), "gpu_unavailable", True),
    (ended("OutOfnvidia.com/gpu", "Pod was rejected: Node didn't have enough resource"), "gpu_unavailable", True),
    (ended("NodeAffinity", "Pod was rejected: Predicate NodeAffinity failed"), "config", False),
    (ended("DeadlineExceeded", "Pod was active longer than the deadline"), "timeout_wall_clock", False),
    (ended("Preempting", "Preempted in order to admit critical pod"), "killed", True),
    (ended("Terminated", "Pod was terminated in response to imminent node shutdown."), "killed", True),
    (ended("", conditions=[DISRUPTED]), "killed", True),
    (ended("NodeLost", "Node which was running the pod is unresponsive"), "killed", True),
]  # fmt: skip


@pytest.mark.parametrize(("status", "category", "retryable"), STATUSES)
def test_a_status_that_ends_a_pod_has_a_category_and_says_its_own_words(
    status: dict[str, Any], category: str, retryable: bool
) -> None:
    found = why_not_started({"status": status}, "r.lab/x:1")
    assert found is not None
    failure, said = found
    assert (failure.category, failure.retryable) == (category, retryable)
    assert failure.hint
    assert str(status.get("message", "")) in said


@pytest.mark.parametrize(
    "status",
    [
        {"phase": "Pending"},
        {"phase": "Running"},
        waits("ContainerCreating"),
        waits("PodInitializing"),
        waits("ErrImagePull", "i/o timeout"),  # the node tries again
    ],
)
def test_what_may_still_begin_is_waited_for(status: dict[str, Any]) -> None:
    assert why_not_started({"status": status}, "x") is None
    assert why_ended({"status": status}) is None


@pytest.mark.parametrize(
    ("reason", "held"),
    [
        ("0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: not eligible.", True),
        ("0/3 nodes are available: 1 Insufficient memory, 2 node(s) had untolerated taint {a: b}.", True),
        ("0/1 nodes are available: 1 Too many pods.", True),
        ("0/3 nodes are available: 3 node(s) had untolerated taint {nvidia.com/gpu: present}.", False),
        ("0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.", False),
        ('0/3 nodes are available: persistentvolumeclaim "models" not found.', False),
    ],
)
def test_only_what_others_hold_is_worth_waiting_for(reason: str, held: bool) -> None:
    assert others_hold(reason) is held
    failure, said = cannot_be_placed(reason)
    assert (failure.category, failure.retryable) == ("config", False)
    assert reason in said


@pytest.mark.parametrize(
    ("events", "category"),
    [
        (["FailedMount: MountVolume.SetUp failed: hostPath type check failed: /srv is not a directory"], "config"),
        (["FailedCreatePodSandBox: no runtime for \"nvidia\" is configured"], "config"),
        (["FailedCreatePodSandBox: cni plugin not initialized"], "daemon_down"),
        ([], "unknown"),
    ],
)  # fmt: skip
def test_a_pod_that_does_not_begin_is_explained_by_its_last_warning(events: list[str], category: str) -> None:
    failure, said = why_stuck(events, "base: ContainerCreating: ")
    assert failure.category == category
    assert (events or ["ContainerCreating"])[-1] in said
