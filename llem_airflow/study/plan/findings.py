"""What the user should know of a study: why it could never run; its size, skips, keys without effect or misspelt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from llem_airflow.protocol.engine_keys import shared_beginnings
from llem_airflow.study.config.base import Config, lookup
from llem_airflow.study.config.engines import PARTS, known_keys, not_of_a_server
from llem_airflow.study.config.experiment import BUILTIN, STANDING_IN
from llem_airflow.study.config.study import AirflowSection, Execution, StudyKeys
from llem_airflow.study.file.document import Document
from llem_airflow.study.names import ENGINES, INVALID_PREFIX, KUBERNETES, RESERVED_DAG_IDS, dag_id_of
from llem_airflow.study.plan.expand import Expansion
from llem_airflow.study.plan.model import Experiment, Plan, Study
from llem_airflow.study.plan.order import balanced, least_s, most_probes
from llem_airflow.study.plan.sweep import Sweep
from llem_airflow.study.problems import KeyPath, Problem, StudyWarning, short
from llem_airflow.study.prompts import lengths_of
from llem_airflow.text.wording import counted

_ISOLATION: KeyPath = ("study_execution", "isolation")
_SERVERS_THAT_LIVE_ON = {"vllm"}
"""Engines whose server says when it is at rest, and forgets what it has cached when it is asked to."""
_SCHEDULE = (("airflow", "schedule"), "add `airflow.schedule`")
NO_EFFECT = {
    ("study_execution", "skip_preflight"): "every attempt finds out by itself what it needs",
    ("output", "results_dir"): "the results root is a setting of the installation (LLEM_RESULTS_ROOT)",
    ("output", "save_timeseries"): "the power series is the evidence and is always kept",
    ("version",): "this is not a version of our format",
}
"""Study-level keys of llenergymeasure files that are accepted and change nothing here, and why."""

NEEDS = {
    ("airflow", "catchup"): _SCHEDULE,
    ("airflow", "start_date"): _SCHEDULE,
    ("airflow", "timezone"): _SCHEDULE,
    ("airflow", "retry_delay"): (("airflow", "retries"), "let `airflow.retries` be 1 or more"),
    ("study_execution", "circuit_breaker_cooldown_seconds"): (
        ("study_execution", "max_consecutive_failures"),
        "let `study_execution.max_consecutive_failures` be 1 or more",
    ),
}
"""Study-level keys that work only with another one, which they need to be set and not 0; and what to do.

