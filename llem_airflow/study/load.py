"""A study file -> Study: the whole way on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llem_airflow.protocol.spec import UNMEASURED_KINDS
from llem_airflow.study.config.base import Config
from llem_airflow.study.config.study import Execution, Isolation
from llem_airflow.study.file.document import FILE_BOUNDS, Bounds, Document, read_document
from llem_airflow.study.file.yaml import Source, read_text
from llem_airflow.study.names import plain_name
from llem_airflow.study.plan.expand import Expansion, Unique, expand
from llem_airflow.study.plan.findings import warnings_of
from llem_airflow.study.plan.identity import Slugs, canonical_json, digest
from llem_airflow.study.plan.model import (
    Duplicates,
    Experiment,
    GpuRequest,
    Plan,
    PlannedCycle,
    RateSearch,
    Study,
)
from llem_airflow.study.plan.order import (
    CANARY_CYCLE,
    PASSES,
    Run,
    by_session,
    canaries,
    gaps_per_host_s,
    hosts_of,
    load_groups,
    longest_s,
    most_probes,
    ordered,
    probe_order,
    session_id,
)
from llem_airflow.study.plan.sweep import parse_sweep
from llem_airflow.study.problems import StudyFileError
from llem_airflow.text.wording import counted


def load_study(path: str | Path, *, isolation: Isolation | None = None) -> Study:
    """Read a study file, with another ``study_execution.isolation`` where one is given.

    Raises:
        StudyFileError: The file cannot be used; the text lists every problem with its place.
    """
    file = Path(path)
    text = read_text(file, str(path))
    return _load(Source(str(path), text), name=file.stem, path=file, folder=file.parent, isolation=isolation)


def load_study_text(
    text: str, *, name: str = "<text>", folder: Path | None = None, bounds: Bounds = FILE_BOUNDS
) -> Study:
    """Read a study from text, which problems call ``name``; relative paths in it are relative to ``folder``.

    Raises:
        StudyFileError: The text cannot be used; the error lists every problem with its place.
    """
    source = Source(name, text)
    return _load(source, name=Path(name).stem.strip("<>"), path=None, folder=folder, bounds=bounds)


def _load(
    source: Source,
    *,
    name: str,
    path: Path | None,
    folder: Path | None,
    bounds: Bounds = FILE_BOUNDS,
    isolation: Isolation | None = None,
) -> Study:
    problems = set(source.problems)
    document = read_document(source, folder, problems, bounds)
    if isolation is not None:
        said = document.keys.study_execution.model_copy(update={"isolation": isolation})
        document.keys = document.keys.model_copy(update={"study_execution": said})
    sweep = parse_sweep(source.value.get("sweep"), document.reporter(problems))
    expansion = expand(document, sweep, problems)
    execution = document.keys.study_execution
    if (count := len(expansion.uniques) * execution.cycles) > document.bounds.cycles:
        found = f"the plan has {counted(count, 'cycle')} to run"
        advice = f"at most {document.bounds.cycles:,}: fewer points, or fewer cycles"
        raise StudyFileError([source.problem(("study_execution",), found, advice, of_key=True)])
    experiments = _experiments(document, expansion)
    # A machine that gets hot must cool down between experiments; an estimate from the CPU's load needs no pauses.
    needs_cooldown = any(
        unique.config["measurement"]["meter"] not in UNMEASURED_KINDS for unique in expansion.uniques
    )
    gaps = execution.gaps_s(needs_cooldown=needs_cooldown)
    plan, order_kept = _plan(document, expansion, experiments, gaps)
    warnings = warnings_of(document, sweep, expansion, plan, gaps[0], order_kept=order_kept)
    return Study(
        name=document.keys.study_name or plain_name(name),
        path=path,
        folder=folder,
        text=source.text,
        plan=replace(plan, warnings=warnings),
        keys=document.keys,
    )


def _experiments(document: Document, expansion: Expansion) -> tuple[Experiment, ...]:
    slugs = Slugs(expansion.varied)
    places, execution = document.keys.places(), document.keys.study_execution
    taken: set[str] = set()
    result = []
    for unique in expansion.uniques:
        config = unique.config
        slug = slugs.slug(config)
        runner, image = places.get(config["engine"], ("auto", None))
        result.append(
            Experiment(
                id=_id(slug, unique, taken),
                slug=slug,
                hash=unique.hash,
                engine=config["engine"],
                model=config["task"]["model"],
                config=config,
                runner=runner,
                image=image,
                gpus=_gpus(config, execution.gpu_indices),
                wall_clock_s=_wall_clock_s(config, execution),
                silence_s=execution.silence_s,
            )
        )
    return tuple(result)


def _wall_clock_s(config: Config, execution: Execution) -> float:
    """Longest life of an attempt: what is written, else the default, which a server's phases can exceed."""
    server, written = config.get("server"), "experiment_timeout_s" in execution.model_fields_set
    if server is None or written:
        return execution.experiment_timeout_s
    return max(execution.experiment_timeout_s, longest_s(server))


