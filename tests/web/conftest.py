"""The API over a real Airflow database and a real auth manager; only who may read which DAG is said by the test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from airflow import settings as airflow_settings
from airflow.api_fastapi.app import _AuthManagerState
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.api_fastapi.common.db.common import _get_session
from airflow.api_fastapi.core_api.security import get_user
from airflow.models.dag import DagModel
from airflow.models.dagbundle import DagBundleModel
from airflow.models.taskinstance import TaskInstance
from fastapi import HTTPException, Request
from fastapi.testclient import TestClient
from playwright.sync_api import Page
from sqlalchemy import create_engine, insert
from sqlalchemy.orm import Session, sessionmaker

from llem_airflow.results import ResultsRoot
from llem_airflow.web.app import Server, create_app, server
from tests.analysis.conftest import run_maker
from tests.browser import chromium_page
from tests.web.airflow_rows import BEGAN, add_run, make_tables
from tests.web.drawn import open_bundle


class PerDag(SimpleAuthManager):
    """Lets each user read what its name says: ``a+b`` reads DAGs a and b, ``a-logs`` DAG a without its tasks' logs.

    ``a-trigger`` may also trigger a.
    """

    def is_authorized_dag(
        self, *, method: Any, user: Any, access_entity: Any = None, details: Any = None
    ) -> bool:
        names, _, without = user.username.partition("-")
        if access_entity is not None and without == "logs" and access_entity.name == "TASK_LOGS":
            return False
        if access_entity is not None and without == "runs" and access_entity.name == "RUN":
            return False
        return (
            (method == "GET" or without == "trigger")
            and details is not None
            and details.id in names.split("+")
        )


@dataclass
class Site:
    """An API server: ``get`` asks it as a user.

    Attributes:
        client: Of the application.
        root: Where the results lie.
        tmp_path: For whatever else.
        sessions: Of Airflow's database.
    """

    client: TestClient
    root: ResultsRoot
    tmp_path: Path
    sessions: sessionmaker[Session]

    def get(self, path: str, user: str | None = "nightly", **params: Any) -> Any:
        headers = {"x-user": user} if user else {}
        return self.client.get(path, params=params, headers=headers)

    def dag(self, dag_id: str, *, paused: bool = False) -> None:
        with self.sessions() as session:
            if session.get(DagBundleModel, "dags-folder") is None:
                session.add(DagBundleModel(name="dags-folder"))
                session.flush()
            values = {"dag_id": dag_id, "bundle_name": "dags-folder", "is_paused": paused, "is_stale": False}
            session.execute(
                insert(DagModel).values(
                    **values,
                    max_active_tasks=2,
                    max_consecutive_failed_dag_runs=0,
                    has_task_concurrency_limits=False,
                    next_dagrun_create_after=BEGAN,
                )
            )
            session.commit()

    def dag_run(self, dag_id: str, run_id: str, state: str = "success", conf: Any = None) -> None:
        with self.sessions() as session:
            add_run(session, dag_id, run_id, state, conf)

    def task(self, dag_id: str, run_id: str, task_id: str, **values: Any) -> None:
        table: Any = TaskInstance.__table__
        with self.sessions() as session:
            session.execute(
                insert(table).values(
                    task_id=task_id, dag_id=dag_id, run_id=run_id, pool="default_pool", pool_slots=1, **values
                )
            )
            session.commit()

    def stored(self, recordings: Any, *, run_id: str = "r1", cycles: int = 2) -> Any:
        return run_maker(self.root, self.tmp_path)(recordings, cycles=cycles, run_id=run_id)


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An Airflow database without a row: making its tables takes a second, copying the file nothing."""
    path = tmp_path_factory.mktemp("airflow") / "empty.db"
    engine = create_engine(f"sqlite:///{path}")
    make_tables(engine)
    engine.dispose()
    return path


@pytest.fixture
def site(tmp_path: Path, tables: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An API server with one DAG, ``nightly``, and no results yet."""
    (tmp_path / "airflow.db").write_bytes(tables.read_bytes())
    engine = create_engine(f"sqlite:///{tmp_path / 'airflow.db'}", connect_args={"check_same_thread": False})
    sessions = sessionmaker(engine)
    monkeypatch.setattr(airflow_settings, "Session", sessions)
    monkeypatch.setattr(airflow_settings, "NonScopedSession", sessions)
    monkeypatch.setattr(_AuthManagerState, "instance", PerDag())  # type: ignore[no-untyped-call]  # Airflow leaves it untyped
    app, root = create_app(), ResultsRoot(tmp_path / "results")
    state = Server(root.url)

    def user(request: Request) -> SimpleAuthManagerUser:
        if name := request.headers.get("x-user"):
            return SimpleAuthManagerUser(username=name, role="viewer")
        raise HTTPException(401, "Not authenticated")

    def session() -> Iterator[Session]:
        with sessions() as opened:
            yield opened

    app.dependency_overrides |= {get_user: user, _get_session: session, server: lambda: state}
    found = Site(TestClient(app, follow_redirects=False), root, tmp_path, sessions)
    found.dag("nightly")
    yield found
    engine.dispose()


@pytest.fixture
def page(site: Site) -> Iterator[Page]:
    """A page of Airflow's UI over the site; nothing of ours is shown yet."""
    with chromium_page() as opened:
        open_bundle(opened, site)
        yield opened
