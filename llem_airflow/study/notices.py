"""What the user should know although the study runs: size, skips, keys without effect, likely slips."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llem_airflow.study.dag_ids import dag_id_of
from llem_airflow.study.expand import Expansion
from llem_airflow.study.fields import defaults
from llem_airflow.study.keys import BUILTIN, STANDING_IN
from llem_airflow.study.mistakes import Notice
from llem_airflow.study.order import balanced
from llem_airflow.study.rules import lookup
from llem_airflow.study.sections import Execution
from llem_airflow.study.slips import slips
from llem_airflow.study.study import Experiment
from llem_airflow.study.study_keys import STUDY_ONLY
from llem_airflow.study.written import Written

NO_EFFECT = {
    ("study_execution", "skip_preflight"): "every attempt finds out by itself what it needs",
    ("output", "results_dir"): "the results root is a setting of the installation (LLEM_RESULTS_ROOT)",
    ("output", "save_timeseries"): "the power series is the evidence and is always kept",
    ("version",): "this is not a version of our format",
}
"""Study-level keys of llenergymeasure files that are accepted and change nothing here, and why."""

NEEDS = {
    ("airflow", "catchup"): (("airflow", "schedule"), "add `airflow.schedule`"),
    ("airflow", "start_date"): (("airflow", "schedule"), "add `airflow.schedule`"),
    ("airflow", "timezone"): (("airflow", "schedule"), "add `airflow.schedule`"),
    ("airflow", "retry_delay"): (("airflow", "retries"), "let `airflow.retries` be 1 or more"),
    ("study_execution", "circuit_breaker_cooldown_seconds"): (
        ("study_execution", "max_consecutive_failures"),
        "let `study_execution.max_consecutive_failures` be 1 or more",
    ),
}
"""Study-level keys that work only with another one, which they need to be set and not 0; and what to do.

