"""Every key of a study that is not a key of its experiments: how often, in what order, where, when."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, create_model

from llem_airflow.study.config.base import Consistent, Contradiction, Section
from llem_airflow.study.config.experiment import KEPT
from llem_airflow.study.config.types import (
    LONGEST_S,
    Anything,
    DagId,
    Date,
    Duration,
    GpuIndices,
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


class PrecisionTarget(Consistent):
    """Repeat cycles until the interval of the energy per token is narrow enough."""

    relative_half_width: Number = Field(
        0.02, gt=0, le=1, description="Half width of the 95 % interval over the mean."
    )
    min_cycles: Whole = Field(5, ge=2, le=10000, description="Cycles before it may stop.")
    max_cycles: Whole = Field(10, ge=2, le=10000, description="Cycles that are planned.")

    def contradictions(self) -> Iterator[Contradiction]:
        """Fewer cycles at most than at least."""
        if self.min_cycles > self.max_cycles:
            found = f"min_cycles {self.min_cycles} is above max_cycles {self.max_cycles}"
            yield ("min_cycles", "max_cycles"), found, "write the smaller number as min_cycles"


class Execution(Section):
    """How often, in what order, with which pauses and limits."""

    n_cycles: Whole = Field(
        3, ge=1, le=10000, description="Repetitions of each experiment; one has no interval."
    )
    experiment_order: Order = Field("sequential", description="Order of the runs.")
    experiment_gap_s: Number | None = Field(
        None,
        alias="experiment_gap_seconds",
        ge=0,
        le=LONGEST_S,
        description="Pause between runs, in seconds (default 60; 0 with cpu-estimate and none).",
    )
    cycle_gap_s: Number | None = Field(
        None,
        alias="cycle_gap_seconds",
        ge=0,
        le=LONGEST_S,
        description="Pause between blocks or passes, in seconds (default 300; 0 with cpu-estimate and none).",
    )
    shuffle_seed: Whole | None = Field(
        None, description="Seed of the shuffle order (default: from the study)."
    )
    precision_target: PrecisionTarget | None = Field(
        None, description="Repeat cycles until the interval of the energy per token is narrow enough."
    )
    allow_missing_cycles: bool = Field(
        False, description="The DAG run succeeds although planned cycles are missing."
    )
    canary: bool = Field(
        False,
        description="The cheapest experiment of each engine and model goes first; when it fails, the others are not "
        "begun.",
    )
    experiment_timeout_s: Number = Field(
        600.0,
        alias="experiment_timeout_seconds",
        gt=0,
        le=LONGEST_S,
        description="Longest life of one attempt, in seconds.",
    )
    stdout_silence_timeout_seconds: Number = Field(
        300, ge=0, le=LONGEST_S, description="Longest silence of one attempt, in seconds; 0 for no limit."
    )
    wall_clock_timeout_hours: Number | None = Field(
        None, gt=0, le=8760, description="Longest life of the whole DAG run, in hours."
    )
    deduplicate_equivalent: bool = Field(
        True, description="Run points once that differ only in what the engine ignores."
    )
    gpu_indices: GpuIndices | None = Field(None, description="GPUs of the host to use, by index.")
    max_consecutive_failures: Whole = Field(
        10,
        ge=0,
        description="Cycles of a run that may fail in a row before the rest is skipped; 0 for any number.",
    )
    breaker_cooldown_s: Number = Field(
        60.0,
        alias="circuit_breaker_cooldown_seconds",
        ge=0,
        le=LONGEST_S,
        description="Pause before one more cycle is tried as a probe, in seconds.",
    )
    skip_preflight: bool = Field(False, description=f"{KEPT}.")

    @property
    def silence_s(self) -> float | None:
        """Longest silence of one attempt, in seconds, or None for no limit."""
        return float(self.stdout_silence_timeout_seconds) or None

    @property
    def wall_clock_timeout_s(self) -> float | None:
        """Longest life of the whole DAG run, in seconds, or None."""
        return None if self.wall_clock_timeout_hours is None else self.wall_clock_timeout_hours * 3600.0

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

    g_per_kwh: Number = Field(gt=0, description="Grams of CO2e per kWh.")
    source: Text = Field(description="Where it comes from; shown beside every number.")
    year: Whole = Field(ge=1990, le=2100, description="The year that it is about.")


class Price(Section):
    """Price of the electricity, for an estimate of its cost."""

    per_kwh: Number = Field(gt=0, description="Price of a kWh.")
    currency: Text = Field(description="Currency, such as EUR.")
    source: Text = Field(description="Where it comes from; shown beside every number.")
    year: Whole = Field(ge=1990, le=2100, description="The year that it is about.")


class Output(Section):
    """Where results go, and what is estimated from the joules."""

    results_dir: Text | None = Field(
        None, description=f"{KEPT}: the results root is a setting of the installation."
    )
    save_timeseries: bool = Field(True, description=f"{KEPT}: the power series is always kept.")
    carbon: Carbon | None = Field(
        None, description="Intensity of the electricity, for an estimate of CO2e from the measured joules."
    )
    price: Price | None = Field(None, description="Price of the electricity, for an estimate of its cost.")

    def stated(self) -> dict[str, Any]:
        """What the study states about its electricity, for plan.json."""
        return self.model_dump(include={"carbon", "price"}, exclude_none=True)


class Regression(Section):
    """When a run counts as worse than an earlier one."""

    metric: Metric = Field("energy_per_output_token_j", description="Metric that is compared.")
    threshold_ratio: Number = Field(0.02, gt=0, le=10, description="Smallest relative change that counts.")
    baseline: Text = Field("previous", description="`previous` run, or the name of a version.")


class AirflowSection(Consistent):
    """How the study becomes a DAG."""

    dag_id: DagId | None = Field(None, description="Id of the DAG (default: the study's name).")
    schedule: Schedule | None = Field(
        None, description="Cron expression or @daily and the like; null for manual runs."
    )
    timezone: TimeZone = Field("UTC", description="Time zone of the schedule, the start date and the window.")
    start_date: Date | None = Field(None, description="First date of the schedule, ISO.")
    catchup: bool = Field(False, description="Run the schedule's past intervals.")
    window: TimesOfDay | None = Field(
        None,
        description="When experiments of a scheduled run may start, as 22:00-06:00; the others are skipped.",
    )
    carry_over: bool = Field(
        False, description="A scheduled run goes on with what the one before it did not begin."
    )
    deadline_s: Duration | None = Field(
        None,
        alias="deadline",
        description="Tell the notifier when a run is not done so long after it was due: seconds, or 30m, 6h.",
    )
    tags: Tags = Field([], description="Tags of the DAG.")
    owner: Owner | None = Field(None, description="Owner of the tasks.")
    retries: Whole = Field(2, ge=0, le=100, description="Further tries of a cycle that failed.")
    retry_delay_s: Duration = Field(
        60.0, alias="retry_delay", description="Pause before a further try: seconds, or 30s, 5m, 1h."
    )
    max_active_cycles: Whole = Field(1, ge=1, le=1000, description="Cycles that may run at the same time.")
    pool: Pool | None = Field(None, description="Airflow pool of the cycles.")
    priority: Whole = Field(1, ge=-10000, le=10000, description="Priority of the study among others.")
    notify_on: list[Literal["failure", "regression"]] = Field(
        [], description="What is told to the notifier: failure, regression."
    )
    regression: Regression | None = Field(None, description="When a run counts as worse than an earlier one.")

    def contradictions(self) -> Iterator[Contradiction]:
        """Keys that would change what is measured, on a schedule that is not there."""
        for key in ("window", "carry_over"):
            if getattr(self, key) and self.schedule is None:
                yield (key,), "it holds for scheduled runs, and the study has no schedule", "add `schedule`"

    @property
    def compared(self) -> Regression | None:
        """What counts as a regression; who wants to be told of one has asked for the comparison, by its defaults."""
        return self.regression or (Regression() if "regression" in self.notify_on else None)


class ModelVersion(Section):
    """One release."""

    name: Text = Field(description="Name of the release; the partition key of its run.")
    model: Text | None = Field(None, description="Hub id or path (default: the study's).")
    revision: Text | None = Field(None, description="Hub revision.")
    released: Date | None = Field(None, description="Date of the release, ISO.")


class Power(Section):
    """Where power is sampled."""

    sampling: Literal["container", "host"] = Field(
        "container",
        description="`host`: a sampler of the worker counts, and the container's checks it; the worker must sit on the "
        "GPUs' host.",
    )


def _per_engine(name: str, doc: str, kind: Any, description: str) -> type[Section]:
    keys: dict[str, Any] = {
        engine: (kind | None, Field(None, description=description)) for engine in (*ENGINES, *ENGINE_ALIASES)
    }
    return create_model(name, __base__=Section, __doc__=doc, **keys)


Runners = _per_engine(
    "Runners", f"Where each engine runs: {' or '.join(RUNNERS)}.", Runner, "Runner of the engine."
)
Images = _per_engine("Images", "Image of each engine's container.", Text, "Image.")


class StudyKeys(Section):
    """Keys of the study as a whole."""

    study_name: StudyName | None = Field(None, description="Name of the study (default: the file's name).")
    base: Text | None = Field(
        None, description="File to inherit experiment keys from, relative to this file."
    )
    version: Anything | None = Field(None, description="Version of the file's format; accepted and ignored.")
    study_execution: Execution = Field(
        Execution(), description="How often, in what order, with which pauses and limits."
    )
    runners: Runners = Field(Runners(), description=Runners.__doc__)  # type: ignore[valid-type]
    images: Images = Field(Images(), description=Images.__doc__)  # type: ignore[valid-type]
    output: Output = Field(Output(), description="Where results go, and what is estimated from the joules.")
    power: Power = Field(Power(), description="Where power is sampled.")
    airflow: AirflowSection = Field(AirflowSection(), description="How the study becomes a DAG.")
    versions: list[ModelVersion] = Field([], description="Model releases that a backfill walks over.")

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
