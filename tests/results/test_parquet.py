from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llem_airflow.protocol.files import POWER_COLUMNS
from llem_airflow.results import ResultReadError
from llem_airflow.results.parquet import (
    POWER_OPTIONS,
    POWER_SCHEMA,
    ROWS_PER_GROUP,
    GroupedWriter,
    TableFile,
    power_to_parquet,
    requests_to_parquet,
)

ROWS = 40


def _samples(seed: int, rows: int = ROWS) -> Any:
    """Every column, with rows that are not known and devices of its own."""
    table: dict[str, Any] = {}
    for field in POWER_SCHEMA:
        values = [None if (row + seed) % 7 == 0 else row * seed for row in range(rows)]
        if pa.types.is_dictionary(field.type):
            texts = [None if value is None else f"GPU-{seed}-{value % 3}" for value in values]
            table[field.name] = pa.array(texts, pa.string()).dictionary_encode()
        else:
            table[field.name] = pa.array(values, field.type)
    return pa.table(table).cast(POWER_SCHEMA)


def _written(*tables: Any, rows_per_group: int = ROWS_PER_GROUP) -> bytes:
    file = io.BytesIO()
    with GroupedWriter(file, POWER_SCHEMA, rows_per_group=rows_per_group, **POWER_OPTIONS) as writer:
        for table in tables:
            writer.write(table)
    assert writer.rows == sum(table.num_rows for table in tables)
    return file.getvalue()


def _group_rows(data: bytes) -> list[int]:
    metadata = pq.read_metadata(io.BytesIO(data))
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def test_small_tables_share_row_groups_and_keep_their_rows_and_order() -> None:
    tables = [_samples(1), _samples(2), _samples(3, 5 * ROWS), _samples(4, 0), _samples(5)]
    data = _written(*tables, rows_per_group=2 * ROWS)
    assert _group_rows(data) == [2 * ROWS, 5 * ROWS, ROWS]
    found = TableFile(data, "power.parquet").read()
    found.validate(full=True)
    assert found.schema.equals(POWER_SCHEMA, check_metadata=True)
    assert found.to_pylist() == [row for table in tables for row in table.to_pylist()]
    assert (
        list(pd.read_parquet(io.BytesIO(data))["gpu"].dropna()) == found.column("gpu").drop_null().to_pylist()
    )


def test_a_group_says_what_is_in_it_so_that_readers_can_leave_it_out() -> None:
    data = _written(_samples(1), _samples(100), rows_per_group=ROWS)
    column = pq.read_metadata(io.BytesIO(data)).row_group(1).column(POWER_SCHEMA.names.index("energy_mj"))
    assert column.statistics.max == 100 * (ROWS - 1)


def test_a_file_of_nothing_has_its_columns() -> None:
    assert TableFile(_written(), "power.parquet").read().schema.equals(POWER_SCHEMA, check_metadata=True)


def test_an_error_between_two_tables_is_what_the_caller_sees() -> None:
    def interrupted() -> None:
        with GroupedWriter(io.BytesIO(), POWER_SCHEMA) as writer:
            writer.write(_samples(1))
            raise KeyError("the caller's")

    with pytest.raises(KeyError, match="the caller's"):
        interrupted()


def test_a_long_series_has_row_groups_of_a_bounded_size(tmp_path: Path) -> None:
    rows = ROWS_PER_GROUP + 50_000
    lines = (
        f"{row},{row + 1},GPU-{row % 2},{row % 300}," + "," * (len(POWER_COLUMNS) - 5) for row in range(rows)
    )
    (tmp_path / "power.csv").write_text("\n".join([",".join(POWER_COLUMNS), *lines, "9,9,GPU-0"]))
    assert power_to_parquet(tmp_path / "power.csv", tmp_path / "power.parquet") == rows
    data = (tmp_path / "power.parquet").read_bytes()
    assert sum(_group_rows(data)) == rows
    assert len(_group_rows(data)) == 2
    assert TableFile(data, "power.parquet").read().column("t_before_mono_ns").to_pylist() == list(range(rows))


@pytest.mark.parametrize("broken", [b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_lines_of_requests_that_cannot_be_read_are_counted(tmp_path: Path, broken: bytes) -> None:
    lines = [json.dumps({"request_id": f"r{index}"}).encode() for index in range(12_000)]
    (tmp_path / "requests.jsonl").write_bytes(b"\n".join([*lines[:7_000], broken, *lines[7_000:]]))
    assert requests_to_parquet(tmp_path / "requests.jsonl", tmp_path / "requests.parquet") == (12_000, 1)
    found = pq.read_table(tmp_path / "requests.parquet")
    assert found.column("request_id").to_pylist() == [f"r{index}" for index in range(12_000)]


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(ResultReadError, match=r"power.parquet: cannot be read: there is no column watts"):
        TableFile(_written(_samples(1)), "power.parquet").read(["watts"])


@pytest.mark.parametrize("data", [b"", b"PAR1PAR1", b"PAR1 cut off"])
def test_what_is_no_parquet_file_is_named(data: bytes) -> None:
    with pytest.raises(ResultReadError, match=r"power.parquet: cannot be read: "):
        TableFile(data, "power.parquet").read()


def test_columns_as_they_are_stored_are_equal_where_their_values_are() -> None:
    def stored(*names: str, **columns: Any) -> tuple[Any, ...]:
        told = io.BytesIO()
        table = {"host": ["gpu1", "gpu1"], "joules": [1.0, 2.0], "flags": [["a"], []], **columns}
        pq.write_table(pa.table(table), told, compression="zstd", row_group_size=1)
        return TableFile(told.getvalue(), "cycles.parquet").stored(names)

    assert stored("host") == stored("host", joules=[3.0, 4.0]) != stored("host", "joules")
    for other in (["gpu1", "gpu2"], ["gpu2", "gpu1"], ["gpu1", None], ["gpu1"] * 2 + ["gpu2"]):
        rows = {"joules": [1.0] * len(other), "flags": [[]] * len(other)}
        assert stored("host", host=other, **rows) != stored("host"), other
    assert stored("nothing") == ()
    assert stored("joules", joules=[1, 2]) != stored("joules")
