"""A claim: from what an experiment asks for to GPUs that nobody else has."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import docker

from llem_airflow.runners.attempt import LABEL_GPUS, Attempt
from llem_airflow.runners.engine import remove_container
from llem_airflow.runners.failures import AttemptFailedError, GPUUnavailableError, failure
from llem_airflow.runners.given import requested
from llem_airflow.runners.gpus import (
    Gpu,
    GpuLookError,
    GpuRequestError,
    Inventory,
    candidates,
    inventory,
)
from llem_airflow.runners.leases import (
    LABEL_EXCLUSIVE,
    LABEL_QUOTA,
    LABEL_TICKET,
    Demand,
    Holder,
    advice,
    over_quota,
    said,
    settle,
)
from llem_airflow.runners.logs import LogSink
from llem_airflow.runners.process_gpus import everyone
from llem_airflow.runners.settings import BoxSettings
from llem_airflow.runners.tickets import Seen, Ticket, engine_now_epoch_s, new_ticket
from llem_airflow.study import GpuRequest

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
_LOOK_EVERY_S = 1.0
_SAY_EVERY_S = 15.0
_SETTLE_EVERY_S = 0.2
_DEAD_AFTER_LOOKS = 150


class Claim:
    """One attempt's claim of GPUs, or of its place on a host that somebody may want alone.

    Args:
        api: The engine.
        attempt: Who claims.
        settings: What it asks for.
        sink: Where lines for people go.
        fetch_image: Makes the image present, as the driver may have to be asked from a container of it.
        meter: What reads the power: ``nvml`` needs a GPU.

    Raises:
        AttemptFailedError: The host cannot meet the request, or it cannot be known what it has (retryable).
    """

    def __init__(
        self,
        api: docker.APIClient,
        attempt: Attempt,
        settings: BoxSettings,
        sink: LogSink,
        fetch_image: Callable[[], None],
        *,
        meter: str = "auto",
    ) -> None:
        self._api = api
        self._settings = settings
        self._sink = sink
        try:
            self._known = _inventory(api, attempt, settings, fetch_image)
        except GpuLookError as error:
            raise unknown(error, sink) from error
        number = settings.gpu_ticket or new_ticket(attempt)
        request, given = _asked(settings, self._known)
        demand = demand_for(request, self._known, sink, given=given, quota=settings.gpu_quota)
        self._on_cpu = "" if demand.count else on_cpu(self._known, sink, meter)
        self._ticket = Ticket(api, attempt, number, demand)
        self._begin_s = time.monotonic() - settings.gpu_waited_s
        self._said_s = -_SAY_EVERY_S
        self._lost = False

    def choose(self) -> tuple[str, ...]:
        """Wait until there are GPUs for this claim; their device ids.

        Raises:
            GPUUnavailableError: There were none in time.
        """
        if self._ticket.demand == Demand() and not self._lost and not self._host_is_wanted():
            return ()  # nearly every attempt without a GPU: whether somebody has the host alone, settling tells
        while True:
            seen = self._ticket.look(self._known, engine_now_epoch_s(self._api))
            if seen.chosen is not None:
                return seen.chosen
            self._wait(seen)

    def _host_is_wanted(self) -> bool:
        """Whether somebody waits for the host alone: without GPUs to wait for, all others would overtake it."""
        return any(
            demand.exclusive_host
            for demand in self._ticket.ahead(self._known, engine_now_epoch_s(self._api), ())
        )

    def labels(self, gpus: tuple[str, ...]) -> dict[str, str]:
        """Labels that make a container the lease."""
        lease = {LABEL_TICKET: self._ticket.number}
        if gpus:
            lease[LABEL_GPUS] = ",".join(gpus)
        if self._ticket.demand.exclusive_host:
            lease[LABEL_EXCLUSIVE] = "host"
        if gpus and self._ticket.demand.quota is not None:
            lease[LABEL_QUOTA] = str(self._ticket.demand.quota)
        if self._on_cpu:
            lease[LABEL_ON_CPU] = self._on_cpu
        return lease

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

    def _wait(self, seen: Seen) -> None:
        left_s = self._begin_s + self._settings.gpu_wait_s - time.monotonic()
        wanted = f"{self._ticket.demand.count} GPU(s)" if self._ticket.demand.count else "the host"
        waited = f" after {self._settings.gpu_wait_s:g} s" if left_s <= 0 else ""
        held = f"{over_quota(self._ticket.demand, seen.held)}held by: {said(seen.held)}"
        if left_s <= 0 or not self._settings.gpu_wait_here:
            raise GPUUnavailableError(
                failure("gpu_unavailable", hint=advice(seen.held)),
                f"{wanted} not free{waited}; {held}",
                folder=self._sink.path.parent,
                log_tail=self._sink.tail,
                ticket=self._ticket.labels if left_s > 0 else None,
            )
        self._ticket.hold()
        if time.monotonic() - self._said_s >= _SAY_EVERY_S:
            self._said_s = time.monotonic()
            self._sink.line(f"Waiting for {wanted}, {left_s:.0f} s left; {held}")
        time.sleep(min(_LOOK_EVERY_S, left_s))


def _inventory(
    api: docker.APIClient, attempt: Attempt, settings: BoxSettings, fetch_image: Callable[[], None]
) -> Inventory:
    if settings.gpu_inventory:
        return Inventory(settings.gpu_inventory)
    if settings.gpus:
        return Inventory(tuple(Gpu(gpu) for gpu in settings.gpus))
    asks = settings.gpu_request is not None and settings.gpu_request.count != 0
    if not asks and not settings.device_requests:
        return Inventory()
    fetch_image()
    return inventory(api, settings.image, attempt)


def _asked(settings: BoxSettings, known: Inventory) -> tuple[GpuRequest | None, tuple[str, ...]]:
    """What is to be chosen, and what is given in any case: what requests made by hand name, nothing is added to it."""
    if not settings.device_requests:
        return settings.gpu_request, settings.gpus
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
