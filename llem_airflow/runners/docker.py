"""The runner of containers: one attempt in one container, whose name and labels say whose it is and what it holds."""

from __future__ import annotations

import contextlib
import datetime
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from llem_airflow.protocol.files import EVENTS, EXCHANGE_DIR
from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.protocol.typed_json import ProtocolError
from llem_airflow.runners.attempt import Attempt, gpus_of
from llem_airflow.runners.base import KILL_S, Busy, Collected, Place, Runner, Store, Wait, placed_with
from llem_airflow.runners.bundle import build_bundle
from llem_airflow.runners.claims import LABEL_ON_CPU, Claim, Waiter
from llem_airflow.runners.container_spec import ContainerSettings, create_arguments
from llem_airflow.runners.ending import CONTAINER_LOG, INSPECT, Ended, failed, read_result
from llem_airflow.runners.engine import (
    ENGINE_ERRORS,
    LIVE_STATES,
    EngineAddress,
    containers_of,
    exchange_of,
    host_facts,
    keep_container,
    name_of,
    patiently,
    remove_all,
    remove_container,
    remove_volume,
    sweep_volumes,
    write_inspection,
)
from llem_airflow.runners.exchange import (
    CollectError,
    collect,
    hand_in,
    mounted_at,
    shared_folder,
    volume_folder,
)
from llem_airflow.runners.failures import AttemptFailedError, Failure, classify, failure, told_without_secrets
from llem_airflow.runners.gpus import inventory, on_this_machine
from llem_airflow.runners.host_sampler import HostSampler
from llem_airflow.runners.images import ImagePullError, default_user, digest, pull
from llem_airflow.runners.neighbours import Neighbours
from llem_airflow.runners.output import GoneError, LogSink, OnLive, Watchdog, follow, watchdog

_EARLIER_TAIL_LINES = 15


@dataclass(frozen=True)
class ContainerPlace(Place):
    """A container of ours, created or taken over.

    Attributes:
        container: Its id.
        volume: Name of its exchange volume.
        age_s: How long it had lived when it was taken over, in seconds.
        direct: The volume's folder, where this process sees it and the container is a new one.
    """

    container: str = ""
    volume: str | None = None
    age_s: float = 0.0
    direct: Path | None = None


