"""ExperimentSpec: everything that one attempt is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llem_airflow.protocol.typed_json import VersionedFile

METER_KINDS = ("auto", "nvml", "amdsmi", "rapl", "cpu-estimate", "none")
"""Names of our own meters."""
UNMEASURED_KINDS = ("cpu-estimate", "none")
"""Meters without a sensor. With all others the machine gets hot: idle phases, thermal floors, pauses are for those."""
PEER_METER = "llenergymeasure"
"""Kind of the meter of an imported cycle: its joules are as reported, and no condition of ours equals it."""
METERS_GROUP = "llem_airflow.meters"
"""Entry points of third parties' meters; what carries one is put into the bundle."""


@dataclass(frozen=True)
class ModelSource:
    """Where the weights come from.

    Attributes:
        name: The name as the study gives it (a hub id, a path, a name under the models folder).
        path: Directory of the weights as the container sees it, or None to fetch ``name`` from the hub.
        revision: Hub revision, or None.
        commit: What the revision stood for when the first try of the task loaded it, or None; a further try loads
            the same.
    """

    name: str
    path: str | None = None
    revision: str | None = None
    commit: str | None = None

    @property
    def hub_revision(self) -> str | None:
        """What to ask the hub for; None is its newest, or nothing where the weights lie here."""
        return None if self.path is not None else self.commit or self.revision


@dataclass(frozen=True)
class Synthetic:
    """Prompts made from token ids.

    Attributes:
        input_tokens: Length of each prompt, in tokens, or what its lengths are spread around; the prefix comes on top.
        output_tokens: Generated length of each, likewise.
        prefix_tokens: Tokens that every prompt begins with, the same in all.
        input_lengths_tokens: Length of each prompt of a pass, where they differ.
        output_lengths_tokens: Generated length of each, where they differ.
    """

    input_tokens: int
    output_tokens: int
    prefix_tokens: int = 0
    input_lengths_tokens: tuple[int, ...] = ()
    output_lengths_tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Prompts:
    """The prompt set of the experiment, already chosen and ordered.

    Attributes:
        source: What the study named.
        sha256: Hash of the canonical JSON list of the texts (of the description, when synthetic).
        items: The texts; empty when synthetic.
        n_prompts: How many prompts make one pass.
        synthetic: Set when prompts are made from token ids instead of texts.
    """

    source: str
    sha256: str
    items: tuple[str, ...]
    n_prompts: int
    synthetic: Synthetic | None = None


@dataclass(frozen=True)
class MeterSpec:
    """How power is read.

    Attributes:
        kind: One of METER_KINDS, or the name of a third party's; ``auto`` is nvml, then rapl, then cpu-estimate.
        power_hz: Samples per second.
        gpus: UUIDs (GPU or MIG) that the attempt was given; empty means all visible.
        cpu_idle_w: Assumed idle power of the CPU, for cpu-estimate, in watts.
        cpu_max_w: Assumed power with every core busy, for cpu-estimate, in watts.
        min_window_s: The prompt set is repeated until the window is this long, in seconds.
    """

    kind: str = "auto"
    power_hz: float = 10.0
    gpus: tuple[str, ...] = ()
    cpu_idle_w: float = 10.0
    cpu_max_w: float = 65.0
    min_window_s: float = 30.0


@dataclass(frozen=True)
class IdlePower:
    """Power of all devices in one idle phase.

    Attributes:
        name: baseline_bare | baseline_context | baseline_loaded.
        power_w: Sum over devices of the median power, in watts.
        sd_w: Standard deviation of the samples, in watts.
        samples: Samples of the device with the fewest.
    """

    name: str
    power_w: float
    sd_w: float
    samples: int


@dataclass(frozen=True)
class KnownIdlePower:
    """Idle power that an earlier cycle of the same experiment measured.

    Attributes:
        measured_in: That cycle, for people.
        conditions: What has to be the same for it to hold, as ``idle_conditions`` says it.
        phases: The idle phases.
        check: Whether to look first if the bare device still takes as much.
    """

    measured_in: str
    conditions: tuple[str, ...]
    phases: tuple[IdlePower, ...]
    check: bool


@dataclass(frozen=True)
class Limits:
    """Bounds that the attempt itself respects; the watchdogs outside enforce them as well.

    Attributes:
        wall_clock_s: Longest life of the attempt, in seconds.
        silence_s: Longest time without output, in seconds.
    """

    wall_clock_s: float | None = None
    silence_s: float | None = None


@dataclass(frozen=True)
class ExperimentSpec(VersionedFile):
    """What one attempt is told: ``{hash}_config.json``.

    Attributes:
        schema_version: Version of the protocol.
        study: Name of the study.
        experiment_hash: Identity of the experiment, 16 hex digits.
        slug: Readable name of the experiment.
        engine: transformers, vllm, tensorrt, or the name of a third party's.
        config: The whole experiment in the study's vocabulary with defaults filled in:
            ``task``, ``measurement``, ``offline``, ``sampling_preset`` and the engine's own section.
        cycle: Which repetition, from 1.
        model: Where the weights come from.
        prompts: The prompt set.
        meter: How power is read.
        limits: Bounds.
        known_baselines: Idle power that need not be measured again, or None.
    """

    _name = "config.json"

    schema_version: int
    study: str
    experiment_hash: str
    slug: str
    engine: str
    config: dict[str, Any]
    cycle: int
    model: ModelSource
    prompts: Prompts
    meter: MeterSpec
    limits: Limits
    known_baselines: KnownIdlePower | None = None
