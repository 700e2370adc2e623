"""Every key of an experiment: the part of the study file that can be fixed, swept or given per entry."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, create_model

from llem_airflow.study.config.base import Config, Consistent, Contradiction, Section, key, keys_of, model_of
from llem_airflow.study.config.engines import EngineSection, Tensorrt, Transformers, Vllm
from llem_airflow.study.config.types import (
    Engine,
    GpuIds,
    Mapped,
    MeterName,
    Number,
    SamplerName,
    Text,
    Whole,
    refuse,
)
from llem_airflow.study.names import INSTALLED_ENGINES, PEER_SAMPLERS, PROMPT_FILES, names_dataset
from llem_airflow.study.problems import closest, show
from llem_airflow.text.wording import counted

BUILTIN = "builtin"
"""The prompt set that is shipped."""
BUILTIN_FILE = Path(__file__).parents[1] / "data" / "prompts.jsonl"
SYNTHETIC = re.compile(r"synthetic:(0*[1-9]\d{0,6})x(0*[1-9]\d{0,6})\Z")
"""Prompts made of so many random tokens, with so many tokens of output."""
STANDING_IN = {"aienergyscore": "AIEnergyScore"}
"""Datasets of llenergymeasure that are not shipped; the builtin set stands in for them, with a warning."""
KEPT = "Kept for llenergymeasure files"


def _meter_of(sampler: str | None) -> str:
    """What a file's ``energy_sampler`` (llenergymeasure's word) means as a ``meter``."""
    return "none" if sampler is None else PEER_SAMPLERS.get(sampler, sampler)


def _source(text: str) -> str:
    """What names no source of prompts, as far as that is known without looking for it."""
    if text.startswith("synthetic:") and not SYNTHETIC.match(text):
        form = "write synthetic:<input tokens>x<output tokens>, for example synthetic:512x128"
        raise refuse(f"found {show(text)}", form)
    named = text in {BUILTIN, *STANDING_IN} or text.startswith("synthetic:") or text.endswith(PROMPT_FILES)
    if not named and not names_dataset(text):
        raise refuse(
            f"found {show(text)}, which is no source of prompts",
            f"use {BUILTIN!r}, synthetic:<in>x<out>, a .jsonl or .parquet file with a column 'prompt', or a dataset of "
            "the hub as owner/name",
            suggestion=closest(text, (BUILTIN, *STANDING_IN)),
        )
    return text


@cache
def builtin_prompts() -> int:
    """How many prompts the set has that is shipped."""
    return sum('"prompt"' in line for line in BUILTIN_FILE.read_text("utf-8").splitlines())


_SYNTHETIC_ONLY = ("range_ratio", "input_tokens_stddev", "output_tokens_stddev", "prefix_tokens")
"""Keys of ``task.dataset`` that only synthetic prompts have."""
_OPTIONAL = (*_SYNTHETIC_ONLY, "multi_turn")
"""Keys that are of the experiment only where they are asked for: those before them keep their identity."""


class Dataset(Consistent):
    """The prompts."""

    source: Annotated[Text, AfterValidator(_source)] = key(
        BUILTIN,
        "`builtin`, a .jsonl or .parquet path relative to this file, `synthetic:<in>x<out>` tokens, or a "
        "dataset of the hub: `owner/name[@revision][:file]`.",
    )
    n_prompts: Whole = key(100, "How many prompts make one pass.", ge=1, le=1_000_000)
    order: Literal["interleaved", "grouped", "shuffled"] = key("interleaved", "Order of the prompts.")
    range_ratio: Number | None = key(
        None,
        "Synthetic lengths, of prompts and answers, uniform over length x (1 -/+ this) (vLLM's "
        "`--random-range-ratio`).",
        ge=0,
        le=1,
    )
    input_tokens_stddev: Number | None = key(
        None,
        "Synthetic prompts' lengths normal with this standard deviation, in tokens (AIPerf's "
        "`--synthetic-input-tokens-stddev`).",
        ge=0,
    )
    output_tokens_stddev: Number | None = key(
        None, "The same of their answers (AIPerf's `--output-tokens-stddev`).", ge=0
    )
    prefix_tokens: Whole | None = key(
        None,
        "Beginning that all synthetic prompts share, before their own, in tokens (vLLM's `--random-prefix-len`).",
        ge=0,
        le=9_999_999,
    )
    multi_turn: bool = key(
        False,
        "Each record is a conversation (`messages`: role and content). Under a server a turn is asked when the answer "
        "before it has come, with the file's answers as context.",
    )

    def config(self) -> Config:
        """The section as it is measured; what only some sets have is there only if it is asked for."""
        return {name: value for name, value in self.model_dump().items() if name not in _OPTIONAL or value}

    def contradictions(self) -> Iterator[Contradiction]:
        """More prompts than the shipped set has, two distributions, what only synthetic prompts have."""
        asked = [name for name in _SYNTHETIC_ONLY if getattr(self, name)]
        if asked and not self.source.startswith("synthetic:"):
            found = f"{asked[0]} needs synthetic prompts but source is {show(self.source)}"
            yield (asked[0], "source"), found, "write source: synthetic:<in>x<out>, or leave it out"
        spread = next((name for name in asked if name.endswith("_stddev")), None)
        match = SYNTHETIC.match(self.source)
        if self.multi_turn and (match or self.source in {BUILTIN, *STANDING_IN}):
            found = f"multi_turn needs conversations but source is {show(self.source)}"
            yield ("multi_turn", "source"), found, "name a .jsonl or .parquet file with a column 'messages'"
        for place, name in enumerate(("input_tokens_stddev", "output_tokens_stddev"), 1):
            if match and (getattr(self, name) or 0) > int(match[place]):
                longest = counted(int(match[place]), "token")
                found = f"{name} {getattr(self, name):g} is above the {longest} of {show(self.source)}"
                advice = "the standard deviation is the mean at most: none is below 1 token"
                yield (name, "source"), found, advice
        if self.range_ratio and spread:
            found = f"range_ratio is a uniform distribution and {spread} a normal one"
            yield ("range_ratio", spread), found, "keep one of them"
        if self.source in {BUILTIN, *STANDING_IN} and self.n_prompts > (most := builtin_prompts()):
            found = f"{self.source!r} has {counted(most, 'prompt')} but n_prompts is {self.n_prompts}"
            yield ("n_prompts", "source"), found, f"set n_prompts to {most} or less, or name a file"


class Task(Section):
    """What is measured: model, prompts, lengths."""

    moved: ClassVar = {"dataset_name": "use task.dataset.source", "n_prompts": "use task.dataset.n_prompts"}

    model: Text = key(..., "Hub id, path or name under the models folder.")
    random_seed: Whole = key(42, "Seed of sampling and of the prompt order.")
    max_input_tokens: Whole | None = key(256, "Prompts are cut to so many tokens; null for no cut.", ge=1)
    max_output_tokens: Whole | None = key(256, "Length of each answer, in tokens; null is 256.", ge=1)
    dataset: Dataset = Dataset()

    def config(self) -> Config:
        """The section as it is measured: lengths are fixed so that cycles do the same work."""
        return self.model_dump() | {
            "max_output_tokens": self.max_output_tokens or 256,
            "dataset": self.dataset.config(),
        }


class Baseline(Section):
    """Idle power, measured before each window."""

    enabled: bool | None = key(None, "Measure idle power (default: where power is measured).")
    duration_seconds: Number | None = key(
        None, "Length of each baseline, in seconds (default 30).", ge=5, le=120
    )
    strategy: Literal["validated", "cached", "fresh"] = key(
        "validated",
        "`fresh`: in every cycle. `cached`: once per experiment and run, then taken over while device, "
        "driver and limits stay the same. `validated`: so, with a look now and then whether it still holds.",
    )
    cache_ttl_seconds: Number = key(7200, "Idle power older than this is measured again, in seconds.", ge=60)
    validation_interval: Whole = key(
        5, "`validated`: every so many cycles looks whether it still holds.", ge=1
    )
    drift_threshold: Number = key(
        0.1,
        "`validated`: relative change of the bare device's power from which it is measured again.",
        ge=0.01,
        le=0.5,
    )


def _span(value: list[float]) -> list[float]:
    if len(value) != 2 or not 0 <= value[0] < value[1]:
        raise refuse(f"found {show(value)}", "allowed: [begin_s, end_s] with 0 <= begin < end")
    return value


class Measurement(Consistent):
    """How it is measured."""

    moved: ClassVar = {"warmup": "it has moved to offline.warmup"}

    meter: MeterName | None = key(
        None,
        "What reads the power (default auto: nvml, then rapl, then cpu-estimate), or an installed meter's name.",
    )
    energy_sampler: SamplerName | None = key("auto", "The meter, in llenergymeasure's word; null for none.")
    power_hz: Number = key(10, "Power samples per second.", gt=0, le=1000)
    min_window_seconds: Number = key(
        30, "The prompt set is repeated until the window is this long, in seconds.", ge=0, le=86400
    )
    cpu_idle_watts: Number = key(
        10, "Assumed idle power of the CPU for cpu-estimate, in watts.", ge=0, le=10000
    )
    cpu_max_watts: Number = key(
        65, "Assumed full power of the CPU for cpu-estimate, in watts.", gt=0, le=10000
    )
    require_energy: bool = key(False, "A cycle whose energy is withheld counts as missing.")
    latency_profiling: bool = key(False, f"{KEPT}: token times are always recorded.")
    measurement_methodology: Literal["total", "windowed", "steady_state"] = key(
        "total", f"{KEPT}: the whole window is measured."
    )
    measurement_window: Annotated[list[Number], AfterValidator(_span)] | None = key(
        None, f"{KEPT}: [begin_s, end_s] with 0 <= begin < end, in seconds."
    )
    warmup_discard_fraction: Number = key(0.1, f"{KEPT}: a share of the window.", ge=0, le=0.999)
    warmup_discard_seconds: Number | None = key(None, f"{KEPT}: seconds of the window.", ge=0)
    steady_state_auto_detect: bool = key(False, f"{KEPT}: steady state is tested in the warm-up.")
    baseline: Baseline = Baseline()

    def contradictions(self) -> Iterator[Contradiction]:
        """A window that is not given, two meters, a CPU that idles at more than its most."""
        if self.measurement_methodology == "windowed" and self.measurement_window is None:
            found = "measurement_methodology is 'windowed' but there is no measurement_window"
            keys = ("measurement_methodology", "measurement_window")
            yield keys, found, "add measurement_window: [begin_s, end_s]"
        if self.meter not in {None, _meter_of(self.energy_sampler)} and self.energy_sampler != "auto":
            sampler = "null" if self.energy_sampler is None else repr(self.energy_sampler)
            found = f"meter {self.meter!r} contradicts energy_sampler {sampler}"
            yield ("meter", "energy_sampler"), found, "keep one of them"
        idle, most = self.cpu_idle_watts, self.cpu_max_watts
        if idle >= most:
            found = f"cpu_idle_watts {idle:g} is not below cpu_max_watts {most:g}"
            yield ("cpu_idle_watts", "cpu_max_watts"), found, "the idle power is the smaller one"

    def config(self) -> Config:
        """The section as it is measured: one word for the meter."""
        found = self.model_dump()
        sampler = found.pop("energy_sampler")
        found["meter"] = self.meter or _meter_of(sampler)
        return found


def _floor(value: float) -> float:
    """Llenergymeasure's lower bound, with 0 (off) allowed because an estimate needs no thermal floor."""
    if 0 < value < 30:
        raise refuse(f"found {value:g}", "allowed: 0 (off), or 30 seconds or more")
    return value


