"""A table of a run as CSV, JSON, JSON lines or Parquet, streamed: the columns of the frames, swept keys included."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from llem_airflow.analysis.tables import RELIABILITY_COLUMNS
from llem_airflow.frames.asked import Problems
from llem_airflow.frames.swept import Swept
from llem_airflow.frames.tables import (
    cycles_table,
    experiments_table,
    power_tables,
    rates_table,
    require_aggregated,
    searches_table,
)
from llem_airflow.results import ResultReadError, StoredRun, layout

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
    if table == "reliability":
        yield _reliability(run)
        return
    problems = Problems()
    swept = Swept.of([run], problems)
    if problems.found:
        raise ResultReadError(str(problems.found[0]["problem"]))
    whole = {
        "cycles": cycles_table,
        "experiments": experiments_table,
        "rates": rates_table,
        "searches": searches_table,
    }
    for part in [whole[table](run)] if table in whole else power_tables(run):
        yield swept.beside(part, run)


def _reliability(run: StoredRun) -> Any:
    require_aggregated(run, layout.SUMMARY)
    rows = [
        {**row, "host": row["host"] or None, "reasons": json.dumps(row["reasons"], sort_keys=True)}
        for row in (run.summary() or {}).get("reliability", ())
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
    for row in _rows(pieces):
        target.write((b",\n" if rows else b"[\n") + _object(row))
        rows += 1
    target.write(b"\n]\n" if rows else b"[]\n")
    return rows


def _json_lines(pieces: Iterator[Any], target: IO[bytes]) -> int:
    rows = 0
    for row in _rows(pieces):
        target.write(_object(row) + b"\n")
        rows += 1
    return rows


def _parquet(pieces: Iterator[Any], target: IO[bytes]) -> int:
    first = next(pieces)
    rows = int(first.num_rows)
    with pq.ParquetWriter(target, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for piece in pieces:
            writer.write_table(piece)
            rows += piece.num_rows
    return rows


def _object(row: dict[str, Any]) -> bytes:
    return json.dumps(row, default=str, allow_nan=False).encode()


def _rows(pieces: Iterator[Any]) -> Iterator[dict[str, Any]]:
    for piece in pieces:
        for batch in piece.to_batches(max_chunksize=10_000):
            yield from batch.to_pylist()


def _flat(column: Any) -> Any:
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    if pa.types.is_list(column.type):
        return pa.array(
            [None if item is None else json.dumps(item) for item in column.to_pylist()], pa.string()
        )
    return column
