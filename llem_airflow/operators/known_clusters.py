"""Questions to clusters, by connections of Airflow: a process of its own for the command line.

Each line of standard input: a JSON object with the ``clusters`` (``CONNECTION`` or ``CONNECTION/NAMESPACE``), what to
``do`` and its options. A line of standard output then: a JSON object with an answer for each cluster, or with the error
that came instead and what to do about it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from airflow.models.connection import Connection
from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
from airflow.sdk.exceptions import AirflowException, AirflowNotFoundException
from kubernetes.client import CoreV1Api
from kubernetes.config import ConfigException
from sqlalchemy.exc import SQLAlchemyError

from llem_airflow.operators import maintenance
from llem_airflow.results import ResultsRoot
from llem_airflow.runners import cluster_doctor, cluster_gpus
from llem_airflow.runners.cluster import API_ERRORS, client_of
from llem_airflow.runners.cluster_gc import leftovers_among, remove_from, things_in
from llem_airflow.runners.gc import Leftover, Running, said_of
from llem_airflow.runners.kubernetes import refusal
from llem_airflow.runners.stranded_pods import PodRecovery

_NO_CONFIG = (AirflowException, ConfigException, OSError, ValueError)


class ClusterError(ValueError):
    """A cluster cannot be asked; the second argument says what to do."""


def answer(question: Mapping[str, Any]) -> dict[str, Any]:
    """What each cluster answers."""
    said = [_answer_of(name, question) for name in question["clusters"]]
    return {"clusters": said}


def _answer_of(name: str, question: Mapping[str, Any]) -> dict[str, Any]:
    try:
        with client(name) as (api, namespace):
            return {"name": name, **_DO[question["do"]](api, namespace, question)}
    except ClusterError as error:
        text, fix = error.args
    except API_ERRORS as error:
        found, text = refusal(error)
        fix = found.hint
    return {"name": name, "error": text, "fix": fix}


@contextmanager
def client(name: str) -> Iterator[tuple[CoreV1Api, str]]:
    """A client of a cluster by the name of its connection, and the namespace that is meant.

    Args:
        name: ``CONNECTION`` or ``CONNECTION/NAMESPACE``; without one, that of the connection, else ``default``.

    Raises:
        ClusterError: There is no such connection, or what it says cannot be used.
    """
    conn_id, _, namespace = name.partition("/")
    conn = _connection(conn_id)

    class Hook(KubernetesHook):  # type: ignore[misc]  # Airflow's provider is not typed here
        @classmethod
        def get_connection(cls, conn_id: str) -> Any:  # noqa: ARG003  # it has been read
            return conn

    try:
        hook = Hook(conn_id=conn_id)
        api = client_of(hook.core_v1_client.api_client.configuration)
        namespace = namespace or hook.get_namespace() or KubernetesHook.DEFAULT_NAMESPACE
    except _NO_CONFIG as error:
        raise ClusterError(
            f"connection {conn_id!r} leads to no cluster: {error}",
            "correct it (Admin > Connections): in_cluster, kube_config_path or kube_config; without them it is "
            "~/.kube/config of this machine",
        ) from error
    try:
        yield api, namespace
    finally:
        api.api_client.rest_client.pool_manager.clear()


def _connection(conn_id: str) -> Any:
    try:
        conn = Connection.get_connection_from_secrets(conn_id)
    except AirflowNotFoundException as error:
        if conn_id == KubernetesHook.default_conn_name:
            return Connection(conn_id=conn_id)
        fix = f"`airflow connections add {conn_id} --conn-type kubernetes --conn-extra '{{\"kube_config_path\": ...}}'`"
        raise ClusterError(f"there is no connection {conn_id!r}", fix) from error
    except SQLAlchemyError as error:
        text = str(error).split("\n", 1)[0]
        raise ClusterError(
            f"Airflow's database does not answer: {text}", "see that it does: `airflow db check`"
        ) from error
    if conn.conn_type != KubernetesHook.conn_type:
        raise ClusterError(
            f"connection {conn_id!r} is of type {conn.conn_type!r}, and a cluster's is 'kubernetes'",
            "change it, or name another one",
        )
    return conn


def _gpus(api: CoreV1Api, namespace: str, question: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001  # of all
    return cluster_gpus.look(api, namespace)


def _doctor(api: CoreV1Api, namespace: str, question: Mapping[str, Any]) -> dict[str, Any]:
    named = {name: question.get(name) for name in ("resource", "runtime_class")}
    secrets = tuple(question.get("pull_secrets") or ())
    return {"checks": cluster_doctor.examine(api, namespace, **named, pull_secrets=secrets)}


def _recover(api: CoreV1Api, namespace: str, question: Mapping[str, Any]) -> dict[str, Any]:
    found, why = _left(api, namespace, question, running="disowned")
    recovery = PodRecovery(api, namespace, ResultsRoot(question["root"]), store=question["store"])
    return {"found": [asdict(each) for each in recovery.results(found)], "why": why}


def _gc(api: CoreV1Api, namespace: str, question: Mapping[str, Any]) -> dict[str, Any]:
    found, why = _left(api, namespace, question, running="any")
    left = [each for each in found if each.goes(question["named"], force=question["force"])]
    gone = remove_from(api, namespace, left) if question["remove"] else 0
    return {"found": list(map(asdict, found)), "gone": gone, "why": why}


def _left(
    api: CoreV1Api, namespace: str, question: Mapping[str, Any], *, running: Running
) -> tuple[list[Leftover], str]:
    """What nobody owns there, and why Airflow cannot be asked; empty when it can."""
    things = things_in(api, namespace)
    labels = things.labels()
    said = said_of(labels, maintenance.answer(labels))
    found = leftovers_among(
        things,
        alive=said.alive,
        older_than_s=question["older_than_s"],
        installation=question["installation"] or said.installation,
        running=running,
    )
    return found, "" if said.alive else said.why


_DO: dict[str, Callable[[CoreV1Api, str, Mapping[str, Any]], dict[str, Any]]] = {
    "doctor": _doctor,
    "gc": _gc,
    "gpus": _gpus,
    "recover": _recover,
}

if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write("\n" + json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()