class Warmup(Section):
    """Iterations before the measured window."""

    enabled: bool = key(True, "Warm up before the measured window.")
    n_prompts: Whole | None = key(
        None, "Length of a fixed warm-up, in iterations; writing it asks for one (5).", ge=1
    )
    thermal_floor_seconds: Annotated[Number, AfterValidator(_floor)] | None = key(
        None,
        "Shortest warm-up, in seconds: 0 (off), or 30 or more (default 60 where power is measured, else 0).",
        ge=0,
        le=3600,
    )
    convergence_detection: bool | None = key(
        None, "Warm up until latency and power are steady (default, unless n_prompts is given)."
    )
    cv_threshold: Number = key(
        0.05, "Steady when the coefficient of variation of the latency is at most this.", ge=0.01, le=0.5
    )
    min_prompts: Whole | None = key(None, "Fewest warm-up iterations (default: window_size).", ge=1)
    max_prompts: Whole = key(40, "Most warm-up iterations.", ge=5)
    window_size: Whole = key(10, "Last iterations over which the variation is taken.", ge=3)


class Offline(Section):
    """Batch inference over a fixed prompt set."""

    warmup: Warmup = Warmup()

    def config(self) -> Config:
        """The section as it is measured: a warm-up of fixed length only where its length is written."""
        found = self.model_dump()
        warmup = found["warmup"]
        if warmup["convergence_detection"] is None:
            warmup["convergence_detection"] = warmup["n_prompts"] is None
        if warmup["n_prompts"] is None:
            warmup["n_prompts"] = 5
        if warmup["min_prompts"] is None:
            warmup["min_prompts"] = min(warmup["window_size"], warmup["max_prompts"])
        return found


