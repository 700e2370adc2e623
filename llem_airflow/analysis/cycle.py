"""One planned cycle as a row: what became of it, its metrics, its flags, and its fingerprint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any

from llem_airflow.analysis import metrics
from llem_airflow.analysis.checks import flags, restarts, second_sampler
from llem_airflow.analysis.energy import EnergyOfWindow, of_the_model, window_energy
from llem_airflow.analysis.flags import Flag
from llem_airflow.analysis.latency import COLUMNS, SERVED_COLUMNS, Distribution, Requests, latency
from llem_airflow.analysis.metrics import METRICS
from llem_airflow.analysis.series import Phase, StoredPower, phases, stored_power
from llem_airflow.analysis.serving import serving
from llem_airflow.protocol.engine_keys import shared_beginnings
from llem_airflow.protocol.gpu_profile import Sensor
from llem_airflow.protocol.gpus import BOARD_CONDITIONS, gpus_told
from llem_airflow.protocol.result import CycleResult, Window
from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.results import CycleRef, FailureRef, ResultReadError
from llem_airflow.results.parquet import REQUESTS_SCHEMA
from llem_airflow.text.wording import counted

FACTORS = {"model", "model_revision", "engine", "engine_version", "image_digest", "measured_by"}
"""Fields that a comparison may name as the factor under study; all others belong to the conditions."""


FRESH = "fresh"
"""How an attempt begins that shares nothing with an earlier one."""


def fingerprint(
    config: ExperimentSpec,
    result: CycleResult,
    environment: Mapping[str, Any],
    record: Mapping[str, Any],
    *,
    semantics_version: int,
) -> dict[str, Any]:
    """The fingerprint: factors, and conditions such as GPU, driver, power limit, prompts and meter.

    Args:
        config: What the attempt was told.
        result: What it observed.
        environment: environment.json.
        record: provenance.json.
        semantics_version: Version of the formulas that made the energy: tables of two versions do not compare.
    """
    cpu = environment.get("cpu")
    return {
        "experiment_hash": result.experiment_hash,
        "model": config.model.name,
        "model_revision": config.model.revision,
        "engine": result.engine,
        "engine_version": result.engine_version,
        "image_digest": record.get("image_digest"),
        "gpus": [
            {name: gpu[name] for name in BOARD_CONDITIONS if name in gpu} for gpu in gpus_told(environment)
        ],
        "driver": environment.get("driver"),
        "cpu": cpu.get("model") if isinstance(cpu, Mapping) else None,
        "cpu_limit": _member(environment.get("cgroup"), "cpus"),
        "runner": record.get("runner"),
        # Results of before it was written down began fresh.
        **({"start_kind": kind} if (kind := record.get("start_kind") or FRESH) != FRESH else {}),
        "meter": result.meter.kind,
        "energy_kind": result.meter.energy_kind,
        "prompts_sha256": config.prompts.sha256,
        "n_prompts": config.prompts.n_prompts,
        "measured_by": _measured_by(result),
        "energy_semantics": semantics_version,
        **({"slo": config.config["server"]["traffic"].get("slo")} if result.served else {}),
    }


def _measured_by(result: CycleResult) -> str:
    """The version, and the hash of the code: an edited checkout of one version measures differently."""
    code = result.bundle_sha256
    return result.bundle_version if code is None else f"{result.bundle_version} ({code[:12]})"


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None


STATUSES = ("valid", "invalid_energy", "failed", "missed", "missing", "damaged", "skipped")
"""valid: measured. invalid_energy: measured, but its energy is withheld. failed: every attempt failed.
missed: no GPU came. missing: no attempt left a trace. damaged: the stored result cannot be read.
skipped: left out by the study."""

NO_METER = "the study asked for no meter"
"""Why a cycle rightly has no samples of power."""

HAS_RESULT = ("valid", "invalid_energy")


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read of a committed cycle, for those who need more than its row.

    Attributes:
        result: The raw observations.
        power: The samples.
        phases: Phases of the attempt.
        energy: Energy of the window.
        environment: Where it ran, from environment.json.
    """

    result: CycleResult
    power: StoredPower
    phases: tuple[Phase, ...]
    energy: EnergyOfWindow
    environment: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cycle:
    """One row of the table of cycles.

    Attributes:
        experiment: ``<slug>-<hash8>``.
        cycle: Which repetition, from 1; None for a point that the study left out.
        status: One of STATUSES.
        reason: Why the status is not ``valid``; empty otherwise.
        next_step: What to do about it, where the attempt said it.
        position: Place in the run order, from 0; None if it was not planned.
        failed_attempts: Attempts that failed before.
        hash: Identity of the experiment, 16 hex digits.
        engine: Name of the engine.
        engine_version: Its version.
        model: Name of the model.
        host: Name of the machine.
        runner: ``process`` or ``container``.
        image_digest: Digest of the image.
        start_kind: What the attempt began in: ``fresh`` (a container or process of its own), ``exec`` (a process in
            the living container of a session) or ``warm`` (the engine that lives on there); None where it is not known.
        session: Id of the session.
        position_in_session: Attempts that the session had begun before, since it or its restart; None without one.
        gpus: UUIDs that were measured.
        started_epoch_ns: When the attempt began.
        finished_epoch_ns: When it ended.
        energy_kind: measured | estimate | attributed | none.
        energy_source: Where the joules come from (counter, integral_instant, …).
        energy_boundary: What they include (board, cpu-package, …).
        energy_check_ratio: Integral of the samples / counter - 1.
        energy_uncertainty_j: How far it may be off by what the readings leave open, at 95 %; None is not known.
        active_over: Name of the baseline that was subtracted for the active energy.
        characterised: By which profiles the power meter of every board was characterised, or that it was not; None
            without an NVIDIA board's meter.
        warmup: How the warm-up ended.
        flags: What limits the numbers.
        measures: Metric name to value; None is undefined or not known.
        fingerprint: What has to be equal for a comparison.
    """

    experiment: str
    cycle: int | None
    status: str
    reason: str = ""
    position: int | None = None
    failed_attempts: int = 0
    hash: str = ""
    engine: str = ""
    engine_version: str = ""
    model: str = ""
    host: str = ""
    runner: str = ""
    image_digest: str | None = None
    start_kind: str | None = None
    session: str | None = None
    position_in_session: int | None = None
    gpus: tuple[str, ...] = ()
    started_epoch_ns: int | None = None
    finished_epoch_ns: int | None = None
    energy_kind: str = "none"
    energy_source: str | None = None
    energy_boundary: str | None = None
    energy_check_ratio: float | None = None
    energy_uncertainty_j: float | None = None
    active_over: str | None = None
    characterised: str | None = None
    warmup: str = ""
    flags: tuple[Flag, ...] = ()
    measures: Mapping[str, float | None] = field(default_factory=dict)
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    next_step: str = ""

    @property
    def has_result(self) -> bool:
        """Whether there are measurements."""
        return self.status in HAS_RESULT

    @property
    def doubtful(self) -> bool:
        """Whether a flag is more than information."""
        return any(flag.severity != "info" for flag in self.flags)


