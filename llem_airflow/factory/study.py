"""A study becomes a DAG: a group per experiment, a task per cycle, one task that says what they mean together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, TaskGroup, TriggerRule, conf, get_parsing_context
from airflow.sdk.definitions.param import ParamsDict

from llem_airflow.factory.clone import clone, precede, precede_whatever_comes
from llem_airflow.factory.docs import ADHOC_DOC, ExperimentDocs, study_doc, task_labels
from llem_airflow.factory.form import study_params
from llem_airflow.factory.places import cycle_operator, places_of, plan_args
from llem_airflow.factory.plan_cache import cached_study
from llem_airflow.factory.releases import study_asset
from llem_airflow.factory.schedule import deadline_of, schedule_of, start_of, timed_out_of
from llem_airflow.factory.sessions import ENDED_TASK_ID, SESSION_GROUP, session_tasks
from llem_airflow.operators import (
    LLEMAggregateOperator,
    LLEMExperimentOperator,
    LLEMPlanOperator,
    LLEMPlanTextOperator,
    LLEMTextCycleOperator,
)
from llem_airflow.operators.prefetch import LLEMPrefetchOperator, LLEMTextPrefetchOperator, sharing
from llem_airflow.operators.retries import FailureRetryPolicy
from llem_airflow.operators.settings import parse_time_layers
from llem_airflow.operators.settings import settings as installed
from llem_airflow.study import PlannedCycle, Study, StudyFileError, load_study
from llem_airflow.study.names import ADHOC_DAG_ID
from llem_airflow.study.plan.findings import not_runnable
from llem_airflow.study.plan.order import CANARY_CYCLE, canaries
from llem_airflow.text.wording import counted

PLAN_TASK_ID = "plan"
CYCLE_TASK_ID = "cycle"
PREFETCH_TASK_ID = "prefetch"
AGGREGATE_TASK_ID = "aggregate"
RENDERS = ("auto", "static", "mapped")
MAPPED_ABOVE = 500
"""With more experiments than this, ``auto`` makes one mapped task instead of a task per cycle."""
_NO_ID = re.compile(r"[^\w.-]")
_POOL = "default_pool"
"""Of tasks for which nobody names one."""
_LONGEST_GROUP = 170
"""Airflow's ids of tasks have 250 characters, of which an experiment and its cycle take up to 72."""


def study_dag(
    study: Study | str | Path, *, chain: bool = False, render: str = "auto", **operator_args: Any
) -> DAG:
    """Make the DAG of one study.

    Args:
        study: A loaded study or the path of its file.
        chain: Run the cycles one after the other in the plan's order, by dependencies between their tasks. Without it
            they are independent tasks whose priorities give the order: a failed cycle then holds up no other one.
        render: ``static`` makes a task for each cycle, ``mapped`` one mapped task for all of them; ``auto`` is
            ``mapped`` above 500 experiments.
        **operator_args: Arguments of every LLEMExperimentOperator, such as ``llem_conn_id`` or ``mem_limit``.

    Raises:
        StudyFileError: The file has problems; the text lists all of them with line and column.
        ValueError: ``render`` is none of the three.
    """
    if not isinstance(study, Study):
        study = read_study(study)
    # A worker's parser builds what was found to be right; looking again would read every experiment.
    if get_parsing_context().task_id is None and (problems := not_runnable(study)):
        raise StudyFileError(problems)
    return build_dag(study, chain=chain, render=render, **operator_args)


def build_dag(
    study: Study, *, known: bool = True, chain: bool = False, render: str = "auto", **operator_args: Any
) -> DAG:
    """The DAG of a study; one that is not ``known`` is not found by the Airflow that reads the DAG file."""
    settings, dag_id, longest_s = study.airflow, study.dag_id, study.execution.wall_clock_timeout_s
    only = _wanted_task(dag_id)
    dag = DAG(
        dag_id=dag_id,
        dag_display_name=dag_id if settings.dag_id else study.name,
        description=f"{counted(len(study.experiments), 'experiment')} x {counted(study.cycles, 'cycle')}",
        doc_md=None if only else study_doc(study, lambda: parse_time_layers(operator_args)),
        # One run per model release, or when the study says, or when somebody asks.
        schedule=schedule_of(study),
        start_date=start_of(study),
        deadline=deadline_of(study),
        catchup=settings.catchup,
        tags=sorted({"llem", *settings.tags}),
        max_active_runs=1,
        max_active_tasks=settings.max_active_cycles * _lanes(study, operator_args),
        dagrun_timeout=timedelta(seconds=longest_s) if longest_s else None,
        on_failure_callback=timed_out_of(study),
        default_args=_default_args(study),
        auto_register=known,
    )
    with dag:
        _study_tasks(study, operator_args, chain=chain, render=render, only=only)
    # Only now: every task that is made copies and checks the parameters that its DAG has already, which for a thousand
    # tasks takes half a minute. A run gives them to its tasks from the DAG all the same.
    dag.params = ParamsDict(study_params(study, offer=only is None))
    return dag