class Slo(Section):
    """Bounds that classify a result; not part of the identity."""

    ttft_ms: Number | None = key(None, "Bound on time to first token, in milliseconds.", gt=0)
    tpot_ms: Number | None = key(None, "Bound on time per output token, in milliseconds.", gt=0)
    percentile: Number = key(0.99, "The quantile the bounds apply to.", gt=0, le=1)


class FindRate(Consistent):
    """Search the highest rate that meets the SLO, in place of `rate`."""

    lowest: Number = key(..., "Lowest rate, in requests per second.", alias="from", gt=0)
    highest: Number = key(..., "Highest rate, in requests per second.", alias="to", gt=0)
    slo: Slo | None = None
    tolerance: Number = key(
        0.1, "How far the found rate and the next higher one may lie apart, as a share.", ge=0.01, le=1
    )
    max_probes: Whole = key(8, "Most rates that are measured, the two ends among them.", ge=3, le=10)

    def contradictions(self) -> Iterator[Contradiction]:
        """Bounds that leave nothing between them."""
        if self.lowest >= self.highest:
            found = f"from {self.lowest:g} is not below to {self.highest:g}"
            yield ("from", "to"), found, "write the lower rate as from"
        elif self.highest / self.lowest < 1 + self.tolerance:
            bounds = f"from {self.lowest:g} and to {self.highest:g}"
            found = f"{bounds} are within the tolerance of {self.tolerance:g}"
            yield ("to", "from"), found, "widen the bounds, or lower the tolerance"


