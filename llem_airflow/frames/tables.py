"""The tables of a run as Arrow tables, which the frames are made of, and streamed as CSV, JSON or Parquet."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from llem_airflow.analysis.across_rates import Ladder, ladders
from llem_airflow.analysis.aggregate import MERGED_SCHEMA
from llem_airflow.analysis.latency import COLUMNS, Requests, e2el_s, tpot_s, ttft_s
from llem_airflow.analysis.rate_search import FoundRate, found_rate
from llem_airflow.analysis.series import epoch_ns
from llem_airflow.analysis.summary import ExperimentSummary, Summary, load_summary
from llem_airflow.analysis.tables import CYCLES_SCHEMA, EXPERIMENTS_SCHEMA, RELIABILITY_COLUMNS
from llem_airflow.frames.asked import Swept
from llem_airflow.results import CycleRef, ResultReadError, StoredRun, layout
from llem_airflow.results.folder import first_line
from llem_airflow.results.parquet import REQUESTS_SCHEMA, of_types

_NAMES = pa.dictionary(pa.int32(), pa.string())
_TIME = pa.timestamp("ns", tz="UTC")
_TIMES = ("t_submit", "t_first", "t_last")
_LATENCIES = {"ttft_s": ttft_s, "tpot_s": tpot_s, "e2el_s": e2el_s}
_OF_CYCLE = [("study", _NAMES), ("run_id", _NAMES), ("experiment", _NAMES), ("cycle", pa.int32())]

REQUESTS_TABLE_SCHEMA = pa.schema(
    [
        *_OF_CYCLE,
        *REQUESTS_SCHEMA,
        *((name, _TIME) for name in _TIMES),
        *((name, pa.float64()) for name in _LATENCIES),
    ]
)
"""Columns of the requests: where they come from, what is stored of each, its times in UTC, its latencies."""

EXPERIMENTS_TABLE_SCHEMA = pa.schema(
    [field.with_type(pa.int64()) if field.name.endswith("_n") else field for field in EXPERIMENTS_SCHEMA]
)
"""Columns of experiments.parquet, where numbers of cycles are stored as other numbers."""

POWER_TABLE_SCHEMA = pa.schema([*_OF_CYCLE[:2], *MERGED_SCHEMA])
"""Columns of the samples of power: where they come from, and those of the merged power.parquet."""

_AT_THE_RATE = ("energy_per_output_token_j", "energy_per_good_request_j", "slo_attainment_ratio")
SEARCHES_SCHEMA = pa.schema(
    [
        ("study", pa.string()),
        ("run_id", pa.string()),
        ("experiment", pa.string()),
        ("state", pa.string()),
        ("rate_per_s", pa.float64()),
        ("missed_rate_per_s", pa.float64()),
        ("asks_rate_per_s", pa.float64()),
        ("close", pa.bool_()),
        ("from_rate_per_s", pa.float64()),
        ("to_rate_per_s", pa.float64()),
        ("percentile_ratio", pa.float64()),
        ("probes", pa.int64()),
        ("max_probes", pa.int64()),
        *((f"{name}{end}", pa.float64()) for name in _AT_THE_RATE for end in ("", "_low", "_high")),
    ]
)
"""Columns of the searches for the highest rate that meets an SLO (``find_rate``): a row each.

``experiment`` is the candidate at ``rate_per_s``; where no rate has met the SLO, the one at the lowest rate. ``close``
says that one of the two rates around the answer could well be answered the other way by another measurement.
"""

_OF_A_RATE = (
    "requests_per_s",
    "output_tokens_per_s",
    "average_power_w",
    "idle_share_ratio",
    "ttft_p99_s",
    "e2el_p99_s",
    *_AT_THE_RATE,
)
RATES_SCHEMA = pa.schema(
    [
        ("study", pa.string()),
        ("run_id", pa.string()),
        ("experiment", pa.string()),
        ("configuration", pa.string()),
        ("rate_per_s", pa.float64()),
        ("concurrency_users", pa.float64()),
        ("saturated", pa.bool_()),
        ("meets_slo", pa.bool_()),
        ("knee", pa.bool_()),
        ("cheapest", pa.bool_()),
        ("as_cheap", pa.bool_()),
        *((f"{name}{end}", pa.float64()) for name in _OF_A_RATE for end in ("", "_low", "_high")),
    ]
)
"""Columns of the rates, or numbers of users, that servers were measured at: a row each.

