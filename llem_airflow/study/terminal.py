"""A plan as a person reads it: the funnel from what is declared to what runs, and the experiments."""

from __future__ import annotations

from collections import Counter

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from llem_airflow.study.study import Experiment, Plan, Study

SHOWN_EXPERIMENTS = 40


def print_plan(study: Study, *, order: bool, console: Console) -> None:
    """Print the funnel, what was left out and why, the experiments, and (on demand) the order of the runs."""
    console.print(Text(study.name, style="bold"), _funnel(study.plan), _totals(study), sep="\n")
    for part in (_skipped(study.plan), _duplicates(study.plan), _experiments(study.plan)):
        if part is not None:
            console.print(part)
    if order:
        console.print(_order(study.plan))
    for notice in study.notices:
        console.print(Text(f"note: {notice}", style="yellow"))


def _funnel(plan: Plan) -> Text:
    steps = [
        f"{plan.declared:,} declared",
        f"{len(plan.skipped):,} invalid",
        f"{plan.valid:,} valid",
        f"{len(plan.experiments):,} after deduplication",
        f"x {plan.cycles:,} cycles",
        f"= {len(plan.runs):,} runs, each in a container or process of its own",
    ]
    return Text(" -> ".join(steps[:4]) + " " + " ".join(steps[4:]))


def _totals(study: Study) -> Text:
    plan = study.plan
    gaps_s = sum(run.gap_before_s for run in plan.runs)
    gpus = "one where there is one" if plan.gpus is None else "none" if plan.gpus == 0 else str(plan.gpus)
    order = study.execution.experiment_order
    return Text(
        f"at most {span(plan.wall_clock_s)} one after the other (of it {span(gaps_s)} pauses); "
        f"GPUs: {gpus}; order: {order}"
    )


def span(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} d"


def _skipped(plan: Plan) -> Group | None:
    if not plan.skipped:
        return None
    table = Table(title="Known not to work", title_justify="left")
    table.add_column("rule", overflow="fold")
    table.add_column("points", justify="right")
    table.add_column("reason", overflow="fold")
    reasons = {skip.rule: skip.reason for skip in plan.skipped}
    for rule, count in Counter(skip.rule for skip in plan.skipped).most_common():
        table.add_row(rule, f"{count:,}", reasons[rule])
    return Group(table)


def _duplicates(plan: Plan) -> Table | None:
    if not plan.duplicates:
        return None
    table = Table(title="The same measurement", title_justify="left")
    table.add_column("experiment", overflow="fold")
    table.add_column("points", justify="right")
    table.add_column("they differ only in", overflow="fold")
    for group in plan.duplicates[:SHOWN_EXPERIMENTS]:
        table.add_row(group.experiment_id, f"{len(group.members):,}", ", ".join(group.ignored) or "nothing")
    return table


def _experiments(plan: Plan) -> Table:
    more = len(plan.experiments) - SHOWN_EXPERIMENTS
    table = Table(
        title="Experiments", title_justify="left", caption=f"and {more:,} more" if more > 0 else None
    )
    for name in ("id", "engine", "model", "runner", "GPUs"):
        table.add_column(name, overflow="fold")
    for experiment in plan.experiments[:SHOWN_EXPERIMENTS]:
        table.add_row(
            experiment.id, experiment.engine, experiment.model, _runner(experiment), _gpus(experiment)
        )
    return table


def _runner(experiment: Experiment) -> str:
    return f"{experiment.runner} ({experiment.image})" if experiment.image else experiment.runner


def _gpus(experiment: Experiment) -> str:
    count = experiment.gpus.count
    return "auto" if count is None else str(count)


def _order(plan: Plan) -> Table:
    table = Table(title="Order", title_justify="left")
    table.add_column("run", justify="right")
    table.add_column("pause before", justify="right")
    table.add_column("experiment", overflow="fold")
    table.add_column("cycle", justify="right")
    for run in plan.runs:
        pause = span(run.gap_before_s) if run.gap_before_s else ""
        table.add_row(f"{run.position + 1:,}", pause, run.experiment_id, f"{run.cycle}")
    return table
