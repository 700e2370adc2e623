"""What a study file says, as values: Study, Experiment, PlannedCycle, Plan."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from llem_airflow.protocol.typed_json import to_json
from llem_airflow.study.config.base import Config, with_values
from llem_airflow.study.config.study import AirflowSection, Execution, ModelVersion, Output, StudyKeys
from llem_airflow.study.file.yaml import Source
from llem_airflow.study.names import KUBERNETES, dag_id_of
from llem_airflow.study.plan.identity import experiment_hash
from llem_airflow.study.problems import KeyPath, Problem, StudyWarning

PLAN_FORMAT = 1
"""Version of ``Plan.to_json``; keys may be added within a version, never changed or removed."""
_OF_EXPERIMENT = ("id", "slug", "hash", "engine", "config", "runner", "image")

T = TypeVar("T")


class ByName(Sequence[T]):
    """A sequence that finds an item by its ``name`` without making the others."""

    @abstractmethod
    def named(self, name: str) -> T | None:
        """The first item of that name, or None."""


def _named(items: Sequence[T], name: str) -> T | None:
    if isinstance(items, ByName):
        found: T | None = items.named(name)
        return found
    return next((item for item in items if getattr(item, "name", None) == name), None)


@dataclass(frozen=True, slots=True)
class GpuRequest:
    """The GPUs that one experiment asks for.

    Attributes:
        count: How many; None is "one if the host has an NVIDIA runtime, else none".
        kind: any | full | mig.
        ids: Exactly these, by UUID or index; empty for any.
        memory_gb: Memory that each must have, in gigabytes, or None.
        exclusive: gpu | host.
    """

    count: int | None
    kind: str = "any"
    ids: tuple[str, ...] = ()
    memory_gb: float | None = None
    exclusive: str = "gpu"

    @property
    def asked(self) -> int:
        """GPUs to reckon with: those that it names or counts, else one."""
        return len(self.ids) or self.count or 1


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
    config: Config
    runner: str
    image: str | None
    gpus: GpuRequest
    wall_clock_s: float | None
    silence_s: float | None

    @property
    def name(self) -> str:
        """Its id, by which it is looked up."""
        return self.id

    @property
    def revision(self) -> str | None:
        """Revision of the model on the hub, or None for its newest."""
        found = self.config[self.engine]["engine_params"].get("revision")
        return None if found is None else str(found)

    def at_version(self, version: ModelVersion) -> Experiment:
        """The same experiment on another release of the model: same id, other hash."""
        deltas: list[tuple[tuple[str, ...], Any]] = []
        if version.model is not None:
            deltas.append((("task", "model"), version.model))
        if version.revision is not None:
            deltas.append(((self.engine, "engine_params", "revision"), version.revision))
        config = with_values(self.config, deltas)
        return replace(self, config=config, model=config["task"]["model"], hash=experiment_hash(config))


@dataclass(frozen=True, slots=True)
class PlannedCycle:
    """One cycle in the order in which they run.

    Attributes:
        experiment_id: The experiment.
        cycle: Which repetition, from 1.
        position: Place in the order, from 0.
        gap_before_s: Pause before it, in seconds.
        session: Id of the session that it is measured in; None for a container of its own.
        host: Connection of the host that it is measured on; None where the study names none.
    """

    experiment_id: str
    cycle: int
    position: int
    gap_before_s: float
    session: str | None = None
    host: str | None = None

    @property
    def name(self) -> str:
        """The experiment and which cycle of it, by which it is looked up."""
        return f"{self.experiment_id}.{self.cycle}"


@dataclass(frozen=True, slots=True)
class Session:
    """Cycles that share one living container.

    Attributes:
        id: ``<what is loaded>-c<cycle>``: ``[a-z0-9_-]``, at most 60 characters, unique in a run.
        cycles: Its cycles in their order, each of another experiment.
    """

    id: str
    cycles: tuple[PlannedCycle, ...]


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
class RateSearch:
    """One search: a configuration of a server whose highest rate is looked for.

    Attributes:
        experiments: Ids of the candidates, by rate.
        rates_per_s: Their rates, ascending: the first and the last are the bounds of the study.
        max_probes: Most candidates that are measured.
        percentile: Share of the requests that has to meet the bounds.
    """

    experiments: tuple[str, ...]
    rates_per_s: tuple[float, ...]
    max_probes: int
    percentile: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What would run.

    Attributes:
        planned_cycles: Every cycle, in order.
        declared: Points that the file declares.
        valid: Points that no rule excludes.
        skipped: The excluded ones.
        duplicates: Groups of points that are one measurement.
        cycles: Cycles per experiment.
        experiments: The experiments.
        wall_clock_s: Upper bound of the run, gaps included, one cycle at a time, in seconds.
        gpus: Most GPUs that one experiment asks for; None is "one where there is one".
        warnings: What the user should know.
        searches: Searches for a rate; each measures some of the experiments that it names.
    """

    planned_cycles: Sequence[PlannedCycle]
    declared: int
    valid: int
    skipped: Sequence[Skipped]
    duplicates: Sequence[Duplicates]
    cycles: int
    experiments: Sequence[Experiment]
    wall_clock_s: float
    gpus: int | None
    warnings: tuple[StudyWarning, ...]
    searches: tuple[RateSearch, ...] = ()

    @property
    def most_cycles(self) -> int:
        """Cycles that are measured at most: a search leaves most of its candidates out."""
        left_out = sum(len(one.experiments) - one.max_probes for one in self.searches)
        return len(self.planned_cycles) - left_out * self.cycles

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The sessions in their order; none where each cycle has a container of its own."""
        found: dict[str, list[PlannedCycle]] = {}
        for run in self.planned_cycles:
            if run.session is not None:
                found.setdefault(run.session, []).append(run)
        return tuple(Session(name, tuple(runs)) for name, runs in found.items())

    def planned_cycle(self, experiment_id: str, cycle: int) -> PlannedCycle | None:
        """The planned cycle, or None when it is not in the plan."""
        return _named(self.planned_cycles, f"{experiment_id}.{cycle}")

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON, in a documented and stable format."""
        return {
            "format": PLAN_FORMAT,
            "declared": self.declared,
            "skipped": [{"rule": s.rule, "reason": s.reason, "point": dict(s.point)} for s in self.skipped],
            "valid": self.valid,
            "unique": len(self.experiments),
            "cycles": self.cycles,
            "runs": len(self.planned_cycles),
            "experiments": [
                {name: getattr(one, name) for name in _OF_EXPERIMENT} for one in self.experiments
            ],
            "order": [run.experiment_id for run in self.planned_cycles],
            "gaps": [run.gap_before_s for run in self.planned_cycles],
            "duplicates": [
                {"experiment": d.experiment_id, "members": list(d.members), "ignored": list(d.ignored)}
                for d in self.duplicates
            ],
            "wall_clock_s": self.wall_clock_s,
            "gpus": self.gpus,
            "notices": [warning.to_json() for warning in self.warnings],
            **({"hosts": hosts} if any(hosts := [run.host for run in self.planned_cycles]) else {}),
            **({"sessions": [run.session for run in self.planned_cycles]} if self.sessions else {}),
            **({"searches": to_json(self.searches)} if self.searches else {}),
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
        keys: The study-level keys.
    """

    name: str
    path: Path | None
    folder: Path | None
    text: str = field(repr=False)
    plan: Plan = field(repr=False)
    keys: StudyKeys = field(repr=False)

    @property
    def airflow(self) -> AirflowSection:
        """Section ``airflow``."""
        return self.keys.airflow

    @property
    def execution(self) -> Execution:
        """Section ``study_execution``."""
        return self.keys.study_execution

    @property
    def output(self) -> Output:
        """Section ``output``."""
        return self.keys.output

    @property
    def versions(self) -> Sequence[ModelVersion]:
        """Model releases that a backfill walks over."""
        return self.keys.versions

    @property
    def warnings(self) -> tuple[StudyWarning, ...]:
        """What the user should know."""
        return self.plan.warnings

    @property
    def experiments(self) -> Sequence[Experiment]:
        """The experiments that run, each once."""
        return self.plan.experiments

    @property
    def cycles(self) -> int:
        """Cycles per experiment."""
        return self.plan.cycles

    @property
    def on_a_cluster(self) -> bool:
        """Whether its cycles are pods of a Kubernetes cluster."""
        named = any(runner == KUBERNETES for runner, _ in self.keys.places().values())
        return named and any(experiment.runner == KUBERNETES for experiment in self.experiments)

    @property
    def dag_id(self) -> str:
        """Id of its DAG: ``airflow.dag_id``, else its name as far as Airflow takes it."""
        return self.airflow.dag_id or dag_id_of(self.name)

    def problem(self, path: KeyPath, found: str, allowed: str, *, value: Any = None) -> Problem:
        """A problem that shows only when the study is to run, with its place in the file.

        It is that of the key, or of its ``value`` that is wrong, which a sweep or one experiment may have.
        """
        source = Source(str(self.path or self.name), self.text)
        return source.problem(path if value is None else source.find(path, value), found, allowed)

    def experiment(self, experiment_id: str) -> Experiment:
        """The experiment of that id.

        Raises:
            KeyError: The study has no such experiment; the text names some that it has.
        """
        found = _named(self.experiments, experiment_id)
        if found is not None:
            return found
        some = ", ".join(each.id for each in self.experiments[:10])
        raise KeyError(f"the study {self.name!r} has no experiment {experiment_id!r}; it has {some}")
