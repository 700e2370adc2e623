"""What one run is asked to measure of a study: release, experiments, cycles; and what an attempt is told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from llem_airflow.protocol import PROTOCOL_VERSION
from llem_airflow.protocol.spec import ExperimentSpec, Limits, MeterSpec, ModelSource
from llem_airflow.study.config.base import with_values
from llem_airflow.study.config.study import ModelVersion
from llem_airflow.study.plan.identity import experiment_hash
from llem_airflow.study.plan.model import Experiment, Study
from llem_airflow.study.prompts import load_prompts

SHOWN = 200


class RunRequestError(ValueError):
    """A run was asked for something that the study does not have; the text says what it has."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a run was asked for; everything absent means the whole study.

    Attributes:
        version: Name of one of the study's ``versions``.
        experiments: Globs on the experiments' ids and slugs.
        engines: Names of engines.
        models: Globs on model names.
        cycles: The first so many cycles.
        n_prompts: Prompts per cycle instead of the study's number.
        dry_run: Plan and stop.
    """

    version: str | None = None
    experiments: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    cycles: int | None = None
    n_prompts: int | None = None
    dry_run: bool = False


def names_in(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names in a text or a list; a text separates them by commas or spaces."""
    parts = re.split(r"[,\s]+", value) if isinstance(value, str) else value or ()
    return tuple(part for part in parts if part)


def requested(study: Study, request: Request) -> Study:
    """The study as this run is to measure it: the release, the chosen experiments, the chosen cycles.

    Raises:
        RunRequestError: There is no such release, or nothing is left to measure.
    """
    experiments = [altered(study, each, request) for each in study.experiments if wanted(each, request)]
    if not experiments:
        known = "\n".join(f"  {each.id} ({each.engine}, {each.model})" for each in study.experiments[:SHOWN])
        raise RunRequestError(
            f"no experiment of the study {study.name!r} is called {', '.join(request.experiments) or '*'} with engines "
            f"{', '.join(request.engines) or 'any'} and models {', '.join(request.models) or 'any'}; it has:\n{known}"
        )
    for pattern in request.experiments:
        if not any(_called(each, (pattern,)) for each in study.experiments):
            raise RunRequestError(
                f"{pattern!r} is the name of no experiment of the study {study.name!r}; it has "
                + ", ".join(each.id for each in study.experiments[:20])
            )
    ids = {each.id for each in experiments}
    cycles = min(request.cycles or study.cycles, study.cycles)
    runs = tuple(run for run in study.plan.planned_cycles if run.experiment_id in ids and run.cycle <= cycles)
    # Of a search some of whose rates are named, these are measured as they are.
    searches = tuple(one for one in study.plan.searches if ids.issuperset(one.experiments))
    plan = replace(
        study.plan, experiments=tuple(experiments), planned_cycles=runs, cycles=cycles, searches=searches
    )
    return replace(study, plan=plan)


def wanted(experiment: Experiment, request: Request) -> bool:
    """Whether a run asks for an experiment."""
    return (
        _called(experiment, request.experiments or ("*",))
        and (not request.engines or experiment.engine in request.engines)
        and (not request.models or any(fnmatchcase(experiment.model, pattern) for pattern in request.models))
    )


def _called(experiment: Experiment, patterns: Sequence[str]) -> bool:
    return any(
        fnmatchcase(name, pattern) for pattern in patterns for name in (experiment.id, experiment.slug)
    )


def altered(study: Study, experiment: Experiment, request: Request) -> Experiment:
    """The experiment on the run's release and with its number of prompts; the id stays, the hash follows."""
    if study.versions:
        experiment = experiment.at_version(_version(study, request.version))
    if request.n_prompts is not None:
        config = with_values(experiment.config, ((("task", "dataset", "n_prompts"), request.n_prompts),))
        experiment = replace(experiment, config=config, hash=experiment_hash(config))
    return experiment


def _version(study: Study, name: str | None) -> ModelVersion:
    known = ", ".join(f"{version.name} ({version.released})" for version in study.versions)
    if name is None:
        raise RunRequestError(
            f"the study {study.name!r} is measured per model release and this run names none. Name one "
            "(`llem-airflow run --release NAME`, a partition key, the form's field) or run a backfill. "
            f"Its releases: {known}"
        )
    for version in study.versions:
        if version.name == name:
            return version
    raise RunRequestError(f"the study {study.name!r} has no model release {name!r}; it has: {known}")


def experiment_spec(
    study: Study,
    experiment: Experiment,
    cycle: int,
    *,
    model_path: str | None = None,
    revision: str | None = None,
) -> ExperimentSpec:
    """What one attempt of this cycle is told.

    Args:
        study: The study.
        experiment: One of its experiments.
        cycle: Which repetition, from 1.
        model_path: Directory of the weights as the attempt sees it, or None to fetch from the hub.
        revision: Commit that the experiment's revision means, where that is known.

    Raises:
        PromptsError: The prompts cannot be had.
    """
    config = experiment.config
    task, measurement = config["task"], config["measurement"]
    return ExperimentSpec(
        schema_version=PROTOCOL_VERSION,
        study=study.name,
        experiment_hash=experiment.hash,
        slug=experiment.slug,
        engine=experiment.engine,
        config=config,
        cycle=cycle,
        model=ModelSource(name=experiment.model, path=model_path, revision=revision or experiment.revision),
        prompts=load_prompts(task["dataset"], seed=task["random_seed"], folder=study.folder),
        meter=MeterSpec(
            kind=measurement["meter"],
            power_hz=float(measurement["power_hz"]),
            cpu_idle_w=float(measurement["cpu_idle_watts"]),
            cpu_max_w=float(measurement["cpu_max_watts"]),
            min_window_s=float(measurement["min_window_seconds"]),
        ),
        limits=Limits(wall_clock_s=experiment.wall_clock_s, silence_s=experiment.silence_s),
    )
