"""LLEMCollectGarbageOperator: remove containers, volumes and pods of this Airflow that no live task owns.

Who is alive a task asks Airflow; ``llem-airflow gc`` asks this module, as a process of its own, which asks Airflow's
database. Standard input: a JSON list of labels of containers and volumes. The last line of standard output: a JSON
object with the ``installation`` and, in the order of the question, whether a live task owns each (null: not known).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from airflow.sdk import BaseOperator, Context, get_parsing_context
from airflow.sdk.exceptions import AirflowException
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from llem_airflow.operators.host import DEFAULT_CONN_ID, HostSettingsError, LLEMHostHook
from llem_airflow.operators.settings import (
    INSTALLATION_VARIABLE,
    configured_installation,
    derived_installation,
    installation,
    named_clusters,
    named_hosts,
    settings,
)
from llem_airflow.results import ResultsRoot
from llem_airflow.runners.attempt import LABEL_SESSION
from llem_airflow.runners.engine import ENGINE_ERRORS, why_away
from llem_airflow.runners.gc import Leftover, find_leftovers, remove_leftovers
from llem_airflow.runners.stranded import Recovery, Stranded

States = Callable[..., Mapping[str, Mapping[str, str | None]]]

OVER = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
_HOUR_S = 3600.0
_CALL_TIMEOUT_S = 60


class LLEMCollectGarbageOperator(BaseOperator):
    """What ``llem-airflow gc --yes`` does, with Airflow's word for which tasks are alive.

    Args:
        llem_conn_id: Connection of type ``llem``: the host to clean.
        cluster: A Kubernetes cluster to clean instead: ``CONNECTION`` or ``CONNECTION/NAMESPACE``.
        older_than_h: What Airflow cannot tell of counts as left over from this age on, in hours.
    """

    ui_color = "#eceff1"

    def __init__(
        self,
        *,
        llem_conn_id: str = DEFAULT_CONN_ID,
        cluster: str | None = None,
        older_than_h: float = 24.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.cluster = cluster
        self.llem_conn_id = llem_conn_id
        self.older_than_h = older_than_h

    def execute(self, context: Context) -> int:
        """Find and remove; returns how many are gone."""
        states: States = context["ti"].get_task_states
        rules: dict[str, Any] = {
            "alive": lambda labels: is_alive(states, labels),
            "older_than_s": self.older_than_h * _HOUR_S,
            "installation": installation(),
            "running": "disowned",
        }
        if self.cluster is not None:
            return self._clean_cluster(self.cluster, rules)
        host = LLEMHostHook(self.llem_conn_id).settings()
        name = host.name or "this worker's engine"
        try:
            api = host.address.connect(_CALL_TIMEOUT_S)
        except ENGINE_ERRORS as error:
            raise AirflowException(f"{name}: the Docker engine does not answer: {why_away(error)}") from error
        with api:
            left = find_leftovers(api, **rules)
            stays = self._store(Recovery(api, self._root(), host.name or "").results(left))
            left = [each for each in left if each.name not in stays]
            self._tell(name, left)
            gone = remove_leftovers(api, left)
        self.log.info("%s: %s removed", name, gone)
        return gone

    def _store(self, results: Iterable[Stranded]) -> set[str]:
        """Store finished results that nobody comes for; names of what has one that cannot be stored."""
        stays = set()
        for one in results:
            if one.stored:
                self.log.info(
                    "%s: its task ended before it could store it: stored in %s", one.name, one.stored
                )
            else:
                self.log.warning("%s: %s %s stays: %s", one.name, one.kind, one.container, one.why_not)
                stays.add(one.container)
        return stays

    def _clean_cluster(self, name: str, rules: dict[str, Any]) -> int:
        from llem_airflow.operators.known_clusters import ClusterError, client  # noqa: PLC0415 - an extra
        from llem_airflow.runners.cluster import API_ERRORS  # noqa: PLC0415
        from llem_airflow.runners.cluster_gc import leftovers_among, remove_from, things_in  # noqa: PLC0415
        from llem_airflow.runners.kubernetes import refusal  # noqa: PLC0415
        from llem_airflow.runners.stranded_pods import PodRecovery  # noqa: PLC0415

        try:
            with client(name) as (api, namespace):
                left = leftovers_among(things_in(api, namespace), **rules)
                stays = self._store(PodRecovery(api, namespace, self._root()).results(left))
                left = [each for each in left if each.name not in stays]
                self._tell(name, left)
                gone = remove_from(api, namespace, left)
        except ClusterError as error:
            raise AirflowException(f"{name}: {error.args[0]}. What to do: {error.args[1]}") from error
        except API_ERRORS as error:
            raise AirflowException(f"{name}: {refusal(error)[1]}") from error
        self.log.info("%s: %s removed", name, gone)
        return gone

    def _root(self) -> ResultsRoot:
        return ResultsRoot(settings().results_root)

    def _tell(self, name: str, left: list[Leftover]) -> None:
        for each in left:
            self.log.info("%s: %s %s (%s): %s", name, each.kind, each.name, each.state, each.what)


def hosts_to_clean() -> dict[str, dict[str, Any]]:
    """Of each host and cluster that ``[llem]`` names a task, by its id: the arguments that bring it there."""
    named, clusters = named_hosts(), named_clusters()
    reading = get_parsing_context().task_id is None  # a worker has its task already
    found: dict[str, dict[str, Any]] = {
        f"gc_{name}": {"llem_conn_id": name, **(_queue_of(name) if reading else {})} for name in named
    }
    found |= {f"gc_{name.replace('/', '.')}": {"cluster": name} for name in clusters}
    return found or {"gc": {}}


def _queue_of(name: str) -> dict[str, str]:
    """The queue of a host; of a connection that cannot be used the task itself says so, and the others are cleaned."""
    try:
        queue = LLEMHostHook(name).settings().queue
    except HostSettingsError:
        return {}
    return {"queue": queue} if queue else {}


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


def answer(asked: list[dict[str, str]]) -> dict[str, Any]:
    """Whether a live task owns what carries each of these labels."""
    own = configured_installation() or _stored() or derived_installation()
    try:
        alive = [
            is_alive(_states, labels) if labels.get("llem.installation") == own else None for labels in asked
        ]
    except SQLAlchemyError as error:
        return {"installation": own, "alive": None, "why": str(error).split("\n", 1)[0]}
    return {"installation": own, "alive": alive}


def _stored() -> str | None:
    """The identity as the database has it; None also where there is no database, which :func:`_states` then tells."""
    from airflow.models.variable import Variable  # noqa: PLC0415 - only where nothing is configured

    return (Variable.get(INSTALLATION_VARIABLE, default_var=None) or "").strip() or None


def _states(
    *, dag_id: str, run_ids: list[str], task_ids: list[str] | None = None, map_index: int | None = None
) -> Mapping[str, Mapping[str, str | None]]:
    """As ``get_task_states`` of a running task answers, from the database."""
    from airflow.models.taskinstance import TaskInstance  # noqa: PLC0415 - only where there is a question
    from airflow.utils.session import create_session  # noqa: PLC0415 - likewise

    wanted = [TaskInstance.dag_id == dag_id, TaskInstance.run_id.in_(run_ids)]
    if task_ids is not None:
        wanted.append(TaskInstance.task_id.in_(task_ids))
    if map_index is not None:
        wanted.append(TaskInstance.map_index == map_index)
    found: dict[str, dict[str, str | None]] = {}
    with create_session() as session:
        for run_id, task_id, state in session.execute(
            select(TaskInstance.run_id, TaskInstance.task_id, TaskInstance.state).where(*wanted)
        ):
            found.setdefault(run_id, {})[task_id] = state
    return found


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(answer(json.load(sys.stdin))) + "\n")
