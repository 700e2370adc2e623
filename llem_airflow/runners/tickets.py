"""The queue for GPUs: a waiting claim keeps a ticket, an empty volume whose labels say what it waits for.

A ticket is renewed while its owner waits. One that was not renewed belongs to a dead process and counts no
more, by the engine's own clock.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import docker
from docker.errors import APIError

from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.gpus import Inventory, on_this_machine
from llem_airflow.runners.leases import LABEL_EXCLUSIVE, LABEL_QUOTA, LABEL_TICKET, Demand, Holder, choose
from llem_airflow.runners.occupants import occupants
from llem_airflow.runners.process_gpus import everyone

LABEL_COUNT = "llem.wants"
LABEL_CANDIDATES = "llem.candidates"
RENEW_S = 10.0
STALE_S = 45.0


def new_ticket(attempt: Attempt) -> str:
    """A ticket's number: the time in nanoseconds, with the attempt's key so that no two are the same."""
    return f"{time.time_ns():020d}-{attempt.key}"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at the host showed.

    Attributes:
        chosen: GPUs that the claim can have now, or None.
        held: Who holds what.
        ahead: How many claims stand before it.
        behind_its_own: Whether a claim of the same DAG run stands before it, be it served or not.
    """

    chosen: tuple[str, ...] | None
    held: list[Holder]
    ahead: int
    behind_its_own: bool


@dataclass(slots=True)
class Ticket:
    """The place of one claim in the queue.

    Attributes:
        api: The engine.
        attempt: Who waits.
        number: The ticket's number.
        demand: What it waits for.
    """

    api: docker.APIClient
    attempt: Attempt
    number: str
    demand: Demand
    _renewed_s: float = -STALE_S
    _turn: int = 0

    @property
    def labels(self) -> dict[str, str]:
        """The number and the demand as labels."""
        return {
            LABEL_TICKET: self.number,
            LABEL_COUNT: str(self.demand.count),
            LABEL_CANDIDATES: ",".join(gpu.id for gpu in self.demand.candidates),
            LABEL_EXCLUSIVE: "host" if self.demand.exclusive_host else "",
            LABEL_QUOTA: str(self.demand.quota or ""),
        }

    def hold(self) -> None:
        """Take the ticket, or renew it when it is due."""
        if time.monotonic() - self._renewed_s < RENEW_S:
            return
        self._turn += 1
        self.api.create_volume(self._name(self._turn), labels={**self.attempt.labels, **self.labels})
        self._renewed_s = time.monotonic()
        self._drop(self._turn - 1)

    def give_back(self) -> None:
        """Leave the queue."""
        self._drop(self._turn)
        self._turn, self._renewed_s = 0, -STALE_S

    def _name(self, turn: int) -> str:
        return f"{self.attempt.container_name}-ticket-{turn}"

    def _drop(self, turn: int) -> None:
        if turn > 0:
            with contextlib.suppress(APIError):
                self.api.remove_volume(self._name(turn))

    def ahead(self, known: Inventory, engine_now_epoch_s: float, served: Collection[str]) -> list[Demand]:
        """What the claims before this one wait for, the first first, but for those that have a container."""
        return _demands(self._before(engine_now_epoch_s), known, served)

    def _of_my_run(self, labels: Mapping[str, str]) -> bool:
        mine = self.attempt.labels
        return all(
            labels.get(name) == mine[name] for name in ("llem.installation", "llem.dag_id", "llem.run_id")
        )

    def _before(self, engine_now_epoch_s: float) -> list[dict[str, str]]:
        """Labels of the tickets before this one that somebody still holds."""
        held = held_tickets(self.api, engine_now_epoch_s)
        return [labels for labels in held if labels[LABEL_TICKET] < self.number]

    def look(self, known: Inventory, engine_now_epoch_s: float) -> Seen:
        """What this claim can have now."""
        held = everyone(self.api, known)
        held += occupants(self.api, known, held)
        before = self._before(engine_now_epoch_s)
        ahead = _demands(before, known, {holder.ticket for holder in held})
        chosen = choose(self.demand, held, ahead, known)
        return Seen(chosen, held, len(ahead), any(map(self._of_my_run, before)))


def held_tickets(api: docker.APIClient, engine_now_epoch_s: float) -> list[dict[str, str]]:
    """Labels of the tickets that somebody still holds; of one that is just being renewed twice the same."""
    return [
        volume["Labels"]
        for volume in api.volumes(filters={"label": LABEL_TICKET}).get("Volumes") or []
        if engine_now_epoch_s - _created_epoch_s(volume["CreatedAt"]) <= STALE_S
    ]


def since_epoch_s(number: str) -> float:
    """When a ticket was taken, in seconds since 1970."""
    return int(number.partition("-")[0]) / 1e9


def _demands(before: Iterable[Mapping[str, str]], known: Inventory, served: Collection[str]) -> list[Demand]:
    waiting = {
        labels[LABEL_TICKET]: demand_of(labels, known)
        for labels in before
        if labels[LABEL_TICKET] not in served
    }
    return [waiting[number] for number in sorted(waiting)]


def engine_clock_offset_s(api: docker.APIClient) -> float:
    """How far the engine's clock is ahead of this machine's, in seconds."""
    said = str(api.info().get("SystemTime") or "")
    now_s = datetime.datetime.now(datetime.UTC).timestamp()
    try:
        return _created_epoch_s(said[:19] + (said[-6:] if said[-6] in "+-" else "Z")) - now_s
    except (ValueError, IndexError):
        return 0.0


def engine_now_epoch_s(api: docker.APIClient) -> float:
    """The engine's time, in seconds since 1970; one on this machine has this machine's clock."""
    offset_s = 0.0 if on_this_machine(api) else engine_clock_offset_s(api)
    return datetime.datetime.now(datetime.UTC).timestamp() + offset_s


def _created_epoch_s(text: str) -> float:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def demand_of(labels: Mapping[str, str], known: Inventory) -> Demand:
    """What a ticket's labels say that it waits for."""
    ids = [gpu for gpu in labels.get(LABEL_CANDIDATES, "").split(",") if gpu]
    found = [known.find(gpu) for gpu in ids]
    return Demand(
        count=int(labels.get(LABEL_COUNT) or 0),
        candidates=tuple(gpu for gpu in found if gpu is not None),
        exclusive_host=labels.get(LABEL_EXCLUSIVE) == "host",
        quota=int(labels.get(LABEL_QUOTA) or 0) or None,
    )