class Traffic(Consistent):
    """The arrivals: an open loop at a rate, or a closed one of users."""

    moved: ClassVar = {"window_requests": "not supported: a window is a duration; use window_seconds"}

    # One of three has to be written; null is no value of theirs.
    rate: Number = key(None, "Requests per second, whatever the server does (open loop).", gt=0)
    concurrency: Whole = key(
        None,
        "In place of `rate`: so many users, each of whom asks again when it was answered (closed loop).",
        ge=1,
        le=100_000,
    )
    arrival: Literal["poisson", "gamma", "constant"] = key(
        "poisson", "Distribution of the gaps between arrivals."
    )
    burstiness: Number | None = key(
        None,
        "Coefficient of variation of the gaps, for gamma: larger is burstier, 1 is poisson. vLLM's "
        "`--burstiness` is the other way round: it is 1 / this squared.",
        gt=0,
    )
    window_seconds: Number = key(240, "Length of the measured window, in seconds.", gt=0)
    ramp_exclusion_seconds: Number = key(30, "Load before the window, in seconds.", ge=0)
    find_rate: FindRate | None = None
    concurrency_cap: Whole | None = key(None, "Most requests in flight.", ge=1)
    request_timeout_seconds: Number = key(
        600, "How long after it was due a request is given up, in seconds.", gt=0
    )
    seed: Whole | None = key(
        None, "Seed of the arrivals (default: task.random_seed); each cycle draws its own from it."
    )
    slo: Slo | None = None

    def contradictions(self) -> Iterator[Contradiction]:
        """No load or two, keys of arrivals that nobody schedules, and a search without its bounds."""
        given = [name for name in LOADS if getattr(self, name) is not None]
        if not given:
            yield LOADS, "it says of no load", f"write one of {', '.join(LOADS)}"
        if self.find_rate is not None:
            yield from self._of_search(self.find_rate)
        if "concurrency" not in given:
            return
        for name in _OF_ARRIVALS:
            if name in self.model_fields_set and getattr(self, name) is not None:
                found = f"a closed loop has no {name}: a user asks when it was answered"
                yield (name, "concurrency"), found, f"keep concurrency or {name}"

    def _of_search(self, search: FindRate) -> Iterator[Contradiction]:
        if "rate" in self.model_fields_set:
            yield ("rate", "find_rate"), "find_rate chooses the rate", "keep rate or find_rate"
        if self.slo is not None and search.slo is not None:
            yield ("slo", "find_rate"), "find_rate has an slo too", "keep one of them"
        slo = search.slo or self.slo
        if slo is None or (slo.ttft_ms is None and slo.tpot_ms is None):
            advice = "add slo: {ttft_ms: ..., tpot_ms: ...}, or one of the two"
            yield ("find_rate",), "find_rate has no bound to meet", advice

    def config(self) -> Config:
        """The section as it is measured: a closed loop has no arrivals; a search is resolved into rates by the plan."""
        absent = {name for name in LOADS if getattr(self, name) is None} | {"find_rate"}
        closed = "concurrency" in self.model_fields_set
        found = self.model_dump(exclude=absent.union(_OF_ARRIVALS if closed else ()))
        if self.find_rate is not None and not closed:
            found["find_rate"] = self.find_rate.model_dump(exclude={"slo"})
        return found


