"""Power samples as numpy columns: 20 times cheaper to take apart than dictionary-coded Arrow columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def columns(table: Any) -> dict[str, Any]:
    """Each column of power.parquet: times and other numbers as arrays (NaN is "not known"), texts as lists."""
    return {name: column(table, name) for name in table.schema.names}


def column(table: Any, name: str) -> Any:
    """One column, as in ``columns``."""
    found = table.column(name)
    if pa.types.is_dictionary(found.type):
        codes, names = coded(table, name)
        return np.array([*names, None], dtype=object)[codes].tolist()
    if found.null_count:
        return found.cast("float64").to_numpy(zero_copy_only=False)
    return found.to_numpy()


def coded(table: Any, name: str) -> tuple[NDArray[np.int64], list[str]]:
    """A dictionary-coded column as positions in a list of names; -1 is "not known"."""
    found = table.column(name).unify_dictionaries().combine_chunks()
    if isinstance(found, pa.ChunkedArray):  # an empty table keeps its chunks
        found = found.chunk(0) if found.num_chunks else pa.array([], found.type)
    codes: NDArray[np.int64] = found.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, found.dictionary.to_pylist()
