"""A table of a run as CSV, JSON lines or Parquet, streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from llem_airflow.results import names
from llem_airflow.results.cycles import ResultReadError
from llem_airflow.results.store import StoredRun

TABLES = {
    "cycles": names.CYCLES_TABLE,
    "experiments": names.EXPERIMENTS_TABLE,
    "power": names.POWER_TABLE,
}
FORMATS = ("csv", "json", "parquet")


def export_table(run: StoredRun, table: str, form: str, target: IO[bytes]) -> int:
    """Write a table of an aggregated run.

    Args:
        run: The run.
        table: cycles, experiments or power.
        form: csv, json (one object a line) or parquet. Lists become JSON text in CSV.
        target: Where to write.

    Returns:
        Number of rows.

    Raises:
        ResultReadError: The run was not aggregated, or the table does not open.
    """
    name = TABLES[table]
    if not run.folder.exists(name):
        raise ResultReadError(f"{run.url}: not aggregated yet; `llem-airflow report {run.url}` does it")
    try:
        with run.folder.open(name) as file:
            source = pq.ParquetFile(file)
            if form == "csv":
                return _csv(source, target)
            if form == "json":
                return _json(source, target)
            return _parquet(source, target)
    except pa.ArrowException as error:
        raise ResultReadError(f"{run.url}/{name}: cannot be read: {str(error).splitlines()[0]}") from error


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
        target.write((json.dumps(row, default=str, allow_nan=False) + "\n").encode())
        rows += 1
    return rows


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
