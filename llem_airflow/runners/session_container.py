"""The living container of a session: made, found, started again, removed.

It is the lease of its GPUs for its whole life. Its program, the guard, ends it when nobody comes any more.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, NotFound
from docker.types import Healthcheck

from llem_airflow.protocol.files import (
    BUNDLE,
    ENV_CONFIG_PATH,
    ENV_OUTPUT_DIR,
    EXCHANGE_DIR,
)
from llem_airflow.protocol.live import ENV_LIVE
from llem_airflow.protocol.session import (
    ATTEMPTS,
    BEAT,
    BEAT_S,
    COMMAND,
    ENV_SESSION,
    EXEC,
    HEALTH,
    LIVES,
    MAX_RUNTIME,
    STATE,
)
from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.runners.attempt import LABEL_SESSION, Attempt
from llem_airflow.runners.base import Busy, Wait
from llem_airflow.runners.container_spec import ContainerSettings
from llem_airflow.runners.docker import ContainerPlace, DockerRunner, adopted
from llem_airflow.runners.engine import (
    LIVE_STATES,
    EngineAddress,
    containers_of,
    exchange_of,
    remove_container,
    remove_volume,
    sweep_volumes,
)
from llem_airflow.runners.exchange import packed
from llem_airflow.runners.execution import COMMAND_S, executed
from llem_airflow.runners.failures import AttemptFailedError, classify, failure
from llem_airflow.runners.gpus import inventory
from llem_airflow.runners.holders import Holder
from llem_airflow.runners.leases import Demand, Patience, clashes, everyone

_STOP_S = 2
_TAIL_LINES = 15
_OLD_BEAT_S = 15 * BEAT_S
_MAX_STATE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How long a session may live.

    Attributes:
        session_id: Its name, unique in a DAG run.
        max_runtime_s: Longest life of the session, over all restarts, in seconds; then its container ends itself.
        idle_s: Longest time without a cycle, in seconds; then its container ends itself.
        max_restarts: How often its container may be started again when it is not healthy or has died.
        start_kind: ``exec`` for a process of its own for each attempt, ``warm`` for one engine that lives on over them.
    """

    session_id: str
    max_runtime_s: float = 4 * 3600.0
    idle_s: float = 900.0
    max_restarts: int = 3
    start_kind: str = EXEC


@dataclass(frozen=True, slots=True)
class Session:
    """The living container of a session.

    Attributes:
        container: Its id.
        name: Its name.
        gpus: Device ids that it holds.
        adopted: Whether it was there already.
    """

    container: str
    name: str
    gpus: tuple[str, ...]
    adopted: bool


def start_session(  # noqa: PLR0913  # what a container is made of, and who hears of it
    api: docker.APIClient,
    attempt: Attempt,
    settings: ContainerSettings,
    session: SessionSettings,
    spec: ExperimentSpec,
    *,
    folder: Path,
    on_line: Callable[[str], None],
    engine: EngineAddress | None = None,
    bundle: Path | None = None,
    wait: Wait = Wait(),  # noqa: B008  # frozen
) -> Session | Busy:
    """Start the container of a session and wait until its guard is up; go on with one of the same run that lives.

    Args:
        api: The engine.
        attempt: Of the task; its Airflow, DAG and run count.
        settings: How the container is made, as for a container of one attempt.
        session: Which session, and its limits.
        spec: Any experiment of the session; what meters it has decides whether it needs a GPU.
        folder: Where evidence of a failure is written.
        on_line: Called with every line for people.
        engine: Where the engine is, for whoever goes on with a wait for GPUs in another process.
        bundle: What the guard runs from; default: the bundle of the installed packages.
        wait: How long GPUs may be waited for. ``Busy.later`` is as of the runner of containers.

    Raises:
        AttemptFailedError: It cannot be started; nothing of it is left.
    """
    container = SessionContainer(
        api, attempt, settings, session, folder=folder, on_line=on_line, engine=engine, bundle=bundle
    )
    return container.begin(spec, wait)


def stop_session(api: docker.APIClient, attempt: Attempt, session_id: str) -> None:
    """Remove the container of a session, its volume and so its lease; quiet where there is none.

    Args:
        api: The engine.
        attempt: Of the task; its Airflow, DAG and run count.
        session_id: Which session.

    Raises:
        docker.errors.DockerException: The engine refused.
        requests.exceptions.RequestException: It does not answer.
    """
    who = session_of(attempt, session_id)
    for listed in containers_of(api, who):
        remove_container(api, listed["Id"])
        remove_volume(api, exchange_of(listed.get("Mounts") or []))
    sweep_volumes(api, who)


def session_of(attempt: Attempt, session_id: str) -> Attempt:
    """Whose the session's container is: names and labels follow from Airflow, DAG, run and session alone."""
    return replace(
        attempt,
        task_id=session_id,
        map_index=-1,
        experiment_id=f"session {session_id}",
        experiment_hash="",
        cycle=0,
        try_number=1,
    )


