"""Waiting for GPUs in the triggerer: a task that waits holds no worker, no pool slot and no GPU."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

import docker
from airflow.providers.docker.hooks.docker import DockerHook
from airflow.sdk.exceptions import AirflowException
from airflow.triggers.base import BaseTrigger, TriggerEvent
from docker.utils import parse_host

from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.engine import ENGINE_ERRORS, connect
from llem_airflow.runners.waiting import Sight, Waiting
from llem_airflow.text.wording import counted

_LOOK_EVERY_S = 2.0
_LOOK_AT_LEAST_EVERY_S = 8.0
_SAY_EVERY_S = 15.0
_CONNECT_TIMEOUT_S = 20
SETTLE_S = 10.0
"""How long a wait lasts at least, in seconds.

Airflow's scheduler may learn only after the task was queued again that its first process has ended, and then fails
it as "finished, although its state is queued" (apache/airflow issues 67287, 71580, 72716). A busy scheduler lags by
seconds.
"""


@dataclass(frozen=True, slots=True)
class GpuWait:
    """How far a task's waiting for GPUs has come.

    Attributes:
        here: Whether to wait in the worker.
        ticket: Labels of its place in the queue; empty for none yet.
        begin_epoch_s: When it began, or None when it has not.
    """

    here: bool
    ticket: dict[str, str] | None = None
    begin_epoch_s: float | None = None

    @property
    def waited_s(self) -> float:
        """Time that has gone since it began."""
        return 0.0 if self.begin_epoch_s is None else max(0.0, now_epoch_s() - self.begin_epoch_s)


def now_epoch_s() -> float:
    """Wall clock: the wait goes on in another process, perhaps on another machine."""
    return time.time_ns() / 1e9


class GpuFreeTrigger(BaseTrigger):
    """Fires when the GPUs that a claim waits for are free, or when it has waited long enough.

    Args:
        engine: ``base_url`` and the TLS files of the Docker engine, as DockerOperator has them.
        attempt: Fields of the attempt that waits.
        ticket: Labels of its place in the queue.
        image: An image with Python, should the driver have to be asked from a container.
        begin_epoch_s: When the waiting began.
        limit_s: How long it may last.
    """

    def __init__(
        self,
        *,
        engine: dict[str, Any],
        attempt: dict[str, Any],
        ticket: dict[str, str],
        image: str,
        begin_epoch_s: float,
        limit_s: float,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow leaves it untyped
        self.engine = engine
        self.attempt = attempt
        self.ticket = ticket
        self.image = image
        self.begin_epoch_s = begin_epoch_s
        self.limit_s = limit_s
        self._waiting = Waiting(self._connect, Attempt(**attempt), ticket, image)

    @classmethod
    def of(cls, operator: Any, attempt: Attempt, **kwargs: Any) -> GpuFreeTrigger:
        """For an operator that is a DockerOperator."""
        names = ("tls_ca_cert", "tls_client_cert", "tls_client_key", "tls_verify")
        engine = {"base_url": operator.docker_url, **{name: getattr(operator, name) for name in names}}
        return cls(engine=engine, attempt=asdict(attempt), **kwargs)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Path of the class and its arguments."""
        names = ("engine", "attempt", "ticket", "image", "begin_epoch_s", "limit_s")
        return f"{type(self).__module__}.{type(self).__qualname__}", {n: getattr(self, n) for n in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until it is the claim's turn; say who holds the GPUs and how much time is left."""
        said_s = -_SAY_EVERY_S
        settled_s = time.monotonic() + SETTLE_S
        while True:
            sight = await asyncio.to_thread(self._look)
            left_s = self.begin_epoch_s + self.limit_s - now_epoch_s()
            unsettled_s = settled_s - time.monotonic()
            if (sight.free or left_s <= 0) and unsettled_s <= 0:
                # The time of a claim begins when it is the first of its run: else one GPU that is taken for an hour
                # would fail every cycle of a study at the same time, and not one after the other.
                begin_epoch_s = now_epoch_s() if sight.behind_its_own else self.begin_epoch_s
                payload = {"ticket": self.ticket, "begin_epoch_s": begin_epoch_s}
                yield TriggerEvent(payload)  # type: ignore[no-untyped-call]  # Airflow leaves it untyped
                return
            if not sight.free and time.monotonic() - said_s >= _SAY_EVERY_S:
                said_s = time.monotonic()
                self.log.info(
                    "Waiting for GPUs, %.0f s left, %s ahead; held by: %s",
                    max(0.0, left_s),
                    counted(sight.ahead, "claim"),
                    sight.text,
                )
            # Who stands far behind need not look often; the place itself has to be renewed.
            pause_s = min(_LOOK_EVERY_S + 0.5 * sight.ahead, _LOOK_AT_LEAST_EVERY_S, max(left_s, unsettled_s))
            await asyncio.sleep(pause_s)

    async def cleanup(self) -> None:
        """Leave the engine but not the queue: the task goes on with the place, or another triggerer does."""
        await asyncio.to_thread(self._waiting.close)

    async def on_kill(self) -> None:
        """Leave the queue: a person has ended the task."""
        await asyncio.to_thread(self._waiting.leave)

    def _look(self) -> Sight:
        try:
            return self._waiting.look()
        except (*ENGINE_ERRORS, AirflowException) as error:  # the hook's word for an engine that is away
            self._waiting.close()
            text = f"not known, the Docker engine does not answer: {error}"
            return Sight(free=False, ahead=0, behind_its_own=False, text=text)

    def _connect(self) -> docker.APIClient:
        tls = DockerHook.construct_tls_config(
            ca_cert=self.engine["tls_ca_cert"],
            client_cert=self.engine["tls_client_cert"],
            client_key=self.engine["tls_client_key"],
            verify=self.engine["tls_verify"],
        )
        url = self.engine["base_url"]
        if isinstance(url, str) and not tls:
            return connect({"DOCKER_HOST": str(parse_host(url))}, timeout_s=_CONNECT_TIMEOUT_S)
        return DockerHook(docker_conn_id=None, base_url=url, tls=tls, timeout=_CONNECT_TIMEOUT_S).api_client
