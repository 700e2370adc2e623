"""Arrow tables as DataFrames with one nullable type a column, and values of any kind as one Arrow column."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

_TEXT = pd.StringDtype()
_DTYPES: Mapping[Any, Any] = {
    pa.int8(): pd.Int8Dtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.float32(): pd.Float32Dtype(),
    pa.float64(): pd.Float64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
    pa.string(): _TEXT,
    pa.large_string(): _TEXT,
    pa.null(): _TEXT,
}
_LARGEST_WHOLE, _LARGEST_IN_FLOAT = 2**63 - 1, 2**53


def typed(table: Any) -> pd.DataFrame:
    """An Arrow table as a DataFrame.

    Whole numbers become ``Int64`` (``Int32`` where they are stored so), others ``Float64``, truth values ``boolean``,
    text ``string``, names that repeat over many rows ``category``, times ``datetime64[ns, UTC]``, lists Arrow's lists.
    What is not known is ``NA`` in every one of them.
    """
    frame: pd.DataFrame = table.unify_dictionaries().to_pandas(types_mapper=_dtype)
    return frame


def joined(tables: Sequence[Any], schema: Any) -> Any:
    """Tables below each other: a column that one lacks is null there. Without a table, none of the schema's rows."""
    return pa.concat_tables(tables, promote_options="permissive") if tables else schema.empty_table()


def rows_table(rows: Sequence[Mapping[str, Any]], schema: Any) -> Any:
    """Rows as a table: the columns of the schema, then what else they have, as ``column`` types it."""
    kinds = {name: schema.field(name).type for name in schema.names}
    columns = dict.fromkeys([*kinds, *(name for row in rows for name in row)])
    return pa.table({name: column([row.get(name) for row in rows], kinds.get(name)) for name in columns})


def kind_of(values: Iterable[Any]) -> Any:
    """The Arrow type of a column that has to hold all the values; text where they are of several kinds."""
    known = [value for value in values if value is not None]
    kinds = {type(value) for value in known}
    if kinds == {bool}:
        return pa.bool_()
    largest = _LARGEST_IN_FLOAT if float in kinds else _LARGEST_WHOLE
    fits = all(abs(value) <= largest for value in known if isinstance(value, int))
    if kinds and kinds <= {int, float} and fits:
        return pa.float64() if float in kinds else pa.int64()
    return pa.string()


def column(values: Sequence[Any], kind: Any = None) -> Any:
    """Values as one Arrow column.

    Args:
        values: What a study file may hold; None is not known.
        kind: As ``kind_of`` says of more values than these; else of these. In text, what is not text is JSON.
    """
    kind = kind_of(values) if kind is None else kind
    if pa.types.is_string(kind):
        values = [value if value is None or isinstance(value, str) else as_json(value) for value in values]
    return pa.array(values, kind)


def as_json(value: Any) -> str:
    """A value as JSON, the same for equal values."""
    return json.dumps(value, sort_keys=True, default=str)


def _dtype(kind: Any) -> Any:
    return pd.ArrowDtype(kind) if pa.types.is_list(kind) else _DTYPES.get(kind)