``window`` and ``carry_over`` without a schedule, which would change what is measured, are problems."""

SIZES = ((2000, "extremely large"), (500, "very large"), (100, "large"))


def warnings_of(
    document: Document, sweep: Sweep, expansion: Expansion, plan: Plan, gap_s: float, *, order_kept: bool
) -> tuple[StudyWarning, ...]:
    """Every warning, each once.

    Args:
        document: The file.
        sweep: Its sweep.
        expansion: Its points.
        plan: What would run.
        gap_s: The pause between two experiments, in seconds.
        order_kept: Whether the cycles run in the order that was asked for, and not session by session.
    """
    experiments = plan.experiments
    found = [*document.warnings]
    found += _without_effect(document, expansion)
    found += _first_counts(document, expansion)
    found += _overridden(document, expansion)
    found += _size(document, expansion, gap_s)
    found += _searches(document, expansion)
    found += _order(document, len(experiments))
    found += _name(document)
    found += _runners(experiments)
    found += _prompts(experiments)
    found += _open_ended(document)
    found += _burstiness(experiments)
    found += _under_a_server(document, sweep, experiments)
    found += _unknown_engine_keys(document, sweep)
    found += _sessions(document.keys.study_execution, plan, order_kept=order_kept)
    found += _hosts(document.keys.airflow, plan)
    return tuple(dict.fromkeys(found))


def _without_effect(document: Document, expansion: Expansion) -> Iterator[StudyWarning]:
    said, default = (keys.model_dump(by_alias=True) for keys in (document.keys, StudyKeys()))
    for path, why in NO_EFFECT.items():
        if path != ("version",) and lookup(said, path) != lookup(default, path):
            yield _idle(document, path, why)
    for path, (needed, advice) in NEEDS.items():
        by_date = needed[1] == "schedule" and document.keys.versions
        if lookup(said, path) != lookup(default, path) and not lookup(said, needed) and not by_date:
            yield _idle(document, path, f"it works with {'.'.join(needed)}; {advice}")
    session = ("study_execution", "session")
    if not document.keys.study_execution.in_sessions and lookup(said, session) != lookup(default, session):
        yield _idle(document, session, "it works with study_execution.isolation: process or engine")
    for rule in expansion.fired.values():
        for key in rule.ignores:
            line = _line(document, key)
            # Nobody asks of a key that nobody wrote, or whose own value says it (top_p: 1); where some points use it,
            # the plan tells those that do not.
            says_so = all(condition.paths() == [key] for condition in rule.conditions)
            if rule.notice or (line is not None and not says_so and _idle_everywhere(key, expansion)):
                yield StudyWarning("no-effect", f"{'.'.join(key)} has no effect here: {rule.reason}", line)


def _idle_everywhere(key: KeyPath, expansion: Expansion) -> bool:
    rules = [rule for rule in expansion.fired.values() if key in rule.ignores]
    return all(any(rule.applies(one.config) for rule in rules) for one in expansion.uniques)


def _first_counts(document: Document, expansion: Expansion) -> Iterator[StudyWarning]:
    for path in sorted({path for one in expansion.uniques for path in one.first_counts}):
        key = ".".join(path)
        text = (
            f"{key} makes no other measurement: of points that differ in nothing else only the first is measured, and "
            "judged by its value; for another value make another study"
        )
        yield StudyWarning("same-measurement", text, _line(document, path))


def _idle(document: Document, path: tuple[str, ...], why: str) -> StudyWarning:
    line = document.source.place(path, of_key=True)[0]
    return StudyWarning("no-effect", f"{'.'.join(path)} has no effect here: {why}", line)


def _overridden(document: Document, expansion: Expansion) -> Iterator[StudyWarning]:
    """Keys of which another one says that they are not looked at."""
    execution = document.keys.study_execution
    if execution.shuffle_seed is not None and execution.experiment_order != "shuffle":
        why = (
            f"the order is {execution.experiment_order}; `study_execution.experiment_order: shuffle` uses it"
        )
        yield _idle(document, ("study_execution", "shuffle_seed"), why)
    if execution.gpu_indices is not None and all("gpus" in one.config for one in expansion.uniques):
        yield _idle(document, ("study_execution", "gpu_indices"), "`gpus` says which GPUs are used")
    for engine, (runner, image) in document.keys.places().items():
        if runner == "process" and image is not None:
            yield _idle(document, ("images", engine), f"runners.{engine} is process, which has no image")


def _line(document: Document, path: tuple[str, ...]) -> int | None:
    """The line in which a key of an experiment is written, fixed or as an axis."""
    value: Any = document.source.value
    if lookup(value, path) is not None:
        return document.source.place(path, of_key=True)[0]
    axis = ".".join(path)
    if (value.get("sweep") or {}).get(axis) is not None:  # null is the same as not to write it
        return document.source.place(("sweep", axis), of_key=True)[0]
    return None


def _size(document: Document, expansion: Expansion, gap_s: float) -> Iterator[StudyWarning]:
    execution = document.keys.study_execution
    # Of a search only the probes are measured.
    count = len(expansion.uniques) - sum(
        len(rates) - most_probes(len(rates)) for _, rates in expansion.searches
    )
    word = next((word for bound, word in SIZES if count > bound), None)
    if word is not None:
        hours = count * execution.cycles * gap_s / 3600
        rest = f"; the gaps alone take {hours:.0f} h" if hours >= 1 else ""
        text = f"{word} study: {counted(count, 'experiment')}, {counted(count * execution.cycles, 'cycle')}{rest}"
        yield StudyWarning("size", text)
    skipped = len(expansion.skipped)
    if skipped * 2 > expansion.declared:
        text = f"known not to work: {skipped} of {counted(expansion.declared, 'point')}; see the rules in the plan"
        yield StudyWarning("skipped", text)
    if (target := execution.precision_target) is not None:
        yield StudyWarning(
            "adaptive",
            f"{target.min_cycles} to {counted(target.max_cycles, 'cycle')}: the plan shows the most; "
            f"an experiment stops when its interval is within {target.relative_half_width:.1%} of the mean",
        )


def _searches(document: Document, expansion: Expansion) -> Iterator[StudyWarning]:
    for _, rates in expansion.searches:
        probes, apart = most_probes(len(rates)), rates[1] / rates[0] - 1
        text = (
            f"find_rate from {rates[0]:g}/s to {rates[-1]:g}/s: {counted(probes, 'rate')} of {len(rates)} are "
            f"measured at most, {counted(document.keys.study_execution.cycles, 'cycle')} each; the found rate and the "
            f"next higher one lie {apart:.1%} apart"
        )
        yield StudyWarning("search", text)
    if expansion.searches and document.keys.study_execution.cycles == 1:
        text = "find_rate with one cycle a rate: near the bound an answer is chance; n_cycles: 3 asks every rate thrice"
        yield StudyWarning("search", text)


def _name(document: Document) -> Iterator[StudyWarning]:
    name = document.keys.study_name
    if name and not document.keys.airflow.dag_id and dag_id_of(name) != name:
        text = f"Airflow takes no DAG id {short(name)!r}: the DAG is {dag_id_of(name)}; airflow.dag_id sets another"
        yield StudyWarning("dag-id", text, document.source.place(("study_name",))[0])


def _order(document: Document, count: int) -> Iterator[StudyWarning]:
    execution = document.keys.study_execution
    if execution.experiment_order == "latin_square" and not balanced(count, execution.cycles, "latin_square"):
        rows = count if count % 2 == 0 else 2 * count
        text = f"latin_square of {counted(count, 'experiment')} is balanced for {counted(rows, 'cycle')}"
        yield StudyWarning("not-balanced", f"{text} or a multiple of it, not for {execution.cycles}")


def _runners(experiments: Sequence[Experiment]) -> Iterator[StudyWarning]:
    pinned = {experiment.runner for experiment in experiments} - {"auto"}
    if len(pinned) > 1:
        yield StudyWarning(
            "mixed-runners",
            "the study runs some engines as processes and others in containers: they do not compare",
        )


def _prompts(experiments: Sequence[Experiment]) -> Iterator[StudyWarning]:
    """Which sets stand in, which lengths are drawn, and what the prefix cache makes of prompts that begin alike."""
    datasets = [experiment.config["task"]["dataset"] for experiment in experiments]
    for name in dict.fromkeys(dataset["source"] for dataset in datasets):
        if name in STANDING_IN:
            text = (
                f"the prompts of {STANDING_IN[name]} are not shipped: the set {BUILTIN!r} stands in for them"
            )
            yield StudyWarning("stand-in", text)
    for dataset in datasets:
        if not {"range_ratio", "input_tokens_stddev", "output_tokens_stddev"} & set(dataset):
            continue
        found = lengths_of(dataset)
        if found is not None:
            text = (
                f"{dataset['source']}: tokens of a prompt: {found[0].told()}; of its answer: {found[1].told()}; drawn "
                "from task.random_seed, the same in all experiments that have it"
            )
            yield StudyWarning("drawn-lengths", text)
    for experiment in experiments:
        if text := shared_beginnings(experiment.config):
            yield StudyWarning("prefix-cache", text)


def _burstiness(experiments: Sequence[Experiment]) -> Iterator[StudyWarning]:
    """VLLM's option of this name has the opposite sense: the shape of the gamma distribution, 1 / cv**2."""
    for experiment in experiments:
        traffic = (experiment.config.get("server") or {}).get("traffic") or {}
        if traffic.get("arrival") == "gamma" and traffic.get("burstiness") is not None:
            cv = traffic["burstiness"]
            text = (
                f"server.traffic.burstiness {cv:g} is the coefficient of variation of the gaps: larger is burstier; "
                f"vLLM's --burstiness means the opposite and would be {1 / cv**2:.3g}"
            )
            yield StudyWarning("burstiness", text)
            return


