"""Raw streams of an attempt to Parquet: power.csv and requests.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from llem_airflow.protocol import PROTOCOL_VERSION
from llem_airflow.protocol.records import POWER_COLUMNS

_NS = ("t_before_mono_ns", "t_after_mono_ns")
_WIDE = ("energy_mj", "event_reasons", "memory_used_bytes")
_TEXT = ("gpu", "error")
_METADATA = {"llem_schema_version": str(PROTOCOL_VERSION)}

POWER_SCHEMA = pa.schema(
    [
        (
            name,
            pa.int64()
            if name in _NS + _WIDE
            else pa.dictionary(pa.int32(), pa.string())
            if name in _TEXT
            else pa.int32(),
        )
        for name in POWER_COLUMNS
    ],
    metadata=_METADATA,
)
"""power.parquet: int64 nanoseconds, int32 milliwatts, dictionary-coded GPU UUIDs."""

REQUESTS_SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("phase", pa.dictionary(pa.int32(), pa.string())),
        ("iteration", pa.int32()),
        ("prompt_index", pa.int32()),
        ("batch_size", pa.int32()),
        ("input_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("t_submit_mono_ns", pa.int64()),
        ("t_first_mono_ns", pa.int64()),
        ("t_last_mono_ns", pa.int64()),
        ("token_mono_ns", pa.list_(pa.int64())),
        ("output_token_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.dictionary(pa.int32(), pa.string())),
    ],
    metadata=_METADATA,
)
"""requests.parquet: one row a request."""

_ROWS_PER_BATCH = 5_000
_ROWS_PER_GROUP = 250_000
"""An hour of 8 GPUs is 288,000 samples; each takes about 100 bytes of memory here."""


def power_to_parquet(source: Path, target: Path) -> int:
    """Convert power.csv, streaming; rows that were cut off by a crash are left out.

    Returns:
        Number of rows written.

    Raises:
        pa.ArrowInvalid: The file is not what the protocol says.
    """
    reader = pa.csv.open_csv(
        source,
        parse_options=pa.csv.ParseOptions(invalid_row_handler=lambda _row: "skip"),
        convert_options=pa.csv.ConvertOptions(
            include_columns=POWER_COLUMNS,
            include_missing_columns=True,
            strings_can_be_null=True,
            column_types={name: _csv_type(name) for name in POWER_COLUMNS},
        ),
    )
    rows = 0
    with pq.ParquetWriter(target, POWER_SCHEMA, **writer_options()) as writer:
        for table in _groups(reader):
            writer.write_table(table)
            rows += table.num_rows
    return rows


def requests_to_parquet(source: Path, target: Path) -> tuple[int, int]:
    """Convert requests.jsonl.

    Returns:
        Rows written, and lines that could not be read.
    """
    rows = broken = 0
    with pq.ParquetWriter(target, REQUESTS_SCHEMA, compression="zstd") as writer:
        for batch, bad in _batches(source):
            writer.write_table(pa.Table.from_pylist(batch, schema=REQUESTS_SCHEMA))
            rows += len(batch)
            broken += bad
    return rows, broken


def writer_options() -> dict[str, Any]:
    """How power is written: zstd, with the time columns delta-coded (3 times smaller than the default)."""
    return {
        "compression": "zstd",
        "use_dictionary": ["gpu", "error", "experiment", "phase"],
        "column_encoding": dict.fromkeys((*_NS, "energy_mj"), "DELTA_BINARY_PACKED"),
    }


def _groups(reader: Any) -> Iterator[Any]:
    """What will be row groups: readers pay for each, and so does every run's merged series, which has them all."""
    waiting: list[Any] = []
    for batch in reader:
        waiting.append(_narrow(pa.Table.from_batches([batch])))
        if sum(table.num_rows for table in waiting) >= _ROWS_PER_GROUP:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(tables: list[Any]) -> Any:
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def _csv_type(name: str) -> Any:
    if name in _NS + _WIDE:
        return pa.int64()
    return pa.string() if name in _TEXT else pa.float64()


def _narrow(table: Any) -> Any:
    columns = []
    for field in POWER_SCHEMA:
        column = table.column(field.name)
        if pa.types.is_dictionary(field.type):
            column = column.dictionary_encode()
        elif pa.types.is_floating(column.type):
            column = pa.compute.round(column)
        columns.append(column.cast(field.type))
    return pa.Table.from_arrays(columns, schema=POWER_SCHEMA)


def _batches(source: Path) -> Iterator[tuple[list[dict[str, Any]], int]]:
    batch: list[dict[str, Any]] = []
    bad = 0
    with source.open("rb") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                batch.append(row)
            else:
                bad += 1
            if len(batch) == _ROWS_PER_BATCH:
                yield batch, bad
                batch, bad = [], 0
    yield batch, bad
