"""CycleResult and AttemptError: what one attempt says at its end. Raw observations, never derived metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llem_airflow.protocol.failures import CATEGORIES, SAID_INSIDE
from llem_airflow.protocol.typed_json import VersionedFile

ERROR_CATEGORIES = tuple(
    sorted({name for name, category in CATEGORIES.items() if not category.outside_only} | set(SAID_INSIDE))
)
"""What an error file may call a failure: names of the table of failures, and its own words for some of them."""


@dataclass(frozen=True)
class Anchor:
    """One instant on both clocks, to place the monotonic series in absolute time.

    Attributes:
        mono_ns: CLOCK_MONOTONIC, in nanoseconds.
        epoch_ns: CLOCK_REALTIME, in nanoseconds since 1970.
    """

    mono_ns: int
    epoch_ns: int


@dataclass(frozen=True)
class Window:
    """The measured window.

    Attributes:
        t_begin_mono_ns: Its begin, after device sync and (where there is one) a counter tick.
        t_end_mono_ns: Its end, after device sync.
        iterations: Passes over a batch of prompts inside it; 0 for a server under load.
        requests: Requests completed inside it; of a server, those that were due in it and were answered.
        input_tokens: Prompt tokens of these requests.
        output_tokens: Generated tokens of these requests; of a server, those that came inside it, of any request.
    """

    t_begin_mono_ns: int
    t_end_mono_ns: int
    iterations: int
    requests: int
    input_tokens: int
    output_tokens: int

    @property
    def duration_s(self) -> float:
        """Its length, in seconds."""
        return (self.t_end_mono_ns - self.t_begin_mono_ns) / 1e9


@dataclass(frozen=True)
class Warmup:
    """How the warm-up ended.

    Attributes:
        outcome: converged | fixed | cap_iterations | cap_time | disabled.
        iterations: Iterations run.
        duration_s: Time spent, in seconds.
        cv: Coefficient of variation of the last iterations' latency, or None.
        reason: One sentence.
    """

    outcome: str
    iterations: int
    duration_s: float
    cv: float | None
    reason: str


@dataclass(frozen=True)
class Meter:
    """What was used to read power.

    Attributes:
        kind: nvml | rapl | cpu-estimate | none, or the name of a third party's.
        energy_kind: measured | estimate | attributed | none.
        boundary: board | module | cpu-package | estimate | none.
        devices: Names of the series in power.csv (GPU UUIDs, or ``cpu``).
        requested_hz: Samples per second asked for.
        achieved_hz: Samples per second seen, or None without samples.
        samples: Rows written.
        failed_reads: Reads that gave no power.
        call_p50_s: Median duration of one reading, in seconds, or None.
        sampler_cpu_s: CPU time of the sampling process, in seconds, or None.
        note: One sentence for people, such as the assumed wattages or that the driver is a stand-in.
    """

    kind: str
    energy_kind: str
    boundary: str
    devices: tuple[str, ...]
    requested_hz: float
    achieved_hz: float | None
    samples: int
    failed_reads: int
    call_p50_s: float | None
    sampler_cpu_s: float | None
    note: str


@dataclass(frozen=True)
class CpuTime:
    """CPU time in the measured window.

    Attributes:
        own_s: Of the attempt's processes, in core-seconds.
        host_s: Of the whole host, the attempt included, in core-seconds.
        cores: Cores of the host.
    """

    own_s: float
    host_s: float
    cores: int


@dataclass(frozen=True)
class Served:
    """What belongs to a server under load, beside its requests and server.csv.

    Attributes:
        command: How the server was started.
        ready_s: From its start until its health endpoint answered, in seconds; that may be an earlier cycle's.
        rate_per_s: Arrivals a second that the schedule was drawn for; None in a closed loop, which has none.
        scheduled: Requests of the schedule that were due in the window.
        lateness_p99_ms: 99th percentile of how late the client turned to a request, in milliseconds; None when unknown.
        client_cpu_s: CPU time of the load client, in core-seconds; None when unknown.
        client_wall_s: How long it ran, in seconds.
        users: Users of a closed loop; None in an open one.
    """

    command: tuple[str, ...]
    ready_s: float
    rate_per_s: float | None
    scheduled: int
    lateness_p99_ms: float | None
    client_cpu_s: float | None
    client_wall_s: float
    users: int | None = None


@dataclass(frozen=True)
class CycleResult(VersionedFile):
    """What one successful attempt observed: ``{hash}_result.json``, written last, whole, by rename.

    Attributes:
        schema_version: Version of the protocol.
        experiment_hash: Identity of the experiment.
        cycle: Which repetition.
        engine: Name of the engine.
        engine_version: Its version.
        window: The measured window.
        warmup: How the warm-up ended.
        meter: What read the power.
        anchors: At least two instants on both clocks, at begin and end.
        model: Facts about the loaded model: n_parameters, dtype, resolved path or revision.
        memory: peak_rss_bytes, gpu_peak_bytes (null where unknown).
        bundle_version: Version of llem-airflow that made it.
        bundle_sha256: Hash of the measuring code, so that edited code of one version is told apart; None when unknown.
        cpu: CPU time in the window; None when unknown.
        served: What belongs to a server under load; None for a batch.
    """

    _name = "result.json"

    schema_version: int
    experiment_hash: str
    cycle: int
    engine: str
    engine_version: str
    window: Window
    warmup: Warmup
    meter: Meter
    anchors: tuple[Anchor, ...]
    model: dict[str, Any]
    memory: dict[str, Any]
    bundle_version: str
    bundle_sha256: str | None = None
    cpu: CpuTime | None = None
    served: Served | None = None


@dataclass(frozen=True)
class AttemptError(VersionedFile):
    """Why an attempt failed, said by the attempt itself: ``{hash}_error.json``.

    Attributes:
        schema_version: Version of the protocol.
        type: Class of the exception.
        message: Its text.
        traceback: The traceback, as text.
        phase: The phase it happened in.
        retryable_hint: Whether the attempt believes that trying again can help; None if it cannot tell.
        category: One of ERROR_CATEGORIES when the attempt recognised the failure, else None.
    """

    _name = "error.json"

    schema_version: int
    type: str
    message: str
    traceback: str
    phase: str
    retryable_hint: bool | None
    category: str | None = None