def adhoc_dag(dag_id: str = ADHOC_DAG_ID, **operator_args: Any) -> DAG:
    """Make the DAG that measures a study whose YAML is pasted into its trigger form (or sent as ``conf``).

    Args:
        dag_id: Id of the DAG.
        **operator_args: As for :func:`study_dag`.
    """
    with DAG(
        dag_id=dag_id,
        description="Measure a study that is pasted into the trigger form",
        doc_md=ADHOC_DOC,
        schedule=None,
        tags=["llem"],
        params=study_params(None),
        max_active_tasks=1,
        default_args={"retries": 1, "retry_policy": FailureRetryPolicy()},
    ) as dag:
        plan = LLEMPlanTextOperator(task_id=PLAN_TASK_ID, operator_args=operator_args)
        cycle = LLEMTextCycleOperator.partial(
            task_id=CYCLE_TASK_ID,
            map_index_template="{{ task.experiment_id }} cycle {{ task.cycle }}",
            **operator_args,
        ).expand_kwargs(plan.output)
        plan >> LLEMTextPrefetchOperator(task_id=PREFETCH_TASK_ID, **operator_args) >> cycle
        cycle >> LLEMAggregateOperator(task_id=AGGREGATE_TASK_ID, study=None, trigger_rule="all_done")
    return dag


def _lanes(study: Study, operator_args: Mapping[str, Any]) -> int:
    """How many hosts measure at the same time."""
    return 1 if "llem_conn_id" in operator_args else max(1, len(study.airflow.hosts))


