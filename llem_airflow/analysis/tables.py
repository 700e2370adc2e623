"""cycles.parquet and experiments.parquet: one row a cycle, one row an experiment. Nothing is dropped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from llem_airflow.analysis.cycle import Cycle
from llem_airflow.analysis.metrics import METRICS
from llem_airflow.analysis.planned import Planned
from llem_airflow.analysis.statistics import Description
from llem_airflow.analysis.summary import ExperimentSummary, Summary

_TEXT, _WHOLE, _REAL, _TIME = pa.string(), pa.int64(), pa.float64(), pa.timestamp("ns", tz="UTC")

CYCLE_FACTS: tuple[tuple[str, Any, str], ...] = (
    ("study", _TEXT, "name of the study"),
    ("run_id", _TEXT, "id of the run"),
    ("experiment", _TEXT, "id of the experiment; null for a point that the study left out"),
    ("cycle", _WHOLE, "which repetition, from 1; null for a point that the study left out"),
    ("status", _TEXT, "valid, invalid_energy, failed, missed, missing, damaged or skipped"),
    ("reason", _TEXT, "why the status is not valid"),
    ("position", _WHOLE, "place in the run order, from 0; null if it was not planned"),
    ("failed_attempts", _WHOLE, "attempts of this cycle that failed"),
    ("hash", _TEXT, "identity of the experiment, 16 hex digits"),
    ("engine", _TEXT, "name of the engine"),
    ("engine_version", _TEXT, "its version"),
    ("model", _TEXT, "name of the model"),
    ("host", _TEXT, "name of the machine"),
    ("runner", _TEXT, "process or container"),
    ("image_digest", _TEXT, "digest of the container's image"),
    ("gpus", pa.list_(_TEXT), "UUIDs of the devices that were measured"),
    ("started", _TIME, "begin of the attempt"),
    ("finished", _TIME, "end of the attempt"),
    ("energy_kind", _TEXT, "measured, estimate, attributed or none: what the joules of this row are"),
    (
        "energy_source",
        _TEXT,
        "counter, integral_instant, integral_average, estimate, reported (imported) or mixed",
    ),
    ("energy_boundary", _TEXT, "what the joules include: board, module, cpu-package, …"),
    ("energy_check_ratio", _REAL, "integral of the samples / energy counter - 1"),
    (
        "energy_uncertainty_j",
        _REAL,
        "how far it may be off by what the readings leave open (95 %), in joules; null is not known",
    ),
    ("active_over", _TEXT, "baseline that was subtracted for energy_active_j"),
    ("warmup", _TEXT, "how the warm-up ended"),
    ("flags", pa.list_(_TEXT), "codes of the reasons to doubt this row"),
    ("doubtful", pa.bool_(), "whether a flag is more than information"),
    ("fingerprint", _TEXT, "JSON: what has to be equal for a comparison"),
)
"""Columns of cycles.parquet before the metrics: name, type, meaning."""

POWER_FACTS: tuple[tuple[str, str], ...] = (
    ("t_epoch", "absolute time, in UTC: the middle of the call that read the sample"),
    ("t_mono_ns", "the same on the host's monotonic clock, in nanoseconds"),
    ("experiment", "id of the experiment"),
    ("cycle", "which repetition, from 1"),
    (
        "phase",
        "load, baseline_bare, baseline_context, baseline_loaded, warmup, measure, cooldown, or between",
    ),
    ("gpu", "UUID of the device, or the name of the host's meter"),
    ("power_instant_mw", "instant power, in milliwatts; null is not known, here and below"),
    ("power_average_mw", "power averaged by the driver, over 1 s on most boards, in milliwatts"),
    ("energy_mj", "the device's energy counter, in millijoules"),
    ("sm_clock_mhz", "clock of the processors, in megahertz, once a second"),
    ("mem_clock_mhz", "clock of the memory, in megahertz, once a second"),
    ("event_reasons", "NVML's clock event bits"),
    ("temperature_c", "temperature of the chip, in degrees Celsius, once a second"),
    ("mem_temperature_c", "temperature of the memory, in degrees Celsius"),
    (
        "utilisation_percent",
        "share of its last sampling period in which the device was busy, in percent, once a second",
    ),
    ("memory_used_bytes", "memory in use on the device, in bytes, once a second"),
    ("error", "short name of what failed in this reading"),
)
"""Columns of the merged power.parquet: name, meaning."""

RELIABILITY_COLUMNS: tuple[tuple[str, Any, str], ...] = (
    ("host", _TEXT, "name of the machine; null where no attempt told it"),
    ("engine", _TEXT, "name of the engine"),
    ("cycles", _WHOLE, "planned cycles"),
    ("valid", _WHOLE, "valid cycles"),
    ("missed", _WHOLE, "cycles for which no GPU came"),
    ("failed_attempts", _WHOLE, "attempts that failed, also of cycles that are valid now"),
    ("reasons", _TEXT, "JSON: number of cycles that are not valid by the reason"),
)
"""Columns of the table of reliability, one row a host and engine: name, type, meaning."""

CYCLES_SCHEMA = pa.schema(
    [(name, kind) for name, kind, _ in CYCLE_FACTS] + [(metric.name, _REAL) for metric in METRICS],
    metadata={"llem_schema_version": "1"},
)

STATISTICS: tuple[tuple[str, str], ...] = (
    ("n", "cycles with a value"),
    ("sd", "standard deviation over cycles (n - 1); null for n = 1"),
    ("cv_ratio", "sd / |mean|"),
    ("median", "median over cycles"),
    ("mad", "median absolute deviation, unscaled; null for n = 1"),
    ("p5", "5th percentile over cycles"),
    ("p95", "95th percentile over cycles"),
    ("low", "lower end of the 95 % t interval for the mean; null for n = 1"),
    ("high", "upper end of the 95 % t interval for the mean; null for n = 1"),
    ("bca_low", "lower end of the BCa interval, from n = 20 on"),
    ("bca_high", "upper end of the BCa interval, from n = 20 on"),
)
"""Suffixes of the columns that experiments.parquet has for each metric besides the mean, which has none."""

EXPERIMENT_FACTS: tuple[tuple[str, Any, str], ...] = (
    ("study", _TEXT, "name of the study"),
    ("run_id", _TEXT, "id of the run"),
    ("experiment", _TEXT, "id of the experiment"),
    ("hash", _TEXT, "identity of the experiment, 16 hex digits"),
    ("engine", _TEXT, "name of the engine"),
    ("engine_version", _TEXT, "its version"),
    ("model", _TEXT, "name of the model"),
    ("factors", _TEXT, "JSON: what sets it apart from the other experiments of the run"),
    ("planned", _WHOLE, "planned cycles"),
    ("valid", _WHOLE, "valid cycles"),
    ("statuses", _TEXT, "JSON: number of cycles by status"),
    ("energy_kind", _TEXT, "measured, estimate, attributed, none or mixed"),
    ("energy_source", _TEXT, "where the joules come from"),
    ("energy_boundary", _TEXT, "what the joules include"),
    ("active_over", _TEXT, "baseline that was subtracted for energy_active_j"),
    ("flags", pa.list_(_TEXT), "codes of the reasons to doubt this row"),
)
"""Columns of experiments.parquet before the metrics: name, type, meaning."""

EXPERIMENTS_SCHEMA = pa.schema(
    [(name, kind) for name, kind, _ in EXPERIMENT_FACTS]
    + [
        column
        for metric in METRICS
        for column in ((metric.name, _REAL), *((f"{metric.name}_{key}", _REAL) for key, _ in STATISTICS))
    ],
    metadata={"llem_schema_version": "1"},
)


def cycles_table(study: str, run_id: str, cycles: Iterable[Cycle], plan: Planned) -> Any:
    """The table of cycles, with a row for each point that the study left out."""
    rows = [_cycle_row(study, run_id, row) for row in cycles]
    rows += [
        {"study": study, "run_id": run_id, "status": "skipped", "reason": _skip_reason(point)}
        for point in plan.skipped
    ]
    return pa.Table.from_pylist(rows, schema=CYCLES_SCHEMA)


def experiments_table(summary: Summary) -> Any:
    """The table of experiments."""
    rows = [_experiment_row(summary, experiment) for experiment in summary.experiments]
    return pa.Table.from_pylist(rows, schema=EXPERIMENTS_SCHEMA)


def _cycle_row(study: str, run_id: str, row: Cycle) -> dict[str, Any]:
    facts = {name: getattr(row, name, None) for name, _, _ in CYCLE_FACTS}
    return {
        **facts,
        **row.measures,
        "study": study,
        "run_id": run_id,
        "experiment": row.experiment,
        "gpus": list(row.gpus),
        "started": row.started_epoch_ns,
        "finished": row.finished_epoch_ns,
        "flags": [flag.code for flag in row.flags],
        "fingerprint": _json(row.fingerprint),
    }


def _experiment_row(summary: Summary, item: ExperimentSummary) -> dict[str, Any]:
    facts = {name: getattr(item, name, None) for name, _, _ in EXPERIMENT_FACTS}
    row = {
        **facts,
        "study": summary.study,
        "run_id": summary.run_id,
        "experiment": item.id,
        "factors": _json(item.factors),
        "statuses": _json(item.statuses),
        "flags": [doubt.code for doubt in item.doubts],
    }
    for metric in item.metrics:
        row |= _metric_columns(metric.name, metric.all)
    return row


def _metric_columns(name: str, found: Description) -> dict[str, Any]:
    values = asdict(found)
    columns = {f"{name}_{key}": values.get(key) for key, _ in STATISTICS} | {name: found.mean}
    if found.interval:
        columns |= {f"{name}_low": found.interval.low, f"{name}_high": found.interval.high}
    if found.bootstrap:
        columns |= {f"{name}_bca_low": found.bootstrap.low, f"{name}_bca_high": found.bootstrap.high}
    return columns


def _skip_reason(point: dict[str, Any]) -> str:
    where = point.get("point")
    return f"{point.get('reason') or point.get('rule')}" + (f" ({_json(where)})" if where else "")


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False, default=str)


def column_meanings() -> Sequence[tuple[str, str, str]]:
    """(table, column, meaning) of every documented column; a metric's statistics are described once."""
    rows = [("cycles", name, meaning) for name, _, meaning in CYCLE_FACTS]
    rows += [("cycles", metric.name, f"{metric.meaning}, in {metric.unit}") for metric in METRICS]
    rows += [("experiments", name, meaning) for name, _, meaning in EXPERIMENT_FACTS]
    rows += [("experiments", "<metric>", "mean over cycles of the metric of that name in cycles.parquet")]
    rows += [("experiments", f"<metric>_{key}", meaning) for key, meaning in STATISTICS]
    rows += [("power", name, meaning) for name, meaning in POWER_FACTS]
    rows += [("reliability", name, meaning) for name, _, meaning in RELIABILITY_COLUMNS]
    return rows
