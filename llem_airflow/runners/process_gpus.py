"""Leases of processes: a locked file on the host says which GPUs an attempt holds, as a label does for a container.

The lock is the process's own and of nobody else's making, so it ends with it, whatever ends it. Containers see these
leases and processes see the containers' ones; neither starts while it sees a clash, so both can step back, but both
cannot win.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import docker

from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.gpus import Inventory, on_this_machine
from llem_airflow.runners.leases import Demand, Holder, choose, clashes, holders
from llem_airflow.runners.occupants import occupants, user_name

ENV_FOLDER = "LLEM_GPU_LOCKS"
_SUFFIX = ".lease"


def lock_folder() -> Path:
    """Where the leases of this host's processes lie: one place for every user and every Airflow of the host."""
    if named := os.environ.get(ENV_FOLDER):
        return Path(named)
    run = Path("/run/lock")
    return (run if os.access(run, os.W_OK) else Path(tempfile.gettempdir())) / "llem-airflow"


def everyone(api: docker.APIClient | None, known: Inventory) -> list[Holder]:
    """Containers of an engine that hold GPUs, and processes of this machine where the engine is this machine's.

    Args:
        api: The engine; None where there is none, or none that answers.
        known: The host's GPUs.
    """
    held = [] if api is None else holders(api, known)
    if api is None or on_this_machine(api):
        with _mutex(lock_folder()) as folder:
            held += _leases(folder)
    return held


class ProcessLease:
    """GPUs that one attempt holds as a process, from ``take`` to ``end``.

    Attributes:
        gpus: UUIDs; empty for an attempt without a GPU.
        descriptor: The locked file, to be passed on to the process, so that the lease lasts as long as either lives.
    """

    def __init__(self, path: Path, descriptor: int, gpus: tuple[str, ...]) -> None:
        self._path = path
        self.descriptor = descriptor
        self.gpus = gpus

    def end(self) -> None:
        """Give the GPUs back."""
        self._path.unlink(missing_ok=True)
        os.close(self.descriptor)


def take(
    attempt: Attempt, ticket: str, demand: Demand, known: Inventory, api: docker.APIClient | None
) -> tuple[ProcessLease | None, list[Holder]]:
    """Take what an attempt asks for, if it is free.

    Args:
        attempt: Who asks.
        ticket: Its place in time; earlier ones go first among containers.
        demand: What it wants.
        known: The host's GPUs.
        api: The engine whose containers count, where one answers.

    Returns:
        The lease, or None; and who holds what.
    """
    with _mutex(lock_folder()) as folder:
        held = (holders(api, known) if api is not None else []) + _leases(folder)
        held += occupants(api, known, held)
        chosen = choose(demand, held, (), known)
        if chosen is None:
            return None, held
        lease = _written(folder, attempt, ticket, demand, chosen)
    mine = Holder("", "", chosen, "created", ticket, demand.exclusive_host, "")
    rivals = [] if api is None else [other for other in holders(api, known) if clashes(mine, other, known)]
    if rivals:  # a container that was made meanwhile
        lease.end()
        return None, rivals
    return lease, held


def _written(
    folder: Path, attempt: Attempt, ticket: str, demand: Demand, gpus: tuple[str, ...]
) -> ProcessLease:
    path = folder / f"{attempt.container_name}-{os.getpid()}{_SUFFIX}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    said = {
        "pid": os.getpid(),
        "gpus": gpus,
        "ticket": ticket,
        "exclusive_host": demand.exclusive_host,
        "what": f"{attempt.experiment_id} of DAG {attempt.dag_id}",
    }
    os.write(descriptor, json.dumps(said).encode())
    return ProcessLease(path, descriptor, gpus)


@contextlib.contextmanager
def _mutex(folder: Path) -> Iterator[Path]:
    """One at a time looks and takes; the lock goes with whoever is killed meanwhile."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(PermissionError):
            folder.chmod(0o1777)  # every user of the host, and nobody removes what is another's
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(descriptor)


def _leases(folder: Path) -> list[Holder]:
    """Leases whose processes live; files of dead ones are removed where that is allowed."""
    found = []
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if lease := _lease(path):
                found.append(lease)
    return found


def _lease(path: Path) -> Holder | None:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            said = json.loads(file.read())
            gpus = tuple(str(gpu) for gpu in said["gpus"])
            name = f"process {int(said['pid'])}"
            exclusive = bool(said["exclusive_host"])
            return Holder(
                "",
                name,
                gpus,
                "running",
                str(said["ticket"]),
                exclusive,
                str(said["what"]),
                owner=user_name(path),
                since_epoch_s=path.stat().st_mtime,
                pid=int(said["pid"]),
            )
    path.unlink()
    return None
