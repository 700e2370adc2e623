"""A plan as a person reads it: the funnel from what is declared to what is measured, and the experiments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime

from rich.console import Console, Group
from rich.text import Text

from llem_airflow.runners.choice import Choice
from llem_airflow.study.plan.model import Experiment, Plan, Study
from llem_airflow.text.terminal import Folding, Rows, show
from llem_airflow.text.wording import counted

SHOWN_EXPERIMENTS = 40


def print_plan(
    study: Study,
    choices: Mapping[str, Choice],
    engine_text: str,
    *,
    order: bool,
    console: Console,
    next_runs: Sequence[datetime] = (),
) -> None:
    """Print the funnel, what was left out and why, the experiments, and (on demand) the order of the cycles.

    Args:
        study: The study.
        choices: Runner by engine, with the layer that names it.
        engine_text: What is seen of a Docker engine from here, which decides for ``auto``; empty where nothing is auto.
        order: Show every cycle.
        console: Where to print.
        next_runs: When Airflow runs it next by itself, on the study's clock.
    """
    show(console, Folding(study.name, "bold"), _funnel(study), _totals(study))
    if next_runs:
        show(console, Folding(f"next runs: {', '.join(f'{one:%a %Y-%m-%d %H:%M %Z}' for one in next_runs)}"))
    show(console, *(Folding(f"runner of {engine}: {choice.told}") for engine, choice in choices.items()))
    if engine_text:
        show(console, Folding(f"auto, from here: {engine_text}"))
    parts = (_skipped(study.plan), _duplicates(study.plan), _experiments(study.plan), _sessions(study.plan))
    for part in parts:
        if part is not None:
            show(console, part)
    if order:
        show(console, _order(study.plan))
    show(console, *(Folding(f"note: {notice}", "yellow") for notice in study.warnings))


def _funnel(study: Study) -> Text:
    plan = study.plan
    steps = [
        f"{plan.declared:,} declared",
        f"{len(plan.skipped):,} invalid",
        f"{plan.valid:,} valid",
        f"{len(plan.experiments):,} after deduplication",
        f"x {counted(plan.cycles, 'cycle')}",
        f"= {counted(len(plan.planned_cycles), 'cycle')}{_at_most(plan)} to measure",
    ]
    return Text(" -> ".join(steps[:4]) + " " + " ".join(steps[4:]) + _where(study))


def _where(study: Study) -> str:
    sessions = len(study.plan.sessions)
    if not sessions:
        return ", each in a container or process of its own"
    saved = len(study.plan.planned_cycles) - sessions
    loads = f" and {counted(saved, 'load')} of a model" if study.execution.engine_lives_on else ""
    return f", in {counted(sessions, 'session')} ({counted(saved, 'container start')}{loads} saved)"


def _at_most(plan: Plan) -> str:
    return f", {plan.most_cycles:,} of them at most," if plan.searches else ""


def _totals(study: Study) -> Text:
    plan = study.plan
    gaps_s = sorted((run.gap_before_s for run in plan.planned_cycles), reverse=True)[: plan.most_cycles]
    gpus = "1 if the host has one" if plan.gpus is None else "none" if plan.gpus == 0 else str(plan.gpus)
    order: str = study.execution.experiment_order
    several = len(plan.experiments) > 1 and plan.cycles > 1
    if several and "experiment_order" not in study.execution.model_fields_set:
        order += " (not set in the file; llenergymeasure's `llem run` shuffles then, as experiment_order: shuffle does)"
    return Text(
        f"at most {span(plan.wall_clock_s)} one after the other, {span(sum(gaps_s))} of it pauses; "
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
    reasons: dict[str, dict[str, None]] = {}
    for skip in plan.skipped:
        reasons.setdefault(skip.rule, {})[skip.reason] = None
    counts = Counter(skip.rule for skip in plan.skipped).most_common()
    rows = [(rule, f"{count:,}", "; ".join(list(reasons[rule])[:3])) for rule, count in counts]
    return _titled("Known not to work", Rows(("rule", "points", "reason"), rows, right=("points",)))


def _duplicates(plan: Plan) -> Group | None:
    if not plan.duplicates:
        return None
    rows = [
        (group.experiment_id, f"{len(group.members):,}", ", ".join(group.ignored) or "nothing")
        for group in plan.duplicates[:SHOWN_EXPERIMENTS]
    ]
    titles = ("experiment", "points", "they differ only in")
    return _titled("The same measurement", Rows(titles, rows, right=("points",)))


def _experiments(plan: Plan) -> Group:
    rows = [
        (experiment.id, experiment.engine, experiment.model, _gpus(experiment))
        for experiment in plan.experiments[:SHOWN_EXPERIMENTS]
    ]
    more = len(plan.experiments) - SHOWN_EXPERIMENTS
    left_out = [Text(f"and {more:,} more")] if more > 0 else []
    return Group(
        _titled("Experiments", Rows(("id", "engine", "model", "GPUs"), rows)),
        *left_out,
    )


def _sessions(plan: Plan) -> Group | None:
    """What shares a living container: one row for what loads alike, whose sessions are its passes."""
    found: dict[tuple[str, ...], list[str]] = {}
    for session in plan.sessions:
        members = tuple(sorted(run.experiment_id for run in session.cycles))
        found.setdefault((session.id.rpartition("-c")[0], *members), []).append(session.id)
    if not found:
        return None
    rows = [
        (name, f"{len(ids):,}", f"{len(members):,}", ", ".join(members[:3]) + ", ..." * (len(members) > 3))
        for (name, *members), ids in list(found.items())[:SHOWN_EXPERIMENTS]
    ]
    titles = ("what is loaded", "sessions", "experiments in each", "these")
    return _titled("Sessions", Rows(titles, rows, right=("sessions", "experiments in each")))


def _titled(title: str, rows: Rows) -> Group:
    return Group(Text(""), Text(title, style="italic"), rows)


def _gpus(experiment: Experiment) -> str:
    count = experiment.gpus.count
    return "auto" if count is None else str(count)


def _order(plan: Plan) -> Group:
    rows = [
        (
            f"{run.position + 1:,}",
            span(run.gap_before_s) if run.gap_before_s else "",
            run.experiment_id,
            f"{run.cycle}",
        )
        for run in plan.planned_cycles
    ]
    titles = ("position", "pause before", "experiment", "cycle")
    return _titled("Order", Rows(titles, rows, right=("position", "pause before", "cycle")))
