"""Leases of GPUs: the engine's list of containers says who holds what; a lease cannot outlive its container.

How two claims of one GPU are kept apart without a lock: a claim creates its container, then looks at the
list. Of two containers that clash, the one that became visible later sees the other, and none starts while it
sees a clash. So both can lose, but both cannot win. That one of them wins is settled by the tickets: the
later ticket steps back, the earlier one waits until the clash is gone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import docker
from docker.errors import NotFound

from llem_airflow.runners.attempt import LABEL_GPUS, LABEL_KEY
from llem_airflow.runners.engine import LIVE_STATES, name_of
from llem_airflow.runners.given import requested
from llem_airflow.runners.gpus import LABEL_PROBE, Gpu, Inventory

LABEL_TICKET = "llem.ticket"
"""When the claim began, as text that sorts by time; earlier claims go first."""

LABEL_EXCLUSIVE = "llem.exclusive"
"""``host`` when no other experiment may run on the host meanwhile."""

_OWNER = re.compile(r"(^|[._-])(user|owner)$", re.IGNORECASE)
_TOLD = 3
_IN_ANY_CASE = (
    "`llem-airflow gpus` shows all holders and who waits; raise gpu_wait_s, or ask for fewer (`gpus`)"
)

LABEL_QUOTA = "llem.quota"
"""GPUs that experiments may hold on the host together, as the claim's connection says."""

OBSERVERS = re.compile(r"dcgm-exporter|nvidia[_-]gpu[_-]exporter|nvidia-smi|nvtop|cadvisor|device-plugin")
"""Images that are given every GPU in order to watch it; they hold none."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A container, or a process of the host, and the GPUs that it holds.

    Attributes:
        container: Its id; empty for what is on a GPU without one.
        name: Its name.
        gpus: Device ids, as it was given them.
        state: ``created`` (a claim that has not started), or a live state.
        ticket: Its claim's ticket; empty when it is not ours.
        exclusive_host: Whether it wants the host for itself.
        what: What people call it: experiment and DAG, or the image.
        owner: Whose it is, as far as labels or the process's user say; empty when nobody says.
        since_epoch_s: When it got them, in seconds since 1970, or None when it is not known.
        pid: The process, or 0 for a container and for what cannot be told.
        quota: The host's quota that its claim went by, or None.
    """

    container: str
    name: str
    gpus: tuple[str, ...]
    state: str
    ticket: str
    exclusive_host: bool
    what: str
    owner: str = ""
    since_epoch_s: float | None = None
    pid: int = 0
    quota: int | None = None

    @property
    def live(self) -> bool:
        """Whether it runs; a created one only claims."""
        return self.state in LIVE_STATES


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


_foreign: dict[str, Mapping[str, Any]] = {}
"""Container id -> its inspection. How it asked for GPUs is fixed when it is made, so one inspection is enough."""


def holders(api: docker.APIClient, known: Inventory) -> list[Holder]:
    """Every container that holds GPUs or, being one of our experiments, a part of the host.

    Raises:
        docker.errors.DockerException: The engine refused.
        requests.exceptions.RequestException: It does not answer.
    """
    listed = api.containers(all=True)
    _forget(container["Id"] for container in listed)
    info = cache(api.info)
    found = [_holder(api, container, known, info) for container in listed]
    return [holder for holder in found if holder is not None]


def _forget(present: Iterable[str]) -> None:
    for gone in set(_foreign) - set(present):
        _foreign.pop(gone, None)


def _holder(
    api: docker.APIClient, listed: Mapping[str, Any], known: Inventory, info: Callable[[], Mapping[str, Any]]
) -> Holder | None:
    labels = listed.get("Labels") or {}
    state = str(listed["State"])
    if LABEL_PROBE in labels:
        return None
    if LABEL_KEY in labels:
        if state not in (*LIVE_STATES, "created"):
            return None
        gpus = tuple(gpu for gpu in labels.get(LABEL_GPUS, "").split(",") if gpu)
        what = f"{labels.get('llem.experiment', '?')} of DAG {labels.get('llem.dag_id', '?')}"
        exclusive = labels.get(LABEL_EXCLUSIVE) == "host"
        return Holder(
            listed["Id"],
            name_of(listed),
            gpus,
            state,
            labels.get(LABEL_TICKET, ""),
            exclusive,
            what,
            owner=_owner(labels),
            since_epoch_s=float(listed["Created"]),
            quota=int(labels.get(LABEL_QUOTA) or 0) or None,
        )
    if state not in LIVE_STATES or OBSERVERS.search(str(listed.get("Image"))):
        return None
    gpus, privileged = given_to(api, listed["Id"], known, info)
    what = f"{listed['Image']}{', privileged' * privileged}"
    if not gpus:
        return None
    return Holder(
        listed["Id"],
        name_of(listed),
        gpus,
        state,
        "",
        False,
        what,
        owner=_owner(labels),
        since_epoch_s=float(listed["Created"]),
    )


def _owner(labels: Mapping[str, str]) -> str:
    """Who a container's labels say that it is of, as shared hosts label containers (``ds01.user``)."""
    return next((value for name, value in sorted(labels.items()) if _OWNER.search(name) and value), "")


def given_to(
    api: docker.APIClient, container: str, known: Inventory, info: Callable[[], Mapping[str, Any]]
) -> tuple[tuple[str, ...], bool]:
    """What a foreign container was given, and whether because it is privileged; nothing when it has gone.

    Args:
        api: The engine.
        container: Its id.
        known: The host's GPUs.
        info: Describes the engine; asked only for a container that is not known yet.
    """
    if container not in _foreign:
        try:
            inspection = api.inspect_container(container)
        except NotFound:
            return (), False
        _foreign[container] = {**inspection, "engine": info()}
    inspection = _foreign[container]
    given = requested(inspection, known, inspection["engine"])
    return given, bool((inspection.get("HostConfig") or {}).get("Privileged"))


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


def said(held: Iterable[Holder]) -> str:
    """Who holds what, for people."""
    parts = [
        f"{', '.join(holder.gpus) or 'the host'}: {'container ' * bool(holder.container)}{holder.name} ({holder.what})"
        for holder in held
        if holder.gpus or holder.exclusive_host
    ]
    return "; ".join(parts) or "nobody that can be seen from here"
