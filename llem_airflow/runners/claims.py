"""Claims: from what an experiment asks for to GPUs that nobody else has, and the queue of those who wait.

A waiting claim keeps a ticket, an empty volume whose labels say what it waits for. A ticket is renewed while its owner
waits. One that was not renewed belongs to a dead process and counts no more, by the engine's own clock.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import docker
from docker.errors import APIError

from llem_airflow.runners.attempt import LABEL_GPUS, Attempt
from llem_airflow.runners.base import Busy, Sight, Wait
from llem_airflow.runners.container_spec import ContainerSettings
from llem_airflow.runners.engine import ENGINE_ERRORS, EngineAddress, remove_container
from llem_airflow.runners.failures import AttemptFailedError, failure
from llem_airflow.runners.gpus import (
    Gpu,
    GpuLookError,
    GpuRequestError,
    Inventory,
    candidates,
    inventory,
    on_this_machine,
)
from llem_airflow.runners.holders import (
    LABEL_EXCLUSIVE,
    LABEL_QUOTA,
    LABEL_TICKET,
    Holder,
    gpu_processes,
    requested,
)
from llem_airflow.runners.leases import Demand, Patience, choose, everyone, said, settle
from llem_airflow.runners.output import LogSink
from llem_airflow.study import GpuRequest

LABEL_COUNT = "llem.wants"
LABEL_CANDIDATES = "llem.candidates"
RENEW_S = 10.0
STALE_S = 45.0

LABEL_ON_CPU = "llem.on_cpu"
"""Why an experiment runs on the CPU of a host that has GPUs."""

LOOK_HINT = (
    "`llem-airflow doctor` and `nvidia-smi` on the engine's host say more; to measure on the CPU, say "
    "`gpus: {count: 0}` in the study"
)
_NO_SUCH_GPU = "correct `gpus` in the study; `llem-airflow doctor` lists what there is"
_METER_NEEDS_GPU = (
    "give the experiment a GPU (`gpus: {count: 1}`) on a host whose engine has some, or take another `meter`"
)
_SETTLE_EVERY_S = 0.2
_DEAD_AFTER_LOOKS = 150
_CONNECT_TIMEOUT_S = 20


class Claim:
    """One attempt's claim of GPUs, or of its place on a host that somebody may want alone.

    Args:
        api: The engine.
        engine: Where it is, for whoever goes on with the wait.
        attempt: Who claims.
        settings: What it asks for.
        sink: Where lines for people go.
        wait: How long, and where.
        fetch_image: Makes the image present, as the driver may have to be asked from a container of it.
        meter: What reads the power: ``nvml`` needs a GPU.

    Attributes:
        on_cpu: Why it gets no GPU although the host has some; empty otherwise.

    Raises:
        AttemptFailedError: The host cannot meet the request, or it cannot be known what it has (retryable).
    """

    def __init__(
        self,
        api: docker.APIClient,
        engine: EngineAddress,
        attempt: Attempt,
        settings: ContainerSettings,
        sink: LogSink,
        wait: Wait,
        fetch_image: Callable[[], None],
        *,
        meter: str = "auto",
    ) -> None:
        self._api, self._engine, self._attempt, self._image = api, engine, attempt, settings.image
        try:
            self._known = _inventory(api, attempt, settings, fetch_image)
        except GpuLookError as error:
            raise unknown(error, sink) from error
        request, given = _asked(settings, self._known)
        demand = demand_for(request, self._known, sink, given=given, quota=settings.gpu_quota)
        self.on_cpu = "" if demand.count else on_cpu(self._known, sink, meter)
        number = (wait.later or {}).get("ticket", {}).get(LABEL_TICKET) or new_ticket(attempt)
        self._ticket = Ticket(api, attempt, number, demand)
        self._patience = Patience(wait, demand, sink.line)
        self._lost = False

    def choose(self) -> tuple[str, ...] | Busy:
        """The device ids of GPUs for this claim, waited for if need be."""
        if self._ticket.demand == Demand() and not self._lost and not self._host_is_wanted():
            return ()  # nearly every attempt without a GPU: whether somebody has the host alone, settling tells
        while True:
            seen = self._ticket.look(self._known, engine_now_epoch_s(self._api))
            if seen.chosen is not None:
                return seen.chosen
            if busy := self._patience.busy(seen.held, self._later):
                return busy
            self._ticket.hold()
            self._patience.pause(seen.held)

    @property
    def waited_s(self) -> float:
        """How long it has waited for what others held, in seconds."""
        return self._patience.waited_s

    @cached_property
    def _later(self) -> dict[str, Any]:
        return {
            "runner": "container",
            "engine": self._engine.to_json(),
            "engine_id": self._api.info().get("ID"),
            "attempt": asdict(self._attempt),
            "ticket": self._ticket.labels,
            "image": self._image,
        }

    def _host_is_wanted(self) -> bool:
        """Whether somebody waits for the host alone: without GPUs to wait for, all others would overtake it."""
        return any(
            demand.exclusive_host
            for demand in self._ticket.ahead(self._known, engine_now_epoch_s(self._api), ())
        )

    def labels(self, gpus: tuple[str, ...]) -> dict[str, str]:
        """Labels that make a container the lease."""
        demand = self._ticket.demand
        lease = {
            LABEL_TICKET: self._ticket.number,
            LABEL_GPUS: ",".join(gpus),
            LABEL_EXCLUSIVE: "host" if demand.exclusive_host else "",
            LABEL_QUOTA: str(demand.quota or "") if gpus else "",
            LABEL_ON_CPU: self.on_cpu,
        }
        return {name: value for name, value in lease.items() if value}

    def settle(self, container: str, gpus: tuple[str, ...]) -> bool:
        """Whether the created container may start; if not, it has to be removed and the claim goes on."""
        mine = Holder(
            container, "", gpus, "created", self._ticket.number, self._ticket.demand.exclusive_host, ""
        )
        while True:
            won, dead = settle(
                lambda: everyone(self._api, self._known),
                mine,
                self._known,
                pause=lambda: time.sleep(_SETTLE_EVERY_S),
                give_up_after=_DEAD_AFTER_LOOKS,
            )
            if dead is None:
                if not won:
                    self._lost = True
                    self._ticket.hold()
                return won
            # Its owner died between creating and starting. Were it alive, its start would now fail, and it
            # would claim again.
            remove_container(self._api, dead.container)

    def end(self) -> None:
        """Leave the queue."""
        self._ticket.give_back()


class Waiter:
    """The claim of an attempt whose worker has gone: it keeps its place in the queue.

    Args:
        later: What the claim carried.
    """

    def __init__(self, later: Mapping[str, Any]) -> None:
        self._engine = EngineAddress.from_json(later["engine"])
        self._engine_id = later.get("engine_id")
        self._attempt = Attempt(**later["attempt"])
        self._labels: Mapping[str, str] = later["ticket"]
        self._image = str(later["image"])
        self._api: docker.APIClient | None = None
        self._ticket: Ticket | None = None
        self._reached = False

    @property
    def _by_socket(self) -> bool:
        return all(url.startswith("unix:") for url in self._engine.urls)

    def look(self) -> Sight:
        """Keep the place and see whether it is its turn."""
        try:
            return self._look()
        except ENGINE_ERRORS as error:
            self.close()
            # A socket that is not here is on the worker's machine; an engine that can be reached may be restarting.
            elsewhere = bool(self._engine_id) and self._by_socket and not self._reached
            return Sight(text=f"not known, the Docker engine does not answer: {error}", elsewhere=elsewhere)

    def _look(self) -> Sight:
        if self._api is None:
            self._api = self._engine.connect(_CONNECT_TIMEOUT_S)
            if self._engine_id and self._api.info().get("ID") != self._engine_id:
                self.close()
                return Sight(text=f"not known, {self._engine} is another engine here", elsewhere=True)
        api, self._reached = self._api, True
        known = inventory(api, self._image)
        if self._ticket is None:
            demand = demand_of(self._labels, known)
            self._ticket = Ticket(api, self._attempt, self._labels[LABEL_TICKET], demand)
        self._ticket.hold()
        seen = self._ticket.look(known, engine_now_epoch_s(api))
        return Sight(seen.chosen is not None, seen.ahead, seen.behind_its_own, said(seen.held))

    def leave(self) -> None:
        """Give the place up."""
        if self._ticket is not None:
            self._ticket.give_back()

    def close(self) -> None:
        """Leave the engine; the place stays for whoever goes on with the claim."""
        with contextlib.suppress(*ENGINE_ERRORS):
            if self._api is not None:
                self._api.close()
        self._api = self._ticket = None


def _inventory(
    api: docker.APIClient, attempt: Attempt, settings: ContainerSettings, fetch_image: Callable[[], None]
) -> Inventory:
    asks = settings.gpu_request is not None and settings.gpu_request.count != 0
    if not asks and not settings.device_requests:
        return Inventory()
    fetch_image()
    return inventory(api, settings.image, attempt)


def _asked(settings: ContainerSettings, known: Inventory) -> tuple[GpuRequest | None, tuple[str, ...]]:
    """What is to be chosen, and what is given in any case: what requests made by hand name, nothing is added to it."""
    if not settings.device_requests:
        return settings.gpu_request, ()
    request = settings.gpu_request and replace(settings.gpu_request, count=0, ids=())
    return request, requested({"HostConfig": {"DeviceRequests": settings.device_requests}}, known)


def unknown(error: GpuLookError, sink: LogSink) -> AttemptFailedError:
    """The failure of an attempt that cannot know which GPUs its host has; it can be tried again."""
    found = failure("gpu_access", retryable=True, hint=LOOK_HINT)
    text = f"which GPUs the host has cannot be found out: {error}"
    return AttemptFailedError(found, text, folder=sink.path.parent, log_tail=sink.tail)


def on_cpu(known: Inventory, sink: LogSink, meter: str) -> str:
    """Say that the experiment runs on the CPU; returns why, where the host has GPUs all the same.

    Raises:
        AttemptFailedError: The meter reads GPUs only.
    """
    if meter == "nvml":
        why = known.absent or "the study asks for none (`gpus: {count: 0}`)"
        found = failure("gpu_access", hint=_METER_NEEDS_GPU)
        text = f"meter `nvml` reads the power of GPUs, and the experiment gets none: {why}"
        raise AttemptFailedError(found, text, folder=sink.path.parent)
    if known.hidden:
        sink.line(f"It runs on the CPU: {known.absent}. `gpus: {{count: 1}}` makes that a failure")
    return known.absent if known.hidden else ""


def demand_for(
    request: GpuRequest | None,
    known: Inventory,
    sink: LogSink,
    *,
    given: tuple[str, ...] = (),
    quota: int | None = None,
) -> Demand:
    """What a request for GPUs means on a host.

    Args:
        request: As the study says it.
        known: The host's GPUs.
        sink: Where the evidence of a failure lies.
        given: Device ids that are given in any case.
        quota: GPUs that experiments may hold together, or None for any number.

    Raises:
        AttemptFailedError: The host cannot meet it.
    """
    exclusive = request is not None and request.exclusive == "host"
    if given:
        chosen = [known.find(gpu) or Gpu(gpu) for gpu in given]
        return Demand(len(chosen), tuple(chosen), exclusive, quota)
    if (
        request is None
        or request.count == 0
        or (request.count is None and not known.gpus and not request.ids)
    ):
        return Demand(exclusive_host=exclusive)
    try:
        fitting = candidates(request, known)
    except GpuRequestError as error:
        found = failure("gpu_access", hint=_NO_SUCH_GPU)
        raise AttemptFailedError(found, str(error), folder=sink.path.parent) from error
    return Demand(request.asked, fitting, exclusive, quota)


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
        held += gpu_processes(self.api, known, held)
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
