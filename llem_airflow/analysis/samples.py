"""Power samples as numpy columns: 20 times cheaper to take apart than dictionary-coded Arrow columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Labels:
    """A column of texts that repeat.

    Attributes:
        codes: For each row its position in ``names``; -1 is "not known".
        names: The distinct texts.
    """

    codes: NDArray[np.int64]
    names: tuple[str, ...]

    @classmethod
    def of(cls, items: Iterable[Any]) -> Labels:
        """The labels of a list; what is not a text is not known."""
        seen: dict[str, int] = {}
        codes = [seen.setdefault(item, len(seen)) if isinstance(item, str) else -1 for item in items]
        return cls(np.array(codes, dtype=np.int64), tuple(seen))

    def __getitem__(self, row: int) -> str | None:
        code = self.codes[row]
        return self.names[code] if code >= 0 else None

    def __iter__(self) -> Iterator[str | None]:
        return (self.names[code] if code >= 0 else None for code in self.codes.tolist())

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: NDArray[np.int64] | slice) -> Labels:
        """Some of the rows."""
        return Labels(self.codes[rows], self.names)


def columns(table: Any) -> dict[str, Any]:
    """Each column of power.parquet: numbers as arrays (NaN is "not known"), texts as ``Labels``."""
    return {name: column(table, name) for name in table.schema.names}


def column(table: Any, name: str) -> Any:
    """One column, as in ``columns``."""
    found = table.column(name)
    if pa.types.is_dictionary(found.type):
        return labels(table, name)
    if found.null_count:
        return found.cast("float64").to_numpy(zero_copy_only=False)
    return found.to_numpy()


def labels(table: Any, name: str) -> Labels:
    """A dictionary-coded column."""
    found = table.column(name).unify_dictionaries().combine_chunks()
    if isinstance(found, pa.ChunkedArray):  # an empty table keeps its chunks
        found = found.chunk(0) if found.num_chunks else pa.array([], found.type)
    codes: NDArray[np.int64] = found.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return Labels(codes, tuple(found.dictionary.to_pylist()))
