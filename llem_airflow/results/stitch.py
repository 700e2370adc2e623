"""Parquet files put together from column chunks that are encoded already: what is copied cannot change.

A merged series has the samples of its cycles and a few more columns. Decoding and encoding the samples again would be
most of the work of a merge; a column chunk does not know in which file it lies, so it can be copied as it is, and
only the footer is new. pyarrow's writer takes decoded columns alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from llem_airflow.results.footer import (
    BINARY,
    I64,
    LIST,
    MAGIC,
    STRUCT,
    FooterError,
    Struct,
    encode,
    read_footer,
)

_SCHEMA, _ROWS, _GROUPS = 2, 3, 4  # of FileMetaData
_CHUNKS, _BYTES, _GROUP_ROWS, _OFFSET, _STORED_BYTES = 1, 2, 3, 5, 6  # of RowGroup
_CHUNK_OFFSET, _META = 2, 3  # of ColumnChunk
_PATH, _CHUNK_BYTES, _CHUNK_STORED_BYTES, _PAGES, _INDEX, _DICTIONARY = (
    3,
    6,
    7,
    9,
    10,
    11,
)  # of ColumnMetaData
_LEFT_OUT = (_INDEX, 13, 14, 15, 16)
"""Where an index and a Bloom filter lay, and counts of pages and bytes that no reader needs: 10,000 cycles are many."""
_NAME, _CHILDREN = 4, 5  # of SchemaElement


@dataclass(frozen=True)
class Encoded:
    """A Parquet file in memory.

    Attributes:
        data: Its bytes.
    """

    data: bytes

    @classmethod
    def of(cls, tables: Iterable[Any], schema: Any, **options: Any) -> Encoded:
        """Tables of one schema as a file with a row group each.

        Args:
            tables: The tables.
            schema: Their schema.
            options: As for ``pq.ParquetWriter``.
        """
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, schema, **options) as writer:
            for table in tables:
                writer.write_table(table, row_group_size=max(table.num_rows, 1))
        return cls(sink.getvalue().to_pybytes())

    @cached_property
    def footer(self) -> Struct:
        """Its footer.

        Raises:
            FooterError: There is none.
        """
        return read_footer(self.data)

    @cached_property
    def elements(self) -> dict[bytes, Struct]:
        """The schema's columns by name; nested ones are not for stitching."""
        _, (_, *columns) = self.footer[_SCHEMA][1]
        return {column[_NAME][1]: column for column in _flat(columns)}

    @property
    def groups(self) -> list[Struct]:
        """Its row groups."""
        found: list[Struct] = self.footer[_GROUPS][1][1]
        return found

    @property
    def group_rows(self) -> list[int]:
        """Rows of each row group."""
        return [group[_GROUP_ROWS][1] for group in self.groups]


class StitchedFile:
    """Writer of a Parquet file whose row groups take their columns from other Parquet files."""

    def __init__(self, file: IO[bytes], schema: Any) -> None:
        """Write to ``file``.

        Args:
            file: Where to write.
            schema: Of the whole; flat columns alone.
        """
        self._file = file
        self._template = Encoded.of([], schema)
        self._groups: list[bytes] = []
        self._at = 0
        self.rows = 0
        self._write(MAGIC)

    def fits(self, part: Encoded, columns: Iterable[str]) -> bool:
        """Whether a file has these columns exactly as the whole has them."""
        try:
            ours, theirs = self._template.elements, part.elements
        except FooterError:
            return False
        return all(theirs.get(name.encode()) == ours[name.encode()] for name in columns)

    def add(self, *parts: Encoded) -> None:
        """Append the rows of files that lie side by side, of the same row groups; each column is in one of them."""
        for groups in zip(*(part.groups for part in parts), strict=True):
            rows = {group[_GROUP_ROWS][1] for group in groups}
            if len(rows) != 1:
                raise ValueError(f"row groups side by side have {sorted(rows)} rows")
            chunks = {
                chunk[_META][1][_PATH][1][1][0]: (chunk, part.data)
                for group, part in zip(groups, parts, strict=True)
                for chunk in group[_CHUNKS][1][1]
            }
            self._add_group(chunks, rows.pop())

    def close(self) -> None:
        """Write the footer."""
        footer = {
            **self._template.footer,
            _ROWS: (I64, self.rows),
            _GROUPS: (LIST, (STRUCT, self._groups)),
        }
        data = encode(footer)
        self._write(data + len(data).to_bytes(4, "little") + MAGIC)

    def _add_group(self, chunks: dict[bytes, tuple[Struct, bytes]], rows: int) -> None:
        begin = self._at
        moved = [self._copy(*chunks[name]) for name in self._template.elements]
        size = sum(chunk[_META][1][_CHUNK_BYTES][1] for chunk in moved)
        group: Struct = {
            _CHUNKS: (LIST, (STRUCT, moved)),
            _BYTES: (I64, size),
            _GROUP_ROWS: (I64, rows),
            _OFFSET: (I64, begin),
            _STORED_BYTES: (I64, self._at - begin),
        }
        self._groups.append(encode(group))
        self.rows += rows

    def _copy(self, chunk: Struct, data: bytes) -> Struct:
        """Write a column chunk here; returns what the footer says of it."""
        meta: Struct = dict(chunk[_META][1])
        places = [place for place in (_PAGES, _DICTIONARY) if place in meta and meta[place][1] > 0]
        begin = min(meta[place][1] for place in places)
        shift = self._at - begin
        self._write(data[begin : begin + meta[_CHUNK_STORED_BYTES][1]])
        for place in places:
            meta[place] = (I64, meta[place][1] + shift)
        for field in _LEFT_OUT:
            meta.pop(field, None)
        return {_CHUNK_OFFSET: (I64, 0), _META: (STRUCT, meta)}

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._at += len(data)


def _flat(columns: list[Struct]) -> list[Struct]:
    nested = [column[_NAME][1].decode() for column in columns if column.get(_CHILDREN, (BINARY, 0))[1]]
    if nested:
        raise ValueError(f"{', '.join(nested)}: nested columns cannot be stitched")
    return columns
