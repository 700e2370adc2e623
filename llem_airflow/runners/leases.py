"""Leases of GPUs: a container's label or a process's locked file says what an attempt holds, and ends with it.

How two claims of one GPU are kept apart without a lock between machines: a claim creates its container, then looks at
the list. Of two containers that clash, the one that became visible later sees the other, and none starts while it sees
a clash. So both can lose, but both cannot win. That one of them wins is settled by the tickets (claims.py): the later
ticket steps back, the earlier one waits until the clash is gone.

The lock of a process's file is its own and of nobody else's making, so it ends with it, whatever ends it. Containers
see these leases and processes see the containers' ones; neither starts while it sees a clash.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker

from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.base import Busy, Wait
from llem_airflow.runners.gpus import Gpu, Inventory, on_this_machine
from llem_airflow.runners.holders import (
    Holder,
    gpu_processes,
    holders,
    user_name,
)

_TOLD = 3
_LOOK_EVERY_S = 1.0
_SAY_EVERY_S = 15.0
_IN_ANY_CASE = (
    "`llem-airflow gpus` shows all holders and who waits; raise gpu_wait_s, or ask for fewer (`gpus`)"
)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a claim wants.

    Attributes:
        count: How many GPUs.
        candidates: Which can serve, in order of preference.
        exclusive_host: Whether no other experiment may run on the host.
        quota: GPUs that our containers may hold together, or None for any number.
    """

    count: int = 0
    candidates: tuple[Gpu, ...] = ()
    exclusive_host: bool = False
    quota: int | None = None


def clashes(mine: Holder, other: Holder, known: Inventory) -> bool:
    """Whether two containers cannot be on the host together."""
    if other.ticket and (other.exclusive_host or mine.exclusive_host):
        return True
    return any(known.overlap(one, another) for one in mine.gpus for another in other.gpus)


def choose(
    demand: Demand, held: Iterable[Holder], waiting: Iterable[Demand], known: Inventory
) -> tuple[str, ...] | None:
    """The GPUs that a claim can have now, or None.

    What claims ahead of it in the queue are waiting for is kept for them, also where it is not enough yet:
    else a claim for two GPUs would wait for as long as there are claims for one.

    Args:
        demand: What it wants.
        held: Who holds what.
        waiting: What the claims ahead of it want, the first first.
        known: The host's GPUs.
    """
    held = list(held)
    if any(holder.exclusive_host for holder in held if holder.live) or (
        demand.exclusive_host and any(holder.ticket for holder in held)
    ):
        return None
    if over_quota(demand, held):
        return None
    taken = [gpu for holder in held for gpu in holder.gpus]
    for ahead in waiting:
        if ahead.exclusive_host:
            return None
        taken += _pick(ahead, taken, known)
    mine = _pick(demand, taken, known)
    return tuple(mine) if len(mine) == demand.count else None


def held_by_ours(held: Iterable[Holder]) -> int:
    """GPUs that experiments hold together; these count for a quota."""
    return sum(len(holder.gpus) for holder in held if holder.ticket)


def over_quota(demand: Demand, held: Iterable[Holder]) -> str:
    """Why a claim has to wait for others of ours whatever is free, for people; empty when no quota is in its way."""
    ours = held_by_ours(held)
    if demand.quota is None or not demand.count or ours + demand.count <= demand.quota:
        return ""
    return f"experiments hold {ours} of the {demand.quota} that the host's gpu_quota allows; "


def _pick(demand: Demand, taken: Iterable[str], known: Inventory) -> list[str]:
    taken = list(taken)
    picked: list[str] = []
    for gpu in demand.candidates:
        if len(picked) == demand.count:
            break
        if not any(known.overlap(gpu.id, other) for other in (*taken, *picked)):
            picked.append(gpu.id)
    return picked


