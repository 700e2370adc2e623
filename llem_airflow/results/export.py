"""A table of a run as CSV, JSON, JSON lines or Parquet, streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from llem_airflow.results import layout
from llem_airflow.results.folder import ResultReadError
from llem_airflow.results.store import StoredRun

TABLES = {
    "cycles": layout.CYCLES_TABLE,
    "experiments": layout.EXPERIMENTS_TABLE,
    "power": layout.POWER_TABLE,
}
RELIABILITY = "reliability"
RELIABILITY_COLUMNS: tuple[tuple[str, Any, str], ...] = (
    ("host", pa.string(), "name of the machine; null where no attempt told it"),
    ("engine", pa.string(), "name of the engine"),
    ("cycles", pa.int64(), "planned cycles"),
    ("valid", pa.int64(), "valid cycles"),
    ("missed", pa.int64(), "cycles for which no GPU came"),
    ("failed_attempts", pa.int64(), "attempts that failed, also of cycles that are valid now"),
    ("reasons", pa.string(), "JSON: number of cycles that are not valid by the reason"),
)
"""Columns of the table of reliability, one row a host and engine: name, type, meaning."""

FORMATS = ("csv", "json", "jsonl", "parquet")


def export_table(run: StoredRun, table: str, form: str, target: IO[bytes]) -> int:
    """Write a table of an aggregated run.

    Args:
        run: The run.
        table: cycles, experiments, power or reliability.
        form: csv, json (one array of objects), jsonl (an object a line) or parquet. Lists become JSON text in CSV.
        target: Where to write.

    Returns:
        Number of rows.

    Raises:
        ResultReadError: The run was not aggregated, or the table does not open.
    """
    name = TABLES.get(table, layout.SUMMARY)
    if not run.folder.exists(name):
        raise ResultReadError(f"{run.url}: not aggregated yet; `llem-airflow report {run.url}` does it")
    if table == RELIABILITY:
        return _exported(_reliability(run), form, target)
    try:
        with run.folder.open(name) as file:
            return _exported(pq.ParquetFile(file), form, target)
    except pa.ArrowException as error:
        raise ResultReadError(f"{run.url}/{name}: cannot be read: {str(error).splitlines()[0]}") from error


def _exported(source: Any, form: str, target: IO[bytes]) -> int:
    write = {"csv": _csv, "json": _json, "jsonl": _json_lines, "parquet": _parquet}[form]
    return write(source, target)


def _reliability(run: StoredRun) -> Any:
    """The table of reliability, which the summary has, as a Parquet file in memory."""
    rows = [
        {**row, "host": row["host"] or None, "reasons": json.dumps(row["reasons"], sort_keys=True)}
        for row in (run.summary() or {}).get("reliability", ())
    ]
    schema = pa.schema([(name, kind) for name, kind, _ in RELIABILITY_COLUMNS])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    return pq.ParquetFile(pa.BufferReader(sink.getvalue()))


def _csv(source: Any, target: IO[bytes]) -> int:
    rows, first = 0, True
    for batch in source.iter_batches():
        flat = pa.table({name: _flat(batch.column(name)) for name in batch.schema.names})
        pa.csv.write_csv(flat, target, pa.csv.WriteOptions(include_header=first))
        rows, first = rows + batch.num_rows, False
    if first:
        target.write((",".join(f'"{name}"' for name in source.schema_arrow.names) + "\n").encode())
    return rows


def _json(source: Any, target: IO[bytes]) -> int:
    rows = 0
    for row in _rows(source):
        target.write((b",\n" if rows else b"[\n") + _object(row))
        rows += 1
    target.write(b"\n]\n" if rows else b"[]\n")
    return rows


def _json_lines(source: Any, target: IO[bytes]) -> int:
    rows = 0
    for row in _rows(source):
        target.write(_object(row) + b"\n")
        rows += 1
    return rows


def _object(row: dict[str, Any]) -> bytes:
    return json.dumps(row, default=str, allow_nan=False).encode()


def _parquet(source: Any, target: IO[bytes]) -> int:
    with pq.ParquetWriter(target, source.schema_arrow, compression="zstd") as writer:
        for batch in source.iter_batches():
            writer.write_batch(batch)
    return int(source.metadata.num_rows)


def _rows(source: Any) -> Iterator[dict[str, Any]]:
    for batch in source.iter_batches():
        yield from batch.to_pylist()


def _flat(column: Any) -> Any:
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    if pa.types.is_list(column.type):
        return pa.array(
            [None if item is None else json.dumps(item) for item in column.to_pylist()], pa.string()
        )
    return column