_BATCH_ONLY = {
    ("measurement", "min_window_seconds"): "the window of a server is server.traffic.window_seconds long",
    ("vllm", "engine_params", "host"): "the server listens on loopback, inside its container",
    ("vllm", "engine_params", "model"): "the model is task.model",
}
"""Keys of an experiment that nothing reads where a server is measured, and why."""

_WITHOUT_A_FIELD = {
    "vllm": "has no effect here: a request to the server has no such field, and it is left out",
    "tensorrt": "cannot work here: a request to the server has no such field, and it refuses each: remove it",
}


def _under_a_server(
    document: Document, sweep: Sweep, experiments: Sequence[Experiment]
) -> Iterator[StudyWarning]:
    """Keys that nothing reads where a server is measured, and those with which it does not start."""
    if not _served(experiments):
        return
    for path, why in _BATCH_ONLY.items():
        if (line := _line(document, path)) is not None:
            yield StudyWarning("no-effect", f"{'.'.join(path)} has no effect here: {why}", line)
    for engine, part, name, place in _engine_keys(document, sweep):
        if name in not_of_a_server(engine, part):
            why = "cannot work here: `vllm serve` has no such flag, and ends with it: remove it"
            why = _WITHOUT_A_FIELD[engine] if part == "sampling_params" else why
            line = document.source.place(place, of_key=True)[0]
            yield StudyWarning("no-effect", f"{engine}.{part}.{name} {why}", line)


