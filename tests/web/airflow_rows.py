"""Airflow's tables in a database of a test, and rows of DAG runs in them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.models import import_all_models
from airflow.models.base import Base
from airflow.models.dagrun import DagRun
from airflow.utils.state import DagRunState
from airflow.utils.types import DagRunTriggeredByType
from sqlalchemy import Engine
from sqlalchemy.orm import Session

BEGAN = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)


def make_tables(engine: Engine) -> None:
    """Make every table of Airflow, which takes a second: migrating takes many."""
    import_all_models()  # type: ignore[no-untyped-call]  # Airflow leaves it untyped
    Base.metadata.create_all(engine)


def add_run(session: Session, dag_id: str, run_id: str, state: str = "success", conf: Any = None) -> None:
    """Add a DAG run that began at ``BEGAN``."""
    run = DagRun(
        dag_id=dag_id,
        run_id=run_id,
        run_type="manual",
        state=DagRunState(state),
        conf=conf or {},
        start_date=BEGAN,
        run_after=BEGAN,
        triggered_by=DagRunTriggeredByType.TEST,
    )
    session.add(run)
    session.commit()
