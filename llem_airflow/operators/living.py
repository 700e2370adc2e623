"""Who is alive, by the database of the Airflow that is installed here: a process of its own for ``llem-airflow gc``.

Standard input: a JSON list of labels of containers and volumes. The last line of standard output: a JSON object with
the ``installation`` and, in the order of the question, whether a live task owns each (null: Airflow does not know).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from llem_airflow.operators.installation import INSTALLATION_VARIABLE, configured, derived
from llem_airflow.operators.maintenance import is_alive


def answer(asked: list[dict[str, str]]) -> dict[str, Any]:
    """Whether a live task owns what carries each of these labels."""
    own = configured() or _stored() or derived()
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
