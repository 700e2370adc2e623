"""The power series of all cycles of a run as one table on absolute time, written as a stream."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llem_airflow.analysis.cycle import Reading
from llem_airflow.analysis.timeline import epoch_ns, phase_codes
from llem_airflow.results.convert import POWER_SCHEMA, writer_options

_NAMES = pa.dictionary(pa.int32(), pa.string())
_CARRIED = [field for field in POWER_SCHEMA if field.name not in {"t_before_mono_ns", "t_after_mono_ns"}]

MERGED_SCHEMA = pa.schema(
    [
        ("t_epoch", pa.timestamp("ns", tz="UTC")),
        ("t_mono_ns", pa.int64()),
        ("experiment", _NAMES),
        ("cycle", pa.int32()),
        ("phase", _NAMES),
        *_CARRIED,
    ],
    metadata={"llem_schema_version": "1"},
)
"""Columns of the merged power.parquet. Times are the midpoint of the call that read the sample."""


class PowerMerge:
    """Writer of the merged series: one row group a cycle, so that memory is bounded by the longest cycles.

    Rows are in time order within a cycle, and cycles in the order in which they are added (run order). No row
    is dropped and no series of one sensor is averaged with another. A cycle is written while the next one is read:
    encoding is a third of the work and needs no interpreter.
    """

    def __init__(self, file: IO[bytes]) -> None:
        """Write to ``file``."""
        ascending = dict.fromkeys(("t_epoch", "t_mono_ns", "energy_mj"), "DELTA_BINARY_PACKED")
        options = writer_options() | {"column_encoding": ascending}
        self._writer = pq.ParquetWriter(file, MERGED_SCHEMA, **options)
        self._thread = ThreadPoolExecutor(1)
        self._under_way: Future[None] | None = None
        self.rows = 0

    def __enter__(self) -> PowerMerge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if kind is None:
            self._wait()
        self._writer.close()

    def add(self, experiment: str, cycle: int, reading: Reading) -> int:
        """Append the samples of one cycle.

        Returns:
            Number of rows appended.
        """
        table = reading.power
        if not table.num_rows or not reading.result.anchors:
            return 0
        rows = merged(experiment, cycle, reading)
        self._wait()
        self._under_way = self._thread.submit(self._writer.write_table, rows)
        self.rows += int(table.num_rows)
        return int(table.num_rows)

    def _wait(self) -> None:
        """Until the last cycle is written; raises what went wrong."""
        if self._under_way:
            self._under_way.result()


def merged(experiment: str, cycle: int, reading: Reading) -> Any:
    """The samples of one cycle with absolute time, phase and names, in time order."""
    table = reading.power
    mono = midpoints_ns(table)
    order = np.argsort(mono, kind="stable")
    if np.any(order[1:] < order[:-1]):
        table, mono = table.take(pa.array(order)), mono[order]
    codes, names = phase_codes(mono, reading.phases)
    rows = table.num_rows
    columns = {
        "t_epoch": pa.array(epoch_ns(mono, reading.result.anchors)).cast(MERGED_SCHEMA.field("t_epoch").type),
        "t_mono_ns": pa.array(mono),
        "experiment": _constant(experiment, rows),
        "cycle": pa.array(np.full(rows, cycle, dtype=np.int32)),
        "phase": pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(names)),
    }
    columns |= {field.name: table.column(field.name) for field in _CARRIED}
    return pa.table(columns, schema=MERGED_SCHEMA)


def midpoints_ns(table: Any) -> Any:
    """Middle of the call that read each sample, on the monotonic clock, in nanoseconds, as a numpy array."""
    before = table.column("t_before_mono_ns").to_numpy()
    after = table.column("t_after_mono_ns").to_numpy()
    return before + (after - before) // 2


def _constant(text: str, rows: int) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int32)), pa.array([text]))
