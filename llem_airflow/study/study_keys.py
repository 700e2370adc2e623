"""Every key of a study that is not a key of its experiments: how often, in what order, where, when."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from llem_airflow.study.clock import (
    LONGEST_S,
    wrong_date,
    wrong_duration,
    wrong_schedule,
    wrong_timezone,
    wrong_window,
)
from llem_airflow.study.dag_ids import LONGEST_DAG_ID, dag_id_of
from llem_airflow.study.engine_names import ENGINE_ALIASES, ENGINES, RUNNERS, split_runner
from llem_airflow.study.fields import Leaf, Rows, Section
from llem_airflow.study.keys import EXPERIMENT
from llem_airflow.study.metric_names import METRIC_NAMES
from llem_airflow.study.mistakes import Path

ORDERS = ("sequential", "interleave", "shuffle", "reverse", "latin_square")


def _tags(value: list[str]) -> tuple[str, str] | None:
    wrong = next((tag for tag in value if not tag.strip() or len(tag) > 100), None)
    return (
        None if wrong is None else (f"found the tag {wrong[:60]!r}", "allowed: tags of 1 to 100 characters")
    )


def _at_most(most: int) -> Callable[[str], tuple[str, str] | None]:
    """Airflow's database has columns of this length."""

    def check(value: str) -> tuple[str, str] | None:
        return None if len(value) <= most else (f"found {len(value)} characters", f"allowed: at most {most}")

    return check


def _study_name(value: str) -> tuple[str, str] | None:
    if not value.isprintable():
        return f"found {value[:60]!r}", "allowed: a text of one line without control characters"
    if any(sign in value for sign in ("{{", "{%", "{#")):
        return f"found {value[:60]!r}", "Airflow renders {{, {% and {# as templates: leave them out"
    return _at_most(500)(value)


def _dag_id(value: str) -> tuple[str, str] | None:
    if dag_id_of(value) != value or not value.isascii():
        allowed = f"allowed: letters, digits, dots, dashes and underscores, at most {LONGEST_DAG_ID}"
        return f"found {value[:60]!r}", allowed
    return None


def _runner(value: str) -> tuple[str, str] | None:
    if split_runner(value) is not None:
        return None
    return (
        f"found {value!r}",
        "allowed: process, container or container:<image> (also local, docker, docker:<image>)",
    )


def _indices(value: list[int]) -> tuple[str, str] | None:
    if any(index < 0 for index in value):
        return f"found {value}", "allowed: indices from 0, as nvidia-smi shows them"
    return None if len(set(value)) == len(value) else (f"found {value}", "name each GPU once")


def _cycles(values: dict[str, Any]) -> Iterator[tuple[Path, str, str]]:
    least, most = values.get("min_cycles", 5), values.get("max_cycles", 10)
    if least > most:
        yield (
            ("min_cycles",),
            f"min_cycles {least} is above max_cycles {most}",
            "write the smaller number as min_cycles",
        )


def _nights(values: dict[str, Any]) -> Iterator[tuple[Path, str, str]]:
    if values.get("schedule") is not None:
        return
    for key in ("window", "carry_over"):
        if values.get(key):
            yield (key,), "it holds for scheduled runs, and the study has no schedule", "add `schedule`"


def _per_engine(leaf: Leaf) -> dict[str, Leaf]:
    return dict.fromkeys((*ENGINES, *ENGINE_ALIASES), leaf)


PRECISION = Section(
    "Repeat cycles until the interval of the energy per token is narrow enough.",
    {
        "relative_half_width": Leaf(
            "number", "Half width of the 95 % interval over the mean.", default=0.02, above=0, most=1
        ),
        "min_cycles": Leaf("integer", "Cycles before it may stop.", default=5, least=2, most=10000),
        "max_cycles": Leaf("integer", "Cycles that are planned.", default=10, least=2, most=10000),
    },
    optional=True,
    also=_cycles,
)

