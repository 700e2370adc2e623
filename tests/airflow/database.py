"""Airflow's own database for tests: SQLite, or a Postgres in a container where ``LLEM_TEST_POSTGRES`` asks for it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from tests import parts

DRIVERS = "LLEM_TEST_POSTGRES"
"""Names the folder with the drivers psycopg2 and asyncpg, as `make test-postgres` makes it."""


@contextmanager
def database() -> Iterator[dict[str, str]]:
    """What an Airflow must be told to use the database; nothing for its default, SQLite."""
    drivers = os.environ.get(DRIVERS)
    if not drivers:
        yield {}
        return
    password = uuid.uuid4().hex
    image = parts.build_image("services")
    with parts.engine_client() as api:
        made = api.create_container(
            image,
            labels={"llem.test": "postgres"},
            environment={
                "POSTGRES_USER": "airflow",
                "POSTGRES_DB": "airflow",
                "POSTGRES_PASSWORD": password,
            },
            ports=[5432],
            host_config=api.create_host_config(port_bindings={5432: ("127.0.0.1",)}),
        )
        try:
            api.start(made)
            waiting = "until pg_isready --host 127.0.0.1 --username airflow; do sleep 1; done"
            api.exec_start(api.exec_create(made, ["timeout", "60", "sh", "-c", waiting])["Id"])
            port = api.port(made, 5432)[0]["HostPort"]
            yield {
                "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://airflow:{password}@127.0.0.1:{port}/airflow",
                "PYTHONPATH": os.pathsep.join(filter(None, [drivers, os.environ.get("PYTHONPATH", "")])),
            }
        finally:
            api.remove_container(made, force=True, v=True)
