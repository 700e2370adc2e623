"""The GPU hosts that Airflow knows, and what waits in their queues: a process of its own for the command line.

Standard input: a JSON list of ids of connections; empty for every connection of type ``llem``. The last line of
standard output: a JSON object with the ``hosts``, each with its engine or with what is wrong with it, and of each of
their queues since when tasks wait in it and whether any runs; and the names of the ``clusters`` that are configured.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from airflow.models.connection import Connection
from airflow.models.pool import Pool
from airflow.models.taskinstance import TaskInstance
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.utils.session import create_session
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from llem_airflow.operators.host import HostSettings, HostSettingsError, LLEMHostHook, settings_of
from llem_airflow.operators.settings import named_clusters, named_hosts

_ENVIRONMENT = "AIRFLOW_CONN_"


def answer(asked: Sequence[str]) -> dict[str, Any]:
    """The hosts of these ids, or all that can be found."""
    why, names = "", list(asked)
    if not names:
        names, why = _every()
    hosts = [_host(name) for name in names]
    queues, pools = {}, None
    try:
        with create_session() as session:
            queues = {name: _queue(session, name) for each in hosts if (name := each.get("queue"))}
            pools = [str(name) for name in session.scalars(select(Pool.pool))]
    except SQLAlchemyError as error:
        why = why or str(error).split("\n", 1)[0]
    clusters = list(named_clusters())
    return {"hosts": hosts, "queues": queues, "pools": pools, "clusters": clusters, "why": why}


def _every() -> tuple[list[str], str]:
    """Ids of all connections of type ``llem``; a secrets backend cannot be listed: ``[llem] hosts`` names its."""
    found, why = {*named_hosts()}, ""
    for name in os.environ:
        if name.startswith(_ENVIRONMENT):
            conn = _read(name.removeprefix(_ENVIRONMENT).lower())
            if conn is not None and conn.conn_type == LLEMHostHook.conn_type:
                found.add(conn.conn_id)
    try:
        with create_session() as session:
            of_type = Connection.conn_type == LLEMHostHook.conn_type
            found |= set(map(str, session.scalars(select(Connection.conn_id).where(of_type))))
    except SQLAlchemyError as error:
        why = str(error).split("\n", 1)[0]
    return sorted(found), why


def _read(name: str) -> Any:
    """The connection; None where there is none that can be read."""
    try:
        return Connection.get_connection_from_secrets(name)
    except (AirflowNotFoundException, SQLAlchemyError, ValueError):
        return None


def _host(name: str) -> dict[str, Any]:
    conn = _read(name)
    if conn is None:
        return {"name": name, "missing": True}
    try:
        return {"name": name, **_told(settings_of(conn))}
    except HostSettingsError as error:
        return {"name": name, "problem": str(error)}


def _told(host: HostSettings) -> dict[str, Any]:
    return {
        "engine": host.address.to_json(),
        "queue": host.queue,
        "pool": host.pool,
        "gpu_kinds": list(host.gpu_kinds),
    }


def _queue(session: Any, name: str) -> dict[str, Any]:
    """Since when the oldest task waits in a queue, in seconds, and how many tasks run that came from it."""
    oldest = session.scalar(
        select(func.min(TaskInstance.queued_dttm)).where(
            TaskInstance.queue == name, TaskInstance.state == "queued"
        )
    )
    running = select(func.count()).where(TaskInstance.queue == name, TaskInstance.state == "running")
    return {
        "waits_s": None if oldest is None else (datetime.now(UTC) - oldest).total_seconds(),
        "running": session.scalar(running.select_from(TaskInstance)),
    }


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(answer(json.load(sys.stdin))) + "\n")