def settle(
    look: Callable[[], list[Holder]],
    mine: Holder,
    known: Inventory,
    *,
    pause: Callable[[], None],
    give_up_after: int,
) -> tuple[bool, Holder | None]:
    """Decide whether a created container may start.

    Args:
        look: Lists the holders.
        mine: The created container.
        known: The host's GPUs.
        pause: Waits between two looks.
        give_up_after: After this many looks a rival that has still not started counts as dead.

    Returns:
        Whether it may start; and a dead rival to remove, if there is one.
    """
    rival: Holder | None = None
    for _ in range(give_up_after):
        others = [holder for holder in look() if holder.container != mine.container]
        rivals = [holder for holder in others if clashes(mine, holder, known)]
        if not rivals:
            return True, None
        rival = rivals[0]
        if any(holder.live or holder.ticket < mine.ticket for holder in rivals):
            return False, None
        pause()
    return False, rival


def advice(held: Iterable[Holder]) -> str:
    """What one can do about GPUs that are not free: whom to ask, what to look at, what to stop."""
    told = list(dict.fromkeys(_about(holder) for holder in held if holder.gpus or holder.exclusive_host))
    more = [f"and {len(told) - _TOLD} more"] if len(told) > _TOLD else []
    return "; ".join([*told[:_TOLD], *more, _IN_ANY_CASE])


def _about(holder: Holder) -> str:
    if holder.ticket:
        return f"{holder.name} is an experiment ({holder.what}): wait for its end, or end its task in Airflow"
    whom = f"ask {holder.owner}" if holder.owner else "ask whoever started it"
    if holder.container:
        return (
            f"{holder.name}: {whom}, look (`docker top {holder.name}`), stop it (`docker stop {holder.name}`)"
        )
    if holder.pid:
        return f"process {holder.pid}: {whom}, look (`ps -o user,etime,args -p {holder.pid}`)"
    return f"GPU {', '.join(holder.gpus)}: `nvidia-smi` on the host says more"


class Patience:
    """Waits for what others hold, and says so now and then.

    Args:
        wait: How long, and where.
        demand: What is waited for.
        say: Takes a line for people.

    Attributes:
        waited_s: How long it has waited, in seconds.
    """

    def __init__(self, wait: Wait, demand: Demand, say: Callable[[str], None]) -> None:
        self.waited_s = 0.0
        self._wait, self._demand, self._say = wait, demand, say
        self._begin_s = time.monotonic() - wait.waited_s
        self._said_s = -_SAY_EVERY_S

    def busy(self, held: Sequence[Holder], later: Mapping[str, Any] | None = None) -> Busy | None:
        """Who holds what, when there is no time left or somebody else is to wait; else None.

        Args:
            held: Who holds what.
            later: What somebody else needs to go on with the wait; None when only this process can wait.
        """
        limit_s, left_s = self._wait.limit_s, self._left_s()
        over = left_s <= 0
        if not over and (self._wait.here or later is None):
            return None
        after = f" after {limit_s:g} s" if over else ""
        text = f"{self._wanted()} not free{after}; {self._held(held)}"
        return Busy(text, advice(held), tuple(held), None if over else later)

    def pause(self, held: Sequence[Holder]) -> None:
        """Wait a moment."""
        left_s = self._left_s()
        if time.monotonic() - self._said_s >= _SAY_EVERY_S:
            self._said_s = time.monotonic()
            self._say(f"Waiting for {self._wanted()}, {left_s:.0f} s left; {self._held(held)}")
        # Not in step with others that saw us and stepped back as well.
        pause_s = max(0.0, min(_LOOK_EVERY_S * random.uniform(0.5, 1.5), left_s))  # noqa: S311  # no secret
        time.sleep(pause_s)
        self.waited_s += pause_s

    def _left_s(self) -> float:
        return self._begin_s + self._wait.limit_s - time.monotonic()

    def _wanted(self) -> str:
        return f"{self._demand.count} GPU(s)" if self._demand.count else "the host"

    def _held(self, held: Sequence[Holder]) -> str:
        return f"{over_quota(self._demand, held)}held by: {said(held)}"


def said(held: Iterable[Holder]) -> str:
    """Who holds what, for people."""
    parts = [
        f"{', '.join(holder.gpus) or 'the host'}: {'container ' * bool(holder.container)}{holder.name} ({holder.what})"
        for holder in held
        if holder.gpus or holder.exclusive_host
    ]
    return "; ".join(parts) or "nobody that can be seen from here"


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
        """Give the GPUs back; once is enough."""
        if self.descriptor >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self.descriptor)
            self.descriptor = -1


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
        held += gpu_processes(api, known, held)
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
