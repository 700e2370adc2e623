"""One attempt in one container: adopt, collect or start; stream; bring the results out; leave nothing."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import docker
from docker.errors import DockerException, NotFound

from llem_airflow.protocol.files import EVENTS, EXCHANGE_DIR
from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.protocol.typed_json import ProtocolError
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.bundle import build_bundle
from llem_airflow.runners.claim import LABEL_ON_CPU
from llem_airflow.runners.collected import CONTAINER_LOG, INSPECT, Collected, read_result
from llem_airflow.runners.engine import (
    ENGINE_ERRORS,
    containers_of,
    exchange_of,
    host_facts,
    keep_container,
    patiently,
    remove_container,
    remove_volume,
    sweep_volumes,
    write_inspection,
)
from llem_airflow.runners.exchange import CollectError, collect
from llem_airflow.runners.failures import AttemptFailedError, classify, failure, told_without_secrets
from llem_airflow.runners.gpu_use import watched
from llem_airflow.runners.gpus import inventory, on_this_machine
from llem_airflow.runners.host_sampler import HostSampler
from llem_airflow.runners.images import digest
from llem_airflow.runners.logs import LogSink
from llem_airflow.runners.neighbours import Neighbours
from llem_airflow.runners.outcome import failed, with_error_file
from llem_airflow.runners.settings import BoxSettings
from llem_airflow.runners.start import Box, adopt, start
from llem_airflow.runners.stream import GoneError, follow
from llem_airflow.runners.volume_folder import mounted_at
from llem_airflow.runners.watch import Watchdog

__all__ = ["BoxSettings", "clear_box", "kill_box", "run_box"]

_KILL_TIMEOUT_S = 4
"""Airflow gives on_kill 5 seconds."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What the steps of one attempt share."""

    api: docker.APIClient
    attempt: Attempt
    spec: ExperimentSpec
    settings: BoxSettings
    folder: Path
    sink: LogSink


def run_box(
    api: docker.APIClient,
    attempt: Attempt,
    spec: ExperimentSpec,
    settings: BoxSettings,
    *,
    collect_to: Path,
    on_line: Callable[[str], None],
    bundle: Path | None = None,
    store: Callable[[Collected], object] = lambda _collected: None,
) -> Collected:
    """Run one attempt in its container, or take over the container that an earlier try of it left.

    Args:
        api: The engine.
        attempt: Who this is; names and labels follow from it.
        spec: What the attempt is told.
        settings: How the container is built.
        collect_to: Folder for the raw files of ``out/`` and the log.
        on_line: Called with every line of output, in the caller's thread.
        bundle: What runs inside; default: the bundle of the installed packages.
        store: Stores the result. The container goes only after it has returned: whoever is killed before that, or
            cannot store, leaves a container that the next try collects instead of measuring again.

    Raises:
        AttemptFailedError: There is no valid result. Container and volume are gone, unless they are to be kept.
    """
    collect_to.mkdir(parents=True, exist_ok=True)
    with (
        LogSink(collect_to / CONTAINER_LOG, on_line, settings.secrets(), settings.log_bytes) as sink,
        told_without_secrets(sink.redactor),
    ):
        run = _Run(api, attempt, spec, settings, collect_to, sink)
        facts = _Background(lambda: host_facts(api))
        box = _acquire(run, bundle)
        try:
            with _host_sampler(run, box, bundle) as host:
                collected = _see_through(run, box, facts)
                if host is not None and not host.finish(spec):
                    sink.line(
                        "The host's power series does not reach around the window: the container's counts"
                    )
        except BaseException as error:
            # Also a task timeout or a signal: whatever ends the wait, the container does not run on.
            _salvage(run, box)
            with contextlib.suppress(*ENGINE_ERRORS):
                if not (settings.keep_failed and _kept(run, error)):
                    _discard(run, box)
            raise
    store(collected)
    with contextlib.suppress(*ENGINE_ERRORS):
        patiently(lambda: _discard(run, box), settings.engine_grace_s)
    return collected


