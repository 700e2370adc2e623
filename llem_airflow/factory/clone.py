"""Many tasks of one kind, made without running the same constructor for each, and the order between them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import BaseOperator, TaskGroup, TriggerRule

T = TypeVar("T", bound=BaseOperator)


def clone(
    task: T,
    *,
    task_id: str,
    task_group: TaskGroup,
    task_display_name: str,
    derived: Mapping[str, Any],
    **changed: Any,
) -> T:
    """Another task of the same DAG, as the constructor would have made it with some other arguments.

    DockerOperator's constructor sets a hundred attributes, each through a check of Airflow's: for thousands of tasks
    that is most of what a DAG costs. The first task of a kind passes all of them, the others copy what it came to.

    Args:
        task: A task that its constructor has made.
        task_id: Id of the new one within its group.
        task_group: The group that the new one joins.
        task_display_name: What the UI calls it.
        derived: Attributes that the constructor makes of the arguments that differ.
        **changed: Arguments that differ, each an attribute of the same name.
    """
    made = copy.copy(task)
    state = made.__dict__
    # What can be changed in place must not be shared.
    state.update({name: copy.copy(value) for name, value in state.items() if type(value) in (dict, list)})
    state.update({**changed, **derived})
    state["_BaseOperator__init_kwargs"] |= {
        **changed,
        "task_id": task_id,
        "task_group": task_group,
        "task_display_name": task_display_name,
    }
    state.update(
        params=copy.deepcopy(task.params),
        upstream_task_ids=set(),
        downstream_task_ids=set(),
        task_id=task_group.child_id(task_id),  # type: ignore[no-untyped-call]  # Airflow leaves it untyped
        task_group=None,
        _task_display_name=task_display_name,
        _dag=None,
    )
    task_group.add(made)
    made.dag = task.dag
    return made


def precede(before: Sequence[BaseOperator], after: Sequence[BaseOperator]) -> None:
    """``before >> after`` for tasks of one DAG.

    Airflow's own operator hashes the DAG with all its task ids once for each task, which grows with the square of
    their number.
    """
    for task in before:
        task.downstream_task_ids.update(each.task_id for each in after)
    for task in after:
        task.upstream_task_ids.update(each.task_id for each in before)


def precede_whatever_comes(before: BaseOperator, after: BaseOperator, task_id: str) -> None:
    """Have a task wait for the end of another one; that it failed or was skipped holds up nothing.

    A task between them takes the end: no trigger rule of Airflow's lets one upstream task fail or be skipped and still
    asks that the others succeed (ALL_DONE_MIN_ONE_SUCCESS skips after a skipped one).

    Args:
        before: The one that is waited for.
        after: The one that waits; its own trigger rule counts for what else it waits for.
        task_id: Id of the task between them, in the group of ``before``.
    """
    ended = EmptyOperator(
        task_id=task_id, task_group=before.task_group, trigger_rule=TriggerRule.ALL_DONE, retries=0
    )
    precede([before], [ended])
    precede([ended], [after])