def _id(slug: str, unique: Unique, taken: set[str]) -> str:
    name = f"{slug}-{unique.hash[:8]}"
    if name in taken:  # two hashes that begin alike: 32 bits are few for tens of thousands of experiments
        name = f"{slug[:43].strip('-_')}-{unique.hash}"
    taken.add(name)
    return name


def _gpus(config: Config, indices: list[int] | None) -> GpuRequest:
    """What the experiment asks for: ``gpus:``, else gpu_indices, else what meter and parallelism imply."""
    asked = config.get("gpus")
    if asked is not None:
        return GpuRequest(**(asked | {"ids": tuple(asked["ids"] or ())}))
    if indices is not None:
        return GpuRequest(count=len(indices), ids=tuple(str(index) for index in indices))
    params = config[config["engine"]]["engine_params"]
    ranks = 1
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        size = params.get(name)
        ranks *= size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else 1
    if ranks > 1:
        return GpuRequest(count=ranks)
    return GpuRequest(count=None if config["measurement"]["meter"] in {"auto", "nvml"} else 0)


def _plan(
    document: Document, expansion: Expansion, experiments: tuple[Experiment, ...], gaps: tuple[float, float]
) -> tuple[Plan, bool]:
    """What would run, and whether it runs in the order that was asked for."""
    execution = document.keys.study_execution
    asked = _runs(document, experiments)
    groups = load_groups(experiments) if execution.in_sessions else None
    runs = by_session(asked, groups) if groups else asked
    searches = _searches(expansion, experiments)
    settings = document.keys.airflow
    hosts = hosts_of(runs, settings, experiments, groups, searches)
    pauses_s = gaps_per_host_s(runs, hosts, execution.experiment_order if runs == asked else PASSES, *gaps)
    bound_s = _bound_s(experiments, runs, pauses_s, searches)
    counts = [experiment.gpus.count for experiment in experiments]
    known = [count for count in counts if count is not None]
    plan = Plan(
        planned_cycles=tuple(
            PlannedCycle(
                experiments[run[0]].id,
                run[1],
                position,
                pause_s,
                session_id(groups, run) if groups else None,
                host,
            )
            for position, (run, pause_s, host) in enumerate(zip(runs, pauses_s, hosts, strict=True))
        ),
        declared=expansion.declared,
        valid=expansion.valid,
        skipped=tuple(expansion.skipped),
        duplicates=tuple(
            Duplicates(experiment.id, tuple(unique.members), tuple(sorted(unique.ignored)))
            for unique, experiment in zip(expansion.uniques, experiments, strict=True)
            if len(unique.members) > 1
        ),
        cycles=execution.cycles,
        experiments=experiments,
        wall_clock_s=min(bound_s, execution.wall_clock_timeout_s or bound_s),
        gpus=max(known, default=0) if len(known) == len(counts) or max(known, default=0) > 1 else None,
        warnings=(),
        searches=searches,
    )
    return plan, runs == asked


def _searches(expansion: Expansion, experiments: tuple[Experiment, ...]) -> tuple[RateSearch, ...]:
    found = []
    for first, rates in expansion.searches:
        probes = zip(probe_order(len(rates)), experiments[first : first + len(rates)], strict=True)
        by_rate = sorted(probes, key=lambda probe: probe[0])
        ids = tuple(one.id for _, one in by_rate)
        slo = experiments[first].config["server"]["traffic"]["slo"]
        percentile = slo.get("percentile", 0.99)
        found.append(RateSearch(ids, tuple(rates), most_probes(len(rates)), percentile))
    return tuple(found)


def _bound_s(
    experiments: tuple[Experiment, ...],
    runs: list[Run],
    pauses_s: list[float],
    searches: Sequence[RateSearch],
) -> float:
    """Longest time of the plan, one cycle at a time, in seconds; of a search what its probes take, all alike."""
    each_s: dict[str, list[float]] = {}
    for (index, _), pause_s in zip(runs, pauses_s, strict=True):
        each_s.setdefault(experiments[index].id, []).append(
            pause_s + (experiments[index].wall_clock_s or 0.0)
        )
    total_s = sum(map(sum, each_s.values()))
    for one in searches:
        longest_s = sorted((sum(each_s[name]) for name in one.experiments), reverse=True)
        total_s -= sum(longest_s[one.max_probes :])
    return total_s


def _runs(document: Document, experiments: tuple[Experiment, ...]) -> list[Run]:
    execution = document.keys.study_execution
    seed = execution.shuffle_seed
    if seed is None:
        seed = int(digest(canonical_json([experiment.hash for experiment in experiments]))[:8], 16)
    runs = ordered(len(experiments), execution.cycles, execution.experiment_order, seed)
    if not execution.canary:
        return runs
    first = set(canaries(experiments).values())
    return sorted(runs, key=lambda run: not (run[1] == CANARY_CYCLE and experiments[run[0]].id in first))
