"""Prompts of a file: everything that can be wrong with it is told here, with file and row, before anything starts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llem_airflow.study.mistakes import PromptsError

COLUMNS = ("prompt", "text", "instruction", "input", "question")
"""Fields of a record that may hold the prompt, in the order in which they are tried."""
MAX_FILE_BYTES = 256 * 1024 * 1024
MAX_LINE_BYTES = 16 * 1024 * 1024
_MOST_UNPACKED_BYTES = 4 * MAX_FILE_BYTES

Record = tuple[dict[str, Any], str]
"""A record of the file and its prompt."""

_BEGINS = {
    b"version https://git-lfs": ("is a Git LFS pointer, not the file", "fetch it: git lfs pull"),
    b"\x1f\x8b": ("is compressed with gzip", "unpack it: gunzip"),
    b"\x28\xb5\x2f\xfd": ("is compressed with zstd", "unpack it: unzstd"),
    b"BZh": ("is compressed with bzip2", "unpack it: bunzip2"),
    b"\xfd7zXZ": ("is compressed with xz", "unpack it: unxz"),
    b"PK\x03\x04": ("is a ZIP archive", "unpack it"),
    b"\xff\xfe": ("is UTF-16", "save it as UTF-8"),
    b"\xfe\xff": ("is UTF-16", "save it as UTF-8"),
}
_PARQUET = b"PAR1"


def read_prompts(path: Path, source: str, n_prompts: int) -> list[Record]:
    """Every record that holds a prompt, with it.

    Records without one, and header lines (keys that begin with ``_``), are left out.

    Args:
        path: The file: JSON lines, or Parquet.
        source: What the study calls it.
        n_prompts: How many there must be at least.

    Raises:
        PromptsError: It cannot be read, a prompt cannot be used, or there are too few; with the row, from 1.
    """
    left_out: dict[str, list[int]] = {}
    try:
        records = [
            found
            for row, record in _rows(path, source)
            if (found := _prompt_of(record, source, row, left_out))
        ]
    except FileNotFoundError:
        raise _wrong(source, f"no such file: {path}", "paths are relative to the study file") from None
    except OSError as error:
        raise _wrong(source, f"cannot be read: {error.strerror or error}", "check the file") from error
    if len(records) >= n_prompts:
        return records
    rest = ", ".join(f"{len(rows)} {why}, the first in row {rows[0]}" for why, rows in left_out.items())
    rest = f" ({rest})" if rest else ""
    if not records:
        raise PromptsError(
            f"task.dataset.source: {source!r} has no prompts: no record has one of the columns {', '.join(COLUMNS)} "
            f"with a text in it{rest}"
        )
    raise PromptsError(
        f"task.dataset.n_prompts: {source!r} has {len(records)} usable prompts{rest} but n_prompts is {n_prompts}; "
        f"set n_prompts to {len(records)} or less, or name a larger file"
    )


def _rows(path: Path, source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.is_dir():
        raise _wrong(source, "is a folder", "name a .jsonl or .parquet file")
    if path.exists() and not path.is_file():  # opening a pipe waits for ever
        raise _wrong(source, "is no regular file", "name a .jsonl or .parquet file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise _wrong(source, f"is larger than {MAX_FILE_BYTES // 1024**2} MiB", "use a sample of it")
    with path.open("rb") as file:
        begin = file.read(32)
    if not begin:
        raise _wrong(source, "is empty", "each line is one JSON object with a prompt")
    for sign, (what, hint) in _BEGINS.items():
        if begin.startswith(sign):
            raise _wrong(source, what, hint)
    if begin.startswith(_PARQUET) != (path.suffix == ".parquet"):
        is_one = begin.startswith(_PARQUET)
        raise _wrong(
            source, "is Parquet" if is_one else "is no Parquet file", "rename it, or save it as it is named"
        )
    return _parquet(path, source) if path.suffix == ".parquet" else _lines(path, source)


def _lines(path: Path, source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise _at(
                    f"{source}:{number}",
                    f"the line is longer than {MAX_LINE_BYTES // 1024**2} MiB",
                    "shorten it",
                )
            record = _json(line, f"{source}:{number}", first=number == 1)
            if record is not None and not any(key.startswith("_") for key in record):
                yield number, record


def _json(line: bytes, place: str, *, first: bool) -> dict[str, Any] | None:
    """The record of a line, or None for an empty one."""
    each = "each line is one JSON object"
    try:
        text = line.decode("utf-8-sig" if first else "utf-8")
        record = json.loads(text) if text.strip() else {}
    except UnicodeDecodeError as error:
        raise _at(
            place, f"cannot be read: byte 0x{line[error.start]:02x} is not UTF-8", "save the file as UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        raise _at(place, f"not JSON: {error}", each) from error
    if not isinstance(record, dict):
        raise _at(place, "not an object", each)
    return record if text.strip() else None


def _parquet(path: Path, source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa  # noqa: PLC0415  # reading a study loads no Arrow
    import pyarrow.parquet as pq  # noqa: PLC0415  # as above

    row = 0
    try:
        with pq.ParquetFile(path) as file:
            known = file.schema_arrow.names
            wanted = [name for name in (*COLUMNS, "source") if known.count(name) == 1]
            if not set(wanted) & set(COLUMNS):
                raise _wrong(
                    source,
                    f"has no prompts: none of its columns ({', '.join(known[:20])}) is one of {', '.join(COLUMNS)}",
                    "rename the column that holds them",
                )
            unpacked = sum(file.metadata.row_group(n).total_byte_size for n in range(file.num_row_groups))
            if unpacked > _MOST_UNPACKED_BYTES:
                raise _wrong(source, f"unpacks to {unpacked / 1024**3:.1f} GiB", "use a sample of it")
            for batch in file.iter_batches(columns=wanted, batch_size=1024):
                for record in batch.to_pylist():
                    row += 1
                    yield row, record
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        if isinstance(error, PromptsError):
            raise
        reason = f"{error}".strip().partition("\n")[0][:200]
        after = f" after row {row}" if row else ""
        raise _wrong(
            source, f"is a broken or cut-off Parquet file{after}: {reason}", "copy or make it again"
        ) from error


def _prompt_of(
    record: dict[str, Any], source: str, row: int, left_out: dict[str, list[int]]
) -> Record | None:
    there = [name for name in COLUMNS if name in record]
    for column in there:
        prompt = record[column]
        if isinstance(prompt, str) and prompt.strip():
            return record, _usable(prompt.strip(), f"{source}:{row}", column)
    why = "without such a column" if not there else "empty"
    if there and not (record[there[0]] is None or isinstance(record[there[0]], str)):
        why = "of another type than text"
    left_out.setdefault(why, []).append(row)
    return None


def _usable(prompt: str, place: str, column: str) -> str:
    """The prompt, which an engine's tokenizer and the files of the evidence can hold."""
    if "\0" in prompt:
        raise _at(place, f"{column} has the character U+0000", "delete it")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        sign = ord(prompt[error.start])
        raise _at(
            place,
            f"{column} has U+{sign:04X}, half of a character",
            "write the whole character, or delete it",
        ) from error
    return prompt


def _wrong(source: str, what: str, hint: str) -> PromptsError:
    return PromptsError(f"task.dataset.source: {source!r}: {what}; {hint}")


def _at(place: str, what: str, hint: str) -> PromptsError:
    return PromptsError(f"task.dataset.source: {place}: {what}; {hint}")