def read_cycle(ref: CycleRef, *, position: int | None, failed_attempts: int) -> tuple[Cycle, Reading | None]:
    """Row and reading of a committed cycle; a cycle that cannot be read is a row that says why."""
    try:
        return _read(ref, position=position, failed_attempts=failed_attempts)
    except ResultReadError as error:
        row = Cycle(ref.experiment_id, ref.cycle, "damaged", str(error), position, failed_attempts, engine="")
        return row, None


def absent_cycle(
    experiment: str, cycle: int, failures: Sequence[FailureRef], *, position: int | None
) -> Cycle:
    """Row of a planned cycle without a result."""
    if not failures:
        return Cycle(experiment, cycle, "missing", "no attempt left a result or an error", position)
    category, message = failures[-1].reason()
    record = failures[-1].provenance()
    return Cycle(
        experiment,
        cycle,
        "missed" if category == "gpu_unavailable" else "failed",
        f"{category}: {message}",
        position,
        failed_attempts=len(failures),
        host=_host(record),
        runner=str(record.get("runner") or ""),
        image_digest=record.get("image_digest"),
        **_begun(record),
        started_epoch_ns=_epoch(record, "started_epoch_ns"),
        finished_epoch_ns=_epoch(record, "finished_epoch_ns"),
        next_step=failures[-1].advice(),
    )


