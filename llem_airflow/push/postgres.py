"""PostgreSQL, with Timescale's hypertable where its extension is there: a run is replaced as a whole, or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from llem_airflow.push.send import PushError
from llem_airflow.push.series import (
    CYCLE,
    CYCLE_FIELDS,
    CYCLE_TAGS,
    DEVICE,
    DEVICE_FIELDS,
    DEVICE_TAGS,
    Series,
)

_KEYS = {
    DEVICE: ("study", "run_id", "experiment", "cycle", "gpu", "t"),
    CYCLE: ("study", "run_id", "experiment", "cycle"),
}
_TAGS = {DEVICE: DEVICE_TAGS, CYCLE: CYCLE_TAGS}
_FIELDS = {DEVICE: tuple(DEVICE_FIELDS), CYCLE: CYCLE_FIELDS}
_KINDS = {"cycle": "integer", "doubtful": "boolean"}
_HYPERTABLE = "SELECT create_hypertable('llem_device', 't', if_not_exists => true, migrate_data => true)"


class Postgres:
    """A database of PostgreSQL, in one transaction from its opening to its end.

    Args:
        url: ``postgresql://[USER[:PASSWORD]@]HOST[:5432]/DATABASE``, or libpq's other forms.

    Raises:
        PushError: The database cannot be reached or used, or psycopg is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            import psycopg  # noqa: PLC0415  # an extra
        except ImportError:
            raise PushError("postgres needs psycopg: pip install 'llem-airflow[postgres]'") from None
        self._errors = psycopg.Error
        self._replaced: set[tuple[str, str, str]] = set()
        try:
            self._connection: Any = psycopg.connect(url, connect_timeout=15, options="-c timezone=UTC")
            self.place = (
                f"PostgreSQL at {self._connection.info.host or 'localhost'}/{self._connection.info.dbname}"
            )
        except psycopg.Error as error:
            raise PushError(f"PostgreSQL: {_said(error)}") from error
        try:
            self._make_tables()
        except psycopg.Error as error:
            self._connection.close()
            raise self._told(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        try:
            if kind is None:
                self._connection.commit()
        except self._errors as error:
            raise self._told(error) from error
        finally:
            self._connection.close()  # without a commit this rolls back

    def write(self, series: Sequence[Series]) -> int:
        """Write points, instead of all that the table had of their run. Returns their number."""
        written = 0
        try:
            with self._connection.cursor() as cursor:
                for table in (DEVICE, CYCLE):
                    mine = [one for one in series if one.table == table]
                    for one in mine:
                        self._clear(cursor, one)
                    if mine:
                        written += _copy(cursor, table, mine)
        except self._errors as error:
            raise self._told(error) from error
        return written

    def _make_tables(self) -> None:
        with self._connection.cursor() as cursor:
            # Two that write for the first time at the same moment would both make the tables.
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('llem_airflow'))")
            for table in (DEVICE, CYCLE):
                tags = ", ".join(f"{tag} {_KINDS.get(tag, 'text')}" for tag in _TAGS[table])
                cursor.execute(
                    f"CREATE TABLE IF NOT EXISTS {table} (t timestamptz NOT NULL, {tags}, factors jsonb NOT NULL, "
                    f"PRIMARY KEY ({', '.join(_KEYS[table])}))"
                )
                cursor.execute(
                    "SELECT column_name FROM information_schema.columns WHERE table_name = %s AND table_schema = "
                    "current_schema()",
                    [table],
                )
                there = {name for (name,) in cursor.fetchall()}
                for field in _FIELDS[table]:  # a newer release has more
                    if field not in there:
                        cursor.execute(f"ALTER TABLE {table} ADD COLUMN {field} double precision")
            cursor.execute("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'")
            if cursor.fetchone():
                cursor.execute(_HYPERTABLE)

    def _clear(self, cursor: Any, series: Series) -> None:
        run = (series.table, series.tags["study"], series.tags["run_id"])
        if run not in self._replaced:
            self._replaced.add(run)
            cursor.execute(f"DELETE FROM {series.table} WHERE study = %s AND run_id = %s", run[1:])  # noqa: S608  # our names

    def _told(self, error: Exception) -> PushError:
        return PushError(f"{self.place}: {_said(error)}. Nothing of the run was changed")


def _copy(cursor: Any, table: str, series: Sequence[Series]) -> int:
    columns = ("t", *_TAGS[table], "factors", *_FIELDS[table])
    rows = 0
    with cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN") as copy:
        for one in series:
            for row in _rows(one):
                copy.write_row(row)
                rows += 1
    return rows


def _rows(series: Series) -> Iterator[list[Any]]:
    """Rows in the order of the columns: of two points in one microsecond, the finest that there is, the last."""
    at_us = series.t_ns // 1000
    kept = np.flatnonzero(np.append(at_us[1:] != at_us[:-1], True)[: len(at_us)])
    tags = [series.tags.get(tag) for tag in _TAGS[series.table]]
    factors = json.dumps(dict(series.factors))
    absent = np.full(len(at_us), np.nan)
    columns = [series.fields.get(name, absent)[kept].tolist() for name in _FIELDS[series.table]]
    times = at_us[kept].astype("datetime64[us]").tolist()
    for at, *values in zip(times, *columns, strict=True):
        yield [at, *tags, factors, *(None if value != value else value for value in values)]  # noqa: PLR0124  # NaN


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
