"""A merged run into the time-series databases that its study names."""

from __future__ import annotations

import logging
from urllib.parse import quote

from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowException

from llem_airflow.results import StoredRun
from llem_airflow.study import Study
from llem_airflow.text.wording import counted

log = logging.getLogger(__name__)

_PORTS = {"influx": 8086, "prometheus": 9090, "postgres": 5432}
_WRITE = "/api/v1/write"


def export_run(study: Study, run: StoredRun) -> list[str]:
    """Write a run to each database of ``airflow.export``.

    Returns:
        What went wrong, a sentence for each database that does not have the run.
    """
    if not study.airflow.export:
        return []
    from llem_airflow.push import PushError, push_run  # noqa: PLC0415  # pandas and the clients are for this alone

    problems = []
    for one in study.airflow.export:
        try:
            url = database_url(Connection.get(one.conn_id), one.to)
            points = push_run(run, one.to, url, power=one.power)
        except AirflowException as error:
            problems.append(f"{one.to}: there is no connection {one.conn_id!r} that can be used ({error})")
        except PushError as error:
            problems.append(f"{one.to} (connection {one.conn_id!r}): {error}")
        else:
            log.info("%s (connection %r): %s written", one.to, one.conn_id, counted(points, "point"))
    return problems


def database_url(conn: Connection, to: str) -> str:
    """The URL of a database, as ``results push`` takes it.

    The connection's schema is the database; for Prometheus it is nothing, and the extra ``path`` is that of remote
    write. The extra ``scheme`` chooses https.

    Args:
        conn: The connection.
        to: influx, prometheus or postgres.
    """
    user = "" if not conn.login else quote(conn.login, safe="")
    if conn.password:
        user += f":{quote(conn.password, safe='')}"
    place = f"{user}@" if user else ""
    place += f"{conn.host or 'localhost'}:{conn.port or _PORTS[to]}"
    database = quote(conn.schema or "", safe="")
    if to == "postgres":
        return f"postgresql://{place}/{database}"
    scheme = conn.extra_dejson.get("scheme") or "http"
    path = f"/{database}" if to == "influx" else str(conn.extra_dejson.get("path") or _WRITE)
    return f"{scheme}://{place}{path}"