def clear_box(api: docker.APIClient, attempt: Attempt) -> None:
    """Remove what the tries of a task left, whatever its state: for a task whose result is stored already."""
    for listed in containers_of(api, attempt):
        if remove_container(api, listed["Id"]):
            remove_volume(api, exchange_of(listed.get("Mounts") or []))
    sweep_volumes(api, attempt)


def kill_box(api: docker.APIClient, attempt: Attempt) -> None:
    """End and remove the container that this try owns; one that a later try has taken over is not touched.

    Takes less than five seconds.
    """
    usual_s, api.timeout = api.timeout, _KILL_TIMEOUT_S
    try:
        inspection = api.inspect_container(attempt.container_name)
        if remove_container(api, attempt.container_name):
            remove_volume(api, exchange_of(inspection["Mounts"]))
    except NotFound:
        pass
    finally:
        api.timeout = usual_s


def _acquire(run: _Run, bundle: Path | None) -> Box:
    try:
        box = adopt(run.api, run.attempt, run.spec, run.folder, run.sink)
        return box or start(run.api, run.attempt, run.spec, run.settings, bundle or build_bundle(), run.sink)
    except ENGINE_ERRORS as error:
        run.sink.finish()
        raise AttemptFailedError(
            classify(None, "", error=error),
            f"the Docker engine refused: {error}",
            folder=run.folder,
            log_tail=run.sink.tail,
        ) from error


def _host_sampler(
    run: _Run, box: Box, bundle: Path | None
) -> contextlib.AbstractContextManager[HostSampler | None]:
    """The sampler of this worker, where it was asked for and there are GPUs to read."""
    if not run.settings.sample_on_host or not box.gpus:
        return contextlib.nullcontext()
    meter = replace(run.spec.meter, kind="nvml", gpus=box.gpus)
    return HostSampler(meter, run.folder, bundle or build_bundle())


def _see_through(run: _Run, box: Box, facts: _Background) -> Collected:
    beside = Neighbours(run.api, box.id, box.gpus, lambda: inventory(run.api, run.settings.image))
    inspection, fired = _watch(run, box)
    if inspection["Name"].lstrip("/") != run.attempt.container_name:
        raise AttemptFailedError(
            failure("cancelled", retryable=False, hint="nothing: the later try goes on with the container"),
            f"a later try has taken over the container as {inspection['Name'].lstrip('/')}",
            folder=run.folder,
        )
    others = beside.facts()
    on_cpu = (inspection["Config"].get("Labels") or {}).get(LABEL_ON_CPU)
    _bring_out(run, box, inspection)
    exit_code = int(inspection["State"]["ExitCode"])
    try:
        read_result(run.folder, run.spec)
    except ProtocolError as problem:
        if _vanishes(run, box):
            raise _gone(run) from problem
        write_inspection(inspection, run.sink.redactor, run.folder / INSPECT)
        ended = failed(run.folder, run.spec, problem, inspection["State"], fired, run.sink.tail, run.settings)
        raise with_error_file(ended, run.spec) from problem
    image_digest: str | None = None
    with contextlib.suppress(*ENGINE_ERRORS):  # what was measured is not lost for the name of its image
        image_digest = patiently(lambda: digest(run.api, inspection["Image"]), run.settings.engine_grace_s)
    return Collected(
        folder=run.folder,
        exit_code=exit_code,
        adopted=box.adopted,
        image=inspection["Config"]["Image"],
        image_digest=image_digest,
        log=run.sink.path,
        host={
            **facts.result(),
            **others,
            **({"on_cpu": on_cpu} if on_cpu else {}),
            **({"privileged": True} if inspection["HostConfig"].get("Privileged") else {}),
        },
        gpus=box.gpus,
    )


