"""Every key of an experiment: the part of the study file that can be fixed, swept or given per entry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llem_airflow.study.engine_names import ENGINE_ALIASES, ENGINES
from llem_airflow.study.engine_sections import ENGINE_SECTIONS
from llem_airflow.study.fields import Leaf, Section
from llem_airflow.study.mistakes import Path

GPU_METERS = ("auto", "nvml", "rapl")
"""Meters of a machine under thermal load: thermal gaps and floors have their full defaults with them."""
METERS = ("auto", "nvml", "rapl", "cpu-estimate", "none")
SAMPLER_METER = {"auto": "auto", "nvml": "nvml", "zeus": "nvml", "codecarbon": "cpu-estimate", None: "none"}
"""What a file's ``energy_sampler`` (the peer's word) means as a ``meter``."""
SERVING_MODES = ("offline", "server")

BUILTIN = "builtin"
"""The prompt set that is shipped."""
STANDING_IN = {"aienergyscore": "AIEnergyScore"}
"""Datasets of llenergymeasure that are not shipped; the builtin set stands in for them, with a notice."""

PRESETS: dict[str, dict[str, float]] = {
    "deterministic": {"temperature": 0.0},
    "standard": {"temperature": 1.0, "top_p": 0.95},
    "creative": {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.1},
    "factual": {"temperature": 0.3},
}
"""Sampling presets: what is written under ``sampling_params`` wins over them."""


def _window(value: Any) -> tuple[str, str] | None:
    if len(value) == 2 and 0 <= value[0] < value[1]:
        return None
    return f"found {value}", "allowed: [begin_s, end_s] with 0 <= begin < end"


def _windowed(values: dict[str, Any]) -> Iterator[tuple[Path, str, str]]:
    if values.get("measurement_methodology") == "windowed" and values.get("measurement_window") is None:
        yield (
            (),
            "measurement_methodology is 'windowed' but there is no measurement_window",
            "add measurement_window: [begin_s, end_s]",
        )
    sampler, meter = values.get("energy_sampler", "auto"), values.get("meter")
    if meter is not None and sampler != "auto" and SAMPLER_METER.get(sampler) != meter:
        yield ("meter",), f"meter {meter!r} contradicts energy_sampler {sampler!r}", "keep one of them"


def _wattages(values: dict[str, Any]) -> Iterator[tuple[Path, str, str]]:
    yield from _windowed(values)
    idle, most = values.get("cpu_idle_watts", 10.0), values.get("cpu_max_watts", 65.0)
    if idle >= most:
        yield (
            (),
            f"cpu_idle_watts {idle:g} is not below cpu_max_watts {most:g}",
            "the idle power is the smaller one",
        )


def _passthrough(values: Any) -> tuple[str, str] | None:
    taken = sorted(set(values) & set(EXPERIMENT.keys))
    if not taken:
        return None
    return f"{taken[0]!r} is a key of the study itself", f"write {taken[0]}: at the top level instead"


def _floor(value: float) -> tuple[str, str] | None:
    """The peer's lower bound, with 0 (off) allowed because an estimate needs no thermal floor."""
    return (
        None if value == 0 or value >= 30 else (f"found {value:g}", "allowed: 0 (off), or 30 seconds or more")
    )


DATASET = Section(
    "The prompts.",
    {
        "source": Leaf(
            "string",
            "`builtin`, a .jsonl or .parquet path relative to this file, `synthetic:<in>x<out>` tokens, or a "
            "dataset of the hub: `owner/name[@revision][:file]`.",
            default="builtin",
            least=1,
        ),
        "n_prompts": Leaf("integer", "How many prompts make one pass.", default=100, least=1, most=1_000_000),
        "order": Leaf(
            "string",
            "Order of the prompts.",
            default="interleaved",
            choices=("interleaved", "grouped", "shuffled"),
        ),
    },
)

TASK = Section(
    "What is measured: model, prompts, lengths.",
    {
        "model": Leaf("string", "Hub id, path or name under the models folder.", required=True, least=1),
        "random_seed": Leaf("integer", "Seed of sampling and of the prompt order.", default=42),
        "max_input_tokens": Leaf(
            "integer", "Prompts are cut to this many tokens.", default=256, least=1, nullable=True
        ),
        "max_output_tokens": Leaf(
            "integer", "Tokens generated per request; null is 256.", default=256, least=1, null_is=256
        ),
        "dataset": DATASET,
    },
    moved={"dataset_name": "use task.dataset.source", "n_prompts": "use task.dataset.n_prompts"},
)

