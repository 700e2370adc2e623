"""The one interface for every place where a cycle can run.

Whoever wants a cycle measured makes a runner, asks it for a place, and gives that place what is to be measured::

    placed = runner.place(spec, Wait(limit_s=180))
    if isinstance(placed, Busy):
        raise placed.error(folder)
    runner.run(placed, spec, store)

An operator knows nothing of containers or processes, and a runner knows nothing of Airflow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.runners.failures import GPUUnavailableError, failure, told_without_secrets

if TYPE_CHECKING:
    from llem_airflow.runners.holders import Holder
    from llem_airflow.runners.output import LogSink

RUNNERS = {
    "container": "llem_airflow.runners.docker",
    "process": "llem_airflow.runners.process",
    "kubernetes": "llem_airflow.runners.kubernetes",  # with the extra of that name
}
"""The module of each runner, by its name in studies and records."""

KILL_S = 4.0
"""Longest time that ``Runner.kill`` may take, in seconds: Airflow gives ``on_kill`` five."""


@dataclass(frozen=True, slots=True)
class Wait:
    """How long a place may be waited for.

    Attributes:
        limit_s: All in all, in seconds; 0 for not at all.
        waited_s: How much of that has gone by already, in seconds.
        here: Wait in this process. Else ``place`` says ``Busy`` at once where somebody else can wait (``Busy.later``).
        later: What an earlier ``Busy`` of the same attempt carried: the wait goes on with its turn.
    """

    limit_s: float = 0.0
    waited_s: float = 0.0
    here: bool = True
    later: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Place:
    """Where an attempt runs, held for it from ``Runner.place`` to the end of ``Runner.run``.

    Attributes:
        gpus: Device ids that it has: what the engine may use and what the meter reads.
        adopted: Whether an earlier try of the attempt runs there, or has finished there.
        on_cpu: Why it has no GPU although the host has some; empty otherwise.
        waited_s: How long ``Runner.place`` waited for what others held, in seconds.
    """

    gpus: tuple[str, ...] = ()
    adopted: bool = False
    on_cpu: str = ""
    waited_s: float = 0.0

    def told(self, spec: ExperimentSpec) -> ExperimentSpec:
        """The spec as the attempt gets it: its meter reads the devices of this place and no others."""
        return replace(spec, meter=replace(spec.meter, gpus=self.gpus)) if self.gpus else spec


@dataclass(frozen=True, slots=True)
class Busy:
    """There is no place now, because others hold what the attempt needs.

    Attributes:
        text: What is not free and who holds it, for people.
        hint: What one can do about it: whom to ask, what to look at, what to stop.
        holders: Who holds what.
        later: What :func:`waiting` and a later ``place`` need to go on with this wait, in plain JSON values; None when
            the time is over, or when only this process can wait.
    """

    text: str
    hint: str
    holders: tuple[Holder, ...] = ()
    later: Mapping[str, Any] | None = None

    def error(self, folder: Path) -> GPUUnavailableError:
        """The failure of an attempt that waits no longer; another try can help."""
        return GPUUnavailableError(failure("gpu_unavailable", hint=self.hint), self.text, folder=folder)


@dataclass(frozen=True, slots=True)
class Collected:
    """What a successful attempt left on the worker.

    Attributes:
        folder: Holds the raw files of ``out/`` and the log.
        exit_code: Exit code of the container or process, or None when it is not known.
        adopted: Whether an earlier try had started it.
        image: Name of the image; None for a process.
        image_digest: Repository digest of the image, else its id; None for a process.
        log: The log file.
        host: Facts about the host; what else was on it (neighbours.py); ``on_cpu``, why a host that has GPUs gave
            none; ``privileged``, when its container was.
        gpus: Device ids that it had.
    """

    folder: Path
    exit_code: int | None
    adopted: bool
    image: str | None
    image_digest: str | None
    log: Path
    host: dict[str, Any]
    gpus: tuple[str, ...]


Store = Callable[[Collected], object]


def placed_with(sink: LogSink, find: Callable[[], Place | Busy]) -> Place | Busy:
    """Find a place with the attempt's log open: it stays open for ``Runner.run``, and is closed where there is none.

    Args:
        sink: The log.
        find: Finds the place, or says who holds it.
    """
    sink.open()
    placed: Place | Busy | None = None
    try:
        with told_without_secrets(sink.redactor):
            placed = find()
    finally:
        if not isinstance(placed, Place):
            sink.close()
    return placed


class Runner(ABC):
    """Runs one attempt of a cycle.

    Every runner keeps this contract, and tests/runners/test_contract.py holds it to it:

    - A place is held by this attempt alone: no two attempts have one device at the same time, whichever runners and
      whichever Airflow they are of. What holds it ends with the attempt; nothing that a killed worker leaves keeps
      others waiting for ever.
    - What the engine may use and what the meter reads are the same devices, those of the place.
    - A cycle is not measured twice at the same time. What outlives its worker is taken over by the next try: ``place``
      finds it and ``run`` follows it or collects what it has finished (``outlives_worker``). What does not outlive its
      worker ends with it, and the next try begins anew.
    - ``store`` is called once, with a valid result, and nothing that a later try could collect is removed before it
      has returned.
    - When ``run`` returns or raises, nothing of the attempt is left: no container, volume, process, lease or file,
      unless the caller asked to keep what failed.
    - No secret is in a line, a collected file or an error.

    Attributes:
        name: As studies and records call it.
        own_files: Whether it has a file system of its own, in which models are mounted.
        outlives_worker: Whether an attempt goes on when its worker is killed.
    """

    name: ClassVar[str]
    own_files: ClassVar[bool]
    outlives_worker: ClassVar[bool]

    @property
    def where(self) -> str:
        """In what an attempt runs, for the log: ``as a container``."""
        return f"as a {self.name}"

    @abstractmethod
    def place(self, spec: ExperimentSpec, wait: Wait = Wait()) -> Place | Busy:  # frozen
        """Find what an earlier try left, or hold a place for the attempt.

        Args:
            spec: What is to be measured.
            wait: How long to wait for what others hold.

        Raises:
            AttemptFailedError: It cannot run here, whatever is free. Nothing is held.
        """

    @abstractmethod
    def run(self, place: Place, spec: ExperimentSpec, store: Store) -> Collected:
        """Start the attempt, or go on with the one that is there, and see it through.

        Args:
            place: Of ``place``, which it gives back in any case.
            spec: What is to be measured.
            store: Stores the result; called once, and only with a valid one.

        Raises:
            AttemptFailedError: There is no valid result.
        """

    @abstractmethod
    def kill(self) -> None:
        """End what this try owns, whatever it is doing, within :data:`KILL_S`; called while another method runs.

        What a later try has taken over is not touched. Where there is nothing to end, it is quiet.
        """

    @abstractmethod
    def release(self) -> None:
        """Remove what the tries of an attempt left; for one whose result is stored already.

        Raises:
            AttemptFailedError: It cannot be removed now.
        """

    def record(self, collected: Collected | None) -> dict[str, Any]:
        """What provenance.json says of where and in what it ran.

        Args:
            collected: What a successful attempt left; None for one that failed.
        """
        if collected is None:
            return {}
        return {
            "adopted": collected.adopted,
            "exit_code": collected.exit_code,
            "image": collected.image,
            "image_digest": collected.image_digest,
            "gpus": list(collected.gpus),
            "host": collected.host,
        }


@dataclass(frozen=True, slots=True)
class Sight:
    """What a look at what an attempt waits for showed.

    Attributes:
        free: Whether it can have what it wants.
        ahead: How many claims stand before it.
        behind_its_own: Whether one of them is of the same DAG run.
        text: Who holds what, for people.
        elsewhere: Whether the engine cannot be reached from this process at all: its task has to wait itself.
    """

    free: bool = False
    ahead: int = 0
    behind_its_own: bool = False
    text: str = ""
    elsewhere: bool = False


class Waiting(Protocol):
    """The wait of an attempt whose worker has gone; it keeps its turn."""

    def look(self) -> Sight:
        """Keep the turn and see whether it has come; never raises for a place that cannot be reached."""

    def leave(self) -> None:
        """Give the turn up."""

    def close(self) -> None:
        """Go; the turn stays for whoever goes on with the wait."""


def waiting(later: Mapping[str, Any]) -> Waiting:
    """Go on with a wait in another process, perhaps on another machine.

    Args:
        later: Of ``Busy``.
    """
    made: Waiting = import_module(RUNNERS[later["runner"]]).waiting(later)
    return made