def _read(ref: CycleRef, *, position: int | None, failed_attempts: int) -> tuple[Cycle, Reading]:
    result, config = ref.result(), ref.config()
    environment, record, events = ref.environment(), ref.provenance(), ref.events()
    power = stored_power(ref, record, expected=result.meter.kind != "none")
    table, requests_problem = _requests(ref)
    requests = Requests.of(table)
    sensors = characterised(record, environment)
    energy = window_energy(
        power.columns,
        result.meter,
        result.window,
        events=events,
        requests=None if result.served else requests,
        expected_gpus=_given(record) or config.meter.gpus,
        limits_w=_limits_w(environment),
        sensors=sensors,
    )
    energy = of_the_model(energy, result)
    host = record.get("host")
    found = flags(
        result,
        energy,
        events=events,
        environment=environment,
        host=host if isinstance(host, Mapping) else None,
    )
    found += second_sampler(ref, result.window, energy)
    found += restarts(ref) if record.get("session") else ()
    found += _own_flags(power, requests_problem, requests, result)
    found += _prefix_cache(config)
    seen = serving(table, result, energy, config.config, ref.server_metrics())
    found += seen.flags
    marks = phases(events)
    row = Cycle(
        experiment=ref.experiment_id,
        cycle=ref.cycle,
        status="invalid_energy" if energy.energy_j is None and energy.kind != "none" else "valid",
        reason="; ".join(f"{item.code}: {item.message}" for item in energy.withheld)
        if energy.kind != "none"
        else "",
        position=position,
        failed_attempts=failed_attempts,
        hash=result.experiment_hash,
        engine=result.engine,
        engine_version=result.engine_version,
        model=config.model.name,
        host=_host(record),
        runner=str(record.get("runner") or ""),
        image_digest=record.get("image_digest"),
        **_begun(record),
        gpus=tuple(gpu.gpu for gpu in energy.gpus) or result.meter.devices,
        started_epoch_ns=_epoch(record, "started_epoch_ns"),
        finished_epoch_ns=_epoch(record, "finished_epoch_ns"),
        energy_kind=energy.kind,
        energy_source=energy.source,
        energy_boundary=energy.boundary,
        energy_check_ratio=energy.check_ratio,
        energy_uncertainty_j=energy.uncertainty_j,
        active_over=energy.active_over,
        characterised=by_which_profiles(record, sensors, result.meter.devices)
        if result.meter.kind == "nvml"
        else None,
        warmup=result.warmup.outcome,
        flags=found,
        measures=measures(result.window, energy, requests, marks) | seen.measures,
        fingerprint=fingerprint(
            config, result, environment, record, semantics_version=energy.semantics_version
        ),
    )
    return row, Reading(result, power, marks, energy, environment)


