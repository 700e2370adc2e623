"""What the nodes of a cluster have in GPUs and slices, which pods ask for them, and which pods wait."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kubernetes.client import CoreV1Api
from kubernetes.client.exceptions import ApiException

from llem_airflow.runners.attempt import LABEL_KEY, of_dag
from llem_airflow.runners.cluster import Cluster
from llem_airflow.runners.pod_status import epoch_s_of, has_node, told_of, unscheduled

_PATIENCE_S = 10.0
_OURS = "nvidia.com/"
_PRODUCT = "nvidia.com/gpu.product"
_GO_ON = "status.phase!=Succeeded,status.phase!=Failed"
NODES_HINT = "give whoever asks the ClusterRole of operators/KUBERNETES.md"


def look(api: CoreV1Api, namespace: str) -> dict[str, Any]:
    """A cluster's devices in a stable format, in plain JSON values.

    Args:
        api: The client.
        namespace: Where pods are looked at when those of all namespaces cannot be seen.

    Raises:
        ApiException: The API server refused something else than a look at the whole cluster.
        HTTPError: It does not answer.
    """
    cluster, unseen = Cluster(api, namespace, _PATIENCE_S), []
    nodes: list[dict[str, Any]] = []
    try:
        nodes = cluster.nodes()
    except ApiException as error:
        if error.status != 403:
            raise
        unseen.append(f"nodes, and what they have: {NODES_HINT}")
    try:
        pods = cluster.pods(fields=_GO_ON, everywhere=True)
    except ApiException as error:
        if error.status != 403:
            raise
        unseen.append(f"pods of other namespaces: {NODES_HINT}")
        pods = cluster.pods(fields=_GO_ON)
    asking = [(pod, asked) for pod in pods if (asked := requested(pod))]
    names = {node["metadata"]["name"] for node in nodes}
    return {
        "nodes": [_node(node, asking) for node in nodes if _devices(node, "capacity")],
        "elsewhere": [
            _holder(pod, asked)
            for pod, asked in asking
            if has_node(pod) and pod["spec"]["nodeName"] not in names
        ],
        "waiting": [
            {**_holder(pod, asked), "why": unscheduled(pod)}
            for pod, asked in sorted(asking, key=lambda one: str(one[0]["metadata"]["creationTimestamp"]))
            if not has_node(pod)
        ],
        "not_seen": unseen,
    }


def requested(pod: Mapping[str, Any]) -> dict[str, int]:
    """Devices that a pod asks for, by resource, as the scheduler counts them."""
    spec = pod["spec"]
    total: dict[str, int] = {}
    for container in spec.get("containers") or ():
        for name, count in _limits(container):
            total[name] = total.get(name, 0) + count
    for container in spec.get("initContainers") or ():
        for name, count in _limits(container):
            total[name] = max(total.get(name, 0), count)
    return {name: count for name, count in total.items() if count}


def _limits(container: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    limits = (container.get("resources") or {}).get("limits") or {}
    yield from ((name, int(value)) for name, value in limits.items() if name.startswith(_OURS))


def _devices(node: Mapping[str, Any], kind: str) -> dict[str, int]:
    """What a node has of each resource; a resource of which it has none is one that its plugin no longer offers."""
    told = (node.get("status") or {}).get(kind) or {}
    return {name: int(value) for name, value in told.items() if name.startswith(_OURS) and int(value)}


def _node(
    node: Mapping[str, Any], asking: Sequence[tuple[Mapping[str, Any], dict[str, int]]]
) -> dict[str, Any]:
    name, spec = node["metadata"]["name"], node.get("spec") or {}
    here = [(pod, asked) for pod, asked in asking if pod["spec"].get("nodeName") == name]
    ready = any(
        each["type"] == "Ready" and each["status"] == "True"
        for each in (node.get("status") or {}).get("conditions") or ()
    )
    allocatable = _devices(node, "allocatable")
    return {
        "node": name,
        "product": (node["metadata"].get("labels") or {}).get(_PRODUCT, ""),
        "state": "not ready" if not ready else "cordoned" if spec.get("unschedulable") else "",
        "resources": [
            {
                "resource": resource,
                "capacity": capacity,
                "allocatable": allocatable.get(resource, 0),
                "requested": sum(asked.get(resource, 0) for _, asked in here),
                "requested_by": [_holder(pod, asked) for pod, asked in here if resource in asked],
            }
            for resource, capacity in sorted(_devices(node, "capacity").items())
        ],
    }


def _holder(pod: Mapping[str, Any], asked: Mapping[str, int]) -> dict[str, Any]:
    found = pod["metadata"]
    told = told_of(found)
    return {
        "pod": found["name"],
        "namespace": found["namespace"],
        "what": of_dag(told) if LABEL_KEY in told else "",
        "asks": dict(asked),
        "since_epoch_s": epoch_s_of(found["creationTimestamp"]),
    }