def _watch(run: _Run, box: Box) -> tuple[dict[str, Any], str | None]:
    """Stream until the end; returns the last inspection and which limit ended it, if one did."""

    def end() -> None:
        with contextlib.suppress(*ENGINE_ERRORS):
            run.api.stop(box.id, timeout=round(run.settings.stop_grace_s))

    left_s = None if run.settings.wall_clock_s is None else max(0.0, run.settings.wall_clock_s - box.age_s)
    try:
        away = not on_this_machine(run.api)
        with (
            watched(box.gpus, run.settings.gpu_idle_s, run.sink.line, elsewhere=away) as computes,
            Watchdog(
                end,
                wall_clock_s=left_s,
                silence_s=run.settings.silence_s,
                gpu_idle_s=run.settings.gpu_idle_s,
                computes=computes,
            ) as dog,
        ):
            inspection = follow(run.api, box.id, run.sink, dog.heard, patience_s=run.settings.engine_grace_s)
        return inspection, dog.fired
    except GoneError as error:
        raise _gone(run) from error
    except ENGINE_ERRORS as error:
        found = classify(None, "", error=error)
        headline = f"the Docker engine went away while the attempt ran: {error}"
        raise AttemptFailedError(found, headline, folder=run.folder, log_tail=run.sink.tail) from error


def _gone(run: _Run) -> AttemptFailedError:
    return AttemptFailedError(
        failure("cancelled", hint="somebody removed it: `docker events` on its host says when"),
        "the container was removed from outside while the attempt ran",
        folder=run.folder,
        log_tail=run.sink.tail,
    )


def _vanishes(run: _Run, box: Box) -> bool:
    """Whether somebody has removed the container or is doing so."""
    try:
        return str(run.api.inspect_container(box.id)["State"]["Status"]) in ("removing", "dead")
    except NotFound:
        return True
    except ENGINE_ERRORS:
        return False


def _bring_out(run: _Run, box: Box, inspection: dict[str, Any]) -> None:
    redactor = run.sink.redactor
    direct = mounted_at(inspection, EXCHANGE_DIR) if run.settings.direct_volume else None
    try:
        patiently(lambda: collect(run.api, box.id, run.folder, redactor, direct), run.settings.engine_grace_s)
    except (CollectError, OSError, DockerException) as error:
        if _vanishes(run, box):
            raise _gone(run) from error
        write_inspection(inspection, redactor, run.folder / INSPECT)
        box.keep_volume = True
        raise AttemptFailedError(
            failure("unknown", hint=f"read the Docker volume {box.volume}, then remove it"),
            f"what the attempt wrote could not be brought out: {error}",
            folder=run.folder,
            evidence=f"Docker volume {box.volume}",
            log_tail=run.sink.tail,
        ) from error


def _salvage(run: _Run, box: Box) -> None:
    """What an attempt that was cut short has written, as far as it is to be had at once."""
    if (run.folder / EVENTS).exists() or box.keep_volume:
        return
    usual_s, run.api.timeout = run.api.timeout, _KILL_TIMEOUT_S
    try:
        inspection = run.api.inspect_container(box.id)
        if inspection["Name"].lstrip("/") == run.attempt.container_name:
            direct = mounted_at(inspection, EXCHANGE_DIR) if run.settings.direct_volume else None
            collect(run.api, box.id, run.folder, run.sink.redactor, direct)
    except (CollectError, OSError, DockerException):
        pass
    finally:
        run.api.timeout = usual_s


def _discard(run: _Run, box: Box) -> None:
    """Remove the container if it is still ours, and the volume if no later try's container uses it."""
    remove_container(run.api, run.attempt.container_name)
    if not box.keep_volume:
        remove_volume(run.api, box.volume)


def _kept(run: _Run, error: BaseException) -> bool:
    """Keep the failed container with its volume, and say where it is; not one that a later try has taken over."""
    name = keep_container(run.api, run.attempt.container_name)
    if name is None:
        return False
    text = (
        f"the container is kept with its volume: `docker logs {name}`, `docker inspect {name}`; it goes by "
        f"`docker rm -v {name}` or, a day old, by `llem-airflow gc`"
    )
    run.sink.line(f"keep_failed: {text}")
    if isinstance(error, AttemptFailedError):
        error.advise(text)
    return True


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
