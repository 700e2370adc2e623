"""Waits of a cycle in the triggerer: for GPUs, for the hardware to cool down, for another cycle.

A task that waits holds no worker, no pool slot and no GPU. Every cycle of a run that Airflow starts during a pause
waits too. They come back one at a time in the plan's order: one when the pause is over, the next when the run has got
on; the others would find a new pause and wait again.
"""

from __future__ import annotations

import asyncio
import threading
import time
from abc import abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, ClassVar

from airflow.triggers.base import BaseTrigger, TriggerEvent

from llem_airflow.results import StoredRun
from llem_airflow.results.folder import Folder
from llem_airflow.runners.base import Wait, waiting
from llem_airflow.text.wording import counted

LOOK_EVERY_S = 5.0
AT_MOST_S = 300.0
"""So long after its pause a cycle comes back in any case, and looks for itself: another one may have died unnoticed."""
_LOOK_AT_GPUS_EVERY_S = 2.0
_LOOK_AT_LEAST_EVERY_S = 8.0
_SAY_EVERY_S = 15.0
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
        later: What the last ``Busy`` carried; None for none yet.
        begin_epoch_s: When the time that is left began to run, or None when it has not.
        since_epoch_s: When the task first went to wait elsewhere; None when it has not.
    """

    here: bool
    later: dict[str, Any] | None = None
    begin_epoch_s: float | None = None
    since_epoch_s: float | None = None

    def of(self, limit_s: float) -> Wait:
        """As a runner takes it.

        Args:
            limit_s: How long it may last, in seconds.
        """
        waited_s = 0.0 if self.begin_epoch_s is None else max(0.0, now_epoch_s() - self.begin_epoch_s)
        return Wait(limit_s, waited_s, self.here, self.later)

    @property
    def waited_s(self) -> float:
        """Time since the task first went to wait elsewhere; 0 when it has not."""
        return 0.0 if self.since_epoch_s is None else max(0.0, now_epoch_s() - self.since_epoch_s)


def now_epoch_s() -> float:
    """Wall clock: the wait goes on in another process, perhaps on another machine."""
    return time.time_ns() / 1e9


def look_every_s(ahead: int) -> float:
    """Time between two looks of a waiting claim: who stands far behind need not look often, but renews its place.

    Args:
        ahead: How many claims stand before it.
    """
    return min(_LOOK_AT_GPUS_EVERY_S + 0.5 * ahead, _LOOK_AT_LEAST_EVERY_S)


class NamedTrigger(BaseTrigger):
    """One whose arguments are its attributes of the same ``names``."""

    names: ClassVar[tuple[str, ...]] = ()

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Path of the class and its arguments."""
        kind = type(self)
        return f"{kind.__module__}.{kind.__qualname__}", {name: getattr(self, name) for name in self.names}


