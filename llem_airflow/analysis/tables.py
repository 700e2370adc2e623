"""cycles.parquet and experiments.parquet: one row a cycle, one row an experiment, written and read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from llem_airflow.analysis.blocked import by_host
from llem_airflow.analysis.cycle import HAS_RESULT, Cycle
from llem_airflow.analysis.metrics import METRICS
from llem_airflow.analysis.plan import Planned
from llem_airflow.analysis.statistics import Description
from llem_airflow.analysis.summary import ExperimentSummary, Summary
from llem_airflow.results import ResultReadError, StoredRun, layout
from llem_airflow.results.parquet import read_table

_TEXT, _WHOLE, _REAL, _TIME = pa.string(), pa.int64(), pa.float64(), pa.timestamp("ns", tz="UTC")

Fact = tuple[str, Any, str]
"""A column of a table: name, type, meaning."""

_OF_THE_RUN: tuple[Fact, ...] = (
    ("study", _TEXT, "name of the study"),
    ("run_id", _TEXT, "id of the run"),
)
_OF_THE_EXPERIMENT: tuple[Fact, ...] = (
    ("hash", _TEXT, "identity of the experiment, 16 hex digits"),
    ("engine", _TEXT, "name of the engine"),
    ("engine_version", _TEXT, "its version"),
    ("model", _TEXT, "name of the model"),
)
_ACTIVE_OVER: Fact = (
    "active_over",
    _TEXT,
    "idle power that was subtracted for energy_active_j: bare, context or loaded",
)
_FLAGS: Fact = ("flags", pa.list_(_TEXT), "codes of the flags of this row")

CYCLE_FACTS: tuple[Fact, ...] = (
    *_OF_THE_RUN,
    ("experiment", _TEXT, "id of the experiment; null for a point that the study left out"),
    ("cycle", _WHOLE, "which repetition, from 1; null for a point that the study left out"),
    ("status", _TEXT, "valid, invalid_energy, failed, missed, missing, damaged or skipped"),
    ("reason", _TEXT, "why the status is not valid"),
    ("position", _WHOLE, "place in the run order, from 0; null if it was not planned"),
    ("failed_attempts", _WHOLE, "attempts of this cycle that failed"),
    *_OF_THE_EXPERIMENT,
    ("host", _TEXT, "name of the machine, or the study's own of it (airflow.hosts)"),
    ("runner", _TEXT, "process or container"),
    ("image_digest", _TEXT, "digest of the container's image"),
    (
        "start_kind",
        _TEXT,
        "fresh, exec (in a session's container), warm (by the engine that lives on in it); null is not known",
    ),
    ("session", _TEXT, "id of the session; null without one"),
    ("position_in_session", _WHOLE, "attempts that the session had begun before; null without one"),
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
    _ACTIVE_OVER,
    ("warmup", _TEXT, "how the warm-up ended"),
    _FLAGS,
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

RELIABILITY_COLUMNS: tuple[Fact, ...] = (
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
    (
        "sd",
        "standard deviation over cycles (n - 1); of several hosts within them (n - hosts); null for n = 1",
    ),
    ("cv_ratio", "sd / absolute value of the mean"),
    ("median", "median over cycles"),
    ("mad", "median absolute deviation, unscaled; null for n = 1"),
    ("p5", "5th percentile over cycles"),
    ("p95", "95th percentile over cycles"),
    ("low", "lower end of the 95 % t interval for the mean; null for n = 1"),
    ("high", "upper end of the 95 % t interval for the mean; null for n = 1"),
    ("bca_low", "lower end of the BCa interval, from n = 20 on; null for several hosts"),
    ("bca_high", "upper end of the BCa interval, from n = 20 on; null for several hosts"),
)
"""Suffixes of the columns that experiments.parquet has for each metric besides the mean, which has none."""

EXPERIMENT_FACTS: tuple[Fact, ...] = (
    *_OF_THE_RUN,
    ("experiment", _TEXT, "id of the experiment"),
    *_OF_THE_EXPERIMENT,
    ("factors", _TEXT, "JSON: what sets it apart from the other experiments of the run"),
    ("planned", _WHOLE, "planned cycles"),
    ("valid", _WHOLE, "valid cycles"),
    ("statuses", _TEXT, "JSON: number of cycles by status"),
    (
        "hosts",
        pa.list_(_TEXT),
        "names of the hosts, where several measured it: means and intervals are within them",
    ),
    ("energy_kind", _TEXT, "measured, estimate, attributed, none or mixed"),
    ("energy_source", _TEXT, "where the joules come from"),
    ("energy_boundary", _TEXT, "what the joules include"),
    _ACTIVE_OVER,
    _FLAGS,
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
        "hosts": list(item.hosts),
        "flags": [flag.code for flag in item.doubts],
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
    rows += [
        ("cycles", each.name, each.meaning + (f", in {each.unit}" if each.unit not in {"", "ratio"} else ""))
        for each in METRICS
    ]
    rows += [("experiments", name, meaning) for name, _, meaning in EXPERIMENT_FACTS]
    rows += [
        (
            "experiments",
            "<metric>",
            "mean over cycles of the metric of that name in cycles.parquet; of several hosts the mean of their means",
        )
    ]
    rows += [("experiments", f"<metric>_{key}", meaning) for key, meaning in STATISTICS]
    rows += [("power", name, meaning) for name, meaning in POWER_FACTS]
    rows += [("reliability", name, meaning) for name, _, meaning in RELIABILITY_COLUMNS]
    return rows


@dataclass(frozen=True)
class Side:
    """The cycles of one experiment of one run.

    Attributes:
        run: Where they come from.
        experiment: ``<slug>-<hash8>``.
        rows: Rows of cycles.parquet that have a result.
        excluded: Cycles that were left out because they were flagged and the caller asked for that.
        beside: Experiments of the run.
        config: What was configured, from plan.json; empty where the plan does not tell.
    """

    run: StoredRun
    experiment: str
    rows: tuple[dict[str, Any], ...]
    excluded: tuple[int, ...] = ()
    beside: int = 1
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``study/run#experiment``."""
        return f"{self.run.study}/{self.run.folder.name}#{self.experiment}"

    def values(self, metric: str) -> dict[int, float]:
        """Value of the metric by cycle; what is not finite is not known."""
        return {
            int(row["cycle"]): float(value)
            for row in self.rows
            if (value := row.get(metric)) is not None and math.isfinite(value)
        }

    def hosts(self) -> dict[int, str]:
        """Host by cycle."""
        return {int(row["cycle"]): str(row.get("host") or "") for row in self.rows}

    def positions(self) -> dict[int, int]:
        """Place in the run order by cycle."""
        return {int(row["cycle"]): int(row["position"]) for row in self.rows if row["position"] is not None}

    def conditions(self) -> dict[str, list[str]]:
        """Each field of the fingerprint with the distinct values that the cycles have, as JSON."""
        return _conditions(self.rows)

    def conditions_by_host(self) -> dict[str, dict[str, list[str]]]:
        """The same for the cycles of each host."""
        groups = by_host((str(row.get("host") or ""), row) for row in self.rows)
        return {host: _conditions(rows) for host, rows in groups.items()}