LOADS = ("rate", "concurrency", "find_rate")
"""Keys of ``server.traffic`` of which one has to be written."""
_OF_ARRIVALS = ("rate", "find_rate", "arrival", "burstiness", "concurrency_cap", "seed")


class ServerWarmup(Section):
    """Load before the measured window."""

    mode: Literal["composite", "fixed"] = key(
        "composite", "Wait for steady power and temperature, or a fixed time."
    )
    timeout_seconds: Number = key(900, "Longest composite warm-up, in seconds.", gt=0)
    duration_seconds: Number = key(300, "Length of a fixed warm-up, in seconds.", ge=0)


class Server(Section):
    """Online serving under a traffic pattern."""

    traffic: Traffic
    warmup: ServerWarmup = ServerWarmup()
    cooldown_seconds: Number = key(0, "Pause after a rate level, in seconds.", ge=0)
    startup_timeout_seconds: Number = key(900, "Longest time until the server is ready, in seconds.", gt=0)
    max_failed_ratio: Number = key(
        None,
        "A cycle fails when more of the window's requests fail than this share (default 0.05; 1 with find_rate, where "
        "a failed request misses the SLO).",
        ge=0,
        le=1,
    )

    def config(self) -> Config:
        """The section as it is measured, with the bounds as they are written."""
        found = {"traffic": self.traffic.config()} | self.model_dump(exclude={"traffic", "max_failed_ratio"})
        del found["traffic"]["slo"]
        search = self.traffic.find_rate
        slo = self.traffic.slo or (search.slo if search else None)
        if slo is not None:
            found["traffic"]["slo"] = slo.model_dump(exclude_unset=True, exclude_none=True)
        asked, usual = "max_failed_ratio" in self.model_fields_set, 0.05 if search is None else 1
        return found | {"max_failed_ratio": self.max_failed_ratio if asked else usual}