BASELINE = Section(
    "Idle power, measured before each window.",
    {
        "enabled": Leaf("boolean", "Measure idle power (default: where power is measured).", nullable=True),
        "duration_seconds": Leaf(
            "number",
            "Length of each baseline, in seconds (default 30).",
            nullable=True,
            least=5,
            most=120,
        ),
        "strategy": Leaf(
            "string",
            "`fresh`: in every cycle. `cached`: once per experiment and run, then taken over while device, driver and "
            "limits stay the same. `validated`: so, with a look now and then whether it still holds.",
            default="validated",
            choices=("validated", "cached", "fresh"),
        ),
        "cache_ttl_seconds": Leaf(
            "number", "Idle power older than this is measured again, in seconds.", default=7200, least=60
        ),
        "validation_interval": Leaf(
            "integer", "`validated`: every so many cycles looks whether it still holds.", default=5, least=1
        ),
        "drift_threshold": Leaf(
            "number",
            "`validated`: relative change of the bare device's power from which it is measured again.",
            default=0.1,
            least=0.01,
            most=0.5,
        ),
    },
)

MEASUREMENT = Section(
    "How it is measured.",
    {
        "meter": Leaf(
            "string",
            "What reads the power (default auto: nvml, then rapl, then cpu-estimate).",
            choices=METERS,
        ),
        "energy_sampler": Leaf(
            "string",
            "The meter, in llenergymeasure's word.",
            default="auto",
            nullable=True,
            choices=("auto", "nvml", "zeus", "codecarbon"),
        ),
        "power_hz": Leaf("number", "Power samples per second.", default=10, above=0, most=1000),
        "min_window_seconds": Leaf(
            "number",
            "The prompt set is repeated until the window is this long, in seconds.",
            default=30,
            least=0,
            most=86400,
        ),
        "cpu_idle_watts": Leaf(
            "number",
            "Assumed idle power of the CPU for cpu-estimate, in watts.",
            default=10,
            least=0,
            most=10000,
        ),
        "cpu_max_watts": Leaf(
            "number",
            "Assumed full power of the CPU for cpu-estimate, in watts.",
            default=65,
            above=0,
            most=10000,
        ),
        "require_energy": Leaf(
            "boolean",
            "A cycle whose energy is withheld counts as missing.",
            default=False,
        ),
        "latency_profiling": Leaf(
            "boolean", "Kept for llenergymeasure files: token times are always recorded.", default=False
        ),
        "measurement_methodology": Leaf(
            "string",
            "Kept for llenergymeasure files.",
            default="total",
            choices=("total", "windowed", "steady_state"),
        ),
        "measurement_window": Leaf(
            "numbers", "Kept for llenergymeasure files: [begin_s, end_s].", nullable=True, also=_window
        ),
        "warmup_discard_fraction": Leaf(
            "number", "Kept for llenergymeasure files.", default=0.1, least=0, most=0.999
        ),
        "warmup_discard_seconds": Leaf("number", "Kept for llenergymeasure files.", nullable=True, least=0),
        "steady_state_auto_detect": Leaf("boolean", "Kept for llenergymeasure files.", default=False),
        "baseline": BASELINE,
    },
    moved={"warmup": "it has moved to offline.warmup"},
    also=_wattages,
)

OFFLINE = Section(
    "Batch inference over a fixed prompt set.",
    {
        "warmup": Section(
            "Iterations before the measured window.",
            {
                "enabled": Leaf("boolean", "Warm up.", default=True),
                "n_prompts": Leaf(
                    "integer",
                    "Length of a fixed warm-up, in iterations; writing it asks for one (5).",
                    least=1,
                ),
                "thermal_floor_seconds": Leaf(
                    "number",
                    "Shortest warm-up, in seconds (default 60 where power is measured, else 0).",
                    nullable=True,
                    least=0,
                    most=3600,
                    also=_floor,
                ),
                "convergence_detection": Leaf(
                    "boolean",
                    "Warm up until latency and power are steady (default, unless n_prompts is given).",
                ),
                "cv_threshold": Leaf(
                    "number",
                    "Steady when the coefficient of variation of the latency is at most this.",
                    default=0.05,
                    least=0.01,
                    most=0.5,
                ),
                "min_prompts": Leaf("integer", "Fewest warm-up iterations (default: window_size).", least=1),
                "max_prompts": Leaf("integer", "Most warm-up iterations.", default=40, least=5),
                "window_size": Leaf(
                    "integer", "Last iterations over which the variation is taken.", default=10, least=3
                ),
            },
        )
    },
)