def _served(experiments: Sequence[Experiment]) -> set[str]:
    """Engines whose servers are measured."""
    return {one.engine for one in experiments if one.config["serving_mode"] == "server"}


def _open_ended(document: Document) -> Iterator[StudyWarning]:
    task = document.source.value.get("task")
    if isinstance(task, dict) and task.get("max_output_tokens", 0) is None:
        text = (
            "task.max_output_tokens: null is taken as 256: lengths are fixed so that cycles do the same work"
        )
        yield StudyWarning("null", text, document.source.place(("task", "max_output_tokens"), of_key=True)[0])


def _unknown_engine_keys(document: Document, sweep: Sweep) -> Iterator[StudyWarning]:
    """Keys that nothing is known of, or that are probably misspelt, in the parts that pass through to an engine."""
    for engine, part, name, path in _engine_keys(document, sweep):
        known = known_keys(engine, part)
        if name in known or not known:  # nothing is recorded of an installed engine
            continue
        meant = get_close_matches(name, known, n=1, cutoff=0.8) if len(name) < 100 else []
        line = document.source.place(path, of_key=True)[0]
        text = f"{engine}.{part}.{name[:60]} is not a known key and passes through; "
        if meant:
            yield StudyWarning("slip", f"{text}did you mean {meant[0]!r}?", line)
        else:
            yield StudyWarning(
                "unknown-key", f"{text}an engine that does not know it fails when it starts", line
            )


def _engine_keys(document: Document, sweep: Sweep) -> Iterator[tuple[str, str, str, KeyPath]]:
    yield from _names(document.fixed, ())
    for variant in sweep.variants():
        for path, _, place in variant:
            if len(path) >= 3 and path[0] in ENGINES and path[1] in PARTS:
                yield path[0], path[1], path[2], place[:2]
    for index, entry in enumerate(document.entries):
        yield from _names(entry, ("experiments", index))


def _names(config: Config, before: KeyPath) -> Iterator[tuple[str, str, str, KeyPath]]:
    for engine in ENGINES:
        for part in PARTS:
            for name in (config.get(engine) or {}).get(part) or ():
                yield engine, part, name, (*before, engine, part, name)