class StudyTaskGroup(TaskGroup):
    """A study inside somebody's own DAG: plan, cycles and aggregate as one group to put before and after other tasks.

    The study's schedule, tags, trigger form and number of cycles at a time belong to a DAG and are not applied here;
    give the DAG ``params=study_params(study)`` and ``max_active_tasks=1``. Two studies of one DAG need two groups.

    Args:
        study: A loaded study or the path of its file.
        group_id: Id of the group; default: the study's name.
        render: As for :func:`study_dag`.
        operator_args: Arguments of every LLEMExperimentOperator.
        **kwargs: Arguments of Airflow's TaskGroup.
    """

    def __init__(
        self,
        study: Study | str | Path,
        *,
        group_id: str | None = None,
        render: str = "auto",
        operator_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(study, Study):
            study = load_study(study)
        name = group_id or re.sub(r"[^\w-]", "_", study.name)[:_LONGEST_GROUP]
        kwargs.setdefault("default_args", _default_args(study))
        super().__init__(group_id=name, **kwargs)
        with self:
            _study_tasks(study, operator_args or {}, chain=False, render=render, only=None)


def check_render(render: str) -> None:
    """Refuse a way to render that is not known.

    Raises:
        ValueError: It is none of RENDERS.
    """
    if render not in RENDERS:
        raise ValueError(f"render {render!r} is not known; use one of: {', '.join(RENDERS)}")


def _default_args(study: Study) -> dict[str, Any]:
    args: dict[str, Any] = {
        "retries": study.airflow.retries,
        "retry_delay": timedelta(seconds=study.airflow.retry_delay_s),
        "retry_policy": FailureRetryPolicy(),
    }
    return args | ({"owner": study.airflow.owner} if study.airflow.owner else {})


def read_study(path: str | Path) -> Study:
    """The study of a file; for one cycle's task it need not be expanded again."""
    if get_parsing_context().task_id in {None, PLAN_TASK_ID, AGGREGATE_TASK_ID}:
        return load_study(path)  # for all tasks, or for one that reads all experiments
    return cached_study(path, installed().plan_cache)


def _wanted_task(dag_id: str) -> str | None:
    """The task that this process parses the file for; None where it needs all, as the DAG processor does."""
    context = get_parsing_context()
    return context.task_id if context.dag_id == dag_id else None


def _study_tasks(
    study: Study, operator_args: dict[str, Any], *, chain: bool, render: str, only: str | None
) -> None:
    """Plan, cycles and aggregate in the current DAG or group; of the cycles only the wanted one where one is named."""
    check_render(render)
    mapped = _is_mapped(study, render, chain=chain)
    hosts = places_of(study, operator_args, reading=only is None)
    for_plan = plan_args(study, operator_args, hosts)
    plan = LLEMPlanOperator(task_id=PLAN_TASK_ID, study=study, operator_args=for_plan)
    aggregate = LLEMAggregateOperator(
        task_id=AGGREGATE_TASK_ID,
        study=study,
        trigger_rule="all_done",
        outlets=[study_asset(study)],
    )
    plan.after = (aggregate.task_id,)
    whole = only is None or only == PLAN_TASK_ID or only.startswith(PREFETCH_TASK_ID)
    if mapped:
        cycle = _mapped_cycles(study, operator_args)
        if only in {None, PLAN_TASK_ID}:
            plan.cycles = {
                (run.experiment_id, run.cycle): (cycle.task_id, index)
                for index, run in enumerate(study.plan.planned_cycles)
            }
        plan >> cycle >> aggregate
        if whole:
            _fetch_first(plan, study, operator_args, [cycle], hosts)
        return
    cycles = _cycle_tasks(
        study, operator_args, hosts, only=None if chain and not study.execution.in_sessions else only
    )
    plan.cycles = {(task.experiment.id, task.cycle): (task.task_id, -1) for task in cycles}
    first: Sequence[LLEMExperimentOperator] = cycles
    if study.execution.in_sessions:
        first = _around(
            plan, study, operator_args, cycles, lanes=1 if chain else study.airflow.max_active_cycles
        )
    elif chain:
        _follow(cycles)
    else:
        if study.execution.canary:
            _gate(study, {(task.experiment.id, task.cycle): task for task in cycles})
        for search in study.plan.searches:
            _follow([task for task in cycles if task.experiment.id in search.experiments])
    precede([plan], first)
    if whole:
        _fetch_first(plan, study, operator_args, first, hosts)
    precede(cycles, [aggregate])


def _is_mapped(study: Study, render: str, *, chain: bool) -> bool:
    """Whether one mapped task is to stand for all cycles.

    Raises:
        ValueError: It is asked for, and the cycles share sessions or are spread over hosts.
    """
    if hosts := study.airflow.hosts:
        against = f"so one queue and pool, and the study is spread over the hosts {', '.join(hosts)}"
    elif study.execution.in_sessions:
        against = f"isolation {study.execution.isolation!r} needs a task group for each session"
    else:
        large = len(study.experiments) > MAPPED_ABOVE
        return render == "mapped" or (render == "auto" and not chain and large)
    if render == "mapped":
        raise ValueError(f"render='mapped' has one task for all cycles, and {against}: use render='static'")
    return False


def _around(
    plan: LLEMPlanOperator,
    study: Study,
    operator_args: dict[str, Any],
    cycles: Sequence[LLEMExperimentOperator],
    *,
    lanes: int,
) -> list[LLEMExperimentOperator]:
    """Put the tasks of the sessions around the cycles, where all of those are there; the tasks that come first."""
    if len(cycles) < len(study.plan.planned_cycles):
        return []  # a worker that runs one of them needs no other task
    made = session_tasks(study, _shared_args(study, operator_args), cycles, lanes=lanes)
    plan.sessions = {each.session.id: (each.start.task_id, each.stop.task_id) for each in made}
    return [each.start for each in made]


def _gate(study: Study, tasks: dict[tuple[str, int], LLEMExperimentOperator]) -> None:
    """No task of a group starts when its canary has failed; one that the run leaves out gates nothing."""
    canary_of = canaries(study.experiments)
    for (experiment_id, _), gated in tasks.items():
        canary = tasks.get((canary_of[experiment_id], CANARY_CYCLE))
        if canary is not None and canary is not gated:
            gated.trigger_rule = TriggerRule.NONE_FAILED
            precede([canary], [gated])


def _follow(cycles: Sequence[LLEMExperimentOperator]) -> None:
    """Cycles one after the other: a chain's, or a search's, where what the stored rates say decides about the next one.

    One that was left out or failed holds up no other; where the plan failed, nothing runs.
    """
    for before, after in pairwise(cycles):
        precede_whatever_comes(before, after, f"{ENDED_TASK_ID}_{before.cycle}")


def _cycle_tasks(
    study: Study, operator_args: dict[str, Any], hosts: Mapping[str, Mapping[str, Any]], *, only: str | None
) -> list[LLEMExperimentOperator]:
    """One task per planned cycle, in the plan's order, grouped by experiment."""
    wanted = _wanted_run(study, only)
    runs = [wanted] if wanted else study.plan.planned_cycles
    found = [study.experiment(wanted.experiment_id)] if wanted else study.experiments
    experiments = {experiment.id: experiment for experiment in found}
    called = dict(zip(experiments, task_labels(found), strict=True))
    sessions = {run.session for run in runs if run.session}
    groups = {name: TaskGroup(f"{SESSION_GROUP}{name}") for name in sessions} or {
        name: TaskGroup(name, group_display_name=label) for name, label in called.items()
    }
    documents = ExperimentDocs(study)
    docs = {name: documents.page(experiment) for name, experiment in experiments.items()}
    shared = _shared_args(study, operator_args)
    tasks: list[LLEMExperimentOperator] = []
    for run in runs:
        experiment = experiments[run.experiment_id]
        task_id = f"{CYCLE_TASK_ID}_{run.cycle}"
        where = _on_host(hosts[run.host], shared) if run.host is not None and hosts else {}
        in_pool = {**shared, **where}.get("pool", _POOL) != _POOL
        own: dict[str, Any] = {
            **where,
            "task_id": f"{run.experiment_id}.{task_id}" if run.session else task_id,
            "task_display_name": f"cycle {run.cycle}, {called[run.experiment_id]}",
            "task_group": groups[run.session or run.experiment_id],
            "experiment": experiment,
            "doc_md": docs[run.experiment_id],
            "priority_weight": _weight(study, run),
            "image": shared.get("image") or experiment.image or "",
            **({"pool_slots": experiment.gpus.asked} if in_pool else {}),
            "cycle": run.cycle,
            "gap_before_s": run.gap_before_s,
            "session": run.session,
        }
        if tasks:
            tasks.append(clone(tasks[0], derived={"experiment_id": experiment.id}, **own))
        else:
            tasks.append(cycle_operator(study)(study=study, **{**shared, **own}))
    return tasks


def _on_host(host: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """What brings a task to its host; the arguments that all tasks share go before what its connection says."""
    queue = conf.get("operators", "default_queue", fallback="default")
    usual = {"llem_conn_id": "", "queue": queue, "pool": _POOL}
    return {name: shared.get(name) or host.get(name) or value for name, value in usual.items()}


def _wanted_run(study: Study, only: str | None) -> PlannedCycle | None:
    """The planned cycle whose task this process wants."""
    path, _, cycle = (only or "").rpartition(f".{CYCLE_TASK_ID}_")
    experiment_id = path.rpartition(".")[2]  # a session's group comes before
    return (
        study.plan.planned_cycle(experiment_id, int(cycle)) if experiment_id and cycle.isdecimal() else None
    )


def _mapped_cycles(study: Study, operator_args: dict[str, Any]) -> Any:
    """One mapped task whose instances are the planned cycles, in the plan's order."""
    shared = _shared_args(study, operator_args)
    pool = shared.get("pool")  # what a mapped task takes of it is one number for all
    return (
        cycle_operator(study)
        .partial(
            task_id=CYCLE_TASK_ID,
            study=study,
            map_index_template="{{ task.experiment.id }} cycle {{ task.cycle }}",
            **({"pool_slots": max(e.gpus.asked for e in study.experiments)} if pool else {}),
            **shared,
        )
        .expand_kwargs(
            [
                {"experiment": run.experiment_id, "cycle": run.cycle, "gap_before_s": run.gap_before_s}
                for run in study.plan.planned_cycles
            ]
        )
    )


def _weight(study: Study, run: PlannedCycle) -> int:
    """Earlier runs first; the study's own priority lifts all of them above another study's."""
    return study.airflow.priority * 100_000 + len(study.plan.planned_cycles) - run.position


def _shared_args(study: Study, operator_args: dict[str, Any]) -> dict[str, Any]:
    return {
        "weight_rule": "absolute",
        **({"pool": study.airflow.pool} if study.airflow.pool else {}),
        **operator_args,
    }


def _fetch_first(
    plan: LLEMPlanOperator,
    study: Study,
    operator_args: Mapping[str, Any],
    cycles: Sequence[Any],
    hosts: Mapping[str, Mapping[str, Any]],
) -> None:
    """Put a task for each image and model that containers share before the cycles that need them, once on each host."""
    for number, ids in enumerate(sharing(study, operator_args.get("runner")), start=1):
        first = study.experiment(ids[0])
        for host, where in hosts.items() or [("", {})]:
            need = [
                each
                for each in cycles
                if getattr(each, "experiment_id", ids[0]) in ids and (not host or each.llem_conn_id == host)
            ]
            if host and not need and cycles:
                continue
            suffix, on = (f"_{_NO_ID.sub('-', host)}", f" on {host}") if host else ("", "")
            fetch = LLEMPrefetchOperator(
                task_id=f"{PREFETCH_TASK_ID}_{number}{suffix}",
                task_display_name=f"fetch {first.engine}, {first.model}{on}",
                study=study,
                experiments=ids,
                **{**{name: value for name, value in where.items() if name != "pool"}, **operator_args},
            )
            plan.after = (*plan.after, fetch.task_id)
            precede([plan], [fetch])
            precede([fetch], need)
