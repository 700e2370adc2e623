"""The power series of all cycles of a run as one table on absolute time, written as a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llem_airflow.analysis.cycle import Reading
from llem_airflow.analysis.timeline import epoch_ns, phase_codes
from llem_airflow.results.convert import POWER_SCHEMA, writer_options
from llem_airflow.results.cycles import decoded
from llem_airflow.results.stitch import Encoded, StitchedFile

_NAMES = pa.dictionary(pa.int32(), pa.string())
_ADDED_SCHEMA = pa.schema(
    [
        ("t_epoch", pa.timestamp("ns", tz="UTC")),
        ("t_mono_ns", pa.int64()),
        ("experiment", _NAMES),
        ("cycle", pa.int32()),
        ("phase", _NAMES),
    ]
)
_CARRIED_SCHEMA = pa.schema(
    [field for field in POWER_SCHEMA if field.name not in {"t_before_mono_ns", "t_after_mono_ns"}]
)
MERGED_SCHEMA = pa.schema([*_ADDED_SCHEMA, *_CARRIED_SCHEMA], metadata={"llem_schema_version": "1"})
"""Columns of the merged power.parquet. Times are the midpoint of the call that read the sample."""

_ADDED_OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": ["experiment", "cycle", "phase"],
    "column_encoding": dict.fromkeys(("t_epoch", "t_mono_ns"), "DELTA_BINARY_PACKED"),
}


class PowerMerge:
    """Writer of the merged series: the row groups of each cycle, so that memory is bounded by the longest one.

    Rows are in time order within a cycle, and cycles in the order in which they are added (run order). No row
    is dropped and no series of one sensor is averaged with another. Samples are copied as they were encoded when they
    were committed; times, phase and names are new.
    """

    def __init__(self, file: IO[bytes]) -> None:
        """Write to ``file``."""
        self._whole = StitchedFile(file, MERGED_SCHEMA)

    def __enter__(self) -> PowerMerge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._whole.close()

    @property
    def rows(self) -> int:
        """Rows written so far."""
        return self._whole.rows

    def add(self, experiment: str, cycle: int, reading: Reading) -> int:
        """Append the samples of one cycle.

        Returns:
            Number of rows appended.
        """
        power = reading.power
        if power.file is None or not reading.result.anchors:
            return 0
        mono_ns = midpoints_ns(power.columns)
        order = None if (mono_ns[1:] >= mono_ns[:-1]).all() else np.argsort(mono_ns, kind="stable")
        samples = Encoded(power.file)
        if (
            order is not None
            or not power.as_committed
            or not self._whole.fits(samples, _CARRIED_SCHEMA.names)
        ):
            samples = _encoded_again(power.file, order)
        if order is not None:
            mono_ns = mono_ns[order]
        self._whole.add(_added(experiment, cycle, reading, mono_ns, samples.group_rows), samples)
        return len(mono_ns)


def _added(
    experiment: str, cycle: int, reading: Reading, mono_ns: NDArray[np.int64], group_rows: Sequence[int]
) -> Encoded:
    """The columns that the stored samples do not have, in row groups of the same sizes."""
    rows = len(mono_ns)
    codes, names = phase_codes(mono_ns, reading.phases)
    table = pa.table(
        {
            "t_epoch": pa.array(epoch_ns(mono_ns, reading.result.anchors)).cast(
                _ADDED_SCHEMA.field("t_epoch").type
            ),
            "t_mono_ns": pa.array(mono_ns),
            "experiment": pa.DictionaryArray.from_arrays(
                pa.array(np.zeros(rows, dtype=np.int32)), pa.array([experiment])
            ),
            "cycle": pa.array(np.full(rows, cycle, dtype=np.int32)),
            "phase": pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(names)),
        },
        schema=_ADDED_SCHEMA,
    )
    ends = np.cumsum(group_rows)
    return Encoded.of(
        (table.slice(end - size, size) for end, size in zip(ends, group_rows, strict=True)),
        _ADDED_SCHEMA,
        **_ADDED_OPTIONS,
    )


def _encoded_again(data: bytes, order: NDArray[np.int64] | None) -> Encoded:
    """Samples that cannot be copied as they are: not in time order, changed since, or of another version."""
    table = decoded(data, "power.parquet")
    if order is not None:
        table = table.take(pa.array(order))
    columns = {
        field.name: table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in _CARRIED_SCHEMA
    }
    return Encoded.of([pa.table(columns, schema=_CARRIED_SCHEMA)], _CARRIED_SCHEMA, **writer_options())


def midpoints_ns(power: Mapping[str, Any]) -> NDArray[np.int64]:
    """Middle of the call that read each sample, on the monotonic clock, in nanoseconds."""
    before: NDArray[np.int64] = power["t_before_mono_ns"]
    after: NDArray[np.int64] = power["t_after_mono_ns"]
    return before + (after - before) // 2
