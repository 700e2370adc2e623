"""CycleRef and FailureRef: what lies in the store for one cycle, read on demand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeVar

from llem_airflow.protocol.result import AttemptError, CycleResult, Meter
from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.protocol.strict import ProtocolError, from_json
from llem_airflow.results import names
from llem_airflow.results.folder import Folder
from llem_airflow.results.migrations import upgraded

T = TypeVar("T")


class ResultReadError(ValueError):
    """A file of a cycle is missing or damaged; the message names it."""


@dataclass(frozen=True)
class CycleRef:
    """A committed cycle.

    Attributes:
        folder: Where it lies.
        experiment_id: ``<slug>-<hash8>``.
        cycle: Which repetition, from 1.
        repeat: 0, or k for the k-th later result of the same cycle.
    """

    folder: Folder
    experiment_id: str
    cycle: int
    repeat: int = 0

    def config(self) -> ExperimentSpec:
        """What the attempt was told."""
        return _typed(self.folder, names.CONFIG, ExperimentSpec)

    def result(self) -> CycleResult:
        """What the attempt observed."""
        return _typed(self.folder, names.RESULT, CycleResult)

    def environment(self) -> dict[str, Any]:
        """Where it ran; empty when the file is absent."""
        return _object(self.folder, names.ENVIRONMENT, optional=True)

    def provenance(self) -> dict[str, Any]:
        """Who ran it and how; empty when the file is absent."""
        return _object(self.folder, names.PROVENANCE, optional=True)

    def events(self) -> list[dict[str, Any]]:
        """Rows of events.jsonl; a line that was cut off is left out."""
        return read_events(self.folder)

    def requests(self, columns: list[str] | None = None) -> Any:
        """Requests as a ``pyarrow.Table``."""
        return read_table(self.folder, names.REQUESTS, columns)

    def power(self, columns: list[str] | None = None) -> Any:
        """Power samples as a ``pyarrow.Table``."""
        return read_table(self.folder, names.POWER, columns)

    def power_file(self) -> bytes:
        """Power samples as they are stored, a Parquet file."""
        return _bytes(self.folder, names.POWER)

    def check(self) -> tuple[Meter, Any] | None:
        """A second sampler's meter and samples of the same window, where there was one."""
        if not self.folder.exists(names.METER_CHECK):
            return None
        meter = from_json(Meter, _object(self.folder, names.METER_CHECK), names.METER_CHECK)
        return meter, read_table(self.folder, names.POWER_CHECK)


@dataclass(frozen=True)
class FailureRef:
    """A stored failed attempt.

    Attributes:
        folder: Where it lies.
        experiment_id: ``<slug>-<hash8>``.
        cycle: Which repetition, from 1.
        attempt: Which try, as the caller counted it.
        repeat: 0, or k for the k-th later record of the same attempt number.
    """

    folder: Folder
    experiment_id: str
    cycle: int
    attempt: int
    repeat: int = 0

    def provenance(self) -> dict[str, Any]:
        """Who ran it and how it failed, under ``failure``."""
        return _object(self.folder, names.PROVENANCE, optional=True)

    def environment(self) -> dict[str, Any]:
        """Where it ran, as far as it came; empty when the file is absent."""
        return _object(self.folder, names.ENVIRONMENT, optional=True)

    def error(self) -> AttemptError | None:
        """What the attempt itself said, if it could."""
        if not self.folder.exists(names.ERROR):
            return None
        return _typed(self.folder, names.ERROR, AttemptError)

    def reason(self) -> tuple[str, str]:
        """(category, one line): from the provenance, else from the attempt's own error, else unknown."""
        failure = self.provenance().get("failure")
        if isinstance(failure, dict):
            message = str(failure.get("message") or failure.get("hint") or "failed")
            return str(failure.get("category") or "unknown"), message.strip().split("\n", 1)[0]
        try:
            error = self.error()
        except ResultReadError:
            error = None
        if error is None:
            return "unknown", f"see {self.folder.url}"
        return "engine", f"{error.type}: {error.message}".split("\n", 1)[0]


def read_events(folder: Folder) -> list[dict[str, Any]]:
    """Rows of events.jsonl of a folder; empty when there is none."""
    if not folder.exists(names.EVENTS):
        return []
    rows = []
    for line in folder.read(names.EVENTS).splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # the last line of a killed attempt is often half a line
        if isinstance(row, dict) and isinstance(row.get("t_mono_ns"), int):
            rows.append(row)
    return rows


def read_table(folder: Folder, name: str, columns: list[str] | None = None) -> Any:
    """A Parquet file of a folder as a table.

    Raises:
        ResultReadError: It is missing or does not open.
    """
    return decoded(_bytes(folder, name), f"{folder.url}/{name}", columns)


def decoded(data: bytes, where: str, columns: list[str] | None = None) -> Any:
    """A Parquet file in memory as a table.

    Args:
        data: The file.
        where: Its name, for the error.
        columns: The columns to decode; else all.

    Raises:
        ResultReadError: It does not open, or lacks a column.
    """
    # Airflow imports this room before every task, and Arrow takes half a second that only readers of tables owe.
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        stored = pq.ParquetFile(pa.BufferReader(data))
        absent = sorted(set(columns or ()) - set(stored.schema_arrow.names))
        if absent:
            raise pa.ArrowInvalid(f"there is no column {absent[0]}")
        return stored.read(columns=columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise ResultReadError(f"{where}: cannot be read: {_one_line(error)}") from error


def _bytes(folder: Folder, name: str) -> bytes:
    try:
        return folder.read(name)
    except OSError as error:
        raise ResultReadError(f"{folder.url}/{name}: cannot be read: {_one_line(error)}") from error


def _typed(folder: Folder, name: str, cls: type[T]) -> T:
    try:
        return from_json(cls, upgraded(_object(folder, name), f"{folder.url}/{name}"), f"{folder.url}/{name}")
    except ProtocolError as error:
        raise ResultReadError(str(error)) from error


def _object(folder: Folder, name: str, *, optional: bool = False) -> dict[str, Any]:
    try:
        data = json.loads(folder.read(name))
    except FileNotFoundError as error:
        if optional:
            return {}
        raise ResultReadError(f"{folder.url}/{name}: is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ResultReadError(f"{folder.url}/{name}: not JSON: {_one_line(error)}") from error
    if not isinstance(data, dict):
        raise ResultReadError(f"{folder.url}/{name}: expected an object")
    return data


def _one_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0] or type(error).__name__
