"""A study file -> Study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llem_airflow.study.canary import CANARY_CYCLE, canaries
from llem_airflow.study.dag_ids import plain_name
from llem_airflow.study.engine_names import ENGINE_ALIASES, split_runner
from llem_airflow.study.expand import Expansion, Unique, expand
from llem_airflow.study.identity import Slugs, canonical_json, digest
from llem_airflow.study.mistakes import StudyFileError
from llem_airflow.study.notices import notices_of
from llem_airflow.study.order import Run, gaps_s, ordered
from llem_airflow.study.sections import Execution, GpuRequest, execution_of, thermal
from llem_airflow.study.study import Duplicates, Experiment, Plan, PlannedCycle, Study, put_together
from llem_airflow.study.written import Written, read_written
from llem_airflow.study.yaml_text import Source, read_text

MOST_RUNS = 1_000_000
"""Longest plan: it is held in memory, in every process that reads the study."""


def load_study(path: str | Path) -> Study:
    """Read a study file.

    Raises:
        StudyFileError: The file cannot be used; the text lists every mistake with its place.
    """
    file = Path(path)
    text = read_text(file, str(path))
    return _load(Source(str(path), text), name=file.stem, path=file, folder=file.parent)


def load_study_text(text: str, *, name: str = "<text>", folder: Path | None = None) -> Study:
    """Read a study from text.

    Args:
        text: The YAML.
        name: What error messages call it.
        folder: What relative paths in it are relative to.

    Raises:
        StudyFileError: The text cannot be used; the error lists every mistake with its place.
    """
    return _load(Source(name, text), name=Path(name).stem.strip("<>"), path=None, folder=folder)


def _load(source: Source, *, name: str, path: Path | None, folder: Path | None) -> Study:
    written = read_written(source, folder)
    sections = written.sections
    wanted = sections.get("study_execution") or {}
    expansion = expand(written, collapse=wanted.get("deduplicate_equivalent", True))
    cools = thermal(unique.config for unique in expansion.uniques)
    execution = execution_of(wanted, thermal=cools)
    _bounded(source, len(expansion.uniques) * execution.n_cycles)
    experiments = _experiments(written, expansion, execution)
    notices = notices_of(written, expansion, execution, experiments)
    return put_together(
        sections,
        _plan(expansion, experiments, execution, notices),
        name=sections.get("study_name") or plain_name(name),
        path=path,
        folder=folder,
        text=source.text,
        thermal=cools,
    )


def _bounded(source: Source, count: int) -> None:
    if count > MOST_RUNS:
        found = f"the plan has {count:,} cycles to run"
        path = ("study_execution",)
        raise StudyFileError(
            [
                source.mistake(
                    path, found, f"at most {MOST_RUNS:,}: fewer points, or fewer cycles", of_key=True
                )
            ]
        )


def _experiments(written: Written, expansion: Expansion, execution: Execution) -> tuple[Experiment, ...]:
    slugs = Slugs(expansion.varied)
    runners = _runners(written.sections)
    indices = (written.sections.get("study_execution") or {}).get("gpu_indices")
    taken: set[str] = set()
    result = []
    for unique in expansion.uniques:
        config = unique.config
        slug = slugs.slug(config)
        runner, image = runners.get(config["engine"], ("auto", None))
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
                gpus=_gpus(config, indices),
                wall_clock_s=execution.experiment_timeout_s,
                silence_s=execution.silence_s,
            )
        )
    return tuple(result)


def _id(slug: str, unique: Unique, taken: set[str]) -> str:
    name = f"{slug}-{unique.hash[:8]}"
    if name in taken:  # two hashes that begin alike: 32 bits are few for tens of thousands of experiments
        name = f"{slug[:43].strip('-_')}-{unique.hash}"
    taken.add(name)
    return name


def _runners(sections: dict[str, Any]) -> dict[str, tuple[str, str | None]]:
    """Runner and image per engine; ``images:`` wins over ``container:<image>``."""
    result: dict[str, tuple[str, str | None]] = {}
    for name, text in (sections.get("runners") or {}).items():
        result[ENGINE_ALIASES.get(name, name)] = split_runner(text) or ("auto", None)
    for name, image in (sections.get("images") or {}).items():
        engine = ENGINE_ALIASES.get(name, name)
        result[engine] = (result.get(engine, ("auto", None))[0], image)
    return result


def _gpus(config: dict[str, Any], indices: list[int] | None) -> GpuRequest:
    """What the experiment asks for: ``gpus:``, else gpu_indices, else what meter and parallelism imply."""
    asked = config.get("gpus")
    if asked is not None:
        return GpuRequest(**(asked | {"ids": tuple(asked["ids"] or ())}))
    if indices is not None:
        return GpuRequest(count=len(indices), ids=tuple(str(index) for index in indices))
    params = config[config["engine"]].get("engine_params") or {}
    ranks = 1
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        size = params.get(name)
        ranks *= size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else 1
    if ranks > 1:
        return GpuRequest(count=ranks)
    return GpuRequest(count=None if config["measurement"]["meter"] in {"auto", "nvml"} else 0)


def _canaries_first(runs: list[Run], experiments: tuple[Experiment, ...]) -> list[Run]:
    first = set(canaries(experiments).values())
    return sorted(runs, key=lambda run: not (run[1] == CANARY_CYCLE and experiments[run[0]].id in first))


def _plan(
    expansion: Expansion, experiments: tuple[Experiment, ...], execution: Execution, notices: tuple[Any, ...]
) -> Plan:
    seed = execution.shuffle_seed
    if seed is None:
        seed = int(digest(canonical_json([experiment.hash for experiment in experiments]))[:8], 16)
    order = execution.experiment_order
    runs = ordered(len(experiments), execution.n_cycles, order, seed)
    if execution.canary:
        runs = _canaries_first(runs, experiments)
    gaps = gaps_s(runs, order, execution.experiment_gap_s, execution.cycle_gap_s)
    planned = tuple(
        PlannedCycle(experiments[index].id, cycle, position, gap)
        for position, ((index, cycle), gap) in enumerate(zip(runs, gaps, strict=True))
    )
    bound_s = sum(gaps) + len(runs) * execution.experiment_timeout_s
    counts = [experiment.gpus.count for experiment in experiments]
    known = [count for count in counts if count is not None]
    return Plan(
        runs=planned,
        declared=expansion.declared,
        valid=expansion.valid,
        skipped=tuple(expansion.skipped),
        duplicates=_duplicates(expansion, experiments),
        cycles=execution.n_cycles,
        experiments=experiments,
        wall_clock_s=min(bound_s, execution.wall_clock_timeout_s or bound_s),
        gpus=max(known, default=0) if len(known) == len(counts) or max(known, default=0) > 1 else None,
        notices=notices,
    )


def _duplicates(expansion: Expansion, experiments: tuple[Experiment, ...]) -> tuple[Duplicates, ...]:
    return tuple(
        Duplicates(experiment.id, tuple(unique.members), tuple(sorted(unique.ignored)))
        for unique, experiment in zip(expansion.uniques, experiments, strict=True)
        if len(unique.members) > 1
    )
