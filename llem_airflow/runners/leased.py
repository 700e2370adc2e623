"""The GPUs of one attempt that runs as a process: chosen, leased, and the only ones that engine and meter see."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from llem_airflow.protocol.visible import BY_BUS, ORDER, VARIABLE, AmbiguousDeviceError, visible_to_cuda
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.claim import demand_for, on_cpu, unknown
from llem_airflow.runners.failures import AttemptFailedError, GPUUnavailableError, failure
from llem_airflow.runners.gpus import GpuLookError, Inventory, kernel_gpus, local_inventory
from llem_airflow.runners.leases import Demand, Holder, advice, over_quota, said
from llem_airflow.runners.logs import LogSink
from llem_airflow.runners.process_gpus import ProcessLease, take
from llem_airflow.runners.tickets import new_ticket

if TYPE_CHECKING:
    from llem_airflow.runners.process import ProcessSettings

_LOOK_EVERY_S = 1.0
_SAY_EVERY_S = 15.0


@dataclass(frozen=True, slots=True)
class Leased:
    """What a process is given of the machine's GPUs.

    Attributes:
        gpus: UUIDs that it holds: what the engine may use and what the meter reads.
        environment: Variables that hide all others from it.
        descriptors: Open files that it inherits, so that the lease lasts as long as it does.
        on_cpu: Why it runs on the CPU of a machine that has GPUs; empty otherwise.
    """

    gpus: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    descriptors: tuple[int, ...] = ()
    on_cpu: str = ""


@contextlib.contextmanager
def leased(attempt: Attempt, settings: ProcessSettings, sink: LogSink, meter: str) -> Iterator[Leased]:
    """Hold the GPUs that an attempt asks for while the body runs.

    Args:
        attempt: Who asks.
        settings: What it asks for.
        sink: Where lines for people go.
        meter: What reads the power: ``nvml`` needs a GPU.

    Raises:
        GPUUnavailableError: They were not free in time.
        AttemptFailedError: This machine cannot meet the request, or it cannot be known what it has (retryable).
    """
    known = _usable(settings, sink)
    demand = demand_for(settings.gpu_request, known, sink, quota=settings.gpu_quota)
    why = "" if demand.count else on_cpu(known, sink, meter)
    lease = _wait(attempt, demand, known, settings, sink)
    try:
        yield Leased(lease.gpus, _environment(lease.gpus, known), (lease.descriptor,), why)
    finally:
        lease.end()


def _usable(settings: ProcessSettings, sink: LogSink) -> Inventory:
    """This machine's GPUs, without those that the worker's own CUDA_VISIBLE_DEVICES hides."""
    try:
        known = local_inventory()
    except GpuLookError as error:
        raise unknown(error, sink) from error
    if known is None or not known.gpus:
        count = kernel_gpus()
        absent = "this machine shows no NVIDIA driver"
        if count:
            absent = f"this machine has {count} NVIDIA GPU(s), and its driver's library is not installed here"
        return Inventory(absent=absent, hidden=bool(count))
    boards = known.boards
    try:
        left = visible_to_cuda(
            {**os.environ, **settings.environment}, [gpu.id for gpu in boards], [gpu.name for gpu in boards]
        )
    except AmbiguousDeviceError as error:
        found = failure("gpu_access", hint="name the boards by their UUIDs in the worker's environment")
        raise AttemptFailedError(found, str(error), folder=sink.path.parent) from error
    if left is None:
        return known
    hidden = f"{VARIABLE} of the worker hides {'every' if not left else 'the other'} GPU(s)"
    gpus = tuple(gpu for gpu in known.gpus if gpu.id in left or (gpu.parent in left))
    return replace(known, gpus=gpus, absent=hidden, hidden=not gpus)


def _wait(
    attempt: Attempt, demand: Demand, known: Inventory, settings: ProcessSettings, sink: LogSink
) -> ProcessLease:
    ticket, begin_s, said_s = new_ticket(attempt), time.monotonic(), -_SAY_EVERY_S
    while True:
        lease, held = take(attempt, ticket, demand, known, settings.engine)
        if lease is not None:
            return lease
        left_s = begin_s + settings.gpu_wait_s - time.monotonic()
        wanted = f"{demand.count} GPU(s)" if demand.count else "the host"
        if left_s <= 0:
            quota = over_quota(demand, held)
            raise _busy(f"{wanted} not free after {settings.gpu_wait_s:g} s; {quota}", held, sink)
        if time.monotonic() - said_s >= _SAY_EVERY_S:
            said_s = time.monotonic()
            sink.line(f"Waiting for {wanted}, {left_s:.0f} s left; held by: {said(held)}")
        # Not in step with a container that saw us and stepped back as well.
        time.sleep(min(_LOOK_EVERY_S * random.uniform(0.5, 1.5), left_s))  # noqa: S311  # no secret


def _busy(text: str, held: list[Holder], sink: LogSink) -> GPUUnavailableError:
    return GPUUnavailableError(
        failure("gpu_unavailable", hint=advice(held)),
        f"{text}held by: {said(held)}",
        folder=sink.path.parent,
        log_tail=sink.tail,
        ticket=None,
    )


def _environment(gpus: tuple[str, ...], known: Inventory) -> dict[str, str]:
    """Nothing is hidden where there is nothing of NVIDIA's: another vendor's boards have variables of their own."""
    if not known.gpus and not gpus:
        return {VARIABLE: ""} if known.hidden else {}
    return {VARIABLE: ",".join(gpus), ORDER: BY_BUS}
