"""Getting a box: the one that an earlier try left, or a new one."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, ImageNotFound, NotFound

from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.protocol.typed_json import ProtocolError
from llem_airflow.runners.attempt import LABEL_GPUS, Attempt
from llem_airflow.runners.claim import Claim
from llem_airflow.runners.collected import read_result
from llem_airflow.runners.engine import (
    LIVE_STATES,
    containers_of,
    exchange_of,
    name_of,
    remove_container,
    remove_volume,
    sweep_volumes,
)
from llem_airflow.runners.exchange import CollectError, collect, hand_in, shared_folder
from llem_airflow.runners.failures import AttemptFailedError, classify
from llem_airflow.runners.host_config import create_arguments
from llem_airflow.runners.images import ImagePullError, default_user, digest, pull
from llem_airflow.runners.logs import LogSink
from llem_airflow.runners.settings import BoxSettings
from llem_airflow.runners.volume_folder import volume_folder

_EARLIER_TAIL_LINES = 15


@dataclass(slots=True)
class Box:
    """A container of ours.

    Attributes:
        id: The container's id.
        volume: Name of its exchange volume.
        gpus: Device ids that it holds.
        adopted: Whether an earlier try started it.
        age_s: How long it had lived when it was adopted, in seconds.
        keep_volume: Set when the volume holds what could not be brought out.
    """

    id: str
    volume: str | None
    gpus: tuple[str, ...]
    adopted: bool = False
    age_s: float = 0.0
    keep_volume: bool = False


def adopt(
    api: docker.APIClient,
    attempt: Attempt,
    spec: ExperimentSpec,
    folder: Path,
    sink: LogSink,
) -> Box | None:
    """Take over the container of an earlier try: one that runs, or one that ended with a valid result.

    What else earlier tries left is removed. Taking over is renaming: the name says who owns a container, so
    that an earlier try that dies late cannot remove it.
    """
    for listed in containers_of(api, attempt):
        if listed["State"] == "removing":
            continue
        if listed["State"] in LIVE_STATES or (
            listed["State"] == "exited" and _holds_result(api, listed, spec, folder, sink)
        ):
            if name_of(listed) != attempt.container_name:
                api.rename(listed["Id"], attempt.container_name)
            sink.line(f"Taking over container {name_of(listed)} of an earlier try")
            return _adopted(api, listed)
        if remove_container(api, listed["Id"]):
            remove_volume(api, exchange_of(listed.get("Mounts") or []))
    sweep_volumes(api, attempt)
    return None


def start(
    api: docker.APIClient,
    attempt: Attempt,
    spec: ExperimentSpec,
    settings: BoxSettings,
    bundle: Path,
    sink: LogSink,
) -> Box:
    """Claim the GPUs, create a container, hand it the bundle and the spec, and start it.

    Raises:
        AttemptFailedError: There is no image, no GPU became free, or the engine cannot start the container.
    """
    if settings.pull == "always":
        _pull(api, settings, sink)
    claim = Claim(
        api,
        attempt,
        settings,
        sink,
        lambda: _pull_missing(api, settings, sink),
        meter=spec.meter.kind,
    )
    volume = api.create_volume(attempt.volume_name, labels=attempt.labels)
    direct = volume_folder(volume.get("Mountpoint"), attempt.volume_name) if settings.direct_volume else None
    identity = ""
    try:
        while True:
            gpus = claim.choose()
            identity = _create(api, attempt, spec, settings, sink, gpus, claim.labels(gpus))
            user = default_user(api, settings.image) if settings.user is None else settings.user
            told = replace(spec, meter=replace(spec.meter, gpus=gpus)) if gpus else spec
            hand_in(api, identity, direct, bundle, told, user)
            for cache in settings.caches:
                api.put_archive(identity, str(cache.parent), shared_folder(cache.name))
            if claim.settle(identity, gpus) and _started(api, identity):
                return Box(identity, attempt.volume_name, gpus)
            remove_container(api, identity)
    except BaseException as error:
        exit_code = _exit_code(api, identity)
        remove_container(api, attempt.container_name)
        remove_volume(api, attempt.volume_name)
        if isinstance(error, APIError):
            raise _refused(error, settings.image, exit_code, sink) from error
        raise
    finally:
        claim.end()


def _started(api: docker.APIClient, identity: str) -> bool:
    try:
        api.start(identity)
    except NotFound:
        return False  # an older claim took us for dead and removed the container: claim again
    return True


def _create(
    api: docker.APIClient,
    attempt: Attempt,
    spec: ExperimentSpec,
    settings: BoxSettings,
    sink: LogSink,
    gpus: tuple[str, ...],
    lease: Mapping[str, str],
) -> str:
    arguments = create_arguments(api, attempt, spec.experiment_hash, settings, gpus, lease)
    try:
        return str(api.create_container(**arguments)["Id"])
    except ImageNotFound:
        if settings.pull == "never":
            raise
    _pull(api, settings, sink)
    return str(api.create_container(**arguments)["Id"])


def _pull_missing(api: docker.APIClient, settings: BoxSettings, sink: LogSink) -> None:
    if settings.pull == "missing" and digest(api, settings.image) is None:
        _pull(api, settings, sink)


def _pull(api: docker.APIClient, settings: BoxSettings, sink: LogSink) -> None:
    try:
        pull(api, settings.image, sink.line)
    except ImagePullError as error:
        raise AttemptFailedError(
            classify(None, f"pulling {settings.image} from its registry: {error}"),
            f"image {settings.image} cannot be pulled: {error}",
            folder=sink.path.parent,
            log_tail=sink.tail,
        ) from error


def _exit_code(api: docker.APIClient, identity: str) -> int | None:
    """What the engine noted about a container that it could not start."""
    if not identity:
        return None
    try:
        return int(api.inspect_container(identity)["State"]["ExitCode"]) or None
    except APIError:
        return None


def _refused(error: APIError, image: str, exit_code: int | None, sink: LogSink) -> AttemptFailedError:
    text = error.explanation or str(error)
    return AttemptFailedError(
        classify(exit_code, text, error=error),
        f"a container of image {image} cannot be started: {text}",
        folder=sink.path.parent,
        log_tail=sink.tail,
        exit_code=exit_code,
    )


def _adopted(api: docker.APIClient, listed: dict[str, Any]) -> Box:
    state = api.inspect_container(listed["Id"])["State"]
    gpus = tuple(gpu for gpu in (listed["Labels"] or {}).get(LABEL_GPUS, "").split(",") if gpu)
    return Box(
        listed["Id"],
        exchange_of(listed.get("Mounts") or []),
        gpus,
        adopted=True,
        age_s=_age_s(state["StartedAt"]),
    )


def _age_s(started_at: str) -> float:
    """Age of a container from its start, by this host's clock, in seconds."""
    try:
        started = datetime.datetime.fromisoformat(started_at[:26].rstrip("Z") + "+00:00")
    except ValueError:
        return 0.0
    return max(0.0, (datetime.datetime.now(datetime.UTC) - started).total_seconds())


def _holds_result(
    api: docker.APIClient,
    listed: dict[str, Any],
    spec: ExperimentSpec,
    folder: Path,
    sink: LogSink,
) -> bool:
    """Whether an ended container left a valid result; if not, its files are kept beside the new try's."""
    earlier = folder / f"earlier-{name_of(listed)}"
    earlier.mkdir(exist_ok=True)
    try:
        collect(api, listed["Id"], earlier, sink.redactor)
        read_result(earlier, spec)
    except (APIError, CollectError, ProtocolError) as error:
        sink.line(
            f"An earlier try left container {name_of(listed)} without a result ({listed['Status']}): {error}"
        )
        for line in api.logs(listed["Id"], tail=_EARLIER_TAIL_LINES).decode("utf-8", "replace").splitlines():
            sink.line(f"  | {line}")
        return False
    for path in earlier.iterdir():
        path.unlink()
    earlier.rmdir()
    return True
