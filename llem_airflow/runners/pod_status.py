"""What a pod's status means: whether it has a place, whether it runs, and why it does not.

The words are the API's own: conditions of the pod, states of its containers, reasons of the scheduler and of the node's
agent. Sources: kubernetes.io/docs "Pod Lifecycle", "Node-pressure Eviction", and pkg/kubelet of Kubernetes 1.34.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping
from typing import Any

from llem_airflow.runners.failures import Failure, classify, failure

Pod = Mapping[str, Any]
Found = tuple[Failure, str]
"""A failure, and what happened in one sentence."""

_NEVER_PULLED = ("ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
_NOT_MADE = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff")
_NO_DEVICE = re.compile(
    r"^OutOf|UnexpectedAdmissionError|\bAllocate failed\b|devices unavailable|no healthy devices",
    re.IGNORECASE,
)
_INSUFFICIENT = re.compile(r"\bInsufficient (\S+?)[,.]|\bToo many pods\b|\bexceeded quota\b")


def main_state(pod: Pod, container: str, kind: str) -> dict[str, Any] | None:
    """A container's state of a kind: ``waiting``, ``running`` or ``terminated``; None when it is in another."""
    for status in (pod.get("status") or {}).get("containerStatuses") or []:
        if status["name"] == container:
            found: dict[str, Any] | None = (status.get("state") or {}).get(kind)
            return found
    return None


def begun(pod: Pod, container: str) -> bool:
    """Whether a container runs, or has ended."""
    return bool(main_state(pod, container, "running") or main_state(pod, container, "terminated"))


def is_over(pod: Pod, container: str) -> bool:
    """Whether a container has ended, or can never begin."""
    phase = (pod.get("status") or {}).get("phase")
    return main_state(pod, container, "terminated") is not None or phase in ("Failed", "Succeeded")


def has_node(pod: Pod) -> bool:
    """Whether the scheduler has found it a place."""
    return bool((pod.get("spec") or {}).get("nodeName"))


def unscheduled(pod: Pod) -> str:
    """Why the scheduler has found no place; empty when it has, or has said nothing yet."""
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason") or "")
    return ""


def others_hold(reason: str) -> bool:
    """Whether what is missing is held by others, so that waiting can help, by the scheduler's reason."""
    return bool(_INSUFFICIENT.search(reason + "."))


def cannot_be_placed(reason: str) -> Found:
    """The failure of a pod for which no node fits, however long it waits."""
    hints = {
        r"taint": "give the operator `tolerations` for the taint that is named, or free a node of it",
        r"node affinity|selector|didn't match": "correct node_selector or affinity: no node is so",
        r"persistentvolumeclaim|volume": "make the claim in the pod's namespace, and see that it is bound",
    }
    hint = next((text for words, text in hints.items() if re.search(words, reason)), None)
    return (
        failure("config", hint=hint or "`kubectl describe nodes` says what the nodes offer"),
        f"the scheduler has no node for it: {reason}",
    )


def began(pod: Pod, container: str) -> float | None:
    """When a container began, in seconds since 1970; None when it has not."""
    state = main_state(pod, container, "running") or main_state(pod, container, "terminated") or {}
    if not state.get("startedAt"):
        return None
    return epoch_s_of(state["startedAt"])


def epoch_s_of(told: str) -> float:
    """A time of the API server's, in seconds since 1970."""
    return datetime.datetime.fromisoformat(told.replace("Z", "+00:00")).timestamp()


