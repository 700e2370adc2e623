"""The wait for a pod in the triggerer: for a node, and until its attempt has begun there.

The pod itself is the place in the scheduler's queue, and it says in its status what has become of it: whoever looks,
this triggerer, another one after a restart, or the task's worker, sees the same. What is wrong with a pod or with the
API server is told by the task, which comes back for that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import yaml
from aiohttp import ClientError
from airflow.providers.cncf.kubernetes.hooks.kubernetes import AsyncKubernetesHook
from airflow.sdk.exceptions import AirflowException
from airflow.triggers.base import TriggerEvent
from kubernetes_asyncio.client import ApiClient, ApiException, CoreV1Api, V1DeleteOptions, V1Preconditions
from kubernetes_asyncio.config import ConfigException
from kubernetes_asyncio.watch import Watch

from llem_airflow.operators import waits
from llem_airflow.operators.waits import PlaceTrigger, now_epoch_s
from llem_airflow.runners.cluster import may_pass
from llem_airflow.runners.kubernetes import QUOTA, START
from llem_airflow.runners.pod_spec import LABEL_OWNER, LABEL_POD
from llem_airflow.runners.pod_status import begun, has_node, last_wait, unscheduled, why_not_started

_STARTS_SOON_S = 20.0
"""A pod whose image is there begins within this time; for one that pulls, the task comes back to wait anew."""
_QUOTA_AGAIN_S = 60.0
"""The task asks again for a pod that a quota had no room for."""
_PATIENCE_S = 120.0
"""How long the API server may be away, in seconds."""
_PAUSE_S = 2.0
_CALL_S = 30
_WATCH_S = 30.0
_KILL_S = 20.0

_NO_WAY = (AirflowException, ConfigException, OSError, ValueError, yaml.YAMLError)
"""What is raised where this machine has no configuration for the cluster."""


class PodTrigger(PlaceTrigger):
    """Fires when a pod has begun, never will, or has waited long enough; its task looks which.

    Args:
        conn_id: Connection of type ``kubernetes``.
        in_cluster: As of the operator.
        cluster_context: Likewise.
        config_file: Likewise; a path that the triggerer, too, must have. What is in it is not handed over.
        place: As of ``PlaceTrigger``: of a pod ``later`` says which it is, and until when it is waited for; ``limit_s``
            is that of the wait for a node.
    """

    names = (*PlaceTrigger.names, "conn_id", "in_cluster", "cluster_context", "config_file")

    def __init__(
        self,
        *,
        conn_id: str | None = None,
        in_cluster: bool | None = None,
        cluster_context: str | None = None,
        config_file: str | None = None,
        **place: Any,
    ) -> None:
        super().__init__(**place)
        self.conn_id = conn_id
        self.in_cluster = in_cluster
        self.cluster_context = cluster_context
        self.config_file = config_file
        self._said = ""
        self._on_node_s = time.monotonic() if self.later["phase"] == START else None

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Follow the pod until its task has to look at it."""
        settled_s = time.monotonic() + waits.SETTLE_S
        payload = await self._awaited()
        await asyncio.sleep(max(0.0, settled_s - time.monotonic()))
        yield TriggerEvent(payload)  # type: ignore[no-untyped-call]  # Airflow leaves it untyped

    async def on_kill(self) -> None:
        """Remove the pod and what belongs to it: a person has ended the task."""
        if not self.later["pod"]:
            return
        deadline_s = time.monotonic() + _KILL_S
        while True:
            try:
                async with self._hook().get_conn() as client:
                    await self._remove(CoreV1Api(client))
                return
            except (ApiException, ClientError, TimeoutError) as error:
                if not (_is_transient(error) or _has_changed(error)) or time.monotonic() >= deadline_s:
                    self.log.warning(
                        "Pod %s could not be removed (%s): `llem-airflow gc` does it",
                        self.later["pod"],
                        _said(error),
                    )
                    return
                await asyncio.sleep(_PAUSE_S / 4)

    async def _awaited(self) -> dict[str, Any]:
        """What the task is told when it is time to go on."""
        if self.later["phase"] == QUOTA:
            await asyncio.sleep(max(0.0, min(_QUOTA_AGAIN_S, self._left_s)))
            return self._payload()
        hook, away_since_s = None, None
        while True:
            listed = False
            try:
                hook = hook or self._hook()
                async with hook.get_conn() as client:
                    async for pod in self._seen(client):
                        away_since_s, listed = None, True
                        if pod is None or self._is_time(pod):
                            return self._payload()
            except (ApiException, ClientError, TimeoutError) as error:
                forgotten = isinstance(error, ApiException) and error.status == 410
                if forgotten and listed:
                    continue  # what was watched is not known any more; a list is of now
                away_since_s = away_since_s or time.monotonic()
                if (
                    not (forgotten or _is_transient(error))
                    or time.monotonic() - away_since_s >= _PATIENCE_S
                    or self._left_s <= 0
                ):
                    return self._not_from_here(_said(error))
                await asyncio.sleep(_PAUSE_S)
            except _NO_WAY as error:
                return self._not_from_here(f"{type(error).__name__}: {error}")

    def _hook(self) -> AsyncKubernetesHook:
        config = (
            yaml.safe_load(Path(self.config_file).read_text(encoding="utf-8")) if self.config_file else None
        )
        return AsyncKubernetesHook(
            conn_id=self.conn_id,
            in_cluster=self.in_cluster,
            cluster_context=self.cluster_context,
            config_dict=config,
        )

    async def _seen(self, client: ApiClient) -> AsyncIterator[dict[str, Any] | None]:
        """The pod now, whenever it has changed, and every half minute at least; None when it is gone."""
        api, namespace, one = CoreV1Api(client), self.later["namespace"], f"metadata.name={self.later['pod']}"
        while True:
            # The list's version: a pod's own may be older than what a server can be asked from.
            listed = await api.list_namespaced_pod(namespace, field_selector=one, _request_timeout=_CALL_S)
            if not listed.items:
                yield None
                return
            pod = client.sanitize_for_serialization(listed.items[0])
            yield pod
            limit_s = max(1, int(min(_WATCH_S, self._left_s, _STARTS_SOON_S if has_node(pod) else _WATCH_S)))
            async with Watch().stream(
                api.list_namespaced_pod,
                namespace,
                field_selector=one,
                resource_version=listed.metadata.resource_version,
                timeout_seconds=limit_s,
                _request_timeout=limit_s + _CALL_S,
            ) as changes:
                async for event in changes:
                    yield None if event["type"] == "DELETED" else event["raw_object"]

    def _is_time(self, pod: dict[str, Any]) -> bool:
        if begun(pod, self.later["base"]) or why_not_started(pod, "") or self._left_s <= 0:
            return True
        if self._on_node_s is None and has_node(pod):
            self._on_node_s = time.monotonic()
        reason = last_wait(pod) if has_node(pod) else unscheduled(pod)
        if reason != self._said:
            self._said = reason
            self.log.info("Pod %s waits, %.0f s left: %s", self.later["pod"], self._left_s, reason)
        soon_s = 0.0 if self._on_node_s is None else time.monotonic() - self._on_node_s
        return self.later["phase"] != START and soon_s >= _STARTS_SOON_S

    @property
    def _left_s(self) -> float:
        return float(self.later["until_epoch_s"]) - now_epoch_s()

    def _payload(self) -> dict[str, Any]:
        # What is counted as a wait for GPUs ends with the node: an image is pulled while the pod has them.
        starting_s = 0.0 if self._on_node_s is None else time.monotonic() - self._on_node_s
        since = None if self.since_epoch_s is None else self.since_epoch_s + starting_s
        return {"later": self.later, "begin_epoch_s": self.begin_epoch_s, "since_epoch_s": since}

    def _not_from_here(self, text: str) -> dict[str, Any]:
        self.log.warning(
            "This triggerer cannot look at pod %s (%s): its task looks, and waits in its worker. Give the triggerer "
            "the connection, the kubeconfig and the network that workers have",
            self.later["pod"],
            text,
        )
        return {**self._payload(), "here": True}

    async def _remove(self, api: CoreV1Api) -> None:
        name, namespace = self.later["pod"], self.later["namespace"]
        try:
            found = (await api.read_namespaced_pod(name, namespace, _request_timeout=_CALL_S)).metadata
            if (found.labels or {}).get(LABEL_OWNER) != self.later["owner"]:
                return  # a later try has taken it over
            same = V1Preconditions(uid=found.uid, resource_version=found.resource_version)
            body = V1DeleteOptions(grace_period_seconds=1, preconditions=same)
            await api.delete_namespaced_pod(name, namespace, body=body, _request_timeout=_CALL_S)
        except ApiException as error:
            if error.status != 404:
                raise
        for remove in (
            api.delete_collection_namespaced_secret,
            api.delete_collection_namespaced_config_map,
        ):
            await remove(namespace, label_selector=f"{LABEL_POD}={name}", _request_timeout=_CALL_S)


def _is_transient(error: BaseException) -> bool:
    """Whether asking again can help: too many requests, a fault of the server's, or no answer."""
    return not isinstance(error, ApiException) or may_pass(error.status)


def _has_changed(error: BaseException) -> bool:
    return isinstance(error, ApiException) and error.status == 409


def _said(error: BaseException) -> str:
    return (
        f"{error.status} {error.reason}"
        if isinstance(error, ApiException)
        else str(error) or type(error).__name__
    )
