"""aggregate_run: the cycles of a run become summary.json, three Parquet tables and, given a page, report.html."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llem_airflow.analysis.compare_named import PreviousRun, against_previous
from llem_airflow.analysis.cycle import NO_METER, Cycle, Reading, absent_cycle, read_cycle
from llem_airflow.analysis.plan import Planned, planned
from llem_airflow.analysis.series import Labels, epoch_ns, phase_codes
from llem_airflow.analysis.summary import Summary, summarise
from llem_airflow.analysis.tables import cycles_table, experiments_table
from llem_airflow.protocol.gpus import BOARD_STATE
from llem_airflow.results import CycleRef, FailureRef, StoredRun, layout
from llem_airflow.results.folder import json_bytes
from llem_airflow.results.parquet import POWER_OPTIONS, POWER_SCHEMA, GroupedWriter
from llem_airflow.results.records import end_all

_NAMES = pa.dictionary(pa.int32(), pa.string())
_CARRIED = [field for field in POWER_SCHEMA if field.name not in {"t_before_mono_ns", "t_after_mono_ns"}]
MERGED_SCHEMA = pa.schema(
    [
        ("t_epoch", pa.timestamp("ns", tz="UTC")),
        ("t_mono_ns", pa.int64()),
        ("experiment", _NAMES),
        ("cycle", pa.int32()),
        ("phase", _NAMES),
        *_CARRIED,
    ],
    metadata=POWER_SCHEMA.metadata,
)
"""Columns of the merged power.parquet. Times are the midpoint of the call that read the sample."""

_OPTIONS: dict[str, Any] = {
    **POWER_OPTIONS,
    "use_dictionary": [*POWER_OPTIONS["use_dictionary"], "experiment", "cycle", "phase"],
    "column_encoding": dict.fromkeys(("t_epoch", "t_mono_ns", "energy_mj"), "DELTA_BINARY_PACKED"),
}


class PowerMerge(GroupedWriter):
    """Writer of the merged series.

    Rows are in time order within a cycle, and cycles in the order in which they are added (run order). No row
    is dropped and no series of one sensor is averaged with another.
    """

    def __init__(self, file: IO[bytes]) -> None:
        """Write to ``file``."""
        super().__init__(file, MERGED_SCHEMA, **_OPTIONS)

    def add(self, experiment: str, cycle: int, reading: Reading) -> int:
        """Append the samples of one cycle.

        Returns:
            Number of rows appended.
        """
        samples = reading.power.table
        if samples is None or not reading.result.anchors:
            return 0
        mono_ns = midpoints_ns(reading.power.columns)
        if not (mono_ns[1:] >= mono_ns[:-1]).all():
            order = np.argsort(mono_ns, kind="stable")
            samples, mono_ns = samples.take(pa.array(order)), mono_ns[order]
        self.write(_merged(experiment, cycle, reading, samples, mono_ns))
        return len(mono_ns)


def _merged(experiment: str, cycle: int, reading: Reading, samples: Any, mono_ns: NDArray[np.int64]) -> Any:
    """The samples of a cycle with its names and absolute times; a column that they lack is null."""
    rows = len(mono_ns)
    codes, phases = phase_codes(mono_ns, reading.phases)
    columns = [
        pa.array(epoch_ns(mono_ns, reading.result.anchors)).cast(MERGED_SCHEMA.field("t_epoch").type),
        pa.array(mono_ns),
        pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int32)), pa.array([experiment])),
        pa.array(np.full(rows, cycle, dtype=np.int32)),
        pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(phases)),
        *(
            samples.column(field.name).cast(field.type)
            if field.name in samples.column_names
            else pa.nulls(rows, field.type)
            for field in _CARRIED
        ),
    ]
    return pa.Table.from_arrays(columns, schema=MERGED_SCHEMA)


def midpoints_ns(power: Mapping[str, Any]) -> NDArray[np.int64]:
    """Middle of the call that read each sample, on the monotonic clock, in nanoseconds."""
    before: NDArray[np.int64] = power["t_before_mono_ns"]
    after: NDArray[np.int64] = power["t_after_mono_ns"]
    return before + (after - before) // 2


_BUCKETS = 300


@dataclass(frozen=True, slots=True)
class Curve:
    """What is drawn of one cycle. Times are seconds since the begin of its first phase.

    Attributes:
        experiment: ``<slug>-<hash8>``.
        cycle: Which repetition.
        phases: (name, begin, end).
        series: By GPU: times and powers, in seconds and watts.
        estimate: Whether the powers are estimates.
    """

    experiment: str
    cycle: int
    phases: tuple[tuple[str, float, float], ...]
    series: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
    estimate: bool


def curve(experiment: str, cycle: int, reading: Reading) -> Curve:
    """The curve of a cycle: at most 600 points a GPU, with the extremes of each bucket: no peak is lost."""
    power = reading.power.columns
    mono = midpoints_ns(power)
    origin = min([phase.begin_mono_ns for phase in reading.phases] or mono.tolist()[:1] or [0])
    gpus: Labels = power["gpu"]
    series = {}
    for code, gpu in sorted(enumerate(gpus.names), key=lambda item: item[1]):
        rows = gpus.codes == code
        watts = _watts(power, rows)
        known = ~np.isnan(watts)
        if known.any():
            series[gpu] = thinned((mono[rows][known] - origin) / 1e9, watts[known])
    marks = tuple(
        (phase.name, (phase.begin_mono_ns - origin) / 1e9, (phase.end_mono_ns - origin) / 1e9)
        for phase in reading.phases
    )
    return Curve(experiment, cycle, marks, series, reading.energy.kind == "estimate")


def thinned(
    t_s: NDArray[np.float64], values: NDArray[np.float64], buckets: int = _BUCKETS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest value of each of ``buckets`` equal runs of samples, in their order, and both ends."""
    if len(values) <= 2 * buckets:
        return t_s, values
    width = -(-len(values) // buckets)
    padded = np.pad(values, (0, width * -(-len(values) // width) - len(values)), mode="edge").reshape(
        -1, width
    )
    starts = np.arange(len(padded)) * width
    ends = np.array([0, len(values) - 1])
    index = np.unique(np.concatenate([starts + padded.argmin(axis=1), starts + padded.argmax(axis=1), ends]))
    return t_s[index], values[index]


def _watts(power: Mapping[str, Any], rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Instant power of a device, else the average that the driver gives; NaN marks what is not known."""
    instant: NDArray[np.float64] = power["power_instant_mw"][rows] / 1e3
    average: NDArray[np.float64] = power["power_average_mw"][rows] / 1e3
    return average if np.isnan(instant).all() else instant


CURVES_IN_REPORT = 240
"""A report of more cycles draws the first ones and says so; the merged series has them all."""

_LARGE_BYTES = 31 << 20
"""The most that malloc learns from (M_MMAP_THRESHOLD in mallopt(3)); it is never touched, so it takes no memory."""

_VOLATILE = ("anchors", "boot_id", "time_namespace_offsets")


@dataclass
class _Gathered:
    """What one pass over the cycles collects; bounded by the number of cycles, not of samples."""

    curves_wanted: int
    cycles: list[Cycle] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    environments: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    power_absent: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows.

    Attributes:
        summary: The summary of the run.
        cycles: Its rows.
        curves: Power curves of (at least the first) cycles.
        study_text: study.yaml as its author wrote it.
        meta: run.json.
        previous: The previous run and what changed against it, if there is one.
    """

    summary: Summary
    cycles: Sequence[Cycle]
    curves: Sequence[Curve]
    study_text: str | None
    meta: Mapping[str, Any]
    previous: PreviousRun | None = None


def aggregate_run(run: StoredRun, *, page: Callable[[ReportData], str] | None = None) -> Summary:
    """Aggregate a run. The same evidence gives the same bytes, however often and by how many it is done.

    Each file appears whole under its name, the report last; a summary that another one replaces is kept under
    ``superseded/``. Reads one power series at a time.

    Args:
        run: The run.
        page: Draws report.html (``llem_airflow.report.page.report_html``), which takes most of the time; None for no
            report.

    Raises:
        ResultsWriteError: Something could not be written; nothing that was committed is affected.
    """
    _keep_freed_memory()
    plan = planned(run.plan())
    committed = {(ref.experiment_id, ref.cycle): ref for ref in run.cycles()}
    failures: dict[tuple[str, int], list[FailureRef]] = defaultdict(list)
    for failure in run.failures():
        failures[failure.experiment_id, failure.cycle].append(failure)
    skips, left = run.skipped(needed=False), run.skipped(needed=True)
    gathered = _Gathered(CURVES_IN_REPORT if page else 0)
    with run.folder.atomic_write(layout.POWER_TABLE) as file, PowerMerge(file) as merge:
        for key, position in _rows(plan, committed, failures):
            if key in skips and key not in committed:
                gathered.cycles.append(Cycle(*key, "skipped", skips[key], position))
            else:
                _gather(key, position, committed.get(key), failures[key], plan, merge, gathered)
                if gathered.cycles[-1].status == "missing" and key in left:
                    gathered.cycles[-1] = dataclasses.replace(gathered.cycles[-1], reason=left[key])
        power_rows = merge.rows
    summary = summarise(
        run.study,
        run.run_id,
        plan,
        gathered.cycles,
        environments=[
            {"cycles": cycles, "environment": json.loads(text)}
            for text, cycles in gathered.environments.items()
        ],
        power_rows=power_rows,
        power_absent=gathered.power_absent,
        release=run.meta().get("version"),
    )
    _write_table(run, layout.CYCLES_TABLE, cycles_table(run.study, run.run_id, gathered.cycles, plan))
    _write_table(run, layout.EXPERIMENTS_TABLE, experiments_table(summary))
    run.replace(layout.SUMMARY, _json_lines(summary.to_json()))
    end_all(run)
    if page:
        previous = against_previous(run)
        if previous is not None:
            run.folder.write(layout.PREVIOUS, json_bytes(previous.told()))
        data = ReportData(summary, gathered.cycles, gathered.curves, run.study_text(), run.meta(), previous)
        run.folder.write(layout.REPORT, page(data).encode())
    if run.folder.local is None:  # elsewhere looking into a run costs nothing
        run.mark_aggregated()
    return summary


def _keep_freed_memory() -> None:
    """Freeing one large block tells glibc to keep smaller ones; giving back each array costs a tenth of all CPU."""
    np.empty(_LARGE_BYTES, dtype=np.uint8)


def _rows(plan: Planned, *found: dict[tuple[str, int], Any]) -> list[tuple[tuple[str, int], int | None]]:
    """Every planned cycle in run order, then whatever else left a trace (the plan was changed)."""
    keys = list(dict.fromkeys(plan.cycles))
    more = sorted({key for part in found for key in part} - set(keys))
    return [*((key, position) for position, key in enumerate(keys)), *((key, None) for key in more)]


def _gather(
    key: tuple[str, int],
    position: int | None,
    ref: CycleRef | None,
    failures: list[FailureRef],
    plan: Planned,
    merge: PowerMerge,
    gathered: _Gathered,
) -> None:
    name = f"{key[0]} cycle {key[1]}"
    if ref is None:
        row = absent_cycle(*key, failures, position=position)
        experiment = plan.experiments.get(key[0])
        if experiment:
            row = dataclasses.replace(
                row, engine=experiment.engine, model=experiment.model, hash=experiment.hash
            )
        gathered.cycles.append(row)
        return
    row, reading = read_cycle(ref, position=position, failed_attempts=len(failures))
    gathered.cycles.append(row)
    if reading is None:
        gathered.power_absent.append({"experiment": key[0], "cycle": key[1], "reason": row.reason})
        return
    gathered.environments[_stable(reading.environment)].append(name)
    if not merge.add(*key, reading):
        gathered.power_absent.append(
            {"experiment": key[0], "cycle": key[1], "reason": _why_no_power(reading)}
        )
    if len(gathered.curves) < gathered.curves_wanted:
        gathered.curves.append(curve(*key, reading))


def _why_no_power(reading: Reading) -> str:
    if reading.result.meter.kind == "none":
        return NO_METER
    return reading.power.problem or "the series has no samples"


def _stable(environment: Mapping[str, Any]) -> str:
    """The environment without what changes from attempt to attempt, as JSON, to tell distinct ones apart."""
    kept = {name: value for name, value in environment.items() if name not in _VOLATILE}
    for key in ("gpus", "gpus_after"):
        if isinstance(kept.get(key), list):
            kept[key] = [
                {k: v for k, v in gpu.items() if k not in BOARD_STATE}
                for gpu in kept[key]
                if isinstance(gpu, dict)
            ]
    if isinstance(kept.get("cpu"), dict):
        kept["cpu"] = {name: value for name, value in kept["cpu"].items() if name != "load_average_1min"}
    return json.dumps(kept, sort_keys=True)


def _write_table(run: StoredRun, name: str, table: Any) -> None:
    with run.folder.atomic_write(name) as file:
        pq.write_table(table, file, compression="zstd")


def _json_lines(value: Mapping[str, Any]) -> bytes:
    """A JSON object with each member, and each item of a list in it, on a line of its own.

    Indented JSON is written ten times slower, which a summary of 1,000 experiments feels.
    """
    one = partial(json.dumps, sort_keys=True, allow_nan=False)
    lines = []
    for key in sorted(value):
        item = value[key]
        many = isinstance(item, list) and item
        lines.append(f"{one(key)}: " + ("[\n" + ",\n".join(map(one, item)) + "\n]" if many else one(item)))
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()