def _conditions(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for text in {row["fingerprint"] or "{}" for row in rows}:
        for key, value in json.loads(text).items():
            found.setdefault(key, set()).add(json.dumps(value, sort_keys=True))
    return {key: sorted(values) for key, values in found.items()}


@dataclass(frozen=True)
class RunRows:
    """A run with the rows of its cycles.parquet.

    Attributes:
        run: The run.
        rows: One row a cycle, and one for each point that the study left out.
    """

    run: StoredRun
    rows: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, run: StoredRun | RunRows) -> RunRows:
        """Read them, where that was not done yet.

        Raises:
            ResultReadError: The run was not aggregated.
        """
        return run if isinstance(run, RunRows) else cls(run, tuple(cycle_rows(run)))

    @cached_property
    def _by_experiment(self) -> dict[str, list[dict[str, Any]]]:
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows:
            if row["experiment"]:
                groups.setdefault(str(row["experiment"]), []).append(row)
        return groups

    @cached_property
    def _configs(self) -> dict[str, dict[str, Any]]:
        return {str(item["id"]): item.get("config") or {} for item in self.run.plan().get("experiments", ())}

    @property
    def hashes(self) -> dict[str, str]:
        """Identity by experiment, in the order of the table; empty where no row tells it."""
        return {
            name: next((str(row["hash"]) for row in reversed(rows) if row["hash"]), "")
            for name, rows in self._by_experiment.items()
        }

    def sides(self, *, without_flagged: bool = False) -> dict[str, Side]:
        """Each experiment, in the order of the table."""
        return {
            name: self._side(name, rows, without_flagged=without_flagged)
            for name, rows in self._by_experiment.items()
        }

    def side(self, experiment: str, *, without_flagged: bool = False) -> Side:
        """The cycles of one experiment.

        Raises:
            ResultReadError: There is no such experiment.
        """
        rows = self._by_experiment.get(experiment)
        if rows is None:
            known = ", ".join(sorted(self._by_experiment))
            raise ResultReadError(f"{self.run.url}: no experiment {experiment!r}; there are: {known}")
        return self._side(experiment, rows, without_flagged=without_flagged)

    def by_all_but(self, factor: str) -> dict[str, str]:
        """Experiment by its configuration without the factor, a dotted key."""
        return {
            json.dumps(_without(item.get("config") or {}, factor), sort_keys=True): str(item["id"])
            for item in self.run.plan().get("experiments", ())
        }

    def _side(self, experiment: str, rows: list[dict[str, Any]], *, without_flagged: bool) -> Side:
        usable = [row for row in rows if row["status"] in HAS_RESULT]
        flagged = {int(row["cycle"]) for row in usable if without_flagged and row["doubtful"]}
        kept = tuple(row for row in usable if int(row["cycle"]) not in flagged)
        return Side(
            self.run,
            experiment,
            kept,
            tuple(sorted(flagged)),
            len(self._by_experiment),
            self._configs.get(experiment, {}),
        )


def cycle_rows(run: StoredRun) -> list[dict[str, Any]]:
    """Rows of cycles.parquet.

    Raises:
        ResultReadError: The run was not aggregated, or the table does not read.
    """
    if not run.folder.exists(layout.CYCLES_TABLE):
        raise ResultReadError(f"{run.url}: not aggregated yet; `llem-airflow report {run.url}` does it")
    table = read_table(run.folder, layout.CYCLES_TABLE)
    if absent := sorted(_NEEDED - set(table.column_names)):
        raise ResultReadError(
            f"{run.url}/{layout.CYCLES_TABLE}: there is no column {absent[0]!r}; `llem-airflow report {run.url} "
            "--again` makes the table anew"
        )
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


_NEEDED = frozenset({"experiment", "cycle", "status", "hash", "reason", "flags", "energy_kind", "energy_j"})


def _without(config: Mapping[str, Any], dotted: str) -> dict[str, Any]:
    key, _, rest = dotted.partition(".")
    kept = dict(config)
    if not rest:
        kept.pop(key, None)
    elif isinstance(kept.get(key), Mapping):
        kept[key] = _without(kept[key], rest)
    return kept