class Gpus(Section):
    """The GPUs of one experiment."""

    count: Whole | None = key(None, "How many (default: as many as ids, else 1).", ge=0, le=64)
    kind: Literal["any", "full", "mig"] = key("any", "Whole GPUs, MIG slices, or either.")
    ids: GpuIds | None = key(None, "Exactly these, each once: UUIDs or indices as text.")
    memory_gb: Number | None = key(None, "Memory that each must have, in gigabytes.", gt=0)
    exclusive: Literal["gpu", "host"] = key(
        "gpu", "No other experiment on the same GPU, or on the whole host."
    )

    def config(self) -> Config:
        """The section as it is measured."""
        return self.model_dump() | {"count": len(self.ids or "1") if self.count is None else self.count}


def _not_ours(value: dict[str, Any]) -> dict[str, Any]:
    taken = sorted(set(value) & set(Experiment.model_fields))
    if taken:
        found = f"{taken[0]!r} is a key of the study itself"
        raise refuse(found, f"write {taken[0]}: at the top level instead")
    return value


class OwnExperiment(Section):
    """One experiment, with the engines of this package."""

    moved: ClassVar = {
        "model": "it is task.model",
        "dataset": "it is task.dataset",
        "harness": "its keys have moved to <engine>.llem_execution",
        "warmup": "it is offline.warmup",
        "baseline": "it is measurement.baseline",
        "batch_size": "it is transformers.llem_execution.batch_size",
        "n_prompts": "it is task.dataset.n_prompts",
        "max_output_tokens": "it is task.max_output_tokens",
        "max_input_tokens": "it is task.max_input_tokens",
    }

    serving_mode: Literal["offline", "server"] = key(..., "Batch inference or online serving.")
    engine: Engine = key("transformers", "The inference engine.")
    task: Task
    measurement: Measurement = Measurement()
    offline: Offline = Offline()
    server: Server | None = None
    sampling_preset: Literal["deterministic", "standard", "creative", "factual"] | None = key(
        None,
        "Named sampling values: deterministic (temperature 0), standard (1, top_p 0.95), creative (0.8, top_p 0.9, "
        "repetition_penalty 1.1), factual (0.3).",
    )
    passthrough_kwargs: Annotated[Mapped, AfterValidator(_not_ours)] | None = key(
        None, "More arguments for the engine, none of them a key of the study."
    )
    gpus: Gpus | None = None
    transformers: Transformers = Transformers()
    vllm: Vllm = Vllm()
    tensorrt: Tensorrt = Tensorrt()


_plugins: dict[str, Any] = {
    name: (EngineSection, key(EngineSection(), f"The installed engine {name}.")) for name in INSTALLED_ENGINES
}
Experiment: type[OwnExperiment] = create_model("Experiment", __base__=OwnExperiment, **_plugins)
"""One experiment, with the engines of other packages beside ours."""


def section_model(name: str) -> type[Section]:
    """The model of a section of an experiment."""
    found = model_of(keys_of(Experiment)[name])
    if found is None:
        raise KeyError(name)
    return found
