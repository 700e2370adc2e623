"""LLEMCollectGarbageOperator: remove containers and volumes of this Airflow that no live task owns."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from airflow.sdk import BaseOperator, Context

from llem_airflow.operators.host import DEFAULT_CONN_ID, LLEMHostHook
from llem_airflow.operators.installation import installation
from llem_airflow.runners.attempt import LABEL_SESSION
from llem_airflow.runners.engine import connect
from llem_airflow.runners.gc import find_leftovers, remove_leftovers

States = Callable[..., Mapping[str, Mapping[str, str | None]]]

OVER = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
_HOUR_S = 3600.0


class LLEMCollectGarbageOperator(BaseOperator):
    """What ``llem-airflow gc --yes`` does, with Airflow's word for which tasks are alive.

    Args:
        llem_conn_id: Connection of type ``llem``: the host to clean.
        older_than_h: What Airflow cannot tell of counts as left over from this age on, in hours.
    """

    ui_color = "#eceff1"

    def __init__(
        self, *, llem_conn_id: str = DEFAULT_CONN_ID, older_than_h: float = 24.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.llem_conn_id = llem_conn_id
        self.older_than_h = older_than_h

    def execute(self, context: Context) -> int:
        """Find and remove; returns how many are gone."""
        states: States = context["ti"].get_task_states
        docker_host = LLEMHostHook(self.llem_conn_id).settings().docker_host
        with connect({**os.environ, **({"DOCKER_HOST": docker_host} if docker_host else {})}) as api:
            left = find_leftovers(
                api,
                alive=lambda labels: is_alive(states, labels),
                older_than_s=self.older_than_h * _HOUR_S,
                installation=installation(),
                running="disowned",
            )
            for each in left:
                self.log.info("%s %s (%s): %s", each.kind, each.name, each.state, each.what)
            gone = remove_leftovers(api, left)
        self.log.info("%s removed", gone)
        return gone


def is_alive(states: States, labels: Mapping[str, str]) -> bool | None:
    """Whether the task that made something can still come back for it; None when Airflow does not say.

    A session's container is the run's: some task of it, the one that stops the session at the latest, comes for it.

    Args:
        states: ``get_task_states`` of a running task instance.
        labels: Labels of a container or volume of ours.
    """
    try:
        dag_id, run_id, task_id = (labels[f"llem.{name}"] for name in ("dag_id", "run_id", "task_id"))
    except KeyError:
        return None
    if LABEL_SESSION in labels:
        found = states(dag_id=dag_id, run_ids=[run_id]).get(run_id)
    else:
        index = int(labels.get("llem.map_index") or -1)
        found = states(dag_id=dag_id, task_ids=[task_id], run_ids=[run_id], map_index=index).get(run_id)
    if not found:
        return None
    return any(state not in OVER for state in found.values())
