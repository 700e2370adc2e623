"""Every key of a study that is not a key of its experiments: how often, in what order, where, when."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import create_model

from llem_airflow.study.config.base import Consistent, Contradiction, Section, key, keys_of
from llem_airflow.study.config.experiment import KEPT
from llem_airflow.study.config.types import (
    LONGEST_S,
    Anything,
    DagId,
    Date,
    Duration,
    GpuIndices,
    HostNames,
    Metric,
    Number,
    Owner,
    Pool,
    Runner,
    Schedule,
    StudyName,
    Tags,
    Text,
    TimesOfDay,
    TimeZone,
    Whole,
)
from llem_airflow.study.names import ENGINE_ALIASES, ENGINES, RUNNERS, split_runner

Order = Literal["sequential", "interleave", "shuffle", "reverse", "latin_square"]
Isolation = Literal["container", "process", "engine"]


class PrecisionTarget(Consistent):
    """Repeat cycles until the interval of the energy per token is narrow enough."""

    relative_half_width: Number = key(0.02, "Half width of the 95 % interval over the mean.", gt=0, le=1)
    min_cycles: Whole = key(5, "Cycles before it may stop.", ge=2, le=10000)
    max_cycles: Whole = key(10, "Cycles that are planned.", ge=2, le=10000)

    def contradictions(self) -> Iterator[Contradiction]:
        """Fewer cycles at most than at least."""
        if self.min_cycles > self.max_cycles:
            found = f"min_cycles {self.min_cycles} is above max_cycles {self.max_cycles}"
            yield ("min_cycles", "max_cycles"), found, "write the smaller number as min_cycles"


class SessionLimits(Section):
    """Bounds of a session: one living container that several cycles share."""

    max_runtime_seconds: Number = key(
        14400, "Longest life of a session, in seconds; it ends itself then.", gt=0, le=LONGEST_S
    )
    idle_seconds: Number = key(
        900, "A session in which nothing has run for so long ends itself, in seconds.", gt=0, le=LONGEST_S
    )
    max_restarts: Whole = key(
        3, "Times that an unhealthy session is started anew; then the rest of its cycles fails.", ge=0, le=100
    )


class Execution(Section):
    """How often, in what order, with which pauses and limits."""

    n_cycles: Whole = key(3, "Repetitions of each experiment; one has no interval.", ge=1, le=10000)
    experiment_order: Order = key("sequential", "Order of the runs.")
    experiment_gap_s: Number | None = key(
        None,
        "Pause between runs, in seconds (default 60; 0 with cpu-estimate and none).",
        alias="experiment_gap_seconds",
        ge=0,
        le=LONGEST_S,
    )
    cycle_gap_s: Number | None = key(
        None,
        "Pause between blocks or passes, in seconds (default 300; 0 with cpu-estimate and none).",
        alias="cycle_gap_seconds",
        ge=0,
        le=LONGEST_S,
    )
    shuffle_seed: Whole | None = key(None, "Seed of the shuffle order (default: from the study).")
    precision_target: PrecisionTarget | None = None
    isolation: Isolation = key(
        "container",
        "`container`: a fresh container for each cycle; `process`: a fresh process for each, in one living container "
        "(a session) for the experiments that load alike; `engine`: likewise, and the loaded engine lives on from one "
        "to the next.",
    )
    session: SessionLimits = SessionLimits()
    allow_missing_cycles: bool = key(False, "The DAG run succeeds although planned cycles are missing.")
    canary: bool = key(
        False,
        "The cheapest experiment of each engine and model goes first; when it fails, the others are skipped.",
    )
    experiment_timeout_s: Number = key(
        600.0,
        "Longest life of one attempt, in seconds.",
        alias="experiment_timeout_seconds",
        gt=0,
        le=LONGEST_S,
    )
    stdout_silence_timeout_seconds: Number = key(
        300, "Longest silence of one attempt, in seconds; 0 for no limit.", ge=0, le=LONGEST_S
    )
    wall_clock_timeout_hours: Number | None = key(
        None, "Longest life of the whole DAG run, in hours.", gt=0, le=8760
    )
    deduplicate_equivalent: bool = key(True, "Run points once that differ only in what the engine ignores.")
    gpu_indices: GpuIndices | None = key(None, "GPUs of the host to use, by index from 0, each once.")
    max_consecutive_failures: Whole = key(
        10, "Cycles of a run that may fail in a row before the rest is skipped; 0 for any number.", ge=0
    )
    breaker_cooldown_s: Number = key(
        60.0,
        "Pause before one more cycle is tried as a probe, in seconds.",
        alias="circuit_breaker_cooldown_seconds",
        ge=0,
        le=LONGEST_S,
    )
    skip_preflight: bool = key(False, f"{KEPT}: every attempt finds out by itself what it needs.")

    @property
    def silence_s(self) -> float | None:
        """Longest silence of one attempt, in seconds, or None for no limit."""
        return float(self.stdout_silence_timeout_seconds) or None

    @property
    def wall_clock_timeout_s(self) -> float | None:
        """Longest life of the whole DAG run, in seconds, or None."""
        return None if self.wall_clock_timeout_hours is None else self.wall_clock_timeout_hours * 3600.0

    @property
    def in_sessions(self) -> bool:
        """Whether cycles share a living container."""
        return self.isolation != "container"

    @property
    def engine_lives_on(self) -> bool:
        """Whether the cycles of a session share a loaded engine, too."""
        return self.isolation == "engine"

    @property
    def cycles(self) -> int:
        """Cycles of each experiment that are planned."""
        return self.n_cycles if self.precision_target is None else self.precision_target.max_cycles

    def gaps_s(self, *, needs_cooldown: bool) -> tuple[float, float]:
        """The pause between runs and between blocks, in seconds; longer where the machine must cool down."""
        short_s, long_s = self.experiment_gap_s, self.cycle_gap_s
        return (
            60.0 * needs_cooldown if short_s is None else short_s,
            300.0 * needs_cooldown if long_s is None else long_s,
        )


class Carbon(Section):
    """Intensity of the electricity, for an estimate of CO2e from the measured joules."""

    g_per_kwh: Number = key(..., "Grams of CO2e per kWh.", gt=0)
    source: Text = key(..., "Where it comes from; shown beside every number.")
    year: Whole = key(..., "The year that it is about.", ge=1990, le=2100)


class Price(Section):
    """Price of the electricity, for an estimate of its cost."""

    per_kwh: Number = key(..., "Price of a kWh.", gt=0)
    currency: Text = key(..., "Currency, such as EUR.")
    source: Text = key(..., "Where it comes from; shown beside every number.")
    year: Whole = key(..., "The year that it is about.", ge=1990, le=2100)


class Output(Section):
    """Where results go, and what is estimated from the joules."""

    results_dir: Text | None = key(None, f"{KEPT}: the results root is a setting of the installation.")
    save_timeseries: bool = key(True, f"{KEPT}: the power series is always kept.")
    carbon: Carbon | None = None
    price: Price | None = None

    def stated(self) -> dict[str, Any]:
        """What the study states about its electricity, for plan.json."""
        return self.model_dump(include={"carbon", "price"}, exclude_none=True)


class Regression(Section):
    """When a run counts as worse than an earlier one."""

    metric: Metric = key("energy_per_output_token_j", "Metric that is compared.")
    threshold_ratio: Number = key(0.02, "Smallest relative change that counts.", gt=0, le=10)
    baseline: Text = key("previous", "`previous` run, or the name of a version.")


class Export(Section):
    """A database that a merged run is written to."""

    to: Literal["influx", "prometheus", "postgres"] = key(..., "Kind of database.")
    conn_id: Text = key(..., "Airflow connection that says where it is.")
    power: bool = key(True, "Write the samples of power, too; else only the numbers of each cycle.")


class AirflowSection(Consistent):
    """How the study becomes a DAG."""

    dag_id: DagId | None = key(
        None,
        "Id of the DAG: letters, digits, dots, dashes, underscores, at most 238 (default: the study's name).",
    )
    schedule: Schedule | None = key(
        None, "Cron expression of 5 fields, or @daily and the like; null for manual runs."
    )
    timezone: TimeZone = key("UTC", "IANA time zone of the schedule, the start date and the window.")
    start_date: Date | None = key(None, "First date of the schedule, ISO, from 1970 to 2100.")
    catchup: bool = key(False, "Run the schedule's past intervals.")
    window: TimesOfDay | None = key(
        None, "When experiments of a scheduled run may start, as 22:00-06:00; the others are skipped."
    )
    carry_over: bool = key(False, "A scheduled run goes on with what the one before it did not begin.")
    deadline_s: Duration | None = key(
        None,
        "Tell the notifier when a run is not done so long after it was due: seconds, or 30m, 6h, at most 30 days.",
        alias="deadline",
    )
    tags: Tags = key([], "Tags of the DAG, each of 1 to 100 characters.")
    owner: Owner | None = key(None, "Owner of the tasks, at most 250 characters.")
    retries: Whole = key(2, "Further tries of a task that failed.", ge=0, le=100)
    retry_delay_s: Duration = key(
        60.0, "Pause before a further try: seconds, or 30s, 5m, 1h, at most 30 days.", alias="retry_delay"
    )
    max_active_cycles: Whole = key(
        1, "Cycles that may run at the same time; with `hosts` so many times their number.", ge=1, le=1000
    )
    pool: Pool | None = key(None, "Airflow pool of the cycles, at most 256 characters.")
    hosts: HostNames = key(
        [], "Connections of type `llem`, each once: the GPU hosts over which the cycles are spread."
    )
    spread: Literal["cycles", "experiments"] = key(
        "cycles",
        "`cycles`: those of each experiment go round all hosts; `experiments`: each experiment has one host.",
    )
    mixed_gpus: bool = key(False, "The hosts may have different kinds of GPU.")
    priority: Whole = key(1, "Priority of the study among others.", ge=-10000, le=10000)
    notify_on: list[Literal["failure", "regression"]] = key(
        [], "What is told to the notifier: failure, regression."
    )
    regression: Regression | None = None
    export: list[Export] = key([], "Databases that a run is written to when it has been merged.")

    def contradictions(self) -> Iterator[Contradiction]:
        """Keys that would change what is measured, on a schedule or hosts that are not there."""
        for name in ("spread", "mixed_gpus"):
            if name in self.model_fields_set and not self.hosts:
                yield (name, "hosts"), "it is about several hosts, and the study names none", "add `hosts`"
        for name in ("window", "carry_over"):
            if getattr(self, name) and self.schedule is None:
                found = "it holds for scheduled runs, and the study has no schedule"
                yield (name, "schedule"), found, "add `schedule`"

    @property
    def compared(self) -> Regression | None:
        """What counts as a regression; who wants to be told of one has asked for the comparison, by its defaults."""
        return self.regression or (Regression() if "regression" in self.notify_on else None)


class ModelVersion(Section):
    """One release."""

    name: Text = key(..., "Name of the release; the partition key of its run.")
    model: Text | None = key(None, "Hub id or path (default: the study's).")
    revision: Text | None = key(None, "Hub revision.")
    released: Date | None = key(None, "Date of the release, ISO, from 1970 to 2100.")


class Power(Section):
    """Where power is sampled."""

    sampling: Literal["container", "host"] = key(
        "container",
        "`host`: a sampler of the worker counts, and the container's checks it; the worker must sit on the "
        "GPUs' host.",
    )


def _per_engine(name: str, doc: str, kind: Any, description: str) -> type[Section]:
    keys: dict[str, Any] = {
        engine: (kind | None, key(None, description)) for engine in (*ENGINES, *ENGINE_ALIASES)
    }
    return create_model(name, __base__=Section, __doc__=doc, **keys)


Runners = _per_engine(
    "Runners",
    f"Where each engine runs: {' or '.join(RUNNERS)}.",
    Runner,
    "Runner of the engine: process, container, container:<image> or kubernetes (older: local, docker).",
)
Images = _per_engine("Images", "Image of each engine's container.", Text, "Image of the engine's containers.")


class StudyKeys(Section):
    """Keys of the study as a whole."""

    study_name: StudyName | None = key(
        None, "Name of the study, one line of at most 500 characters (default: the file's name)."
    )
    base: Text | None = key(None, "File to inherit experiment keys from, relative to this file.")
    version: Anything | None = key(None, "Version of the file's format; accepted and ignored.")
    study_execution: Execution = Execution()
    runners: Runners = Runners()  # type: ignore[valid-type]
    images: Images = Images()  # type: ignore[valid-type]
    output: Output = Output()
    power: Power = Power()
    airflow: AirflowSection = AirflowSection()
    versions: list[ModelVersion] = key([], "Model releases that a backfill walks over.")

    def places(self) -> dict[str, tuple[str, str | None]]:
        """Runner and image of each engine that the file speaks of; ``images`` wins over ``container:<image>``."""
        found: dict[str, tuple[str, str | None]] = {}
        for name, text in self.runners.model_dump(exclude_none=True).items():  # type: ignore[attr-defined]
            found[ENGINE_ALIASES.get(name, name)] = split_runner(text) or ("auto", None)
        for name, image in self.images.model_dump(exclude_none=True).items():  # type: ignore[attr-defined]
            engine = ENGINE_ALIASES.get(name, name)
            found[engine] = (found.get(engine, ("auto", None))[0], image)
        return found


SWEEP_KEYS = ("sweep", "experiments")
"""Keys of a file that make experiments of keys; a model cannot describe them."""
OF_STUDY = (*keys_of(StudyKeys), *SWEEP_KEYS)
"""Keys of a file that no experiment has."""
