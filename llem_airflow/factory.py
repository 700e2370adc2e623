"""A study becomes a DAG: a group per experiment, a task per cycle, one task that says what they mean together."""

from __future__ import annotations

import html
import logging
from collections.abc import Iterator, MutableMapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, TaskGroup, task
from airflow.sdk.exceptions import AirflowFailException

from llem_airflow.operators import LLEMAggregateOperator, LLEMExperimentOperator
from llem_airflow.study import Experiment, PlannedCycle, Study, StudyFileError, load_study

log = logging.getLogger(__name__)

AGGREGATE_TASK_ID = "aggregate"
INVALID_TAG = "llem:invalid"


def study_dag(study: Study | str | Path, *, chain: bool = False, **operator_args: Any) -> DAG:
    """Make the DAG of one study.

    Args:
        study: A loaded study or the path of its file.
        chain: Run the cycles strictly in the plan's order, one after the other, by dependencies. Without it they
            are independent tasks whose priorities give the order, which is faster and survives retries better.
        **operator_args: Passed to every LLEMExperimentOperator, such as ``docker_conn_id`` or ``mem_limit``.

    Raises:
        StudyFileError: The file has mistakes; the text lists all of them with line and column.
    """
    if not isinstance(study, Study):
        study = load_study(study)
    settings = study.airflow
    dag = DAG(
        dag_id=settings.dag_id or study.name,
        description=f"{len(study.experiments)} experiments x {study.cycles} cycles",
        doc_md=_study_doc(study),
        schedule=settings.schedule,
        start_date=settings.start_date,
        catchup=settings.catchup,
        tags=sorted({"llem", *settings.tags}),
        max_active_runs=1,
        max_active_tasks=settings.max_active_cycles,
        default_args={
            "owner": settings.owner,
            "retries": settings.retries,
            "retry_delay": timedelta(seconds=settings.retry_delay_s),
        },
    )
    with dag:
        cycles = _cycle_tasks(study, operator_args)
        aggregate = LLEMAggregateOperator(task_id=AGGREGATE_TASK_ID, study=study, trigger_rule="all_done", retries=0)
        if chain:
            for before, after in zip(cycles, cycles[1:], strict=False):
                after.trigger_rule = "all_done"
                before >> after
        cycles >> aggregate
    return dag


def study_dags(
    folder: str | Path, namespace: MutableMapping[str, Any] | None = None, *, strict: bool = False, **operator_args: Any
) -> dict[str, DAG]:
    """Make a DAG of each study file (``*.yaml``, ``*.yml``) in a folder.

    A file with mistakes becomes a DAG tagged ``llem:invalid`` that shows them, and takes no other study down.

    Args:
        folder: Where the study files lie.
        namespace: ``globals()`` of the DAG file, where the DAGs are put. Airflow also finds them without it.
        strict: Raise on a file with mistakes instead.
        **operator_args: As for :func:`study_dag`.

    Returns:
        The DAGs by id.

    Raises:
        StudyFileError: A file has mistakes and ``strict`` is set.
        FileNotFoundError: The folder does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"study folder {folder} does not exist")
    dags: dict[str, DAG] = {}
    for path in sorted(_study_files(folder)):
        try:
            dag = study_dag(path, **operator_args)
        except StudyFileError as error:
            if strict:
                raise
            log.warning("%s", error)
            dag = _invalid_dag(path, str(error))
        if dag.dag_id in dags:
            taken = f"{path}: the DAG id {dag.dag_id!r} is already taken by another study file in this folder; rename one of them"
            dag = _invalid_dag(path, taken)
        dags[dag.dag_id] = dag
    if namespace is not None:
        namespace.update({f"study_{index}": dag for index, dag in enumerate(dags.values())})
    return dags


def _study_files(folder: Path) -> Iterator[Path]:
    for pattern in ("*.yaml", "*.yml"):
        yield from folder.glob(pattern)


def _cycle_tasks(study: Study, operator_args: dict[str, Any]) -> list[LLEMExperimentOperator]:
    """One task per planned cycle, in the plan's order, grouped by experiment."""
    experiments = {experiment.id: experiment for experiment in study.experiments}
    groups = {
        experiment.id: TaskGroup(group_id=experiment.id, tooltip=experiment.slug, prefix_group_id=True)
        for experiment in study.experiments
    }
    n_runs = len(study.plan.runs)
    return [
        _cycle_task(study, experiments[planned.experiment_id], planned, groups[planned.experiment_id], n_runs, operator_args)
        for planned in study.plan.runs
    ]


def _cycle_task(
    study: Study,
    experiment: Experiment,
    planned: PlannedCycle,
    group: TaskGroup,
    n_runs: int,
    operator_args: dict[str, Any],
) -> LLEMExperimentOperator:
    return LLEMExperimentOperator(
        task_id=f"cycle_{planned.cycle}",
        task_group=group,
        study=study,
        experiment=experiment.id,
        cycle=planned.cycle,
        gap_before_s=planned.gap_before_s,
        doc_md=_experiment_doc(experiment),
        priority_weight=n_runs - planned.position + 1,
        weight_rule="absolute",
        **({"pool": study.airflow.pool} if study.airflow.pool else {}),
        **operator_args,
    )


def _study_doc(study: Study) -> str:
    rows = "\n".join(f"| `{e.id}` | {e.engine} | {e.model} | {e.runner} |" for e in study.experiments[:200])
    more = f"\n\n… and {len(study.experiments) - 200} more" if len(study.experiments) > 200 else ""
    return (
        f"# {study.name}\n\n{len(study.experiments)} experiments x {study.cycles} cycles "
        f"= {len(study.plan.runs)} containers, from `{study.path.name if study.path else 'text'}`.\n\n"
        f"| experiment | engine | model | runner |\n|---|---|---|---|\n{rows}{more}\n\n"
        "The *Energy* tab of a run shows its report."
    )


def _experiment_doc(experiment: Experiment) -> str:
    rows = "\n".join(f"| `{key}` | `{value}` |" for key, value in _flat(experiment.config))
    return f"### {experiment.slug}\n\nIdentity `{experiment.hash}`\n\n| key | value |\n|---|---|\n{rows}"


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _invalid_dag(path: Path, report: str) -> DAG:
    """A DAG that stands for a study file with mistakes: it shows them, and its only task fails with them."""
    slug = "".join(c if c.isalnum() or c in "-_." else "_" for c in path.stem) or "study"
    with DAG(
        dag_id=f"invalid.{slug}",
        description=f"{path.name} has mistakes",
        doc_md=f"# {path.name} has mistakes\n\n<pre>{html.escape(report)}</pre>",
        schedule=None,
        tags=["llem", INVALID_TAG],
    ) as dag:

        @task(task_id="mistakes", retries=0)
        def mistakes() -> None:
            raise AirflowFailException(report)

        mistakes()
    return dag