``configuration`` is what sets the server apart from others of the run. ``knee``: from here on the latency's tail turns
up. ``cheapest``: the least energy per output token of those that meet the SLO and are not saturated; ``as_cheap``:
another such whose interval of that energy meets the cheapest's.
"""


def stored_table(run: StoredRun, name: str, schema: Any, filters: Any = None) -> Any:
    """A table of an aggregated run.

    Args:
        run: The run.
        name: Name of its file.
        schema: Types of its columns, as far as it has them.
        filters: As for ``pq.read_table``: only the row groups that can hold such rows are read.

    Raises:
        ResultReadError: The run was not aggregated, or the file does not open or is another table.
    """
    _require_aggregated(run, name)
    try:
        found = pq.read_table(
            f"{run.folder.path}/{name}", filesystem=run.folder.fs, filters=filters, partitioning=None
        )
        _require_experiments(run, name, found.column_names)
        return of_types(found, schema)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(run, name, error) from error


def _require_experiments(run: StoredRun, name: str, columns: Sequence[str]) -> None:
    """A table that says nothing of experiments is another one, whatever its name."""
    if "experiment" not in columns:
        raise ResultReadError(f"{run.url}/{name}: there is no column experiment")


def _unreadable(run: StoredRun, name: str, error: Exception) -> ResultReadError:
    return ResultReadError(f"{run.url}/{name}: cannot be read: {first_line(error)}")


def _require_aggregated(run: StoredRun, name: str) -> None:
    if not run.folder.exists(name):
        raise not_aggregated(run)


def not_aggregated(run: StoredRun) -> ResultReadError:
    """What is wrong with a run that has no such table, or summary."""
    return ResultReadError(f"{run.url}: not aggregated yet; `llem-airflow report {run.url}` does it")


def _summary(run: StoredRun) -> Summary:
    found = load_summary(run)
    if found is None:
        raise not_aggregated(run)
    return found


def cycles_table(run: StoredRun) -> Any:
    """The cycles of a run."""
    return stored_table(run, layout.CYCLES_TABLE, CYCLES_SCHEMA)


def power_tables(run: StoredRun) -> Iterator[Any]:
    """The samples of power of a run, a row group at a time; one table without rows where there is none.

    Raises:
        ResultReadError: The run was not aggregated, or the file does not open.
    """
    _require_aggregated(run, layout.POWER_TABLE)
    try:
        with run.folder.open(layout.POWER_TABLE) as file:
            stored = pq.ParquetFile(file)
            _require_experiments(run, layout.POWER_TABLE, stored.schema_arrow.names)
            for group in range(stored.num_row_groups):
                yield stored.read_row_group(group)
            if not stored.num_row_groups:
                yield stored.schema_arrow.empty_table()
    except pa.ArrowException as error:
        raise _unreadable(run, layout.POWER_TABLE, error) from error


def experiments_table(run: StoredRun) -> Any:
    """The experiments of a run; numbers of cycles are whole numbers, also in files that hold them as others."""
    return stored_table(run, layout.EXPERIMENTS_TABLE, EXPERIMENTS_TABLE_SCHEMA)


def searches_table(run: StoredRun) -> Any:
    """What each search of an aggregated run has found; without rows where it searches for nothing.

    Raises:
        ResultReadError: The run was not aggregated, or its summary is damaged.
    """
    summary = _summary(run)
    experiments = {one.id: one for one in summary.experiments}
    found = [found_rate(one, experiments) for one in summary.searches]
    return pa.Table.from_pylist([_search_row(run, one) for one in found], SEARCHES_SCHEMA)


def _search_row(run: StoredRun, found: FoundRate) -> dict[str, Any]:
    met, missed, search = found.highest_met, found.lowest_missed, found.search
    row: dict[str, Any] = {
        "study": run.study,
        "run_id": run.run_id,
        "experiment": met.experiment.id if met else search.experiments[0],
        "state": found.state,
        "rate_per_s": met.rate_per_s if met else None,
        "missed_rate_per_s": missed.rate_per_s if missed else None,
        "asks_rate_per_s": found.asks_per_s,
        "close": any(one.close for one in (met, missed) if one) if found.probes else None,
        "from_rate_per_s": search.rates_per_s[0],
        "to_rate_per_s": search.rates_per_s[-1],
        "percentile_ratio": search.percentile,
        "probes": len(found.probes),
        "max_probes": search.max_probes,
    }
    return row | (_with_intervals(met.experiment, _AT_THE_RATE) if met else {})


def rates_table(run: StoredRun) -> Any:
    """What the servers of an aggregated run did at each of their rates; without rows for a run of batches.

    Raises:
        ResultReadError: The run was not aggregated, or its summary is damaged.
    """
    rows = [row for one in ladders(_summary(run).experiments) for row in _rate_rows(run, one)]
    return pa.Table.from_pylist(rows, RATES_SCHEMA)


def _rate_rows(run: StoredRun, server: Ladder) -> Iterator[dict[str, Any]]:
    for level in server.levels:
        row = {
            "study": run.study,
            "run_id": run.run_id,
            "experiment": level.experiment.id,
            "configuration": ", ".join(f"{key}={value}" for key, value in server.factors),
            "rate_per_s": None if server.closed else level.load,
            "concurrency_users": level.load if server.closed else None,
            "saturated": level.saturated,
            "meets_slo": level.meets_slo,
            "knee": level is server.knee,
            "cheapest": level is server.cheapest,
            "as_cheap": level in server.as_cheap,
        }
        yield row | _with_intervals(level.experiment, _OF_A_RATE)


def _with_intervals(experiment: ExperimentSummary, names: Sequence[str]) -> dict[str, float]:
    row: dict[str, float] = {}
    for name in names:
        if known := experiment.metric(name):
            row[name] = known.all.mean
            if known.all.interval:
                row |= {f"{name}_low": known.all.interval.low, f"{name}_high": known.all.interval.high}
    return row


def requests_table(run: StoredRun, ref: CycleRef) -> Any:
    """The requests of a committed cycle, with absolute times and latencies.

    Raises:
        ResultReadError: The requests or the result are damaged or absent.
    """
    table, anchors = ref.requests(), ref.result().anchors
    if absent := sorted(set(COLUMNS) - set(table.column_names)):
        raise ResultReadError(f"{ref.folder.url}/{layout.REQUESTS}: there is no column {absent[0]}")
    facts = (run.study, run.run_id, ref.experiment_id, ref.cycle)
    for index, ((name, kind), fact) in enumerate(zip(_OF_CYCLE, facts, strict=True)):
        table = table.add_column(index, name, _same(fact, kind, table.num_rows))
    for name in _TIMES:
        table = table.append_column(name, _absolute(table.column(f"{name}_mono_ns"), anchors))
    told = Requests.of(table, phase=None)
    for name, latency in _LATENCIES.items():
        table = table.append_column(name, pa.array(latency(told), from_pandas=True))
    return table


def with_run(table: Any, run: StoredRun) -> Any:
    """A table that has no columns for study and run, with them."""
    for index, (name, text) in enumerate({"study": run.study, "run_id": run.run_id}.items()):
        table = table.add_column(index, name, _same(text, _NAMES, table.num_rows))
    return table


def _same(value: Any, kind: Any, rows: int) -> Any:
    """One value for all rows."""
    if not pa.types.is_dictionary(kind):
        return pa.array(np.full(rows, value), kind)
    indices = pa.array(np.zeros(rows, dtype=np.int32))
    return pa.DictionaryArray.from_arrays(indices, pa.array([value], pa.string()))


def _absolute(mono_ns: Any, anchors: Sequence[Any]) -> Any:
    """Monotonic times in UTC; null where the time, or every anchor, is not known."""
    if not anchors:
        return pa.nulls(len(mono_ns), _TIME)
    unknown = pc.is_null(mono_ns).to_numpy(zero_copy_only=False)
    known = pc.fill_null(mono_ns, 0).to_numpy(zero_copy_only=False)
    return pa.array(epoch_ns(known, anchors), mask=unknown).cast(_TIME)


TABLES = ("cycles", "experiments", "power", "rates", "reliability", "searches")
FORMATS = ("csv", "json", "jsonl", "parquet")


def export_table(run: StoredRun, table: str, form: str, target: IO[bytes]) -> int:
    """Write a table of an aggregated run.

    Args:
        run: The run.
        table: One of ``TABLES``.
        form: csv, json (one array of objects), jsonl (an object a line) or parquet. Lists become JSON text in CSV.
        target: Where to write.

    Returns:
        Number of rows.

    Raises:
        ResultReadError: The run was not aggregated, or something of it does not open.
    """
    pieces = _pieces(run, table)
    writers = {"csv": write_csv, "json": _json, "jsonl": _json_lines, "parquet": _parquet}
    return writers[form](pieces, target)


def _pieces(run: StoredRun, table: str) -> Iterator[Any]:
    """The table in parts that fit in memory; at least one, which may have no row."""
    whole = {
        "cycles": cycles_table,
        "experiments": experiments_table,
        "rates": rates_table,
        "reliability": _reliability_table,
        "searches": searches_table,
    }
    swept = None if table == "reliability" else Swept.of_run(run)
    for part in [whole[table](run)] if table in whole else power_tables(run):
        yield swept.beside(part, run) if swept else part


def _reliability_table(run: StoredRun) -> Any:
    rows = [
        {**row, "host": row["host"] or None, "reasons": json.dumps(row["reasons"], sort_keys=True)}
        for row in _summary(run).reliability
    ]
    return pa.Table.from_pylist(
        rows, schema=pa.schema([(name, kind) for name, kind, _ in RELIABILITY_COLUMNS])
    )


def write_csv(pieces: Iterable[Any], target: IO[bytes]) -> int:
    """Write tables of the same columns below each other as CSV, lists as JSON text; the number of rows."""
    rows = 0
    for place, piece in enumerate(pieces):
        flat = pa.table({name: _flat(piece.column(name)) for name in piece.column_names})
        pa.csv.write_csv(flat, target, pa.csv.WriteOptions(include_header=not place))
        rows += piece.num_rows
    return rows


def _json(pieces: Iterator[Any], target: IO[bytes]) -> int:
    rows = 0
    for rows, row in enumerate(_rows(pieces), 1):
        target.write((b"[\n" if rows == 1 else b",\n") + row)
    target.write(b"\n]\n" if rows else b"[]\n")
    return rows


def _json_lines(pieces: Iterator[Any], target: IO[bytes]) -> int:
    rows = 0
    for row in _rows(pieces):
        target.write(row + b"\n")
        rows += 1
    return rows


def _parquet(pieces: Iterator[Any], target: IO[bytes]) -> int:
    first = next(pieces)
    rows = 0
    with pq.ParquetWriter(target, first.schema, compression="zstd") as writer:
        for piece in itertools.chain([first], pieces):
            writer.write_table(piece)
            rows += piece.num_rows
    return rows


def _rows(pieces: Iterator[Any]) -> Iterator[bytes]:
    """Each row as a JSON object."""
    for piece in pieces:
        for batch in piece.to_batches(max_chunksize=10_000):
            for row in batch.to_pylist():
                yield json.dumps(row, default=str, allow_nan=False).encode()


def _flat(column: Any) -> Any:
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    if pa.types.is_list(column.type):
        return pa.array(
            [None if item is None else json.dumps(item) for item in column.to_pylist()], pa.string()
        )
    return column