EXECUTION = Section(
    "How often, in what order, with which pauses and limits.",
    {
        "n_cycles": Leaf(
            "integer", "Repetitions of each experiment; one has no interval.", default=3, least=1, most=10000
        ),
        "experiment_order": Leaf("string", "Order of the runs.", default="sequential", choices=ORDERS),
        "experiment_gap_seconds": Leaf(
            "number",
            "Pause between runs, in seconds (default 60; 0 with cpu-estimate and none).",
            nullable=True,
            least=0,
            most=LONGEST_S,
        ),
        "cycle_gap_seconds": Leaf(
            "number",
            "Pause between blocks or passes, in seconds (default 300; 0 with cpu-estimate and none).",
            nullable=True,
            least=0,
            most=LONGEST_S,
        ),
        "shuffle_seed": Leaf(
            "integer", "Seed of the shuffle order (default: from the study).", nullable=True
        ),
        "precision_target": PRECISION,
        "allow_missing_cycles": Leaf(
            "boolean", "The DAG run succeeds although planned cycles are missing.", default=False
        ),
        "canary": Leaf(
            "boolean",
            "The cheapest experiment of each engine and model goes first; when it fails, the others are not begun.",
            default=False,
        ),
        "experiment_timeout_seconds": Leaf(
            "number", "Longest life of one attempt, in seconds.", default=600, above=0, most=LONGEST_S
        ),
        "stdout_silence_timeout_seconds": Leaf(
            "number",
            "Longest silence of one attempt, in seconds; 0 for no limit.",
            default=300,
            least=0,
            most=LONGEST_S,
        ),
        "wall_clock_timeout_hours": Leaf(
            "number", "Longest life of the whole DAG run, in hours.", nullable=True, above=0, most=8760
        ),
        "deduplicate_equivalent": Leaf(
            "boolean", "Run points once that differ only in what the engine ignores.", default=True
        ),
        "gpu_indices": Leaf(
            "integers", "GPUs of the host to use, by index.", nullable=True, least=1, also=_indices
        ),
        "max_consecutive_failures": Leaf(
            "integer",
            "Cycles of a run that may fail in a row before the rest is skipped; 0 for any number.",
            default=10,
            least=0,
        ),
        "circuit_breaker_cooldown_seconds": Leaf(
            "number",
            "Pause before one more cycle is tried as a probe, in seconds.",
            default=60,
            least=0,
            most=LONGEST_S,
        ),
        "skip_preflight": Leaf("boolean", "Kept for llenergymeasure files.", default=False),
    },
)


def _year(value: int) -> tuple[str, str] | None:
    return None if 1990 <= value <= 2100 else (f"found {value}", "allowed: the year that it is about")


_SOURCE = {
    "source": Leaf("string", "Where it comes from; shown beside every number.", required=True, least=1),
    "year": Leaf("integer", "The year that it is about.", required=True, also=_year),
}


def _stated(*needed: str) -> Callable[[dict[str, Any]], Iterator[tuple[Path, str, str]]]:
    """A number of the world outside is of no use without all that is needed to read it."""

    def missing(values: dict[str, Any]) -> Iterator[tuple[Path, str, str]]:
        for name in (*needed, *_SOURCE):
            if name not in values:
                yield (), f"{name!r} is missing", f"write all of {', '.join((*needed, *_SOURCE))}"

    return missing


CARBON = Section(
    "Intensity of the electricity, for an estimate of CO2e from the measured joules.",
    {"g_per_kwh": Leaf("number", "Grams of CO2e per kWh.", required=True, above=0), **_SOURCE},
    optional=True,
    also=_stated("g_per_kwh"),
)

PRICE = Section(
    "Price of the electricity, for an estimate of its cost.",
    {
        "per_kwh": Leaf("number", "Price of a kWh.", required=True, above=0),
        "currency": Leaf("string", "Currency, such as EUR.", required=True, least=1),
        **_SOURCE,
    },
    optional=True,
    also=_stated("per_kwh", "currency"),
)

OUTPUT = Section(
    "Where results go, and what is estimated from the joules.",
    {
        "results_dir": Leaf(
            "string",
            "Kept for llenergymeasure files: the results root is a setting of the installation.",
            nullable=True,
            least=1,
        ),
        "save_timeseries": Leaf(
            "boolean", "Kept for llenergymeasure files: the power series is always kept.", default=True
        ),
        "carbon": CARBON,
        "price": PRICE,
    },
)

REGRESSION = Section(
    "When a run counts as worse than an earlier one.",
    {
        "metric": Leaf(
            "string", "Metric that is compared.", default="energy_per_output_token_j", choices=METRIC_NAMES
        ),
        "threshold_ratio": Leaf(
            "number", "Smallest relative change that counts.", default=0.02, above=0, most=10
        ),
        "baseline": Leaf("string", "`previous` run, or the name of a version.", default="previous", least=1),
    },
    optional=True,
)

