"""Power of a cycle at work, for those who watch: a small file beside the results that is gone when the cycle has ended.

Nothing is computed from it. What stays of a killed worker is overwritten by the next try and removed by the aggregate.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass

from llem_airflow.protocol.typed_json import ProtocolError, from_json, to_json
from llem_airflow.results import layout
from llem_airflow.results.folder import Folder, ResultReadError, first_line
from llem_airflow.results.store import StoredRun


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
    folder, name = _place(run, experiment_id, cycle)
    with folder.atomic_write(name, durable=False) as file:
        file.write(json.dumps(to_json(live), separators=(",", ":"), allow_nan=False).encode())


def read_live(run: StoredRun, experiment_id: str, cycle: int) -> Live | None:
    """What is known, or None for a cycle that is not at work.

    Raises:
        ResultReadError: The file is damaged.
    """
    folder, name = _place(run, experiment_id, cycle)
    try:
        return from_json(Live, folder.read_object(name), name)
    except ProtocolError as error:
        raise ResultReadError(f"{folder.url}/{name}: {first_line(error)}") from error
    except ResultReadError:
        if folder.exists(name):
            raise
        return None


def is_live(run: StoredRun, experiment_id: str, cycle: int) -> bool:
    """Whether something is known: the cycle is at work, or its worker was killed."""
    folder, name = _place(run, experiment_id, cycle)
    return folder.exists(name)


def end_live(run: StoredRun, experiment_id: str, cycle: int) -> None:
    """The cycle has ended: its file goes."""
    folder, name = _place(run, experiment_id, cycle)
    with suppress(OSError):  # it was never written, or the next aggregate removes it
        folder.fs.rm_file(f"{folder.path}/{name}")


def end_all(run: StoredRun) -> None:
    """No cycle is at work any more: what killed workers left goes."""
    with suppress(OSError):
        run.folder.child(layout.LIVE_DIR).remove()


def _place(run: StoredRun, experiment_id: str, cycle: int) -> tuple[Folder, str]:
    folder = run.folder.child(layout.LIVE_DIR, layout.folder_name(experiment_id))
    return folder, f"{layout.cycle_name(cycle)}.json"
