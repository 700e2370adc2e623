"""Who may see what: a signed-in user, and of each DAG only what Airflow's auth manager lets this user read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.models.dag import DagModel
from fastapi import Depends, HTTPException, Query

DagId = Annotated[str, Query(min_length=1, max_length=250)]
RunId = Annotated[str, Query(min_length=1, max_length=250)]


def _named(dag_id: DagId) -> None:
    if dag_id == "~":  # Airflow's word for all DAGs; the results of one are asked for here
        raise HTTPException(404, "there is no DAG of that name")


READS_DAG = (Depends(_named), Depends(requires_access_dag("GET")))
READS_RUN = (*READS_DAG, Depends(requires_access_dag("GET", DagAccessEntity.RUN)))
"""Dependencies of each route about one DAG run."""


def may_read_logs(dag_id: DagId, user: GetUserDep) -> bool:
    """Whether the user may see what the tasks of the DAG wrote."""
    return get_auth_manager().is_authorized_dag(
        method="GET",
        access_entity=DagAccessEntity.TASK_LOGS,
        details=DagDetails(id=dag_id, team_name=DagModel.get_team_name(dag_id)),
        user=user,
    )


def readable_dags(user: GetUserDep, session: SessionDep) -> set[str]:
    """The DAGs that Airflow knows and the user may read."""
    return get_auth_manager().get_authorized_dag_ids(user=user, method="GET", session=session)


def reads_runs(user: GetUserDep, readable: Annotated[set[str], Depends(readable_dags)]) -> ReadsRuns:
    """Tells of a DAG whether the user may read it and its runs: for what is about runs of several DAGs."""

    def reads(dag_id: str) -> bool:
        return dag_id in readable and get_auth_manager().is_authorized_dag(
            method="GET",
            access_entity=DagAccessEntity.RUN,
            details=DagDetails(id=dag_id, team_name=DagModel.get_team_name(dag_id)),
            user=user,
        )

    return reads


ReadsRuns = Callable[[str], bool]
RunsReader = Annotated[ReadsRuns, Depends(reads_runs)]
MayReadLogs = Annotated[bool, Depends(may_read_logs)]
"""Whether the last lines of an attempt may be shown: they are the task's log."""
ReadableDags = Annotated[set[str], Depends(readable_dags)]
"""Ids of the DAGs that the user may read, among those that Airflow knows."""
