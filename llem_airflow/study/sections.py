"""The study-level sections as frozen values, for those who read a study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llem_airflow.study.clock import Window, duration_s, window_of
from llem_airflow.study.fields import defaults
from llem_airflow.study.keys import GPU_METERS
from llem_airflow.study.study_keys import AIRFLOW, EXECUTION, OUTPUT, PRECISION, REGRESSION


@dataclass(frozen=True, slots=True)
class PrecisionTarget:
    """When enough cycles were measured.

    Attributes:
        relative_half_width: Half width of the 95 % interval divided by the mean.
        min_cycles: Cycles before it may stop.
        max_cycles: Cycles that are planned.
    """

    relative_half_width: float
    min_cycles: int
    max_cycles: int


@dataclass(frozen=True, slots=True)
class Execution:
    """``study_execution``: how often, in what order, with which pauses and limits.

    Attributes:
        n_cycles: Cycles of each experiment that are planned.
        experiment_order: One of ORDERS.
        experiment_gap_s: Pause between runs, in seconds.
        cycle_gap_s: Pause between blocks or passes, in seconds.
        shuffle_seed: Seed of the shuffle order, or None for the study's own.
        precision_target: When to stop early, or None.
        allow_missing_cycles: A DAG run with missing cycles still succeeds.
        canary: The cheapest experiment of each engine and model gates the others.
        experiment_timeout_s: Longest life of one attempt, in seconds.
        silence_s: Longest silence of one attempt, in seconds, or None for no limit.
        wall_clock_timeout_s: Longest life of the whole run, in seconds, or None.
        deduplicate_equivalent: Equivalent points run once.
        max_consecutive_failures: Cycles of a run that may fail in a row before the rest is skipped; 0 for any number.
        breaker_cooldown_s: Pause before one more cycle is tried as a probe, in seconds.
    """

    n_cycles: int
    experiment_order: str
    experiment_gap_s: float
    cycle_gap_s: float
    shuffle_seed: int | None
    precision_target: PrecisionTarget | None
    allow_missing_cycles: bool
    canary: bool
    experiment_timeout_s: float
    silence_s: float | None
    wall_clock_timeout_s: float | None
    deduplicate_equivalent: bool
    max_consecutive_failures: int
    breaker_cooldown_s: float


@dataclass(frozen=True, slots=True)
class Regression:
    """When a run counts as worse than an earlier one.

    Attributes:
        metric: Name of the metric that is compared.
        threshold_ratio: Smallest relative change that counts.
        baseline: ``previous``, or the name of a version.
    """

    metric: str
    threshold_ratio: float
    baseline: str


@dataclass(frozen=True, slots=True)
class AirflowSection:
    """``airflow``: how the study becomes a DAG. Absent values are None.

    Attributes:
        dag_id: Id of the DAG.
        schedule: Cron expression or preset.
        timezone: Time zone of the schedule, the start date and the window.
        start_date: ISO date.
        catchup: Run the past intervals of the schedule.
        window: When experiments of a scheduled run may start, or None for always.
        carry_over: A scheduled run goes on with what the one before it did not begin.
        deadline_s: How long after it was due a run may end before somebody is told, in seconds, or None.
        tags: Tags of the DAG.
        owner: Owner of the tasks.
        retries: Further tries of a failed cycle.
        retry_delay_s: Pause before a further try, in seconds.
        max_active_cycles: Cycles that may run at the same time.
        pool: Airflow pool.
        priority: Priority weight.
        notify_on: ``failure`` and/or ``regression``.
        regression: What counts as a regression, or None when nobody asks: neither this nor ``notify_on``.
    """

    dag_id: str | None
    schedule: str | None
    timezone: str
    start_date: str | None
    catchup: bool
    window: Window | None
    carry_over: bool
    deadline_s: float | None
    tags: tuple[str, ...]
    owner: str | None
    retries: int
    retry_delay_s: float
    max_active_cycles: int
    pool: str | None
    priority: int
    notify_on: tuple[str, ...]
    regression: Regression | None


@dataclass(frozen=True, slots=True)
class Output:
    """``output``.

    Attributes:
        results_dir: What the file says, or None.
        save_timeseries: What the file says.
        carbon: ``{"g_per_kwh", "source", "year"}``, or None.
        price: ``{"per_kwh", "currency", "source", "year"}``, or None.
    """

    results_dir: str | None
    save_timeseries: bool
    carbon: Mapping[str, Any] | None = None
    price: Mapping[str, Any] | None = None

    def stated(self) -> dict[str, Any]:
        """What the study states about its electricity, for plan.json."""
        both = {"carbon": self.carbon, "price": self.price}
        return {name: dict(value) for name, value in both.items() if value is not None}


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One release that a backfill walks over.

    Attributes:
        name: Name of the release; the partition key of its run.
        model: Hub id or path, or None for the study's own.
        revision: Hub revision, or None.
        released: ISO date, or None.
    """

    name: str
    model: str | None
    revision: str | None
    released: str | None


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


def thermal(configs: Iterable[dict[str, Any]]) -> bool:
    """Whether any of these experiments measures a GPU, which needs pauses to cool down."""
    return any(config["measurement"]["meter"] in GPU_METERS for config in configs)


def execution_of(written: dict[str, Any], *, thermal: bool) -> Execution:
    """The section with its defaults; ``thermal``: the machine needs its pauses."""
    v = defaults(EXECUTION) | written
    target = written.get("precision_target")
    precision = PrecisionTarget(**(defaults(PRECISION) | target)) if target is not None else None
    gap_s, long_gap_s = v["experiment_gap_seconds"], v["cycle_gap_seconds"]
    hours = v["wall_clock_timeout_hours"]
    return Execution(
        n_cycles=precision.max_cycles if precision else v["n_cycles"],
        experiment_order=v["experiment_order"],
        experiment_gap_s=float(gap_s) if gap_s is not None else 60.0 * thermal,
        cycle_gap_s=float(long_gap_s) if long_gap_s is not None else 300.0 * thermal,
        shuffle_seed=v["shuffle_seed"],
        precision_target=precision,
        allow_missing_cycles=v["allow_missing_cycles"],
        canary=v["canary"],
        experiment_timeout_s=float(v["experiment_timeout_seconds"]),
        silence_s=float(v["stdout_silence_timeout_seconds"]) or None,
        wall_clock_timeout_s=hours * 3600.0 if hours is not None else None,
        deduplicate_equivalent=v["deduplicate_equivalent"],
        max_consecutive_failures=v["max_consecutive_failures"],
        breaker_cooldown_s=float(v["circuit_breaker_cooldown_seconds"]),
    )


def airflow_of(written: dict[str, Any]) -> AirflowSection:
    """The section with its defaults."""
    v = defaults(AIRFLOW) | written
    v["retry_delay_s"] = duration_s(v.pop("retry_delay")) or 0.0
    v["deadline_s"] = duration_s(v.pop("deadline"))
    v["window"] = window_of(v["window"] or "")
    v["tags"], v["notify_on"] = tuple(v["tags"]), tuple(v["notify_on"])
    regression = written.get("regression")
    if regression is None and "regression" in v["notify_on"]:
        regression = {}  # who wants to be told of a regression has asked for the comparison, by its defaults
    v["regression"] = Regression(**(defaults(REGRESSION) | regression)) if regression is not None else None
    return AirflowSection(**v)


def output_of(written: dict[str, Any]) -> Output:
    """The section with its defaults."""
    return Output(**(defaults(OUTPUT) | written))