class DockerRunner(Runner):
    """Runs an attempt in a container. The container is the lease, and it goes on when its worker is killed.

    Args:
        api: A client of the engine.
        attempt: Who this is; names and labels follow from it.
        settings: How the container is made.
        folder: Folder for the raw files of ``out/`` and the log.
        on_line: Called with every line of output, in the caller's thread.
        on_live: Called with every live record, likewise.
        engine: Where the engine is, for whoever goes on with a wait in another process.
        bundle: What runs inside; default: the bundle of the installed packages.
        image: What people call the image; default: the name in the settings, which may be an exact one.
    """

    name = "container"
    own_files = True
    outlives_worker = True

    def __init__(  # noqa: PLR0913  # what a container is made of, and who hears of it
        self,
        api: docker.APIClient,
        attempt: Attempt,
        settings: ContainerSettings,
        *,
        folder: Path,
        on_line: Callable[[str], None],
        on_live: OnLive | None = None,
        engine: EngineAddress | None = None,
        bundle: Path | None = None,
        image: str = "",
    ) -> None:
        self._api = api
        self._attempt = attempt
        self._settings = settings
        self._folder = folder
        self._engine = engine or EngineAddress()
        self._bundle = bundle
        self._image = image or settings.image
        self._sink = LogSink(folder / CONTAINER_LOG, on_line, settings.secrets(), settings.log_bytes, on_live)
        self._wait = Wait()
        self._keep_volume = False
        self._runs = False

    def place(self, spec: ExperimentSpec, wait: Wait = Wait()) -> Place | Busy:  # noqa: B008  # frozen
        """Take over what an earlier try left, or create what holds the GPUs."""
        self._wait = wait

        def find() -> Place | Busy:
            with self._refusals():
                return self._find(spec, wait)

        return placed_with(self._sink, find)

    def run(self, place: Place, spec: ExperimentSpec, store: Store) -> Collected:
        """Start the container or follow the one that is there; store what it left; remove it."""
        assert isinstance(place, ContainerPlace)
        self._runs = True
        with contextlib.closing(self._sink), told_without_secrets(self._sink.redactor), self._refusals():
            facts = _Background(lambda: host_facts(self._api))
            if not place.adopted:
                place = self._start(place, spec)
            try:
                with self._host_sampler(place, spec) as host:
                    collected = self._see_through(place, spec, facts)
                    if host is not None and not host.finish(spec):
                        self._sink.line(
                            "The host's power series does not reach around the window: the container's counts"
                        )
            except BaseException as error:
                # Also a task timeout or a signal: whatever ends the wait, the container does not run on.
                self._salvage(place)
                with contextlib.suppress(*ENGINE_ERRORS):
                    if not (self._settings.keep_failed and self._kept(error)):
                        self._discard(place)
                raise
        store(collected)
        with contextlib.suppress(*ENGINE_ERRORS):
            patiently(lambda: self._discard(place))
        return collected

    def kill(self) -> None:
        """End and remove the container that this try owns, and its volume."""
        self._kill(self._attempt.container_name)

    def _kill(self, container: str) -> None:
        if not self._runs:
            self._sink.close()
        api, usual_s = self._api, self._api.timeout
        deadline_s = time.monotonic() + KILL_S

        def in_time() -> None:
            api.timeout = max(0.1, deadline_s - time.monotonic())  # type: ignore[assignment]  # the stubs know whole seconds only

        try:
            in_time()
            inspection = api.inspect_container(container)
            in_time()
            if remove_container(api, container):
                in_time()
                remove_volume(api, exchange_of(inspection["Mounts"]))
        except NotFound:
            pass
        finally:
            api.timeout = usual_s

    def release(self) -> None:
        """Remove containers and volumes of all tries, whatever their state."""
        with self._refusals():
            remove_all(self._api, self._attempt)

    def record(self, collected: Collected | None) -> dict[str, Any]:
        """What every runner says, the image by its own name, and requests for devices that were made by hand."""
        said = super().record(collected)
        if collected is None:
            with contextlib.suppress(*ENGINE_ERRORS):
                said["image_digest"] = digest(self._api, self._settings.image)
        by_hand = [dict(each) for each in self._settings.device_requests]
        return {**said, "image": self._image, **({"device_requests": by_hand} if by_hand else {})}

    def _find(self, spec: ExperimentSpec, wait: Wait) -> ContainerPlace | Busy:
        return self._adopt(spec) or self._claim(spec, wait)

    def _adopt(self, spec: ExperimentSpec) -> ContainerPlace | None:
        """Take over the container of an earlier try: one that runs, or one that ended with a valid result.

        What else earlier tries left is removed. Taking over is renaming: the name says who owns a container, so
        that an earlier try that dies late cannot remove it.
        """
        for listed in containers_of(self._api, self._attempt):
            if listed["State"] == "removing":
                continue
            if listed["State"] in LIVE_STATES or (
                listed["State"] == "exited" and self._holds_result(listed, spec)
            ):
                if name_of(listed) != self._attempt.container_name:
                    self._api.rename(listed["Id"], self._attempt.container_name)
                self._sink.line(f"Taking over container {name_of(listed)} of an earlier try")
                return adopted(self._api, listed)
            if remove_container(self._api, listed["Id"]):
                remove_volume(self._api, exchange_of(listed.get("Mounts") or []))
        sweep_volumes(self._api, self._attempt)
        return None

    def _holds_result(self, listed: Mapping[str, Any], spec: ExperimentSpec) -> bool:
        """Whether an ended container left a valid result; if not, its last lines are told."""
        name = name_of(listed)
        problem = self._problem_of_earlier(listed["Id"], name, spec)
        if problem is None:
            return True
        self._sink.line(
            f"An earlier try left container {name} without a result ({listed['Status']}): {problem}"
        )
        last = self._api.logs(listed["Id"], tail=_EARLIER_TAIL_LINES).decode("utf-8", "replace")
        for line in last.splitlines():
            self._sink.line(f"  | {line}")
        return False

    def _problem_of_earlier(
        self, container: str, name: str, spec: ExperimentSpec, exchange: str = EXCHANGE_DIR
    ) -> Exception | None:
        """Why an earlier try has no valid result, whose files are then kept beside the new try's; None where it has."""
        earlier = self._folder / f"earlier-{name}"
        earlier.mkdir(exist_ok=True)
        try:
            collect(self._api, container, earlier, self._sink.redactor, exchange=exchange)
            read_result(earlier, spec)
        except (APIError, CollectError, ProtocolError) as error:
            return error
        shutil.rmtree(earlier)
        return None

    def _claim(self, spec: ExperimentSpec, wait: Wait) -> ContainerPlace | Busy:
        """Create a container that holds what the attempt asks for, once it is free."""
        api, attempt, settings = self._api, self._attempt, self._settings
        if settings.pull == "always":
            self._pull()
        claim = Claim(
            api, self._engine, attempt, settings, self._sink, wait, self._pull_missing,
            meter=spec.meter.kind,
        )  # fmt: skip
        volume = api.create_volume(attempt.volume_name, labels=attempt.labels)
        direct = (
            volume_folder(volume.get("Mountpoint"), attempt.volume_name) if settings.direct_volume else None
        )
        try:
            with self._nothing_stays():
                while True:
                    gpus = claim.choose()
                    if isinstance(gpus, Busy):
                        remove_volume(api, attempt.volume_name)
                        return gpus
                    identity = self._create(spec, gpus, claim.labels(gpus))
                    if claim.settle(identity, gpus):
                        return ContainerPlace(
                            gpus,
                            on_cpu=claim.on_cpu,
                            waited_s=claim.waited_s,
                            container=identity,
                            volume=attempt.volume_name,
                            direct=direct,
                        )
                    remove_container(api, identity)
        finally:
            claim.end()

    def _start(self, place: ContainerPlace, spec: ExperimentSpec) -> ContainerPlace:
        """Hand bundle and spec in and start the container; returns the place that it is in."""
        api, settings = self._api, self._settings
        bundle = self._bundle or build_bundle()
        while True:
            with self._nothing_stays():
                try:
                    self._hand_in(place, bundle, spec, self._user())
                    for cache in settings.caches:
                        api.put_archive(place.container, str(cache.parent), shared_folder(cache.name))
                    api.start(place.container)
                    return place
                except NotFound:
                    if not self._vanishes(place):
                        raise  # a network or a volume
            # An older claim took us for dead and removed the container: claim again.
            again = self._claim(spec, self._wait)
            if isinstance(again, Busy):
                raise again.error(self._folder)
            place = again

    def _user(self) -> str | None:
        """Whom the container runs as."""
        settings = self._settings
        return default_user(self._api, settings.image) if settings.user is None else settings.user

    def _hand_in(self, place: ContainerPlace, bundle: Path, spec: ExperimentSpec, user: str | None) -> None:
        hand_in(self._api, place.container, place.direct, bundle, place.told(spec), user)

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except ENGINE_ERRORS as error:
            self._sink.finish()
            raise self._failed(
                classify(None, "", error=error), f"the Docker engine refused: {error}"
            ) from error

    def _failed(self, found: Failure, headline: str, **more: Any) -> AttemptFailedError:
        """The failure of this attempt, with where its files are and the last lines of its output."""
        return AttemptFailedError(found, headline, folder=self._folder, log_tail=self._sink.tail, **more)

    @contextlib.contextmanager
    def _nothing_stays(self) -> Iterator[None]:
        """Whatever is raised before the container has started, neither it nor its volume stays."""
        name = self._attempt.container_name
        try:
            yield
        except BaseException as error:
            exit_code = _exit_code(self._api, name)
            remove_container(self._api, name)
            remove_volume(self._api, self._attempt.volume_name)
            if isinstance(error, APIError):
                text = error.explanation or str(error)
                headline = f"a container of image {self._settings.image} cannot be started: {text}"
                found = classify(exit_code, text, error=error)
                raise self._failed(found, headline, exit_code=exit_code) from error
            raise

    def _create(self, spec: ExperimentSpec, gpus: tuple[str, ...], lease: Mapping[str, str]) -> str:
        arguments = self._arguments(spec, gpus, lease)
        try:
            return str(self._api.create_container(**arguments)["Id"])
        except ImageNotFound:
            if self._settings.pull == "never":
                raise
        self._pull()
        return str(self._api.create_container(**arguments)["Id"])

    def _arguments(
        self, spec: ExperimentSpec, gpus: tuple[str, ...], lease: Mapping[str, str]
    ) -> dict[str, Any]:
        return create_arguments(self._api, self._attempt, spec.experiment_hash, self._settings, gpus, lease)

    def _pull_missing(self) -> None:
        if self._settings.pull == "missing" and digest(self._api, self._settings.image) is None:
            self._pull()

    def _pull(self) -> None:
        image = self._settings.image
        try:
            pull(self._api, image, self._sink.line)
        except ImagePullError as error:
            found = classify(None, f"pulling {image} from its registry: {error}")
            raise self._failed(found, f"image {image} cannot be pulled: {error}") from error

    def _host_sampler(
        self, place: ContainerPlace, spec: ExperimentSpec
    ) -> contextlib.AbstractContextManager[HostSampler | None]:
        """The sampler of this worker, where it was asked for and there are GPUs to read."""
        if not self._settings.sample_on_host or not place.gpus:
            return contextlib.nullcontext()
        meter = replace(place.told(spec).meter, kind="nvml")
        return HostSampler(meter, self._folder, self._bundle or build_bundle())

    def _see_through(self, place: ContainerPlace, spec: ExperimentSpec, facts: _Background) -> Collected:
        beside = Neighbours(
            self._api, place.container, place.gpus, lambda: inventory(self._api, self._settings.image)
        )
        inspection, fired = self._watch(place)
        if inspection["Name"].lstrip("/") != self._attempt.container_name:
            raise AttemptFailedError(
                failure(
                    "cancelled", retryable=False, hint="nothing: the later try goes on with the container"
                ),
                f"a later try has taken over the container as {inspection['Name'].lstrip('/')}",
                folder=self._folder,
            )
        others = beside.facts()
        self._bring_out(place, inspection)
        try:
            read_result(self._folder, spec)
        except ProtocolError as problem:
            raise self._no_result(place, spec, inspection, fired, problem) from problem
        image_digest: str | None = None
        with contextlib.suppress(*ENGINE_ERRORS):  # what was measured is not lost for the name of its image
            image_digest = patiently(lambda: digest(self._api, inspection["Image"]))
        privileged = bool(inspection["HostConfig"].get("Privileged"))
        return Collected(
            folder=self._folder,
            exit_code=int(inspection["State"]["ExitCode"]),
            adopted=place.adopted,
            image=inspection["Config"]["Image"],
            image_digest=image_digest,
            log=self._sink.path,
            host={
                **facts.result(),
                **others,
                **({"on_cpu": place.on_cpu} if place.on_cpu else {}),
                **({"privileged": True} if privileged else {}),
            },
            gpus=place.gpus,
        )

    def _watchdog(
        self, place: ContainerPlace, end: Callable[[], None]
    ) -> contextlib.AbstractContextManager[Watchdog]:
        away = not on_this_machine(self._api)
        return watchdog(end, self._settings, place.gpus, self._sink.line, age_s=place.age_s, elsewhere=away)

    def _watch(self, place: ContainerPlace) -> tuple[dict[str, Any], str | None]:
        """Stream until the end; returns the last inspection and which limit ended it, if one did."""
        api, settings = self._api, self._settings

        def end() -> None:
            with contextlib.suppress(*ENGINE_ERRORS):
                api.stop(place.container, timeout=round(settings.stop_grace_s))

        try:
            with self._watchdog(place, end) as dog:
                inspection = follow(api, place.container, self._sink, dog.heard)
            return inspection, dog.fired
        except GoneError as error:
            raise self._gone() from error
        except ENGINE_ERRORS as error:
            headline = f"the Docker engine went away while the attempt ran: {error}"
            raise self._failed(classify(None, "", error=error), headline) from error

    def _no_result(
        self,
        place: ContainerPlace,
        spec: ExperimentSpec,
        inspection: Mapping[str, Any],
        fired: str | None,
        problem: ProtocolError,
    ) -> AttemptFailedError:
        if self._vanishes(place):
            return self._gone()
        write_inspection(inspection, self._sink.redactor, self._folder / INSPECT)
        state = inspection["State"]
        ended = Ended(
            self.name,
            int(state["ExitCode"]),
            bool(state.get("OOMKilled")),
            fired,
            self._sink.tail,
            memory=self._settings.mem_limit or "",
            offline=self._settings.network_mode == "none",
        )
        return failed(self._folder, spec, problem, ended, self._settings)

    def _gone(self) -> AttemptFailedError:
        found = failure("cancelled", hint="somebody removed it: `docker events` on its host says when")
        return self._failed(found, "the container was removed from outside while the attempt ran")

    def _vanishes(self, place: ContainerPlace) -> bool:
        """Whether somebody has removed the container or is doing so."""
        try:
            status = self._api.inspect_container(place.container)["State"]["Status"]
        except NotFound:
            return True
        except ENGINE_ERRORS:
            return False
        return str(status) in ("removing", "dead")

    def _bring_out(self, place: ContainerPlace, inspection: Mapping[str, Any]) -> None:
        redactor = self._sink.redactor
        try:
            patiently(lambda: self._collect(place, inspection))
        except (CollectError, OSError, DockerException) as error:
            if self._vanishes(place):
                raise self._gone() from error
            write_inspection(inspection, redactor, self._folder / INSPECT)
            self._keep_volume = True
            raise self._failed(
                failure("unknown", hint=f"read the Docker volume {place.volume}, then remove it"),
                f"what the attempt wrote could not be brought out: {error}",
                evidence=f"Docker volume {place.volume}",
            ) from error

    def _collect(self, place: ContainerPlace, inspection: Mapping[str, Any]) -> None:
        direct = mounted_at(inspection, EXCHANGE_DIR) if self._settings.direct_volume else None
        collect(self._api, place.container, self._folder, self._sink.redactor, direct)

    def _salvage(self, place: ContainerPlace) -> None:
        """What an attempt that was cut short has written, as far as it is to be had at once."""
        if (self._folder / EVENTS).exists() or self._keep_volume:
            return
        usual_s, self._api.timeout = self._api.timeout, round(KILL_S)
        try:
            self._collect_own(place)
        except (CollectError, OSError, DockerException):
            pass
        finally:
            self._api.timeout = usual_s

    def _collect_own(self, place: ContainerPlace) -> None:
        inspection = self._api.inspect_container(place.container)
        if inspection["Name"].lstrip("/") == self._attempt.container_name:
            self._collect(place, inspection)

    def _discard(self, place: ContainerPlace) -> None:
        """Remove the container if it is still ours, and the volume if no later try's container uses it."""
        remove_container(self._api, self._attempt.container_name)
        if not self._keep_volume:
            remove_volume(self._api, place.volume)

    def _kept(self, error: BaseException) -> bool:
        """Keep the failed container with its volume, and say where; not one that a later try has taken over."""
        name = keep_container(self._api, self._attempt.container_name)
        if name is None:
            return False
        text = (
            f"the container is kept with its volume: `docker logs {name}`, `docker inspect {name}`; it goes by "
            f"`docker rm -v {name}` or, a day old, by `llem-airflow gc`"
        )
        self._sink.line(f"keep_failed: {text}")
        if isinstance(error, AttemptFailedError):
            error.advise(text)
        return True


