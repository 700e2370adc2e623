"""Parquet: the columns of what is stored, the raw streams of an attempt as such files, and reading them."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from llem_airflow.protocol import PROTOCOL_VERSION
from llem_airflow.protocol.files import POWER_COLUMNS
from llem_airflow.results.folder import Folder, ResultReadError, first_line, parsed_json

_NS = ("t_before_mono_ns", "t_after_mono_ns")
_NAMES = pa.dictionary(pa.int32(), pa.string())
_METADATA = {"llem_schema_version": str(PROTOCOL_VERSION)}
_POWER_TYPES = {
    **dict.fromkeys(POWER_COLUMNS, pa.int32()),
    **dict.fromkeys((*_NS, "energy_mj", "event_reasons", "memory_used_bytes"), pa.int64()),
    **dict.fromkeys(("gpu", "error"), _NAMES),
}
_CSV_TYPES = {pa.int32(): pa.float64(), pa.int64(): pa.int64(), _NAMES: pa.string()}

POWER_SCHEMA = pa.schema(list(_POWER_TYPES.items()), metadata=_METADATA)
"""power.parquet: int64 nanoseconds, int32 milliwatts, dictionary-coded GPU UUIDs."""

REQUESTS_SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("phase", _NAMES),
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
        ("finish_reason", _NAMES),
        ("t_due_mono_ns", pa.int64()),
        ("t_end_mono_ns", pa.int64()),
        ("status", _NAMES),
        ("chunk_tokens", pa.list_(pa.int32())),
        ("error_class", _NAMES),
        ("http_status", pa.int32()),
        ("error_text", pa.string()),
    ],
    metadata=_METADATA,
)
"""requests.parquet: one row a request. The columns from ``t_due_mono_ns`` on are null for a batch, and not in older
files."""

POWER_OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": ["gpu", "error"],
    "column_encoding": dict.fromkeys((*_NS, "energy_mj"), "DELTA_BINARY_PACKED"),
}
"""How power is written: zstd, with times and the counter delta-coded (3 times smaller than the default)."""

_LINES_PER_BATCH = 5_000
ROWS_PER_GROUP = 250_000
"""An hour of 8 GPUs is 288,000 samples; each takes about 100 bytes of memory here."""


class GroupedWriter:
    """Writer of a Parquet file with few row groups, however small the tables that come: readers pay for each group.

    Memory holds one group and one table.
    """

    def __init__(
        self, target: Path | IO[bytes], schema: Any, *, rows_per_group: int = ROWS_PER_GROUP, **options: Any
    ) -> None:
        """Write so many rows at least in a group but the last; options as for ``pq.ParquetWriter``."""
        self._writer = pq.ParquetWriter(target, schema, **options)
        self._rows_per_group = rows_per_group
        self._waiting: list[Any] = []
        self._waiting_rows = self.rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            self._writer.close()

    def write(self, table: Any) -> None:
        """Append the rows of a table of the file's schema."""
        self._waiting.append(table)
        self._waiting_rows += table.num_rows
        self.rows += table.num_rows
        if self._waiting_rows >= self._rows_per_group:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            table = pa.concat_tables(self._waiting).unify_dictionaries().combine_chunks()
            self._writer.write_table(table, row_group_size=max(self._waiting_rows, 1))
            self._waiting, self._waiting_rows = [], 0


def read_table(
    folder: Folder,
    name: str,
    columns: list[str] | None = None,
    optional: Collection[str] = (),
    schema: Any = None,
) -> Any:
    """A Parquet file of a folder as a ``pyarrow.Table``; arguments as for ``TableFile.read``.

    Raises:
        ResultReadError: It is missing, does not open, lacks a column, or has one of another type.
    """
    return TableFile.of(folder, name).read(columns, optional, schema)


class TableFile:
    """A Parquet file in memory: its columns are decoded when they are asked for.

    Args:
        data: The file.
        where: What it is called in errors.

    Raises:
        ResultReadError: It does not open.
    """

    def __init__(self, data: bytes, where: str) -> None:
        self._data, self._where = data, where
        with _told(where):
            self._file = pq.ParquetFile(pa.BufferReader(data))

    @classmethod
    def of(cls, folder: Folder, name: str) -> Self:
        """The file of a folder.

        Raises:
            ResultReadError: It is missing, or does not open.
        """
        return cls(folder.read_evidence(name), f"{folder.url}/{name}")

    def read(
        self, columns: list[str] | None = None, optional: Collection[str] = (), schema: Any = None
    ) -> Any:
        """The table, or some columns of it, of which older files may lack the optional ones.

        Args:
            columns: Their names; None for all.
            optional: Those that may be absent.
            schema: The types that they shall have: a file that other software wrote again may have text for names, or
                64 bits for 32.

        Raises:
            ResultReadError: It lacks a column, or has one that is not of its type.
        """
        with _told(self._where):
            # It leaves out names that the file has not; to read the schema before costs a tenth of a narrow read.
            table = self._file.read(columns=columns, use_threads=False)
            absent = sorted({*(columns or ())} - {*table.column_names, *optional})
            if absent:
                raise pa.ArrowInvalid(f"there is no column {absent[0]}")
            return table if schema is None else of_types(table, schema)

    def stored(self, names: Sequence[str]) -> tuple[Any, ...]:
        """Columns as they lie in the file, without decoding them: where this is the same, the values are."""
        meta = self._file.metadata
        places = {name: place for place, name in enumerate(meta.schema.names) if name in names}
        told: list[Any] = []
        for group in range(meta.num_row_groups):
            for name, place in places.items():
                chunk = meta.row_group(group).column(place)
                begin = chunk.dictionary_page_offset or chunk.data_page_offset
                told += [name, chunk.physical_type, chunk.compression, chunk.num_values]
                told.append(self._data[begin : begin + chunk.total_compressed_size])
        return tuple(told)


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Errors of a file say which one it is."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise ResultReadError(f"{where}: cannot be read: {first_line(error)}") from error


def of_types(table: Any, schema: Any) -> Any:
    """The table with the schema's types, as far as it has its columns; no value may change on the way.

    Raises:
        pa.ArrowInvalid: A column has values that are not of its type; the message names it.
    """
    for place, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
        kind = schema.field(name).type if name in schema.names else column.type
        if column.type != kind:
            try:
                table = table.set_column(place, name, column.cast(kind))
            except pa.ArrowException as error:
                raise pa.ArrowInvalid(f"column {name} is of {column.type}, not of {kind}") from error
    return table


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
            column_types={name: _CSV_TYPES[kind] for name, kind in _POWER_TYPES.items()},
        ),
    )
    with GroupedWriter(target, POWER_SCHEMA, **POWER_OPTIONS) as writer:
        for batch in reader:
            writer.write(_narrow(pa.Table.from_batches([batch])))
    return writer.rows


def requests_to_parquet(source: Path, target: Path) -> tuple[int, int]:
    """Convert requests.jsonl.

    Returns:
        Rows written, and lines that could not be read.
    """
    rows = broken = 0
    with source.open("rb") as lines, pq.ParquetWriter(target, REQUESTS_SCHEMA, compression="zstd") as writer:
        while batch := list(itertools.islice(lines, _LINES_PER_BATCH)):
            found = [row for line in batch if isinstance(row := _decoded(line), dict)]
            writer.write_table(pa.Table.from_pylist(found, schema=REQUESTS_SCHEMA))
            rows += len(found)
            broken += len(batch) - len(found)
    return rows, broken


def _decoded(line: bytes) -> Any:
    try:
        return parsed_json(line)
    except (ValueError, RecursionError):
        return None


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
