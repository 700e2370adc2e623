"""Stores that a connection of Airflow opens: ``s3://conn_id@bucket/path``, as its ObjectStoragePath writes it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stdout
from typing import Any

from airflow.models.connection import Connection as StoredConnection
from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowNotFoundException, AirflowRuntimeError
from airflow.sdk.io import get_fs
from sqlalchemy.exc import SQLAlchemyError

from llem_airflow.results.folder import StoreConnectionError

KEPT_S = 60.0
"""So long an opened store serves those who ask again: a corrected connection is used after that time at the latest."""
_opened: dict[tuple[int, str, str, str], tuple[float, Any]] = {}
_lock = threading.Lock()


def file_system(scheme: str, conn_id: str, options: Mapping[str, Any]) -> Any:
    """The fsspec file system that Airflow opens with a connection.

    Args:
        scheme: Such as ``s3``.
        conn_id: The connection.
        options: Further ones for the file system.

    Raises:
        StoreConnectionError: Airflow has no such connection, or no provider for the scheme.
    """
    key = os.getpid(), scheme, conn_id, repr(sorted(options.items()))  # a forked process makes its own
    with _lock:
        until_s, found = _opened.get(key, (0.0, None))
        if time.monotonic() < until_s:
            return found
    # Where Airflow does not catch what it says itself, its log would stand in a command's own output.
    with nullcontext() if _in_airflow() else redirect_stdout(sys.stderr):
        found = _open(scheme, conn_id, options)
    with _lock:
        _opened[key] = time.monotonic() + KEPT_S, found
    return found


def _open(scheme: str, conn_id: str, options: Mapping[str, Any]) -> Any:
    try:
        if _in_airflow():
            Connection.get(conn_id)
        else:  # hooks do not look into Airflow's database then
            stored = StoredConnection.get_connection_from_secrets(conn_id)
            os.environ[f"AIRFLOW_CONN_{conn_id.upper()}"] = stored.as_json()
    except (AirflowNotFoundException, AirflowRuntimeError, SQLAlchemyError, ValueError) as error:
        raise StoreConnectionError(
            f"Airflow has no connection {conn_id!r}, which the results root names: add it (Admin > Connections, or "
            f"`airflow connections add {conn_id} --conn-type aws …`), or set AIRFLOW_CONN_{conn_id.upper()}"
        ) from error
    try:
        # What Airflow's provider of S3 calls options of the storage are those of botocore's client.
        return get_fs(scheme, conn_id, dict(options.get("config_kwargs", options)))
    except (ImportError, ValueError) as error:
        raise StoreConnectionError(
            f"{scheme}://{conn_id}@…: Airflow cannot open this store: {error}; install its provider: "
            "`pip install 'llem-airflow[s3]'` for s3, `pip install apache-airflow-providers-google` for gs"
        ) from error


def _in_airflow() -> bool:
    """Whether this is a process of Airflow's: a server, or a task, which asks for connections in its own way."""
    runner = sys.modules.get("airflow.sdk.execution_time.task_runner")
    return "_AIRFLOW_PROCESS_CONTEXT" in os.environ or hasattr(runner, "SUPERVISOR_COMMS")
