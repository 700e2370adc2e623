"""The power samples of a stored cycle: all as a table, and the columns to compute with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llem_airflow.analysis.power_series import COLUMNS
from llem_airflow.analysis.samples import columns
from llem_airflow.results import CycleRef, ResultReadError, layout
from llem_airflow.results.parquet import POWER_SCHEMA, decode_table


@dataclass(frozen=True, slots=True)
class StoredPower:
    """Power samples of one cycle.

    Attributes:
        columns: As ``samples.columns``; without rows when the series is absent or damaged.
        table: Every column, as it is stored; None when there are no samples.
        as_committed: Whether the file is, byte for byte, what was committed; None where nobody kept its hash.
        problem: Why there are no samples although there should be, or None.
    """

    columns: Mapping[str, Any]
    table: Any | None
    as_committed: bool | None
    problem: str | None


def stored_power(ref: CycleRef, record: Mapping[str, Any], *, expected: bool) -> StoredPower:
    """Read the power samples of a cycle.

    Args:
        ref: The cycle.
        record: Its provenance, which has the hashes.
        expected: Whether there should be samples.
    """
    where = f"{ref.folder.url}/{layout.POWER}"
    try:
        data = ref.power_file()
        as_committed = _is_committed(data, record)
        table = decode_table(data, where)
        _require_times(table, where)
    except ResultReadError as error:
        return StoredPower(columns(POWER_SCHEMA.empty_table()), None, None, str(error) if expected else None)
    needed = columns(table.select([name for name in COLUMNS if name in table.column_names]))
    return StoredPower(needed, table if table.num_rows else None, as_committed, None)


def _require_times(table: Any, where: str) -> None:
    if any(table.column(name).null_count for name in ("t_before_mono_ns", "t_after_mono_ns")):
        raise ResultReadError(f"{where}: a row has no time")


def _is_committed(data: bytes, record: Mapping[str, Any]) -> bool | None:
    hashes = record.get("sha256")
    known = hashes.get(layout.POWER) if isinstance(hashes, Mapping) else None
    return None if known is None else hashlib.sha256(data).hexdigest() == known