def waiting(later: Mapping[str, Any]) -> Waiter:
    """Go on with the wait of an attempt for a container's place, whose worker has gone."""
    return Waiter(later)


def adopted(api: docker.APIClient, listed: Mapping[str, Any]) -> ContainerPlace:
    """The place of a container that is there."""
    state = api.inspect_container(listed["Id"])["State"]
    labels = listed["Labels"] or {}
    return ContainerPlace(
        gpus_of(labels),
        adopted=True,
        on_cpu=labels.get(LABEL_ON_CPU, ""),
        container=listed["Id"],
        volume=exchange_of(listed.get("Mounts") or []),
        age_s=_age_s(state["StartedAt"]),
    )


def _age_s(started_at: str) -> float:
    """Age of a container from its start, by this host's clock, in seconds."""
    try:
        started = datetime.datetime.fromisoformat(started_at[:26].rstrip("Z") + "+00:00")
    except ValueError:
        return 0.0
    return max(0.0, (datetime.datetime.now(datetime.UTC) - started).total_seconds())


def _exit_code(api: docker.APIClient, name: str) -> int | None:
    """What the engine noted about a container that it could not start."""
    try:
        return int(api.inspect_container(name)["State"]["ExitCode"]) or None
    except APIError:
        return None


class _Background:
    """Runs beside the container's start what that need not wait for."""

    def __init__(self, work: Callable[[], dict[str, Any]]) -> None:
        self._work = work
        self._result: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._run, name="llem-host-facts", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._result = self._work()

    def result(self) -> dict[str, Any]:
        """What came out, or nothing if the engine takes too long to say."""
        self._thread.join(timeout=5)
        return self._result
