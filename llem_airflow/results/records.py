"""Records: what is stored of cycles, failed attempts, plans, boards' meters and cycles at work, checked when read."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from llem_airflow.protocol import PROTOCOL_VERSION
from llem_airflow.protocol.failures import advice
from llem_airflow.protocol.files import SERVER_METRICS
from llem_airflow.protocol.gpu_profile import GpuProfile
from llem_airflow.protocol.result import AttemptError, CycleResult, Meter
from llem_airflow.protocol.session import EVIDENCE
from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.protocol.typed_json import ProtocolError, from_json, to_json
from llem_airflow.results import layout
from llem_airflow.results.folder import Folder, ResultReadError, parsed_json

if TYPE_CHECKING:
    from llem_airflow.results.store import StoredRun

T = TypeVar("T")

MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Old evidence stays readable: from version n to n + 1. Version 1 is the first, so there is no step yet."""


@dataclass(frozen=True)
class _Stored:
    """What a cycle and a failed attempt have in common.

    Attributes:
        folder: Where it lies.
        experiment_id: ``<slug>-<hash8>``.
        cycle: Which repetition, from 1.
    """

    folder: Folder
    experiment_id: str
    cycle: int

    def provenance(self) -> dict[str, Any]:
        """Who ran it and how, and how it failed (``failure``); empty when the file is absent."""
        return self.folder.read_object(layout.PROVENANCE, optional=True)

    def environment(self) -> dict[str, Any]:
        """Where it ran, as far as it came; empty when the file is absent."""
        return self.folder.read_object(layout.ENVIRONMENT, optional=True)


@dataclass(frozen=True)
class CycleRef(_Stored):
    """A committed cycle.

    Attributes:
        repeat: 0, or k for the k-th later result of the same cycle.
    """

    repeat: int = 0

    def config(self) -> ExperimentSpec:
        """What the attempt was told."""
        return _typed(self.folder, layout.CONFIG, ExperimentSpec)

    def result(self) -> CycleResult:
        """What the attempt observed."""
        return _typed(self.folder, layout.RESULT, CycleResult)

    def session(self) -> dict[str, Any]:
        """The state of its session: the lives of the container, the checks of its health; empty without one."""
        return self.folder.read_object(EVIDENCE, optional=True)

    def events(self) -> list[dict[str, Any]]:
        """Rows of events.jsonl; a line that was cut off, as the last one of a killed attempt, is left out."""
        rows = []
        lines = self.folder.read(layout.EVENTS).splitlines() if self.folder.exists(layout.EVENTS) else ()
        for line in lines:
            with suppress(ValueError, RecursionError):
                row = parsed_json(line)
                if isinstance(row, dict) and isinstance(row.get("t_mono_ns"), int):
                    rows.append(row)
        return rows

    def requests(self, columns: list[str] | None = None, optional: Collection[str] = ()) -> Any:
        """Requests as a ``pyarrow.Table``: all columns, or some, of which older files may lack the optional ones."""
        return _table(self.folder, layout.REQUESTS, columns, optional)

    def server_metrics(self) -> str:
        """The server's metrics page once a second, as CSV; empty where there was no server."""
        there = self.folder.exists(SERVER_METRICS)
        return self.folder.read(SERVER_METRICS).decode(errors="replace") if there else ""

    def power(self, columns: list[str] | None = None) -> Any:
        """Power samples as a ``pyarrow.Table``."""
        return _table(self.folder, layout.POWER, columns)

    def power_file(self) -> bytes:
        """Power samples as they are stored, a Parquet file."""
        return self.folder.read_evidence(layout.POWER)

    def check(self) -> tuple[Meter, Any] | None:
        """A second sampler's meter and samples of the same window, where there was one."""
        if not self.folder.exists(layout.METER_CHECK):
            return None
        meter = _typed(self.folder, layout.METER_CHECK, Meter, versioned=False)
        return meter, _table(self.folder, layout.POWER_CHECK, None)


