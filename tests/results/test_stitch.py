from __future__ import annotations

import io
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llem_airflow.results.convert import POWER_SCHEMA, writer_options
from llem_airflow.results.footer import FooterError, encode, read_footer
from llem_airflow.results.stitch import Encoded, StitchedFile

ROWS = 40
ADDED = pa.schema([("t", pa.timestamp("ns", tz="UTC")), ("phase", pa.dictionary(pa.int32(), pa.string()))])
WHOLE = pa.schema([*ADDED, *POWER_SCHEMA], metadata={"llem_schema_version": "1"})


def _samples(seed: int) -> Any:
    """Every column, with rows that are not known."""
    rows: dict[str, Any] = {}
    for field in POWER_SCHEMA:
        values = [None if (row + seed) % 7 == 0 else row * seed for row in range(ROWS)]
        if pa.types.is_dictionary(field.type):
            rows[field.name] = pa.array(
                [None if value is None else f"GPU-{value % 3}" for value in values]
            ).dictionary_encode()
        else:
            rows[field.name] = pa.array(values, field.type)
    return pa.table(rows).cast(POWER_SCHEMA)


def _added() -> Any:
    phases = pa.array(["load", "measure"] * (ROWS // 2)).dictionary_encode()
    return pa.table({"t": pa.array(range(ROWS)).cast(ADDED.field("t").type), "phase": phases}, schema=ADDED)


def _encoded(*seeds: int) -> Encoded:
    return Encoded.of(map(_samples, seeds), POWER_SCHEMA, **writer_options())


def _stitched(*parts: tuple[Encoded, ...]) -> bytes:
    file = io.BytesIO()
    whole = StitchedFile(file, WHOLE)
    for side_by_side in parts:
        whole.add(*side_by_side)
    whole.close()
    return file.getvalue()


def test_a_stitched_file_has_the_rows_of_its_parts_in_their_order() -> None:
    data = _stitched(
        (Encoded.of([_added(), _added()], ADDED), _encoded(1, 2)),
        (_encoded(3), Encoded.of([_added()], ADDED)),
    )
    file = pq.ParquetFile(io.BytesIO(data))
    assert file.schema_arrow.equals(WHOLE, check_metadata=True)
    assert (file.metadata.num_rows, file.metadata.num_row_groups) == (3 * ROWS, 3)
    found = file.read()
    found.validate(full=True)
    expected = pa.concat_tables([_samples(seed) for seed in (1, 2, 3)])
    assert found.select(POWER_SCHEMA.names).to_pylist() == expected.to_pylist()
    assert found.column("phase").to_pylist() == _added().column("phase").to_pylist() * 3
    assert list(pd.read_parquet(io.BytesIO(data))["t"]) == list(_added().to_pandas()["t"]) * 3


def test_readers_can_leave_out_row_groups_by_what_the_footer_says_of_them() -> None:
    data = _stitched((Encoded.of([_added(), _added()], ADDED), _encoded(1, 100)))
    metadata = pq.read_metadata(io.BytesIO(data))
    place = WHOLE.get_field_index("power_instant_mw")
    assert metadata.row_group(1).column(place).statistics.max == 100 * (ROWS - 1)
    found = pq.read_table(io.BytesIO(data), filters=[("power_instant_mw", ">", ROWS)])
    assert found.num_rows == sum(
        value is not None and value > ROWS for value in _samples(100)["power_instant_mw"].to_pylist()
    )


def test_a_file_with_other_columns_does_not_fit() -> None:
    whole = StitchedFile(io.BytesIO(), WHOLE)
    narrow = pa.schema(
        [field.with_type(pa.int32()) if field.name == "energy_mj" else field for field in POWER_SCHEMA]
    )
    assert whole.fits(_encoded(1), POWER_SCHEMA.names)
    assert not whole.fits(Encoded.of([_samples(1).cast(narrow)], narrow), POWER_SCHEMA.names)
    assert not whole.fits(Encoded.of([_added()], ADDED), POWER_SCHEMA.names)
    assert not whole.fits(Encoded(b"PAR1 cut off"), POWER_SCHEMA.names)


def test_row_groups_side_by_side_must_have_as_many_rows() -> None:
    with pytest.raises(ValueError, match=r"row groups side by side have \[20, 40\] rows"):
        _stitched((Encoded.of([_added().slice(0, 20)], ADDED), _encoded(1)))


def test_nested_columns_are_refused() -> None:
    nested = pa.schema([("tokens", pa.list_(pa.int64()))])
    with pytest.raises(ValueError, match="nested columns cannot be stitched"):
        StitchedFile(io.BytesIO(), nested).fits(_encoded(1), ["tokens"])


def test_a_footer_that_is_read_and_written_again_is_the_same() -> None:
    data = _encoded(1, 2).data
    length = int.from_bytes(data[-8:-4], "little")
    assert encode(read_footer(data)) == data[-8 - length : -8]


@pytest.mark.parametrize(
    "data", [b"", b"PAR1PAR1", b"PAR1" + b"\xff" * 40 + (40).to_bytes(4, "little") + b"PAR1"]
)
def test_what_is_no_parquet_file_is_refused(data: bytes) -> None:
    with pytest.raises(FooterError):
        read_footer(data)