class PlaceTrigger(NamedTrigger):
    """One that waits for the place of an attempt.

    Args:
        later: What the runner's ``Busy`` carried.
        begin_epoch_s: When the waiting began.
        limit_s: How long it may last, in seconds.
        since_epoch_s: When the task first deferred for a place; None is not known.
    """

    names: ClassVar[tuple[str, ...]] = ("later", "begin_epoch_s", "limit_s", "since_epoch_s")

    def __init__(
        self,
        *,
        later: dict[str, Any],
        begin_epoch_s: float,
        limit_s: float,
        since_epoch_s: float | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow leaves it untyped
        self.later = later
        self.begin_epoch_s = begin_epoch_s
        self.limit_s = limit_s
        self.since_epoch_s = since_epoch_s


class GpuFreeTrigger(PlaceTrigger):
    """Fires when what an attempt waits for is free, or when it has waited long enough."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._waiting = waiting(self.later)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until it is the claim's turn; say who holds the GPUs and how much time is left."""
        said_s = -_SAY_EVERY_S
        settled_s = time.monotonic() + SETTLE_S
        while True:
            sight = await asyncio.to_thread(self._waiting.look)
            left_s = self.begin_epoch_s + self.limit_s - now_epoch_s()
            unsettled_s = settled_s - time.monotonic()
            if (sight.free or left_s <= 0) and unsettled_s <= 0:
                # The time of a claim begins when it is the first of its run: else one GPU that is taken for an hour
                # would fail every cycle of a study at the same time, and not one after the other.
                begin_epoch_s = now_epoch_s() if sight.behind_its_own else self.begin_epoch_s
                yield TriggerEvent(self._payload(begin_epoch_s))  # type: ignore[no-untyped-call]  # Airflow leaves it untyped
                return
            if sight.elsewhere and unsettled_s <= 0:
                self.log.warning(
                    "This triggerer cannot look at the host's GPUs (%s): the task waits in its worker. Give the "
                    "host's connection an address that the triggerer reaches (tcp:// with TLS, ssh://)",
                    sight.text,
                )
                yield TriggerEvent({**self._payload(self.begin_epoch_s), "here": True})  # type: ignore[no-untyped-call]  # Airflow leaves it untyped
                return
            if not sight.free and time.monotonic() - said_s >= _SAY_EVERY_S:
                said_s = time.monotonic()
                self.log.info(
                    "Waiting for GPUs, %.0f s left, %s ahead; held by: %s",
                    max(0.0, left_s),
                    counted(sight.ahead, "claim"),
                    sight.text,
                )
            await asyncio.sleep(min(look_every_s(sight.ahead), max(left_s, unsettled_s)))

    def _payload(self, begin_epoch_s: float) -> dict[str, Any]:
        return {
            "later": self.later,
            "begin_epoch_s": begin_epoch_s,
            "since_epoch_s": self.since_epoch_s,
        }

    async def cleanup(self) -> None:
        """Leave the engine but not the queue: the task goes on with the place, or another triggerer does."""
        await asyncio.to_thread(self._waiting.close)

    async def on_kill(self) -> None:
        """Leave the queue: a person has ended the task."""
        await asyncio.to_thread(self._waiting.leave)


@dataclass(frozen=True, slots=True)
class Pause:
    """Why a cycle does not go on now.

    Attributes:
        text: For the task's log.
        until_epoch_s: When it looks again, at the latest.
        trigger: What waits meanwhile; None for a pause that is too short for the way to the triggerer and back.
    """

    text: str
    until_epoch_s: float
    trigger: BaseTrigger | None = None

    @property
    def left_s(self) -> float:
        """Time that is left."""
        return max(0.0, self.until_epoch_s - now_epoch_s())


class PauseTrigger(NamedTrigger):
    """Fires once when a pause is over.

    Args:
        until_epoch_s: When the pause is over, as far as its task knew.
    """

    names: ClassVar[tuple[str, ...]] = ("until_epoch_s",)

    def __init__(self, *, until_epoch_s: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow leaves it untyped
        self.until_epoch_s = until_epoch_s

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until it is over."""
        settled_s = time.monotonic() + SETTLE_S
        while not (time.monotonic() >= settled_s and await asyncio.to_thread(self.is_over)):
            left_s = max(self.until_epoch_s - now_epoch_s(), settled_s - time.monotonic())
            await asyncio.sleep(min(LOOK_EVERY_S, left_s) if left_s > 0 else LOOK_EVERY_S)
        yield TriggerEvent({})  # type: ignore[no-untyped-call]  # Airflow leaves it untyped

    def is_over(self) -> bool:
        """Whether the task can go on; called in a thread."""
        return now_epoch_s() >= self.until_epoch_s


class RunTrigger(PauseTrigger):
    """One that looks at the results of its run; triggers of one run share a look."""

    names: ClassVar[tuple[str, ...]] = ("until_epoch_s", "run_url")
    _lock = threading.Lock()
    _looks: ClassVar[dict[tuple[type, str, str | None], tuple[float, Any]]] = {}
    host: str | None = None
    """The connection of the host that it is about; None for the whole run."""

    def __init__(self, *, until_epoch_s: float, run_url: str) -> None:
        super().__init__(until_epoch_s=until_epoch_s)
        self.run_url = run_url

    def seen(self) -> Any:
        """What the last look showed, made again when it is old."""
        key = (type(self), self.run_url, self.host)
        with self._lock:
            looked_s, found = self._looks.get(key, (-LOOK_EVERY_S, None))
            if time.monotonic() - looked_s >= LOOK_EVERY_S:
                found = self.look(StoredRun.at(Folder.at(self.run_url)))
                self._looks[key] = (time.monotonic(), found)
            return found

    @abstractmethod
    def look(self, run: StoredRun) -> Any:
        """What decides, from the run's results."""


class GapTrigger(RunTrigger):
    """Fires when the thermal gap after the run's last cycle is over and no earlier cycle waits for the same.

    Args:
        until_epoch_s: When the gap is over if no other cycle of the run ends meanwhile.
        run_url: Folder of the run's results.
        gap_s: The gap, in seconds.
        rank: Its place among the waiting cycles of the run: priority and map index.
        host: Where the study is spread over hosts, the connection of this one: each cools down by itself.
    """

    names = (*RunTrigger.names, "gap_s", "rank", "host")
    _waiting: ClassVar[dict[str, dict[int, list[int]]]] = {}
    _sent: ClassVar[dict[str, int | None]] = {}
    """When the run's last cycle had ended as a waiting one was last sent on; that one has to end before the next."""

    def __init__(
        self, *, until_epoch_s: float, run_url: str, gap_s: float, rank: list[int], host: str | None = None
    ) -> None:
        super().__init__(until_epoch_s=until_epoch_s, run_url=run_url)
        self.gap_s = gap_s
        self.rank = rank
        self.host = host
        self._line = f"{run_url} {host}" if host else run_url

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until it is over, in line with the run's others."""
        line = self._waiting.setdefault(self._line, {})
        line[id(self)] = self.rank
        try:
            async for event in super().run():
                yield event
        finally:
            line.pop(id(self), None)

    def look(self, run: StoredRun) -> int | None:
        """When the run's last cycle on the host ended."""
        return run.last_finished_epoch_ns(self.host)

    def is_over(self) -> bool:
        """Whether the hardware has cooled down and it is this cycle's turn."""
        ended_ns = self.seen()
        over_s = self.until_epoch_s if ended_ns is None else ended_ns / 1e9 + self.gap_s
        now_s = now_epoch_s()
        if now_s < over_s:
            return False
        with self._lock:
            first = min(self._waiting.get(self._line, {}).values(), default=self.rank)
            its_turn = self.rank <= first and self._sent.get(self._line, -1) != ended_ns
            if its_turn:
                self._sent[self._line] = ended_ns
        return its_turn or now_s >= self.until_epoch_s + AT_MOST_S


def thermal_gap(run: StoredRun, gap_s: float, rank: list[int], host: str | None = None) -> Pause | None:
    """What is left of the pause after the run's last cycle in which the hardware cools down; None to go on.

    Args:
        run: The run.
        gap_s: How long it is, in seconds.
        rank: Place of the cycle among those of its run that wait.
        host: Connection of its host, where the study is spread over hosts.
    """
    ended_ns = run.last_finished_epoch_ns(host) if gap_s > 0 else None
    if ended_ns is None or (until_epoch_s := ended_ns / 1e9 + gap_s) <= now_epoch_s():
        return None
    trigger = GapTrigger(until_epoch_s=until_epoch_s, run_url=run.url, gap_s=gap_s, rank=rank, host=host)
    short = gap_s <= SETTLE_S
    return Pause(f"Thermal gap of {gap_s:g} s", until_epoch_s, None if short else trigger)
