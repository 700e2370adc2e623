"""Who holds the GPUs of a host, since when, and who waits for them: what ``llem-airflow gpus`` shows."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import docker

from llem_airflow.runners.gpus import GpuLookError, Inventory, inventory, local_inventory, on_this_machine
from llem_airflow.runners.images import digest
from llem_airflow.runners.leases import LABEL_EXCLUSIVE, LABEL_QUOTA, LABEL_TICKET, Holder, held_by_ours
from llem_airflow.runners.occupants import occupants
from llem_airflow.runners.process_gpus import everyone
from llem_airflow.runners.tickets import (
    LABEL_CANDIDATES,
    LABEL_COUNT,
    engine_now_epoch_s,
    held_tickets,
    since_epoch_s,
)


@dataclass(frozen=True, slots=True)
class Held:
    """Somebody who holds GPUs, or the host.

    Attributes:
        kind: ``task`` (an experiment, in a container or as a process), ``container`` or ``process``.
        name: Name of the container, or number and name of the process.
        what: Experiment and DAG, or the image.
        owner: Whose it is, where labels or the process's user say so.
        gpus: Device ids.
        since_epoch_s: Since when, or None when it is not known.
        exclusive_host: Whether no other experiment may run on the host.
    """

    kind: str
    name: str
    what: str
    owner: str
    gpus: tuple[str, ...]
    since_epoch_s: float | None
    exclusive_host: bool


@dataclass(frozen=True, slots=True)
class Waiter:
    """A task that waits for GPUs.

    Attributes:
        what: Experiment, cycle, DAG and run.
        count: How many GPUs it wants; 0 with ``exclusive_host`` for the host alone.
        candidates: Which can serve.
        exclusive_host: Whether it wants the host for itself.
        since_epoch_s: When its claim began.
    """

    what: str
    count: int
    candidates: tuple[str, ...]
    exclusive_host: bool
    since_epoch_s: float


@dataclass(frozen=True, slots=True)
class HostGpus:
    """A host's GPUs.

    Attributes:
        host: Its name.
        known: Its GPUs.
        held: Who holds them.
        waiting: Who waits, the first first.
        ours: GPUs that experiments hold together.
        quota: The smallest quota that a claim named, or None where none did.
        now_epoch_s: The host's time.
        unseen: What cannot be seen from here, for people; empty for nothing.
    """

    host: str
    known: Inventory
    held: tuple[Held, ...]
    waiting: tuple[Waiter, ...]
    ours: int
    quota: int | None
    now_epoch_s: float
    unseen: str

    def holders_of(self, gpu: str) -> list[Held]:
        """Who holds a GPU or slice itself; a whole GPU in slices is held through them."""
        return [
            each
            for each in self.held
            if any(self.known.find(one) == self.known.find(gpu) for one in each.gpus)
        ]

    def holders_above(self, gpu: str) -> list[Held]:
        """Who holds the whole GPU that a slice is of."""
        found = self.known.find(gpu)
        return self.holders_of(found.parent) if found is not None and found.parent else []

    def nameless(self) -> list[Held]:
        """Holders of what is not among the known GPUs: those of a host whose driver could not be asked, or the host."""
        return [
            each
            for each in self.held
            if each.exclusive_host or any(self.known.find(gpu) is None for gpu in each.gpus)
        ]


def look(api: docker.APIClient | None, images: Sequence[str] = ()) -> HostGpus:
    """Look at a host.

    Args:
        api: Its engine; None for this machine without one.
        images: Images with Python from whose containers a driver on another machine may be asked.

    Raises:
        docker.errors.DockerException: The engine refused.
        requests.exceptions.RequestException: It does not answer.
    """
    if api is None:
        known = local_inventory() or Inventory(absent="this machine shows no NVIDIA driver")
        name, now_s, unseen, tickets = os.uname().nodename, time.time_ns() / 1e9, "", {}
    else:
        image = next((name for name in images if digest(api, name) is not None), "")
        known = _known(api, image)
        name, now_s = str(api.info().get("Name")), engine_now_epoch_s(api)
        away = "processes without a container cannot be seen: the engine is on another machine"
        unseen = "" if on_this_machine(api) else away
        tickets = {labels[LABEL_TICKET]: labels for labels in held_tickets(api, now_s)}
    held = everyone(api, known)
    held += occupants(api, known, held)
    served = {holder.ticket for holder in held}
    waiting = [_waiter(tickets[number]) for number in sorted(tickets) if number not in served]
    quotas = [int(quota) for labels in tickets.values() if (quota := labels.get(LABEL_QUOTA))]
    quotas += [holder.quota for holder in held if holder.quota is not None]
    return HostGpus(
        host=name,
        known=known,
        held=tuple(map(_held, held)),
        waiting=tuple(waiting),
        ours=held_by_ours(held),
        quota=min(quotas, default=None),
        now_epoch_s=now_s,
        unseen=unseen,
    )


def _known(api: docker.APIClient, image: str) -> Inventory:
    """The host's GPUs; where nobody can tell, why."""
    try:
        if image:
            return inventory(api, image)
        found = local_inventory() if on_this_machine(api) else None
    except GpuLookError as error:
        return Inventory(absent=str(error))
    return found or Inventory(
        absent="the engine has no image of ours to ask the driver from: `llem-airflow doctor`"
    )


def _held(holder: Holder) -> Held:
    kind = "task" if holder.ticket else "container" if holder.container else "process"
    return Held(
        kind, holder.name, holder.what, holder.owner, holder.gpus, holder.since_epoch_s, holder.exclusive_host
    )


def _waiter(labels: Mapping[str, str]) -> Waiter:
    said = {name: labels.get(f"llem.{name}", "?") for name in ("experiment", "cycle", "dag_id", "run_id")}
    return Waiter(
        what="{experiment} cycle {cycle} of DAG {dag_id}, run {run_id}".format(**said),
        count=int(labels.get(LABEL_COUNT) or 0),
        candidates=tuple(gpu for gpu in labels.get(LABEL_CANDIDATES, "").split(",") if gpu),
        exclusive_host=labels.get(LABEL_EXCLUSIVE) == "host",
        since_epoch_s=since_epoch_s(labels[LABEL_TICKET]),
    )


def to_json(host: HostGpus) -> dict[str, Any]:
    """A host in a stable format: its devices with their holders, then who waits."""
    return {
        "host": host.host,
        "driver": host.known.driver,
        "gpus": [
            {
                "id": gpu.id,
                "index": gpu.index,
                "name": gpu.name,
                "slice_of": gpu.parent,
                "held_by": [asdict(each) for each in host.holders_of(gpu.id)],
            }
            for gpu in host.known.gpus
        ],
        "other_holders": [asdict(each) for each in host.nameless()],
        "held_by_experiments": host.ours,
        "quota": host.quota,
        "waiting": [asdict(each) for each in host.waiting],
        "now_epoch_s": host.now_epoch_s,
        "not_seen": [text for text in (host.known.absent, host.unseen) if text],
    }
