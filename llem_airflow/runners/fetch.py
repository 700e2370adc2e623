"""Bring images and models to the engine's host before anything is measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import docker

from llem_airflow.protocol.redaction import Redactor
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.engine import (
    ENGINE_ERRORS,
    containers_of,
    remove_container,
    remove_volume,
    sweep_volumes,
)
from llem_airflow.runners.exchange import shared_folder
from llem_airflow.runners.failures import AttemptFailedError, classify
from llem_airflow.runners.host_config import create_arguments
from llem_airflow.runners.images import ImagePullError, exact_name, pull
from llem_airflow.runners.logs import LogSink
from llem_airflow.runners.settings import BoxSettings
from llem_airflow.runners.stream import follow

_DOWNLOAD = """\
import json, pathlib, sys
from huggingface_hub import list_repo_files, snapshot_download

name, revision = sys.argv[1], sys.argv[2] or None
skipped = ["original/*", "*.pth", "*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.ot", "*.tflite"]
try:
    if any(file.endswith(".safetensors") for file in list_repo_files(name, revision=revision)):
        skipped.append("*.bin")
except Exception as error:  # the download itself says what is wrong, or finds the model in the cache
    print("the list of files is not to be had:", type(error).__name__, error)
    skipped.append("*.bin")  # what was not fetched then must not count as missing now
folder = snapshot_download(name, revision=revision, ignore_patterns=skipped)
print(json.dumps({"commit": pathlib.Path(folder).name}))
"""
"""Runs in a container of the engine's image, which has huggingface_hub; without a network it finds what is cached."""


def fetch_image(
    api: docker.APIClient, image: str, policy: str, on_line: Callable[[str], None], folder: Path
) -> str:
    """Make an image present.

    Args:
        api: The engine.
        image: Its name.
        policy: ``missing``, ``always`` or ``never``.
        on_line: Called with the progress.
        folder: Where evidence of a failure lies.

    Returns:
        A name that means exactly this image from now on: its digest in the repository, else its id.

    Raises:
        AttemptFailedError: It cannot be pulled; the hint tells a login from a rate limit from a wrong name.
    """
    exact = None if policy == "always" else exact_name(api, image)
    if exact is not None or policy == "never":
        return exact or image
    try:
        pull(api, image, on_line)
    except ImagePullError as error:
        raise AttemptFailedError(
            classify(None, f"pulling {image} from its registry: {error}"),
            f"image {image} cannot be pulled: {error}",
            folder=folder,
        ) from error
    return exact_name(api, image) or image


def fetch_model(
    api: docker.APIClient,
    attempt: Attempt,
    settings: BoxSettings,
    model: str,
    revision: str | None,
    on_line: Callable[[str], None],
    folder: Path,
) -> str:
    """Download a model of the hub into the cache that the experiments' containers share.

    Args:
        api: The engine.
        attempt: Whose container it is, so that it is found when its task dies.
        settings: How an experiment's container with this model would be built: image, cache, token, network.
        model: Its name on the hub.
        revision: Branch, tag or commit, or None for the main branch.
        on_line: Called with the progress.
        folder: Where the log goes.

    Returns:
        The commit that it is, or that the cache holds when the hub cannot be reached.

    Raises:
        AttemptFailedError: It is not to be had; the hint says what to do.
    """
    _clear(api, attempt)
    arguments = create_arguments(api, attempt, attempt.experiment_hash, settings)
    arguments |= {"entrypoint": ["python3", "-c", _DOWNLOAD], "command": [model, revision or ""]}
    try:
        api.create_volume(attempt.volume_name, labels=attempt.labels)
        identity = str(api.create_container(**arguments)["Id"])
        for cache in settings.caches:
            api.put_archive(identity, str(cache.parent), shared_folder(cache.name))
        api.start(identity)
        with LogSink(folder / "fetch.log", on_line, settings.secrets(), settings.log_bytes) as sink:
            state = follow(api, identity, sink, lambda: None, patience_s=settings.engine_grace_s)["State"]
    except ENGINE_ERRORS as error:
        headline = f"model {model} cannot be fetched: {error}"
        failed = AttemptFailedError(classify(None, "", error=error), headline, folder=folder)
        failed.blank(Redactor(settings.secrets()))
        raise failed from error
    finally:
        _clear(api, attempt)
    exit_code = int(state["ExitCode"])
    if exit_code == 0:
        return str(json.loads(sink.tail[-1])["commit"])
    raise AttemptFailedError(
        classify(exit_code, "\n".join(sink.tail), oom_killed=bool(state.get("OOMKilled"))),
        f"model {model} cannot be fetched (revision: {revision or 'the newest'})",
        folder=folder,
        log_tail=sink.tail,
        exit_code=exit_code,
    )


def _clear(api: docker.APIClient, attempt: Attempt) -> None:
    for listed in containers_of(api, attempt):
        remove_container(api, listed["Id"])
    remove_volume(api, attempt.volume_name)
    sweep_volumes(api, attempt)
