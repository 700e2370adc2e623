"""Sessions: one container lives on over several cycles, each executed in it (``docker exec``)."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import docker
import requests
from docker.errors import APIError, NotFound

from llem_airflow.protocol.files import (
    BUNDLE,
    ENV_CONFIG_PATH,
    ENV_OUTPUT_DIR,
    EXCHANGE_DIR,
    OUT_DIR,
    config_name,
)
from llem_airflow.protocol.live import ENV_LIVE
from llem_airflow.protocol.session import (
    ATTEMPTS,
    BUSY,
    ENDED,
    TAKEN,
    UNHEALTHY,
    WARM,
    Exit,
    Turn,
)
from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.protocol.typed_json import ProtocolError
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.base import KILL_S, Busy, Collected, Place, Store, Wait
from llem_airflow.runners.bundle import build_bundle
from llem_airflow.runners.container_spec import ContainerSettings
from llem_airflow.runners.docker import ContainerPlace, DockerRunner
from llem_airflow.runners.engine import ENGINE_ERRORS, containers_of, patiently
from llem_airflow.runners.exchange import collect, packed
from llem_airflow.runners.failures import AttemptFailedError, classify
from llem_airflow.runners.gpus import NO_GPUS
from llem_airflow.runners.holders import Holder
from llem_airflow.runners.leases import Demand, Patience
from llem_airflow.runners.output import GoneError
from llem_airflow.runners.session_container import (
    COMMAND_S,
    STDOUT,
    SessionContainer,
    SessionSettings,
    executed,
    not_running,
    session_of,
)

_AGAIN_S = 0.5
_TAIL_LINES = 15
_MAX_FRUITLESS = 20
_AT_ONCE_S = 5.0


class SessionRunner(DockerRunner):
    """Runs an attempt in the living container of its session, in a process of its own or by the engine that lives on.

    The container is found by its run and session; it is started again, or made again, where it has died. Attempts of
    a session take turns. What an attempt prints and how it ended lies in files of the container, so that it goes on
    when its worker, or the connection to the engine, is gone.

    Args:
        api: A client of the engine.
        attempt: Who this is.
        settings: As of the session's container; the environment and the limits of time are this attempt's.
        session: Which session.
        **where: As of :class:`DockerRunner`.
    """

    def __init__(
        self,
        api: docker.APIClient,
        attempt: Attempt,
        settings: ContainerSettings,
        session: SessionSettings,
        **where: Any,
    ) -> None:
        super().__init__(api, attempt, settings, **where)
        self._session = session
        self._container = SessionContainer(
            api, attempt, settings, session,
            folder=self._folder, on_line=self._sink.line, engine=where.get("engine"),
        )  # fmt: skip
        self._path = f"{EXCHANGE_DIR}/{ATTEMPTS}/{attempt.key}"
        self._found: ContainerPlace | None = None
        self._position: int | None = None
        self._hash = attempt.experiment_hash

    @property
    def where(self) -> str:
        """In what an attempt runs, for the log."""
        what = "with the engine" if self._session.start_kind == WARM else "as a process in the container"
        return f"{what} of session {self._session.session_id}"

    def run(self, place: Place, spec: ExperimentSpec, store: Store) -> Collected:
        """Start the attempt in the session or follow the one that is there; store what it left; remove it."""
        self._hash = spec.experiment_hash
        return super().run(place, spec, store)

    def kill(self) -> None:
        """End the processes of the attempt and remove what there is of it, unless a later try has taken it over."""
        if not self._runs:
            self._sink.close()
        if self._found is not None:
            self._forget(self._found.container, self._attempt.container_name, KILL_S)

    def release(self) -> None:
        """Remove what all tries left in the session, if that still is there."""
        with self._refusals():
            for listed in containers_of(self._api, session_of(self._attempt, self._session.session_id)):
                self._forget(listed["Id"], "")

    def record(self, collected: Collected | None) -> dict[str, Any]:
        """What the runner of containers says, and where in the session it ran."""
        return {
            **super().record(collected),
            "start_kind": self._session.start_kind,
            "session": self._session.session_id,
            "position_in_session": self._position,
        }

    def _find(self, spec: ExperimentSpec, wait: Wait) -> ContainerPlace | Busy:
        """Take the turn in the session, or what an earlier try left there."""
        patience: Patience | None = None
        fruitless = 0
        while True:
            place = self._container.up(spec, wait)
            if isinstance(place, Busy):
                return place
            self._found = place
            turn = self._ask(place)
            if turn is None:  # it has died meanwhile: the next look starts it again, as often as it may be
                fruitless += 1
                if fruitless >= _MAX_FRUITLESS:
                    raise self._not_followed("its guard does not answer")
                continue
            self._position = turn.position
            if turn.state == UNHEALTHY:
                again = self._container.restart(place, turn.text, wait)
                if isinstance(again, Busy):
                    return again
            elif turn.state == BUSY:
                held = [_holder(place, turn.text)]
                patience = patience or Patience(wait, Demand(len(place.gpus)), self._sink.line)
                if busy := patience.busy(held):
                    return busy
                patience.pause(held)
            elif turn.state != ENDED or self._left_result(place, spec):
                waited_s = patience.waited_s if patience else 0.0
                return replace(place, adopted=turn.state != TAKEN, age_s=turn.age_s, waited_s=waited_s)

    def _ask(self, place: ContainerPlace) -> Turn | None:
        """The answer to this try's question for its turn; None where the container has died."""
        who = self._attempt
        what = f"{who.experiment_id} of DAG {who.dag_id}"
        command = self._container.command("turn", who.key, who.container_name, what)
        try:
            said = list(
                executed(
                    self._api, place.container, command, environment=_visible(place), timeout_s=COMMAND_S
                )
            )
        except APIError as error:
            if not not_running(error):
                raise
            time.sleep(_AGAIN_S)
            return None
        answer = b"".join(data for stream, data in said if stream == STDOUT)
        try:
            return Turn.loads(answer.decode("utf-8", "replace"))
        except ProtocolError:
            text = b"".join(data for _, data in said).decode("utf-8", "replace")
            if not text.strip() or not self._runs_now(place):
                time.sleep(_AGAIN_S)  # it ends: what was executed has ended with it, its state follows
                return None
            headline = f"the session's guard cannot be asked: {text.strip()}"
            raise self._failed(classify(None, text), headline) from None

    def _left_result(self, place: ContainerPlace, spec: ExperimentSpec) -> bool:
        """Whether an attempt that ended left a valid result; if not, its files are kept and it is forgotten."""
        problem = self._problem_of_earlier(place.container, self._attempt.key, spec, self._path)
        if problem is not None:
            self._sink.line(f"An earlier try ended in the session without a result: {problem}")
            self._forget(place.container, "")
        return problem is None

    def _start(self, place: ContainerPlace, spec: ExperimentSpec) -> ContainerPlace:
        """Hand the attempt's own bundle and spec in; it starts when it is followed."""
        bundle = self._bundle or build_bundle()
        key = self._attempt.key
        files = {
            f"{key}/{BUNDLE}": bundle.read_bytes(),
            f"{key}/{config_name(spec.experiment_hash)}": place.told(spec).dumps().encode(),
        }
        content = packed(files, [key, f"{key}/{OUT_DIR}"], self._user())
        self._api.put_archive(place.container, f"{EXCHANGE_DIR}/{ATTEMPTS}", content)
        return place

    def _watch(self, place: ContainerPlace) -> tuple[dict[str, Any], str | None]:
        """Follow the attempt to its end; returns an inspection as of a container of its own, and which limit fired."""

        def end() -> None:
            who, grace_s = self._attempt, str(self._settings.stop_grace_s)
            command = self._container.command("end", who.key, who.container_name, grace_s)
            with contextlib.suppress(*ENGINE_ERRORS):
                list(executed(self._api, place.container, command))

        with self._watchdog(place, end) as dog:
            try:
                return self._follow(place, dog.heard), dog.fired
            except (GoneError, NotFound) as error:
                raise self._gone() from error

    def _follow(self, place: ContainerPlace, heard: Callable[[], None]) -> dict[str, Any]:
        """Feed the output to the log until the attempt has ended, over broken connections."""
        offset, fruitless = 0, 0
        while True:
            errors, before, began_s = b"", offset, time.monotonic()
            try:
                for stream, data in self._followed(place, offset):
                    if stream != STDOUT:
                        errors += data
                        continue
                    offset += len(data)
                    if self._sink.feed(data):
                        heard()
                at_once = time.monotonic() - began_s < _AT_ONCE_S  # else a proxy ended an idle connection
                fruitless = fruitless + 1 if at_once and offset == before else 0
            except APIError as error:
                errors += str(error.explanation or error).encode()
                fruitless += 1
            except requests.exceptions.RequestException:
                pass  # whether the attempt goes on is what the next look says
            with contextlib.suppress(ProtocolError):
                ended = Exit.loads(errors.decode("utf-8", "replace").strip().rpartition("\n")[2])
                self._sink.finish()
                return self._inspection(place, ended)
            inspection = patiently(lambda: self._api.inspect_container(place.container))
            if not inspection["State"]["Running"]:
                self._sink.finish()
                return self._died(inspection)
            if fruitless >= _MAX_FRUITLESS:
                raise self._not_followed(errors.decode("utf-8", "replace").strip())
            time.sleep(_AGAIN_S)

    def _not_followed(self, said: str) -> AttemptFailedError:
        text = f"the attempt cannot be executed in its session's container: {said}"
        return self._failed(classify(None, said), text)

    def _followed(self, place: ContainerPlace, offset: int) -> Iterator[tuple[int, bytes]]:
        who, settings = self._attempt, self._settings
        attempt = [*settings.entrypoint, f"{self._path}/{BUNDLE}"]
        command = self._container.command(
            "run", who.key, who.container_name, str(offset), self._session.start_kind, *attempt
        )
        environment = {
            **settings.environment,
            **settings.private_environment,
            **_visible(place),
            ENV_LIVE: "1",
            ENV_CONFIG_PATH: f"{self._path}/{config_name(self._hash)}",
            ENV_OUTPUT_DIR: f"{self._path}/{OUT_DIR}",
        }
        return executed(
            self._api, place.container, command, environment=environment, working_dir=settings.working_dir
        )

    def _inspection(self, place: ContainerPlace, ended: Exit) -> dict[str, Any]:
        """The container's, with the end and the owner of the attempt in the place of its own."""
        if not ended.owner:
            raise GoneError("the attempt was removed from the session while it ran")
        inspection: dict[str, Any] = patiently(lambda: self._api.inspect_container(place.container))
        state = {**inspection["State"], "ExitCode": ended.exit_code, "OOMKilled": ended.oom_killed}
        return {**inspection, "Name": ended.owner, "State": state}

    def _died(self, inspection: dict[str, Any]) -> dict[str, Any]:
        """The inspection of a container that ended under the attempt."""
        said = self._api.logs(inspection["Id"], tail=_TAIL_LINES).decode("utf-8", "replace")
        for line in [*said.splitlines(), "The session's container ended while the attempt ran"]:
            self._sink.line(line)
        # An exit code of 0 is the guard's, whose time was over.
        code = inspection["State"]["ExitCode"] or 128 + signal.SIGKILL
        state = {**inspection["State"], "ExitCode": code}
        return {**inspection, "Name": self._attempt.container_name, "State": state}

    def _collect(self, place: ContainerPlace, inspection: Mapping[str, Any]) -> None:
        del inspection  # the volume holds other attempts, too: nothing goes past the engine
        collect(self._api, place.container, self._folder, self._sink.redactor, exchange=self._path)

    def _collect_own(self, place: ContainerPlace) -> None:
        self._collect(place, {})

    def _discard(self, place: ContainerPlace) -> None:
        if not self._keep_volume:
            self._forget(place.container, self._attempt.container_name)

    def _kept(self, error: BaseException) -> bool:
        del error
        self._sink.line("keep_failed: the container of a session goes on; what failed is not kept in it")
        return False

    def _forget(self, container: str, owner: str, timeout_s: float = COMMAND_S) -> None:
        """End and remove the attempt of a try, or of all; quiet where the container has ended."""
        command = self._container.command("forget", self._attempt.key, owner)
        try:
            list(executed(self._api, container, command, timeout_s=timeout_s))
        except APIError as error:
            if not not_running(error):
                raise

    def _runs_now(self, place: ContainerPlace) -> bool:
        try:
            return bool(self._api.inspect_container(place.container)["State"]["Running"])
        except NotFound:
            return False


def _visible(place: ContainerPlace) -> dict[str, str]:
    """What NVIDIA's toolkit tells a container's own program, and not what is executed in it later."""
    return {"NVIDIA_VISIBLE_DEVICES": ",".join(place.gpus)} if place.gpus else dict(NO_GPUS)


def _holder(place: ContainerPlace, what: str) -> Holder:
    """The attempt whose turn it is, as one that holds the session's GPUs, or without any the host."""
    return Holder(place.container, "of the session", place.gpus, "running", "turn", not place.gpus, what)
