"""The power samples of a stored cycle: the columns to compute with, and the file that they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llem_airflow.analysis.power_series import COLUMNS
from llem_airflow.analysis.samples import columns
from llem_airflow.results import CycleRef, ResultReadError, names
from llem_airflow.results.convert import POWER_SCHEMA
from llem_airflow.results.cycles import decoded


@dataclass(frozen=True, slots=True)
class StoredPower:
    """Power samples of one cycle.

    Attributes:
        columns: As ``samples.columns``; without rows when the series is absent or damaged.
        file: The Parquet file that they were decoded from; None when there are no samples.
        as_committed: Whether that file is, byte for byte, what was committed; None where nobody kept its hash.
        problem: Why there are no samples although there should be, or None.
    """

    columns: Mapping[str, Any]
    file: bytes | None
    as_committed: bool | None
    problem: str | None


def stored_power(ref: CycleRef, record: Mapping[str, Any], *, expected: bool) -> StoredPower:
    """Read the power samples of a cycle.

    A file that is what was committed is known to be sound, so only what is computed with is decoded.

    Args:
        ref: The cycle.
        record: Its provenance, which has the hashes.
        expected: Whether there should be samples.
    """
    where = f"{ref.folder.url}/{names.POWER}"
    try:
        data = ref.power_file()
        as_committed = _is_committed(data, record)
        table = decoded(data, where, list(COLUMNS) if as_committed else None)
        _require_times(table, where)
    except ResultReadError as error:
        return StoredPower(columns(POWER_SCHEMA.empty_table()), None, None, str(error) if expected else None)
    return StoredPower(columns(table), data if table.num_rows else None, as_committed, None)


def _require_times(table: Any, where: str) -> None:
    if any(table.column(name).null_count for name in ("t_before_mono_ns", "t_after_mono_ns")):
        raise ResultReadError(f"{where}: a row has no time")


def _is_committed(data: bytes, record: Mapping[str, Any]) -> bool | None:
    hashes = record.get("sha256")
    known = hashes.get(names.POWER) if isinstance(hashes, Mapping) else None
    return None if known is None else hashlib.sha256(data).hexdigest() == known