class SessionContainer(DockerRunner):
    """The session's container: made, found, and started again."""

    def __init__(
        self,
        api: docker.APIClient,
        attempt: Attempt,
        settings: ContainerSettings,
        session: SessionSettings,
        **where: Any,
    ) -> None:
        super().__init__(api, session_of(attempt, session.session_id), settings, **where)
        self._session = session

    def begin(self, spec: ExperimentSpec, wait: Wait) -> Session | Busy:
        """The living container with its guard up, or who holds the GPUs."""
        with self._refusals():
            place = self.up(spec, wait)
            if isinstance(place, Busy):
                return place
            if why := self._not_ready(place):
                said = self._api.logs(place.container, tail=_TAIL_LINES).decode("utf-8", "replace")
                stop_session(self._api, self._attempt, self._session.session_id)
                raise AttemptFailedError(
                    classify(None, f"{said}\n{why}"),
                    f"the guard of session {self._session.session_id} did not start: {why}",
                    folder=self._folder,
                    log_tail=tuple(said.splitlines()),
                )
        return Session(place.container, self._attempt.container_name, place.gpus, place.adopted)

    def _not_ready(self, place: ContainerPlace) -> str:
        """Why its guard is not up; empty when it is."""
        try:
            said = executed(self._api, place.container, self.command("ready"), timeout_s=COMMAND_S)
            return b"".join(data for _, data in said).decode("utf-8", "replace").strip()
        except APIError as error:
            return str(error.explanation or error)

    def command(self, name: str, *arguments: str) -> list[str]:
        """A command of the session, to be executed in its container."""
        return [self._settings.entrypoint[-1], f"{EXCHANGE_DIR}/{BUNDLE}", COMMAND, name, *arguments]

    def up(self, spec: ExperimentSpec, wait: Wait) -> ContainerPlace | Busy:
        """The session's container, running: found, started again, or made."""
        self._wait = wait
        for listed in containers_of(self._api, self._attempt):
            if listed["State"] in LIVE_STATES:
                return adopted(self._api, listed)
            if listed["State"] == "exited":
                place = adopted(self._api, listed)
                return self.restart(place, self._why_ended(place.container), wait)
            remove_container(self._api, listed["Id"])
        claimed = self._claim(spec, wait)
        return claimed if isinstance(claimed, Busy) else self._start(claimed, spec)

    def restart(self, place: ContainerPlace, why: str, wait: Wait) -> ContainerPlace | Busy:
        """End the container's processes and start it again, with its volume and its GPUs.

        A container that does not run holds no GPU, so whoever took one meanwhile is waited for. To look again after
        the start is what makes two that start at the same time see each other.

        Raises:
            AttemptFailedError: It was started again as often as it may be.
        """
        session, api = self._session, self._api
        restarts = len(self._state(place.container, LIVES)) - 1
        if restarts >= session.max_restarts or why == MAX_RUNTIME:
            raise AttemptFailedError(
                failure("session_unhealthy"),
                f"session {session.session_id} is over after {restarts} restarts of {session.max_restarts}: {why}",
                folder=self._folder,
                log_tail=self._sink.tail,
            )
        self._sink.line(
            f"Starting the session's container again ({restarts + 1} of {session.max_restarts}): {why}"
        )
        patience = Patience(wait, Demand(len(place.gpus)), self._sink.line)
        api.stop(place.container, timeout=_STOP_S)
        while True:
            if not (rivals := self._rivals(place)):
                api.start(place.container)
                if not (rivals := self._rivals(place)):
                    return replace(place, adopted=True)
                api.stop(place.container, timeout=_STOP_S)
            if busy := patience.busy(rivals):
                return busy
            patience.pause(rivals)

    def _why_ended(self, container: str) -> str:
        said = [line["ended"] for line in self._state(container, HEALTH)[-1:] if "ended" in line]
        exit_code = self._api.inspect_container(container)["State"]["ExitCode"]
        return str(said[0]) if said and exit_code == 0 else f"its container ended with exit code {exit_code}"

    def _state(self, container: str, name: str) -> list[dict[str, Any]]:
        """The records of a file of the guard's, whether the container runs or not."""
        try:
            chunks, _ = self._api.get_archive(container, f"{EXCHANGE_DIR}/{STATE}/{name}")
            content = b"".join(chunks)[:_MAX_STATE_BYTES]
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                member = archive.next()
                file = archive.extractfile(member) if member is not None and member.isreg() else None
                return [] if file is None else [json.loads(line) for line in file]
        except (NotFound, tarfile.TarError, ValueError):
            return []

    def _rivals(self, place: ContainerPlace) -> list[Holder]:
        if not place.gpus:
            return []
        known = inventory(self._api, self._settings.image)
        mine = Holder(place.container, "", place.gpus, "running", "", False, "")
        others = everyone(self._api, known)
        return [one for one in others if one.container != place.container and clashes(mine, one, known)]

    def _arguments(
        self, spec: ExperimentSpec, gpus: tuple[str, ...], lease: Mapping[str, str]
    ) -> dict[str, Any]:
        made = super()._arguments(spec, gpus, lease)
        session = self._session
        made["command"] = self.command("guard", str(session.max_runtime_s), str(session.idle_s))[1:]
        made["labels"][LABEL_SESSION] = session.session_id
        made["environment"][ENV_SESSION] = session.session_id
        for name in (ENV_CONFIG_PATH, ENV_OUTPUT_DIR, ENV_LIVE):
            made["environment"].pop(name)
        made["healthcheck"] = _healthcheck(self._settings.entrypoint[-1])
        return made

    def _hand_in(self, place: ContainerPlace, bundle: Path, spec: ExperimentSpec, user: str | None) -> None:
        del spec  # each attempt brings its own
        content = packed({BUNDLE: bundle.read_bytes()}, [STATE, ATTEMPTS], user)
        self._api.put_archive(place.container, EXCHANGE_DIR, content)


def _healthcheck(python: str) -> Healthcheck:
    """Is the guard's beat young? Twenty milliseconds of one core, every half minute."""
    beat = f"{EXCHANGE_DIR}/{STATE}/{BEAT}"
    code = f"import os,sys,time; sys.exit(time.time() - os.stat({beat!r}).st_mtime > {_OLD_BEAT_S})"
    second = 10**9
    return Healthcheck(
        test=["CMD", python, "-I", "-S", "-c", code], interval=30 * second, timeout=10 * second, retries=3
    )