@dataclass(frozen=True)
class FailureRef(_Stored):
    """A stored failed attempt.

    Attributes:
        attempt: Which try, as the caller counted it.
        repeat: 0, or k for the k-th later record of the same attempt number.
    """

    attempt: int
    repeat: int = 0

    def error(self) -> AttemptError | None:
        """What the attempt itself said, if it could."""
        if not self.folder.exists(layout.ERROR):
            return None
        return _typed(self.folder, layout.ERROR, AttemptError)

    def advice(self) -> str:
        """What to do, as a sentence; empty when the attempt's record does not say it."""
        failure = self.provenance().get("failure")
        hint = str(failure.get("hint") or "") if isinstance(failure, dict) else ""
        return advice(hint) if hint else ""

    def reason(self) -> tuple[str, str]:
        """(category, one line): from the provenance, else from the attempt's own error, else unknown."""
        failure = self.provenance().get("failure")
        if isinstance(failure, dict):
            message = str(failure.get("message") or failure.get("hint") or "failed")
            return str(failure.get("category") or "unknown"), _headline(message)
        error = None
        with suppress(ResultReadError):
            error = self.error()
        if error is None:
            return "unknown", f"see {self.folder.url}"
        return "engine", _headline(f"{error.type}: {error.message}")


def _headline(message: str) -> str:
    """The first line; with those below it where it only announces them."""
    first = message.strip().split("\n", 1)[0].rstrip()
    return " ".join(message.split()) if first.endswith(":") else first


def checked_plan(plan: dict[str, Any], where: str) -> dict[str, Any]:
    """plan.json as it was stored, as far as readers rely on its shape.

    Raises:
        ResultReadError: A part of it is not of the kind that it must be; the message names the file and the part.
    """
    for name, kind in (("experiments", list), ("order", list), ("skipped", list), ("cycles", int)):
        if name in plan and not isinstance(plan[name], kind):
            raise ResultReadError(f"{where}: {name}: expected {kind.__name__}, found {plan[name]!r:.40}")
    for item in plan.get("experiments", ()):
        if not (isinstance(item, Mapping) and isinstance(item.get("config") or {}, Mapping) and "id" in item):
            raise ResultReadError(f"{where}: experiments: expected objects with an id, found {item!r:.40}")
    for entry in plan.get("order", ()):
        named = isinstance(entry, Mapping) and {"cycle"} < set(entry) & {"cycle", "experiment", "id"}
        if not (isinstance(entry, str) or named):
            raise ResultReadError(f"{where}: order: expected experiments, found {entry!r:.40}")
    return plan


def _migrated(data: dict[str, Any], where: str) -> dict[str, Any]:
    """The object as today's version."""
    version = data.get("schema_version")
    if not isinstance(version, int):
        raise ProtocolError(f"{where}: schema_version is missing")
    if version > PROTOCOL_VERSION:
        raise ProtocolError(
            f"{where}: schema_version {version} was written by a newer llem-airflow (this one reads up to "
            f"{PROTOCOL_VERSION}); upgrade to read it"
        )
    for step in range(version, PROTOCOL_VERSION):
        if step not in MIGRATIONS:
            raise ProtocolError(f"{where}: schema_version {version} can no longer be read")
        data = MIGRATIONS[step](data) | {"schema_version": step + 1}
    return data


def _typed(folder: Folder, name: str, cls: type[T], *, versioned: bool = True) -> T:
    where = f"{folder.url}/{name}"
    data = folder.read_object(name)
    try:
        return from_json(cls, _migrated(data, where) if versioned else data, where)
    except ProtocolError as error:
        raise ResultReadError(str(error)) from error


def _table(folder: Folder, name: str, columns: list[str] | None, optional: Collection[str] = ()) -> Any:
    # Airflow imports this package before every task, and Arrow takes half a second that only readers of tables owe.
    from llem_airflow.results.parquet import POWER_SCHEMA, REQUESTS_SCHEMA, read_table  # noqa: PLC0415

    schema = REQUESTS_SCHEMA if name == layout.REQUESTS else POWER_SCHEMA
    return read_table(folder, name, columns, optional, schema)


def write_profile(root: Folder, profile: GpuProfile, pages: dict[str, str]) -> Folder:
    """Keep a board's profile and its pages, by the ending of their names such as ``html``.

    Raises:
        ResultsWriteError: It cannot be written.
    """
    folder = root.child(layout.GPU_PROFILES_DIR)
    for ending, text in pages.items():
        folder.write(f"{layout.folder_name(profile.uuid)}.{ending}", text.encode())
    folder.write(f"{layout.folder_name(profile.uuid)}.json", profile.dumps().encode())
    return folder