``window`` and ``carry_over`` without a schedule, which would change what is measured, are mistakes."""

SIZES = ((2000, "extremely large"), (500, "very large"), (100, "large"))


def notices_of(
    written: Written, expansion: Expansion, execution: Execution, experiments: tuple[Experiment, ...]
) -> tuple[Notice, ...]:
    """Every notice, each once."""
    found = [*written.notices]
    found += _without_effect(written, expansion)
    found += _unused_seed(written, execution)
    found += _size(expansion, execution)
    found += _order(execution, len(experiments))
    found += _name(written)
    found += _runners(experiments)
    found += _datasets(experiments)
    found += _open_ended(written)
    found += _burstiness(experiments)
    found += slips(written)
    return tuple(dict.fromkeys(found))


def _without_effect(written: Written, expansion: Expansion) -> Iterator[Notice]:
    source = written.source
    filled = defaults(STUDY_ONLY)
    for path, why in NO_EFFECT.items():
        value = lookup(written.sections, path)
        if value is not None and value != lookup(filled, path) and path != ("version",):
            yield Notice(
                "no-effect", f"{'.'.join(path)} has no effect here: {why}", source.place(path, of_key=True)[0]
            )
    for path, (needed, advice) in NEEDS.items():
        given = lookup(written.sections, path)
        other = lookup(written.sections, needed)
        other = lookup(filled, needed) if other is None else other
        by_date = path[0] == "airflow" and needed[1] == "schedule" and written.sections.get("versions")
        if given not in (None, lookup(filled, path)) and not other and not by_date:
            text = f"{'.'.join(path)} has no effect here: it works with {'.'.join(needed)}; {advice}"
            yield Notice("no-effect", text, source.place(path, of_key=True)[0])
    for rule in expansion.fired.values():
        for key in rule.ignores:
            yield Notice(
                "no-effect", f"{'.'.join(key)} has no effect here: {rule.reason}", _line(written, key)
            )


def _unused_seed(written: Written, execution: Execution) -> Iterator[Notice]:
    path = ("study_execution", "shuffle_seed")
    if lookup(written.sections, path) is not None and execution.experiment_order != "shuffle":
        text = (
            f"{'.'.join(path)} has no effect here: the order is {execution.experiment_order}; "
            "`study_execution.experiment_order: shuffle` uses it"
        )
        yield Notice("no-effect", text, written.source.place(path, of_key=True)[0])


def _line(written: Written, path: tuple[str, ...]) -> int | None:
    """The line in which a key of an experiment is written, fixed or as an axis."""
    value: Any = written.source.value
    if lookup(value, path) is not None:
        return written.source.place(path, of_key=True)[0]
    axis = ".".join(path)
    if axis in (value.get("sweep") or {}):
        return written.source.place(("sweep", axis), of_key=True)[0]
    return None


def _size(expansion: Expansion, execution: Execution) -> Iterator[Notice]:
    count = len(expansion.uniques)
    for bound, word in SIZES:
        if count > bound:
            hours = count * execution.n_cycles * execution.experiment_gap_s / 3600
            rest = f"; the gaps alone take {hours:.0f} h" if hours >= 1 else ""
            yield Notice(
                "size", f"{word} study: {count:,} experiments, {count * execution.n_cycles:,} cycles{rest}"
            )
            break
    skipped = len(expansion.skipped)
    if skipped * 2 > expansion.declared:
        yield Notice(
            "skipped",
            f"{skipped} of {expansion.declared} points are known not to work; see the rules in the plan",
        )
    if execution.precision_target is not None:
        target = execution.precision_target
        yield Notice(
            "adaptive",
            f"{target.min_cycles} to {target.max_cycles} cycles: the plan shows the most; "
            f"an experiment stops when its interval is within {target.relative_half_width:.1%} of the mean",
        )


def _name(written: Written) -> Iterator[Notice]:
    name = written.sections.get("study_name")
    if name and not (written.sections.get("airflow") or {}).get("dag_id") and dag_id_of(name) != name:
        text = f"Airflow takes no DAG id {_short(name)}: the DAG is {dag_id_of(name)}; airflow.dag_id sets another"
        yield Notice("dag-id", text, written.source.place(("study_name",))[0])


def _short(name: str) -> str:
    return repr(name if len(name) <= 60 else f"{name[:57]}...")


def _order(execution: Execution, count: int) -> Iterator[Notice]:
    if execution.experiment_order == "latin_square" and not balanced(
        count, execution.n_cycles, "latin_square"
    ):
        rows = count if count % 2 == 0 else 2 * count
        yield Notice(
            "not-balanced",
            f"latin_square of {count} experiments is balanced for {rows} cycles or a multiple of it, "
            f"not for {execution.n_cycles}",
        )


def _runners(experiments: tuple[Experiment, ...]) -> Iterator[Notice]:
    pinned = {experiment.runner for experiment in experiments} - {"auto"}
    if len(pinned) > 1:
        yield Notice(
            "mixed-runners",
            "the study runs some engines as processes and others in containers: they do not compare",
        )


def _datasets(experiments: tuple[Experiment, ...]) -> Iterator[Notice]:
    for name in dict.fromkeys(experiment.config["task"]["dataset"]["source"] for experiment in experiments):
        if name in STANDING_IN:
            yield Notice(
                "stand-in",
                f"the prompts of {STANDING_IN[name]} are not shipped: the set {BUILTIN!r} stands in for them",
            )


def _burstiness(experiments: tuple[Experiment, ...]) -> Iterator[Notice]:
    """VLLM's option of this name has the opposite sense: the shape of the gamma distribution, 1 / cv**2."""
    for experiment in experiments:
        traffic = (experiment.config.get("server") or {}).get("traffic") or {}
        if traffic.get("arrival") == "gamma" and traffic.get("burstiness") is not None:
            cv = traffic["burstiness"]
            text = (
                f"server.traffic.burstiness {cv:g} is the coefficient of variation of the gaps: larger is burstier; "
                f"vLLM's --burstiness means the opposite and would be {1 / cv**2:.3g}"
            )
            yield Notice("burstiness", text)
            return


def _open_ended(written: Written) -> Iterator[Notice]:
    task = written.source.value.get("task")
    if isinstance(task, dict) and task.get("max_output_tokens", 0) is None:
        text = (
            "task.max_output_tokens: null is taken as 256: lengths are fixed so that cycles do the same work"
        )
        yield Notice("null", text, written.source.place(("task", "max_output_tokens"), of_key=True)[0])