def told_of(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Labels and annotations."""
    return {**(metadata.get("labels") or {}), **(metadata.get("annotations") or {})}


def image_of(pod: Pod, container: str) -> str | None:
    """The digest of the image that a container runs, as its node has resolved it."""
    for status in (pod.get("status") or {}).get("containerStatuses") or []:
        if status["name"] == container and status.get("imageID"):
            return str(status["imageID"]).removeprefix("docker-pullable://")
    return None


def why_not_started(pod: Pod, image: str) -> Found | None:
    """Why a pod that has a node will not begin; None while it may."""
    for name, waiting in _waiting(pod):
        reason, message = str(waiting.get("reason")), str(waiting.get("message") or "")
        if reason in _NEVER_PULLED:
            found = classify(None, f"pulling {image} from its registry: {message}")
            if found.category not in ("image_pull", "image_config"):
                found = failure("image_config" if reason == "InvalidImageName" else "image_pull")
            return found, f"image {image} cannot be pulled: {reason}: {message}"
        if reason in _NOT_MADE:
            found = classify(None, message)
            if reason == "CreateContainerConfigError":
                found = failure(
                    "config", hint="correct what the message names: a Secret, a ConfigMap or a user"
                )
            elif found.category == "unknown":
                found = failure("image_config")
            return found, f"container {name} cannot be made: {reason}: {message}"
    for name, ended in _ended_init(pod):
        text = f"{ended.get('reason')}: {ended.get('message') or ''}"
        found = classify(ended.get("exitCode"), text, oom_killed=ended.get("reason") == "OOMKilled")
        if found.category == "unknown":
            found = failure("image_config")
        return found, f"init container {name} failed with exit code {ended.get('exitCode')}: {text}"
    return why_ended(pod) if (pod.get("status") or {}).get("phase") == "Failed" else None


def why_ended(pod: Pod) -> Found | None:
    """Why the cluster has ended a pod, where it says so of the pod itself."""
    status = pod.get("status") or {}
    reason, message = str(status.get("reason") or ""), str(status.get("message") or "")
    disrupted = _condition(pod, "DisruptionTarget")
    if not reason and disrupted is not None:
        reason, message = str(disrupted.get("reason")), str(disrupted.get("message") or "")
    if not reason:
        return None
    said = f"the cluster ended the pod: {reason}: {message}"
    if reason == "DeadlineExceeded":
        return failure("timeout_wall_clock", hint="raise active_deadline_seconds, or make it shorter"), said
    if _NO_DEVICE.search(f"{reason}: {message}"):
        return failure(
            "gpu_unavailable", hint="another pod was faster, or the device is unhealthy: try again"
        ), said
    if reason == "Evicted":
        return _evicted(message), said
    if reason in ("NodeAffinity", "NodeSelectorMismatching"):
        return failure("config", hint="the node's labels have changed: correct `node_selector`"), said
    return failure(
        "killed", hint="the node was drained, lost or shut down, or a pod of higher priority came"
    ), said


def _evicted(message: str) -> Failure:
    if "llem-shm" in message:
        return failure(
            "out_of_memory_host", hint="the shared memory was too small: give the operator shm_size"
        )
    if re.search(r"ephemeral|disk|emptydir|imagefs|nodefs|inodes", message, re.IGNORECASE):
        return failure(
            "disk_full", hint="make room on the node, or ask for ephemeral-storage in container_resources"
        )
    if "memory" in message:
        return failure(
            "out_of_memory_host",
            retryable=True,
            hint="the node ran short of memory: ask for as much as it needs in container_resources (requests = limits)",
        )
    return failure(
        "killed", hint="the node was short of what the message names: ask for it in container_resources"
    )


def why_stuck(events: list[str], last: str) -> Found:
    """Why a pod with a node has not begun in time, by the warnings about it.

    Args:
        events: The warnings, the last one last.
        last: What its containers wait for.
    """
    text = events[-1] if events else last or "the node says nothing"
    hints = {
        r"FailedMount|FailedAttachVolume": ("config", "correct the volume that is named: its claim, path or type"),
        r"no runtime for|RuntimeHandler|runtime class": ("config", "correct runtime_class_name: there is none"),
        r"FailedCreatePodSandBox": ("daemon_down", "the node cannot make pods now: `kubectl describe node`"),
        r"pulling image|Pulling|ErrImagePull|BackOff": ("image_pull", "raise startup_timeout_seconds, or pull first"),
    }  # fmt: skip
    category, hint = next(
        (found for words, found in hints.items() if re.search(words, text)), ("unknown", None)
    )
    return failure(category, hint=hint or "`kubectl describe pod` and the node's log say more"), (
        f"it did not begin in time: {text}"
    )


def _waiting(pod: Pod) -> Iterator[tuple[str, dict[str, Any]]]:
    status = pod.get("status") or {}
    for each in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = (each.get("state") or {}).get("waiting")
        if waiting:
            yield each["name"], waiting


def _ended_init(pod: Pod) -> Iterator[tuple[str, dict[str, Any]]]:
    for each in (pod.get("status") or {}).get("initContainerStatuses") or []:
        ended = (each.get("state") or {}).get("terminated")
        if ended and ended.get("exitCode"):
            yield each["name"], ended


def last_wait(pod: Pod) -> str:
    """What its containers wait for, in the API's words."""
    return "; ".join(
        f"{name}: {waiting.get('reason')}: {waiting.get('message') or ''}" for name, waiting in _waiting(pod)
    )


def _condition(pod: Pod, kind: str) -> dict[str, Any] | None:
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition["type"] == kind and condition["status"] == "True":
            found: dict[str, Any] = condition
            return found
    return None