SERVER = Section(
    "Online serving under a traffic pattern.",
    {
        "traffic": Section(
            "The arrivals.",
            {
                "rate": Leaf("number", "Requests per second.", required=True, above=0),
                "arrival": Leaf(
                    "string",
                    "Distribution of the gaps between arrivals.",
                    default="poisson",
                    choices=("poisson", "gamma"),
                ),
                "burstiness": Leaf(
                    "number",
                    "Coefficient of variation of the gaps, for gamma: larger is burstier, 1 is poisson. vLLM's "
                    "`--burstiness` is the other way round: it is 1 / this squared.",
                    nullable=True,
                    above=0,
                ),
                "window_seconds": Leaf(
                    "number", "Length of the measured window, in seconds.", default=240, above=0
                ),
                "ramp_exclusion_seconds": Leaf(
                    "number", "Load before the window, in seconds.", default=30, least=0
                ),
                "concurrency_cap": Leaf("integer", "Most requests in flight.", nullable=True, least=1),
                "seed": Leaf("integer", "Seed of the arrivals.", nullable=True),
                "slo": Section(
                    "Bounds that classify a result; not part of the identity.",
                    {
                        "ttft_ms": Leaf(
                            "number", "Bound on time to first token, in milliseconds.", nullable=True, above=0
                        ),
                        "tpot_ms": Leaf(
                            "number",
                            "Bound on time per output token, in milliseconds.",
                            nullable=True,
                            above=0,
                        ),
                        "percentile": Leaf(
                            "number", "The quantile the bounds apply to.", default=0.99, above=0, most=1
                        ),
                    },
                    optional=True,
                ),
            },
            moved={"window_requests": "not supported: a window is a duration; use window_seconds"},
        ),
        "warmup": Section(
            "Load before the measured window.",
            {
                "mode": Leaf(
                    "string",
                    "Wait for steady power and temperature, or a fixed time.",
                    default="composite",
                    choices=("composite", "fixed"),
                ),
                "timeout_seconds": Leaf(
                    "number", "Longest composite warm-up, in seconds.", default=900, above=0
                ),
                "duration_seconds": Leaf(
                    "number", "Length of a fixed warm-up, in seconds.", default=300, least=0
                ),
            },
        ),
        "cooldown_seconds": Leaf("number", "Pause after a rate level, in seconds.", default=0, least=0),
    },
)

GPUS = Section(
    "The GPUs of one experiment.",
    {
        "count": Leaf("integer", "How many.", default=1, least=0, most=64),
        "kind": Leaf(
            "string", "Whole GPUs, MIG slices, or either.", default="any", choices=("any", "full", "mig")
        ),
        "ids": Leaf("strings", "Exactly these: UUIDs or indices as text.", nullable=True, least=1),
        "memory_gb": Leaf("number", "Memory that each must have, in gigabytes.", nullable=True, above=0),
        "exclusive": Leaf(
            "string",
            "No other experiment on the same GPU, or on the whole host.",
            default="gpu",
            choices=("gpu", "host"),
        ),
    },
    optional=True,
)

EXPERIMENT = Section(
    "One experiment.",
    {
        "serving_mode": Leaf(
            "string", "Batch inference or online serving.", required=True, choices=SERVING_MODES
        ),
        "engine": Leaf(
            "string", "The inference engine.", default="transformers", choices=ENGINES, aliases=ENGINE_ALIASES
        ),
        "task": TASK,
        "measurement": MEASUREMENT,
        "offline": OFFLINE,
        "server": SERVER,
        "sampling_preset": Leaf("string", "Named sampling values.", nullable=True, choices=tuple(PRESETS)),
        "passthrough_kwargs": Leaf(
            "mapping", "More arguments for the engine.", nullable=True, also=_passthrough
        ),
        "gpus": GPUS,
        **ENGINE_SECTIONS,
    },
    moved={
        "model": "it is task.model",
        "dataset": "it is task.dataset",
        "harness": "its keys have moved to <engine>.llem_execution",
        "warmup": "it is offline.warmup",
        "baseline": "it is measurement.baseline",
        "batch_size": "it is transformers.llem_execution.batch_size",
        "n_prompts": "it is task.dataset.n_prompts",
        "max_output_tokens": "it is task.max_output_tokens",
        "max_input_tokens": "it is task.max_input_tokens",
    },
)