def read_profile(root: Folder, uuid: str) -> GpuProfile | None:
    """The profile of a board; None when there is none.

    Raises:
        ResultReadError: It is damaged.
    """
    folder, name = root.child(layout.GPU_PROFILES_DIR), f"{layout.folder_name(uuid)}.json"
    if not folder.exists(name):
        return None
    try:
        return GpuProfile.loads(folder.read_evidence(name), f"{folder.url}/{name}")
    except ProtocolError as error:
        raise ResultReadError(str(error)) from error


def sensors_for(root: Folder, uuids: Iterable[str]) -> dict[str, Any]:
    """What provenance.json carries of the profiles of boards, by UUID, so that reading it again gives the same numbers.

    A damaged profile is carried as the reason why it was not used: it must not keep a result from being stored.
    """
    found: dict[str, Any] = {}
    for uuid in uuids:
        try:
            profile = read_profile(root, uuid)
        except (ResultReadError, OSError) as error:
            found[uuid] = {"problem": str(error)}
            continue
        if profile is not None:
            found[uuid] = {
                "driver": profile.driver,
                "made_epoch_ns": profile.made_epoch_ns,
                "made_by": profile.made_by,
                **to_json(profile.sensor),
            }
    return found


@dataclass(frozen=True)
class LiveGpu:
    """Power of a device over time, one value a stretch.

    Attributes:
        gpu: Its name, as in power.csv.
        t_s: End of each stretch, in seconds since the first record.
        low_w: Smallest reading of each, in watts.
        mean_w: Mean of each, in watts.
        high_w: Largest reading of each, in watts.
        now_w: Mean of the last record, in watts.
    """

    gpu: str
    t_s: tuple[float, ...]
    low_w: tuple[float, ...]
    mean_w: tuple[float, ...]
    high_w: tuple[float, ...]
    now_w: float


@dataclass(frozen=True)
class LiveSpan:
    """A phase.

    Attributes:
        name: What it is.
        begin_s: When it began, in seconds since the first record.
        end_s: When it ended; None for the one that goes on.
    """

    name: str
    begin_s: float
    end_s: float | None


@dataclass(frozen=True)
class Live:
    """What is known of a cycle at work.

    Attributes:
        try_number: Which try of the task tells it.
        written_epoch_ns: When the worker wrote this, in nanoseconds since 1970.
        last_s: The last record, in seconds since the first one.
        energy_kind: measured | estimate | attributed.
        phases: The phases so far.
        gpus: The devices.
    """

    try_number: int
    written_epoch_ns: int
    last_s: float
    energy_kind: str
    phases: tuple[LiveSpan, ...]
    gpus: tuple[LiveGpu, ...]


def write_live(run: StoredRun, experiment_id: str, cycle: int, live: Live) -> None:
    """Put it in the place of the last one.

    Raises:
        ResultsWriteError: It cannot be written.
    """
    folder, name = _live_file(run, experiment_id, cycle)
    with folder.atomic_write(name, durable=False) as file:
        file.write(json.dumps(to_json(live), separators=(",", ":"), allow_nan=False).encode())


def read_live(run: StoredRun, experiment_id: str, cycle: int) -> Live | None:
    """What is known, or None for a cycle that is not at work.

    Raises:
        ResultReadError: The file is damaged.
    """
    folder, name = _live_file(run, experiment_id, cycle)
    try:
        return _typed(folder, name, Live, versioned=False)
    except ResultReadError:
        if folder.exists(name):
            raise
        return None


def is_live(run: StoredRun, experiment_id: str, cycle: int) -> bool:
    """Whether something is known: the cycle is at work, or its worker was killed."""
    folder, name = _live_file(run, experiment_id, cycle)
    return folder.exists(name)


def end_live(run: StoredRun, experiment_id: str, cycle: int) -> None:
    """The cycle has ended: its file goes."""
    folder, name = _live_file(run, experiment_id, cycle)
    with suppress(OSError):  # it was never written, or the next aggregate removes it
        folder.fs.rm_file(f"{folder.path}/{name}")


def end_all(run: StoredRun) -> None:
    """No cycle is at work any more: what killed workers left goes."""
    with suppress(OSError):
        run.folder.child(layout.LIVE_DIR).remove()


def _live_file(run: StoredRun, experiment_id: str, cycle: int) -> tuple[Folder, str]:
    folder = run.folder.child(layout.LIVE_DIR, layout.folder_name(experiment_id))
    return folder, f"{layout.cycle_name(cycle)}.json"
