"""The power series of all cycles of a run as one table on absolute time, written as a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llem_airflow.analysis.cycle import Reading
from llem_airflow.analysis.timeline import epoch_ns, phase_codes
from llem_airflow.results.parquet import POWER_OPTIONS, POWER_SCHEMA, GroupedWriter

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
    metadata=POWER_SCHEMA.metadata,
)
"""Columns of the merged power.parquet. Times are the midpoint of the call that read the sample."""

_OPTIONS: dict[str, Any] = {
    **POWER_OPTIONS,
    "use_dictionary": [*POWER_OPTIONS["use_dictionary"], "experiment", "cycle", "phase"],
    "column_encoding": dict.fromkeys(("t_epoch", "t_mono_ns", "energy_mj"), "DELTA_BINARY_PACKED"),
}


class PowerMerge(GroupedWriter):
    """Writer of the merged series.

    Rows are in time order within a cycle, and cycles in the order in which they are added (run order). No row
    is dropped and no series of one sensor is averaged with another.
    """

    def __init__(self, file: IO[bytes]) -> None:
        """Write to ``file``."""
        super().__init__(file, MERGED_SCHEMA, **_OPTIONS)

    def add(self, experiment: str, cycle: int, reading: Reading) -> int:
        """Append the samples of one cycle.

        Returns:
            Number of rows appended.
        """
        samples = reading.power.table
        if samples is None or not reading.result.anchors:
            return 0
        mono_ns = midpoints_ns(reading.power.columns)
        if not (mono_ns[1:] >= mono_ns[:-1]).all():
            order = np.argsort(mono_ns, kind="stable")
            samples, mono_ns = samples.take(pa.array(order)), mono_ns[order]
        self.write(_merged(experiment, cycle, reading, samples, mono_ns))
        return len(mono_ns)


def _merged(experiment: str, cycle: int, reading: Reading, samples: Any, mono_ns: NDArray[np.int64]) -> Any:
    """The samples of a cycle with its names and absolute times; a column that they lack is null."""
    rows = len(mono_ns)
    codes, phases = phase_codes(mono_ns, reading.phases)
    columns = [
        pa.array(epoch_ns(mono_ns, reading.result.anchors)).cast(MERGED_SCHEMA.field("t_epoch").type),
        pa.array(mono_ns),
        pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int32)), pa.array([experiment])),
        pa.array(np.full(rows, cycle, dtype=np.int32)),
        pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(phases)),
        *(
            samples.column(field.name).cast(field.type)
            if field.name in samples.column_names
            else pa.nulls(rows, field.type)
            for field in _CARRIED
        ),
    ]
    return pa.Table.from_arrays(columns, schema=MERGED_SCHEMA)


def midpoints_ns(power: Mapping[str, Any]) -> NDArray[np.int64]:
    """Middle of the call that read each sample, on the monotonic clock, in nanoseconds."""
    before: NDArray[np.int64] = power["t_before_mono_ns"]
    after: NDArray[np.int64] = power["t_after_mono_ns"]
    return before + (after - before) // 2
