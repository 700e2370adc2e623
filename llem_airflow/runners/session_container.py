"""The living container of a session: made, found, started again, removed.

It is the lease of its GPUs for its whole life. Its program, the guard, ends it when nobody comes any more.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import docker
import requests
from docker.errors import APIError, NotFound, create_api_error_from_http_exception
from docker.types import Healthcheck
from urllib3.exceptions import HTTPError

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
from llem_airflow.runners.engine import LIVE_STATES, containers_of, remove_all, remove_container
from llem_airflow.runners.exchange import packed
from llem_airflow.runners.failures import AttemptFailedError, classify, failure
from llem_airflow.runners.gpus import inventory
from llem_airflow.runners.holders import Holder
from llem_airflow.runners.leases import Demand, Patience, clashes, everyone

STDOUT = 1

COMMAND_S = 150.0
"""How long a command in the container may be silent that does not follow anything, in seconds."""

_STOP_S = 2
_TAIL_LINES = 15
_OLD_BEAT_S = 15 * BEAT_S
_MAX_STATE_BYTES = 64 * 1024 * 1024
_HEADER = struct.Struct(">BxxxL")


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
    remove_all(api, session_of(attempt, session_id))


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
    """The session's container: made, found, and started again.

    Args:
        api: The engine.
        attempt: Of a task; its Airflow, DAG and run count.
        settings: How the container is made, as for a container of one attempt.
        session: Which session, and its limits.
        **where: As of :class:`DockerRunner`; ``bundle`` is what the guard runs from.
    """

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
        self._made = ""

    @property
    def container_name(self) -> str:
        """The container's name."""
        return self._attempt.container_name

    def begin(self, spec: ExperimentSpec, wait: Wait = Wait()) -> ContainerPlace | Busy:  # noqa: B008  # frozen
        """Start the container and wait until its guard is up; go on with one of the same run that lives.

        Args:
            spec: Any experiment of the session; what meters it has decides whether it needs a GPU.
            wait: How long GPUs may be waited for. ``Busy.later`` is as of the runner of containers.

        Raises:
            AttemptFailedError: It cannot be started; nothing of it is left.
        """
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
        self._made = ""
        return place

    def kill(self) -> None:
        """Remove the container that this try has made, until it has begun.

        From then on it is the run's: cycles are measured in it, and another try may have gone on with it.
        """
        if self._made:
            self._kill(self._made)

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
            raise self._failed(
                failure("session_unhealthy"),
                f"session {session.session_id} is over after {restarts} restarts of {session.max_restarts}: {why}",
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

    def _create(self, spec: ExperimentSpec, gpus: tuple[str, ...], lease: Mapping[str, str]) -> str:
        self._made = super()._create(spec, gpus, lease)
        return self._made

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


def not_running(error: APIError) -> bool:
    """Whether a refusal means that the container has ended or is gone; a command's start is refused with 500 then."""
    return error.status_code in (404, 409) or "is not running" in str(error.explanation)


def executed(
    api: docker.APIClient,
    container: str,
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    working_dir: str | None = None,
    timeout_s: float | None = None,
) -> Iterator[tuple[int, bytes]]:
    """Execute a command and give what it writes: the stream (:data:`STDOUT` or that of errors) and the bytes.

    The command goes on when the connection ends. docker-py asks for an upgraded connection and reads past what it has
    buffered; the engine answers a plain request with a plain body.

    Args:
        api: The engine.
        container: Id of the container, which must run.
        command: Program and arguments.
        environment: Variables besides the container's own.
        working_dir: Where it runs; None for the container's own.
        timeout_s: Of the calls, and longest silence; None for the client's own, and any silence.

    Raises:
        docker.errors.APIError: The engine refused; 409 where the container does not run.
        requests.exceptions.RequestException: The engine does not answer, or went away.
    """
    usual_s = api.timeout
    api.timeout = usual_s if timeout_s is None else timeout_s  # type: ignore[assignment]  # the stubs know whole seconds only
    try:
        identity = api.exec_create(
            container, list(command), environment=dict(environment or {}), workdir=working_dir
        )["Id"]
    finally:
        api.timeout = usual_s
    url = f"{api.base_url}/v{api.api_version}/exec/{identity}/start"
    began_s = timeout_s or usual_s
    with api.post(
        url, json={"Detach": False, "Tty": False}, stream=True, timeout=(began_s, timeout_s)
    ) as response:
        try:
            response.raise_for_status()
        except requests.exceptions.HTTPError as error:
            raise create_api_error_from_http_exception(error) from error
        try:
            # Read frame by frame: what iterates over content waits for its end.
            while len(header := response.raw.read(_HEADER.size)) == _HEADER.size:
                stream, size = _HEADER.unpack(header)
                yield stream, response.raw.read(size)
        except HTTPError as error:
            raise requests.exceptions.ConnectionError(error) from error
