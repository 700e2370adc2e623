"""The footer of a Parquet file as plain values that can be changed and written again (Thrift's compact protocol).

pyarrow shows a footer but cannot move a column chunk to another place, which is all that ``stitch`` needs. A struct
is ``{field id: (type, value)}``, a list ``(type of its items, items)``; what the fields mean is said in parquet.thrift.
"""

from __future__ import annotations

from typing import Any

MAGIC = b"PAR1"
TRUE, FALSE, BYTE, I16, I32, I64, BINARY, LIST, SET, STRUCT = 1, 2, 3, 4, 5, 6, 8, 9, 10, 12

Struct = dict[int, tuple[int, Any]]


class FooterError(ValueError):
    """The bytes are no Parquet footer."""


def read_footer(data: bytes) -> Struct:
    """The footer of a Parquet file.

    Raises:
        FooterError: There is none.
    """
    length = int.from_bytes(data[-8:-4], "little")
    if data[:4] != MAGIC or data[-4:] != MAGIC or length + 12 > len(data):
        raise FooterError("not a Parquet file")
    try:
        return _Reader(data, len(data) - 8 - length).struct()
    except IndexError as error:
        raise FooterError(f"the footer does not read: {error}") from error


def encode(fields: Struct) -> bytes:
    """A struct as bytes. A struct in it may be bytes already."""
    out = bytearray()
    _write_struct(out, fields)
    return bytes(out)


class _Reader:
    """Every cycle of a run has a footer of some 500 values, hence the few calls a value."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at

    def struct(self) -> Struct:
        found: Struct = {}
        field, data = 0, self._data
        while True:
            head = data[self._at]
            self._at += 1
            if not head:
                return found
            kind = head & 15
            field = field + (head >> 4) if head > 15 else self._number()
            found[field] = (kind, self._value(kind))

    def _value(self, kind: int) -> Any:
        if I16 <= kind <= I64:
            return self._number()
        if kind == BINARY:
            length = self._varint()
            begin, self._at = self._at, self._at + length
            return self._data[begin : self._at]
        if kind == STRUCT:
            return self.struct()
        if kind in {LIST, SET}:
            return self._list()
        if kind in {TRUE, FALSE}:
            return kind == TRUE
        if kind == BYTE:
            self._at += 1
            return self._data[self._at - 1]
        raise FooterError(f"type {kind} is not used in footers")

    def _list(self) -> tuple[int, list[Any]]:
        head = self._data[self._at]
        self._at += 1
        size, kind = head >> 4, head & 15
        if size == 15:
            size = self._varint()
        value = self._value
        return kind, [value(BYTE) == TRUE if kind in {TRUE, FALSE} else value(kind) for _ in range(size)]

    def _varint(self) -> int:
        data, at = self._data, self._at
        found = data[at]
        if found > 127:
            found &= 127
            shift = 7
            while (byte := data[at := at + 1]) > 127:
                found |= (byte & 127) << shift
                shift += 7
            found |= byte << shift
        self._at = at + 1
        return found

    def _number(self) -> int:
        found = self._varint()
        return (found >> 1) ^ -(found & 1)


def _write_struct(out: bytearray, fields: Struct) -> None:
    last = 0
    for field, (kind, value) in sorted(fields.items()):
        if 0 < field - last < 16:
            out.append((field - last) << 4 | kind)
        else:
            out.append(kind)
            _write_varint(out, field << 1)
        last = field
        if kind not in {TRUE, FALSE}:
            _write(out, kind, value)
    out.append(0)


def _write(out: bytearray, kind: int, value: Any) -> None:
    if kind in {I16, I32, I64}:
        _write_varint(out, value << 1 if value >= 0 else (-value << 1) - 1)
    elif kind == BINARY:
        _write_varint(out, len(value))
        out += value
    elif kind in {LIST, SET}:
        _write_list(out, *value)
    elif kind == STRUCT:
        if isinstance(value, bytes):
            out += value
        else:
            _write_struct(out, value)
    else:
        out.append(value)


def _write_list(out: bytearray, kind: int, items: list[Any]) -> None:
    if len(items) < 15:
        out.append(len(items) << 4 | kind)
    else:
        out.append(0xF0 | kind)
        _write_varint(out, len(items))
    for item in items:
        if kind in {TRUE, FALSE}:
            out.append(TRUE if item else FALSE)
        else:
            _write(out, kind, item)


def _write_varint(out: bytearray, value: int) -> None:
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
