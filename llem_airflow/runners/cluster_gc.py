"""Garbage collection on a cluster: pods of ours, and what belongs to them, that no live task owns."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kubernetes.client import CoreV1Api

from llem_airflow.runners.attempt import LABEL_INSTALLATION
from llem_airflow.runners.cluster import Cluster
from llem_airflow.runners.gc import Alive, Leftover, Running, is_left, what
from llem_airflow.runners.pod_spec import KEEPER, LABEL_POD, MANAGED, label_value
from llem_airflow.runners.pod_status import epoch_s_of, has_node, is_over, main_state, told_of

_PATIENCE_S = 30.0


@dataclass(frozen=True)
class ClusterThings:
    """What of ours is in a namespace.

    Attributes:
        pods: The pods, without those that are being removed.
        beside: Names of pods that are not there, with the metadata of a ConfigMap that belongs to each.
    """

    pods: tuple[Mapping[str, Any], ...]
    beside: Mapping[str, Mapping[str, Any]]

    def labels(self) -> list[dict[str, str]]:
        """Whose each is, in the words of an attempt's labels; a pod has them as annotations, as they may be long."""
        every = (*(pod["metadata"] for pod in self.pods), *self.beside.values())
        return [_labels(each) for each in every]


def things_in(api: CoreV1Api, namespace: str) -> ClusterThings:
    """What of ours is in a namespace, whoever made it."""
    cluster = Cluster(api, namespace, _PATIENCE_S)
    # ConfigMaps first: one that is made meanwhile is not known, and has its pod soon.
    maps = cluster.beside(MANAGED)
    pods = cluster.pods(MANAGED)
    there = {pod["metadata"]["name"] for pod in pods}
    beside = {
        pod: each
        for each in maps
        if (pod := (each.get("labels") or {}).get(LABEL_POD)) is not None and pod not in there
    }
    return ClusterThings(tuple(pod for pod in pods if not pod["metadata"].get("deletionTimestamp")), beside)


def leftovers_among(
    things: ClusterThings,
    *,
    alive: Alive | None,
    older_than_s: float,
    installation: str | None,
    running: Running,
) -> list[Leftover]:
    """Those that no live task owns, by the rules of ``gc.find_leftovers``.

    Args:
        things: Of :func:`things_in`.
        alive: Says whether a live task owns something; None when nobody can be asked.
        older_than_s: What ``alive`` cannot tell is a leftover from this age on, in seconds.
        installation: Only what this Airflow made; None for all.
        running: Which pods that run may be leftovers: none, those that ``alive`` disowns, or all.
    """
    now_s = datetime.datetime.now(datetime.UTC).timestamp()

    def left(found: Mapping[str, Any], state: str) -> bool:
        if installation is not None and _maker(found) != label_value(installation):
            return False
        owned = alive(_labels(found)) if alive is not None else None
        may = running if state == "running" else "any"
        return is_left(owned, _age_s(found, now_s), older_than_s, running=may)

    made = [("pod", pod["metadata"], state_of(pod)) for pod in things.pods]
    made += [("objects", {**found, "name": name}, "unused") for name, found in things.beside.items()]
    holding = {pod["metadata"]["name"] for pod in things.pods if _ended_well(pod)}
    return [
        Leftover(
            kind, found["name"], what(_labels(found)), state, _age_s(found, now_s), found["name"] in holding
        )
        for kind, found, state in made
        if left(found, state)
    ]


def remove_from(api: CoreV1Api, namespace: str, leftovers: Iterable[Leftover]) -> int:
    """Remove pods with what belongs to them, and what belongs to pods that are gone; how many are gone."""
    cluster = Cluster(api, namespace, _PATIENCE_S)
    gone = 0
    for each in leftovers:
        gone += cluster.remove(each.name, owner=None) or each.kind != "pod"
    return gone


def state_of(pod: Mapping[str, Any]) -> str:
    """``running`` from its place on a node on, as it has its GPUs; before that ``pending``, afterwards ``ended``."""
    if is_over(pod, attempt_in(pod)):
        return "ended"
    return "running" if has_node(pod) else "pending"


def attempt_in(pod: Mapping[str, Any]) -> str:
    """The attempt's container in a pod of ours: the first one."""
    return next(str(each["name"]) for each in pod["spec"]["containers"] if each["name"] != KEEPER)


def _ended_well(pod: Mapping[str, Any]) -> bool:
    """Whether its keeper may have a result."""
    ended = main_state(pod, attempt_in(pod), "terminated") or {}
    return ended.get("exitCode") == 0 and main_state(pod, KEEPER, "running") is not None


def _labels(found: Mapping[str, Any]) -> dict[str, str]:
    return {name: value for name, value in told_of(found).items() if name.startswith("llem.")}


def _maker(found: Mapping[str, Any]) -> str | None:
    maker: str | None = (found.get("labels") or {}).get(LABEL_INSTALLATION)
    return maker


def _age_s(found: Mapping[str, Any], now_s: float) -> float:
    return now_s - epoch_s_of(found["creationTimestamp"])