AIRFLOW = Section(
    "How the study becomes a DAG.",
    {
        "dag_id": Leaf("string", "Id of the DAG (default: the study's name).", nullable=True, also=_dag_id),
        "schedule": Leaf(
            "string",
            "Cron expression or @daily and the like; null for manual runs.",
            nullable=True,
            also=wrong_schedule,
        ),
        "timezone": Leaf(
            "string",
            "Time zone of the schedule, the start date and the window.",
            default="UTC",
            also=wrong_timezone,
        ),
        "start_date": Leaf("string", "First date of the schedule, ISO.", nullable=True, also=wrong_date),
        "catchup": Leaf("boolean", "Run the schedule's past intervals.", default=False),
        "window": Leaf(
            "string",
            "When experiments of a scheduled run may start, as 22:00-06:00; the others are skipped.",
            nullable=True,
            also=wrong_window,
        ),
        "carry_over": Leaf(
            "boolean", "A scheduled run goes on with what the one before it did not begin.", default=False
        ),
        "deadline": Leaf(
            "any",
            "Tell the notifier when a run is not done so long after it was due: seconds, or 30m, 6h.",
            nullable=True,
            also=wrong_duration,
        ),
        "tags": Leaf("strings", "Tags of the DAG.", default=[], also=_tags),
        "owner": Leaf("string", "Owner of the tasks.", nullable=True, least=1, also=_at_most(250)),
        "retries": Leaf("integer", "Further tries of a cycle that failed.", default=2, least=0, most=100),
        "retry_delay": Leaf(
            "any", "Pause before a further try: seconds, or 30s, 5m, 1h.", default=60, also=wrong_duration
        ),
        "max_active_cycles": Leaf(
            "integer", "Cycles that may run at the same time.", default=1, least=1, most=1000
        ),
        "pool": Leaf("string", "Airflow pool of the cycles.", nullable=True, least=1, also=_at_most(256)),
        "priority": Leaf(
            "integer", "Priority of the study among others.", default=1, least=-10000, most=10000
        ),
        "notify_on": Leaf(
            "strings",
            "What is told to the notifier: failure, regression.",
            default=[],
            choices=("failure", "regression"),
        ),
        "regression": REGRESSION,
    },
    also=_nights,
)

VERSIONS = Rows(
    "Model releases that a backfill walks over.",
    Section(
        "One release.",
        {
            "name": Leaf("string", "Name of the release.", required=True, least=1),
            "model": Leaf("string", "Hub id or path (default: the study's).", nullable=True, least=1),
            "revision": Leaf("string", "Hub revision.", nullable=True, least=1),
            "released": Leaf("string", "Date of the release, ISO.", nullable=True, also=wrong_date),
        },
    ),
    unique="name",
)

STUDY_ONLY = Section(
    "Keys of the study as a whole.",
    {
        "study_name": Leaf(
            "string",
            "Name of the study (default: the file's name).",
            nullable=True,
            least=1,
            also=_study_name,
        ),
        "base": Leaf(
            "string", "File to inherit experiment keys from, relative to this file.", nullable=True, least=1
        ),
        "version": Leaf("any", "Version of the file's format; accepted and ignored.", nullable=True),
        "study_execution": EXECUTION,
        "runners": Section(
            f"Where each engine runs: {' or '.join(RUNNERS)}.",
            _per_engine(Leaf("string", "Runner of the engine.", also=_runner)),
        ),
        "images": Section(
            "Image of each engine's container.", _per_engine(Leaf("string", "Image.", least=1))
        ),
        "output": OUTPUT,
        "power": Section(
            "Where power is sampled.",
            {
                "sampling": Leaf(
                    "string",
                    "`host`: a sampler of the worker counts, and the container's checks it; the worker must sit on the "
                    "GPUs' host.",
                    default="container",
                    choices=("container", "host"),
                )
            },
        ),
        "airflow": AIRFLOW,
        "versions": VERSIONS,
    },
)

SWEEP_KEYS = ("sweep", "experiments")
TOP_KEYS = (*STUDY_ONLY.keys, *SWEEP_KEYS, *EXPERIMENT.keys)
