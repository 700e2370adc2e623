"""What a study file says, as values: Study, Experiment, PlannedCycle, Plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llem_airflow.study.identity import experiment_hash
from llem_airflow.study.mistakes import Notice
from llem_airflow.study.sections import AirflowSection, Execution, GpuRequest, ModelVersion, Output
from llem_airflow.study.settle import with_deltas

PLAN_FORMAT = 1
"""Version of ``Plan.to_json``; keys may be added within a version, never changed or removed."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """One configuration.

    Attributes:
        id: ``<slug>-<hash8>``: ``[a-z0-9_-]``, at most 60 characters, unique in the study.
        slug: What differs from the study's other experiments, readable.
        hash: Identity of what is measured, 16 hex digits.
        engine: transformers | vllm | tensorrt.
        model: The name as the study gives it.
        config: The whole configuration with defaults; shared with other experiments, never to be changed.
        runner: process | container | auto.
        image: Image of the container, or None for the engine's default.
        gpus: The GPUs it asks for.
        wall_clock_s: Longest life of one attempt, in seconds.
        silence_s: Longest silence of one attempt, in seconds, or None.
    """

    id: str
    slug: str
    hash: str
    engine: str
    model: str
    config: dict[str, Any]
    runner: str
    image: str | None
    gpus: GpuRequest
    wall_clock_s: float | None
    silence_s: float | None

    def at_version(self, version: ModelVersion) -> Experiment:
        """The same experiment on another release of the model: same id, other hash."""
        deltas: list[tuple[tuple[str, ...], Any]] = []
        if version.model is not None:
            deltas.append((("task", "model"), version.model))
        if version.revision is not None:
            deltas.append(((self.engine, "engine_params", "revision"), version.revision))
        config = with_deltas(self.config, tuple(deltas))
        return replace(self, config=config, model=config["task"]["model"], hash=experiment_hash(config))


@dataclass(frozen=True, slots=True)
class PlannedCycle:
    """One cycle in the order in which they run.

    Attributes:
        experiment_id: The experiment.
        cycle: Which repetition, from 1.
        position: Place in the order, from 0.
        gap_before_s: Pause before it, in seconds.
    """

    experiment_id: str
    cycle: int
    position: int
    gap_before_s: float


@dataclass(frozen=True, slots=True)
class Skipped:
    """A declared point that is known not to work.

    Attributes:
        rule: Id of the rule.
        reason: Why, in a sentence.
        point: What the point sets, dotted key to value.
    """

    rule: str
    reason: str
    point: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Declared points that are one measurement.

    Attributes:
        experiment_id: The experiment that runs for all of them.
        members: Their hashes as declared, the running one first.
        ignored: Keys in which they differ and that the engine ignores.
    """

    experiment_id: str
    members: tuple[str, ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What would run.

    Attributes:
        runs: Every cycle, in order.
        declared: Points that the file declares.
        valid: Points that no rule excludes.
        skipped: The excluded ones.
        duplicates: Groups of points that are one measurement.
        cycles: Cycles per experiment.
        experiments: The experiments.
        wall_clock_s: Upper bound of the run, gaps included, one cycle at a time, in seconds.
        gpus: Most GPUs that one experiment asks for; None is "one where there is one".
        notices: What the user should know.
    """

    runs: tuple[PlannedCycle, ...]
    declared: int
    valid: int
    skipped: tuple[Skipped, ...]
    duplicates: tuple[Duplicates, ...]
    cycles: int
    experiments: tuple[Experiment, ...]
    wall_clock_s: float
    gpus: int | None
    notices: tuple[Notice, ...]

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON, in a documented and stable format."""
        return {
            "format": PLAN_FORMAT,
            "declared": self.declared,
            "skipped": [{"rule": s.rule, "reason": s.reason, "point": dict(s.point)} for s in self.skipped],
            "valid": self.valid,
            "unique": len(self.experiments),
            "cycles": self.cycles,
            "runs": len(self.runs),
            "experiments": [
                {
                    "id": e.id,
                    "slug": e.slug,
                    "hash": e.hash,
                    "engine": e.engine,
                    "config": e.config,
                    "runner": e.runner,
                    "image": e.image,
                }
                for e in self.experiments
            ],
            "order": [run.experiment_id for run in self.runs],
            "gaps": [run.gap_before_s for run in self.runs],
            "duplicates": [
                {"experiment": d.experiment_id, "members": list(d.members), "ignored": list(d.ignored)}
                for d in self.duplicates
            ],
            "wall_clock_s": self.wall_clock_s,
            "gpus": self.gpus,
            "notices": [notice.to_json() for notice in self.notices],
        }


@dataclass(frozen=True, slots=True)
class Study:
    """A study: one question, one file.

    Attributes:
        name: Its name.
        path: The file, or None when it came as text.
        folder: What relative paths in it are relative to, or None.
        text: The file's text.
        plan: What would run.
        airflow: Section ``airflow``.
        execution: Section ``study_execution``.
        output: Section ``output``.
        versions: Model releases that a backfill walks over.
        notices: What the user should know.
    """

    name: str
    path: Path | None
    folder: Path | None
    text: str = field(repr=False)
    plan: Plan = field(repr=False)
    airflow: AirflowSection
    execution: Execution
    output: Output
    versions: tuple[ModelVersion, ...]
    notices: tuple[Notice, ...] = ()

    @property
    def experiments(self) -> tuple[Experiment, ...]:
        """The experiments that run, each once."""
        return self.plan.experiments

    @property
    def cycles(self) -> int:
        """Cycles per experiment."""
        return self.plan.cycles

    def experiment(self, experiment_id: str) -> Experiment:
        """The experiment of that id.

        Raises:
            KeyError: The study has no such experiment; the text names some that it has.
        """
        for each in self.experiments:
            if each.id == experiment_id:
                return each
        some = ", ".join(each.id for each in self.experiments[:10])
        raise KeyError(f"the study {self.name!r} has no experiment {experiment_id!r}; it has {some}")

    def version(self, name: str) -> ModelVersion:
        """The model release of that name.

        Raises:
            KeyError: The study has no such version; the text names those that it has.
        """
        for each in self.versions:
            if each.name == name:
                return each
        known = ", ".join(each.name for each in self.versions) or "none"
        raise KeyError(f"the study {self.name!r} has no version {name!r}; it has {known}")