def _sessions(execution: Execution, plan: Plan, *, order_kept: bool) -> Iterator[StudyWarning]:
    if not order_kept:
        yield StudyWarning(
            "session-order",
            f"the order {execution.experiment_order} holds within each session only: cycles run session by session, so "
            "that one container serves what loads alike; study_execution.isolation: container keeps it",
        )
    longest_s = {each.id: each.wall_clock_s or 0.0 for each in plan.experiments}
    limit_s = execution.session.max_runtime_seconds
    over = [
        each
        for each in plan.sessions
        if sum(longest_s[run.experiment_id] for run in each.cycles)
        + sum(run.gap_before_s for run in each.cycles[1:])
        > limit_s
    ]
    if over:
        text = (
            f"{counted(len(over), 'session')} can take longer than study_execution.session.max_runtime_seconds "
            f"({limit_s:g}), as {over[0].id} with {counted(len(over[0].cycles), 'cycle')}: what is left then "
            "fails"
        )
        yield StudyWarning("session-long", text)
    if plan.sessions and len(plan.sessions) == len(plan.planned_cycles):
        text = (
            f"no two experiments load alike: each session has one cycle, and isolation: {execution.isolation} "
            "saves nothing"
        )
        yield StudyWarning("session-alone", text)


def _hosts(settings: AirflowSection, plan: Plan) -> Iterator[StudyWarning]:
    hosts, cycles = len(settings.hosts), plan.cycles
    if hosts < 2:
        return
    if settings.spread == "experiments" and len(plan.experiments) > 1:
        yield StudyWarning(
            "hosts-confounded",
            "airflow.spread: experiments measures different experiments on different hosts: a difference between them "
            "may be one between hosts; spread: cycles measures each experiment on all of them",
        )
    elif settings.spread == "cycles" and cycles % hosts:
        yield StudyWarning(
            "hosts-unbalanced",
            f"{counted(cycles, 'cycle')} over {hosts} hosts are not the same number on each for every experiment: "
            f"n_cycles: {-(-cycles // hosts) * hosts} is",
        )


def not_runnable(study: Study) -> list[Problem]:
    """Why no run of the study could end well, each with its place; empty when nothing is known against it."""
    found = [*_reserved(study), *_too_short(study), *not_in_sessions(study), *_on_a_cluster(study)]
    return [study.problem(*each) for each in found]


def _reserved(study: Study) -> Iterator[tuple[KeyPath, str, str]]:
    if study.dag_id in RESERVED_DAG_IDS or study.dag_id.startswith(INVALID_PREFIX):
        where: KeyPath = ("airflow", "dag_id") if study.airflow.dag_id else ("study_name",)
        found = f"the DAG would be called {study.dag_id!r}, as one of llem-airflow's own"
        yield where, found, "name it otherwise"


def not_in_sessions(study: Study) -> Iterator[tuple[KeyPath, str, str]]:
    """Why a study cannot be measured in sessions: the key, what was found, what to do."""
    execution = study.execution
    if not execution.in_sessions:
        return
    found = f"found {execution.isolation!r}"
    back = "or write `isolation: container`"
    if processes := sorted({each.engine for each in study.experiments if each.runner == "process"}):
        said = (
            f"{found}: a session is a living container, and `runners` says process for {', '.join(processes)}"
        )
        yield _ISOLATION, said, f"write container there, {back}"
    if execution.engine_lives_on and (serving := sorted(_served(study.experiments) - _SERVERS_THAT_LIVE_ON)):
        said = (
            f"{found}: the server of {', '.join(serving)} cannot be made ready for a second experiment, and "
            "serving_mode is server"
        )
        yield _ISOLATION, said, "write `isolation: process`, which saves the container starts, " + back
    if study.plan.searches:
        said = f"{found}: find_rate asks for a rate when all cycles of another are there, and a session has one of each"
        yield _ISOLATION, said, f"write the rates as a sweep, {back}"
    idle_s = execution.session.idle_seconds
    longest_s = max(
        (run.gap_before_s for each in study.plan.sessions for run in each.cycles[1:]), default=0.0
    )
    if longest_s >= idle_s:
        said = f"a session ends itself after {idle_s:g} s without a cycle, and pauses in it are {longest_s:g} s long"
        yield ("study_execution", "session", "idle_seconds"), said, "raise it, or shorten the pauses"