def _begun(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the attempt began in, and its place there."""
    return {name: record.get(name) for name in ("start_kind", "session", "position_in_session")}


def _given(record: Mapping[str, Any]) -> tuple[str, ...]:
    """UUIDs of the GPUs that the attempt was given."""
    gpus = record.get("gpus")
    return tuple(gpu for gpu in gpus if isinstance(gpu, str)) if isinstance(gpus, list) else ()


def _limits_w(environment: Mapping[str, Any]) -> dict[str, float]:
    """Enforced power limit of each board that told it, in watts."""
    return {
        gpu["uuid"]: float(watts)
        for gpu in gpus_told(environment)
        if isinstance(gpu.get("uuid"), str)
        if isinstance(watts := gpu.get("enforced_power_limit_w"), int | float)
    }


_SENSOR = tuple(one.name for one in fields(Sensor))


def characterised(record: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Sensor]:
    """What gpu-check had found out about each board's meter when the cycle was stored, by UUID.

    A profile that was made with another driver does not count: the driver decides how registers are written.

    Args:
        record: The cycle's provenance.
        environment: Where it ran.
    """
    told = record.get("power_sensors")
    found = {}
    for uuid, carried in (told if isinstance(told, Mapping) else {}).items():
        if isinstance(carried, Mapping) and carried.get("driver") == environment.get("driver"):
            numbers = {name: carried[name] for name in _SENSOR if isinstance(carried.get(name), int | float)}
            if numbers:  # a check that was cut short may have found nothing
                found[uuid] = Sensor(**numbers)
    return found


def by_which_profiles(
    record: Mapping[str, Any], sensors: Mapping[str, Sensor], devices: Sequence[str]
) -> str:
    """``characterised by gpu-check 2026-11-28 (llem-airflow 0.9.0)``, or ``not characterised`` unless every board was.

    Args:
        record: The cycle's provenance.
        sensors: What ``characterised`` took from it.
        devices: The boards that were measured.
    """
    if not devices or not set(devices) <= set(sensors):
        return "not characterised"
    told = {
        f" {datetime.fromtimestamp(made_ns / 1e9, UTC):%Y-%m-%d} ({carried.get('made_by')})"
        for carried in (record["power_sensors"][uuid] for uuid in devices)
        if isinstance(made_ns := carried.get("made_epoch_ns"), int)
    }
    return f"characterised by gpu-check{' and'.join(sorted(told))}"


def measures(
    window: Window, energy: EnergyOfWindow, requests: Requests, marks: Sequence[Phase]
) -> dict[str, float | None]:
    """Every metric of ``metrics.METRICS`` for one cycle; None where it is undefined."""
    window_s = window.duration_s
    out, requests_n = window.output_tokens, window.requests
    joules = energy.energy_j
    found: dict[str, float | None] = {
        "window_s": window_s,
        "output_tokens": float(out),
        "input_tokens": float(window.input_tokens),
        "requests": float(requests_n),
        "load_s": _phase_s(marks, "load"),
        "warmup_s": _phase_s(marks, "warmup"),
        "output_tokens_per_s": metrics.output_tokens_per_s(out, window_s),
        "total_tokens_per_s": metrics.total_tokens_per_s(window.input_tokens, out, window_s),
        "requests_per_s": metrics.requests_per_s(requests_n, window_s),
        "energy_j": joules,
        "energy_active_j": energy.active_j,
        "average_power_w": energy.average_power_w,
    }
    seen = latency(requests)
    for name in ("ttft", "tpot", "itl", "token_gap", "e2el"):
        found |= _latency_columns(name, getattr(seen, name))
    if joules is not None:
        found |= _per_work(joules, window, found["e2el_mean_s"])
    known = {name: value for name, value in found.items() if value is not None and math.isfinite(value)}
    untold = _untold(window)
    return {metric.name: None if metric.name in untold else known.get(metric.name) for metric in METRICS}


def _untold(window: Window) -> set[str]:
    """What an imported window does not tell: one of ours has completed a request, and a request has a prompt."""
    names = {"requests", "requests_per_s"} if not window.requests else set()
    prompts = {"input_tokens", "total_tokens_per_s", "energy_per_total_token_j"}
    return names | (prompts if not window.input_tokens else set())


def _per_work(joules: float, window: Window, e2el_mean_s: float | None) -> dict[str, float | None]:
    per_request, tokens = metrics.energy_per_request_j(joules, window.requests), window.output_tokens
    return {
        "energy_per_output_token_j": metrics.energy_per_output_token_j(joules, tokens),
        "energy_per_total_token_j": metrics.energy_per_total_token_j(joules, window.input_tokens, tokens),
        "energy_per_request_j": per_request,
        "output_tokens_per_j": metrics.output_tokens_per_j(joules, tokens),
        "energy_delay_product_j_s": None
        if per_request is None or e2el_mean_s is None
        else metrics.energy_delay_product_j_s(per_request, e2el_mean_s),
    }


def _own_flags(
    power: StoredPower,
    requests_problem: str | None,
    requests: Requests,
    result: CycleResult,
) -> tuple[Flag, ...]:
    """Flags about the streams themselves, which only the reader of the store can see."""
    found = []
    if power.problem:
        found.append(
            _flag("power_series_unreadable", power.problem, "look at storage_notes in provenance.json")
        )
    if power.as_committed is False:
        found.append(
            _flag(
                "power_series_changed",
                "power.parquet is not the file that was stored: its hash is another",
                "restore it from a backup; `llem-airflow results check` names every changed file",
            )
        )
    if requests_problem:
        found.append(_flag("requests_unreadable", requests_problem, "latencies of this cycle are absent"))
    return (*found, *_request_flags(requests, result))


def _request_flags(requests: Requests, result: CycleResult) -> list[Flag]:
    found, window = [], result.window
    if requests.disordered:
        found.append(
            _flag(
                "clock_backwards",
                f"the times of {requests.disordered} of {counted(len(requests), 'request')} run backwards; "
                "their latencies are absent",
                "look for what set the clock, or for an engine adapter that mixes up requests",
            )
        )
    if len(requests):
        n, tokens = len(requests) - int(requests.failed.sum()), requests.tokens
        if result.served:  # the window's tokens are those that came in it, of whatever request
            tokens = window.output_tokens
        if empty := int((requests.output_tokens == 0).sum()):
            found.append(
                _flag(
                    "empty_answers",
                    f"{empty} of {counted(n, 'request')} got no token; they count in requests and energy, "
                    "and have no TTFT",
                    "look at the prompts' finish_reason in requests.parquet, or fix the lengths (leave ignore_eos out)",
                )
            )
        if (n, tokens) != (window.requests, window.output_tokens):
            found.append(
                _flag(
                    "requests_disagree",
                    f"requests.parquet has {counted(n, 'request')} and {counted(tokens, 'output token')}, "
                    f"the result says {window.requests} and {window.output_tokens}",
                    "measure this cycle again; the engine adapter or the collection lost rows",
                )
            )
    return found


def _prefix_cache(config: ExperimentSpec) -> tuple[Flag, ...]:
    """Whether what prompts share on purpose is computed once or for each: it decides how much work a request is."""
    text = shared_beginnings(config.config) if config.config.get("task") else ""
    next_step = "compare it only with cycles whose prefix cache is the same"
    return (replace(_flag("prefix_cache", text, next_step), severity="info"),) if text else ()


def _flag(code: str, message: str, next_step: str) -> Flag:
    return Flag(code=code, message=message, next_step=next_step, threshold="", severity="warning")


def _requests(ref: CycleRef) -> tuple[Any, str | None]:
    """The table of the requests, and why it cannot be read."""
    try:
        return ref.requests([*COLUMNS, *SERVED_COLUMNS], optional=SERVED_COLUMNS), None
    except ResultReadError as error:
        return REQUESTS_SCHEMA.empty_table(), str(error)


def _latency_columns(name: str, seen: Distribution | None) -> dict[str, float | None]:
    return {
        f"{name}_{key}_s": getattr(seen, f"{key}_s") if seen else None
        for key in ("mean", "p50", "p90", "p95", "p99")
    }


def _phase_s(marks: Sequence[Phase], name: str) -> float | None:
    lengths = [phase.length_s for phase in marks if phase.name == name]
    return sum(lengths) if lengths else None


def _host(record: Mapping[str, Any]) -> str:
    """The name of the machine; where the study was spread over hosts, the study's name of it."""
    if named := record.get("host_connection"):
        return str(named)
    host = record.get("host")
    name = host.get("name") or host.get("hostname") if isinstance(host, Mapping) else host
    return str(name or "")


def _epoch(record: Mapping[str, Any], name: str) -> int | None:
    value = record.get(name)
    return value if isinstance(value, int) else None