def _on_a_cluster(study: Study) -> Iterator[tuple[KeyPath, str, str]]:
    """Keys that say nothing to the cluster on which the study is to run."""
    alike = {each.gpus: each for each in study.experiments if each.runner == KUBERNETES}
    told = dict.fromkeys(
        each for experiment in alike.values() for each in meaningless_on_a_cluster(study, experiment)
    )
    for key, why, instead in told:
        yield tuple(key.partition(":")[0].split(".")), f"{key} on a Kubernetes cluster: {why}", instead


def _too_short(study: Study) -> Iterator[tuple[KeyPath, str, str]]:
    """Limits that end every cycle before it can be done."""
    limits_s = (each.wall_clock_s for each in study.experiments if each.wall_clock_s is not None)
    limits = (
        ("experiment_timeout_seconds", min(limits_s, default=None)),
        ("wall_clock_timeout_hours", study.execution.wall_clock_timeout_s),
    )
    needed_s = min(map(least_s, study.experiments), default=0.0)
    for key, limit_s in limits:
        if limit_s is not None and limit_s <= needed_s:
            window = "server.traffic" if _served(study.experiments) else "measurement.min_window_seconds"
            needs = f"{needed_s:g} s at least: warm-up, idle power and {window}"
            found = f"it ends a cycle after {limit_s:g} s, and each takes {needs}"
            yield ("study_execution", key), found, "raise it, or shorten the window"


def meaningless_on_a_cluster(
    study: Study, experiment: Experiment, gpu_resource: str | None = None
) -> list[tuple[str, str, str]]:
    """Keys that say nothing to a cluster, which chooses nodes and devices itself: why, and what instead.

    The device plugin's resource, where it is known, says whether devices are slices.
    """
    gpus, sliced, known = experiment.gpus, "/mig-" in (gpu_resource or ""), gpu_resource is not None
    chosen, nodes = "device plugin chooses the devices", "leave it out, or use node_selector"
    product = "node_selector with nvidia.com/gpu.product, which GPU feature discovery sets"
    whole, own_study = "ask for all GPUs of a node, or taint one", "put those into a study of their own"
    not_slice, is_slice = known and gpus.kind == "mig" and not sliced, sliced and gpus.kind == "full"
    sampled, own_meter = study.keys.power.sampling, "leave it out: the pod's own meter counts"
    sessions, indices = study.execution.in_sessions, study.execution.gpu_indices
    mixed = study.on_a_cluster and any(each.runner != KUBERNETES for each in study.experiments)
    said = {
        "gpus.ids": (gpus.ids, f"the cluster's {chosen}", nodes),
        "gpus.memory_gb": (gpus.memory_gb is not None, "the scheduler knows no device's memory", product),
        "gpus.exclusive: host": (gpus.exclusive == "host", "no pod can keep others off its node", whole),
        "gpus.kind: mig": (
            not_slice,
            f"{gpu_resource} is no slice",
            "gpu_resource='nvidia.com/mig-<profile>'",
        ),
        "gpus.kind: full": (is_slice, f"{gpu_resource} is a slice", "gpu_resource='nvidia.com/gpu'"),
        "power.sampling: host": (sampled == "host", "no worker sits on the pod's node", own_meter),
        "study_execution.isolation": (sessions, "a pod has one cycle", "`container`, or another runner"),
        "study_execution.gpu_indices": (indices is not None, f"the {chosen}", "leave it out"),
        "airflow.hosts": (study.airflow.hosts, "the cluster chooses nodes", nodes),
        "runners": (mixed, "some engines are to run on the cluster and others not", own_study),
    }
    return [(key, why, instead) for key, (applies, why, instead) in said.items() if applies]
