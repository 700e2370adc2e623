"""Images: which one an engine gets on a host, bring a missing one and its model, say exactly which one ran."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, NotFound
from docker.utils import parse_repository_tag

from llem_airflow import __version__
from llem_airflow.protocol.redaction import Redactor
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.container_spec import ContainerSettings, create_arguments
from llem_airflow.runners.engine import ENGINE_ERRORS, remove_all
from llem_airflow.runners.exchange import shared_folder
from llem_airflow.runners.failures import AttemptFailedError, classify
from llem_airflow.runners.gpus import (
    GpuLookError,
    engine_names_gpus,
    inventory,
    kernel_gpus,
    local_inventory,
    on_this_machine,
)
from llem_airflow.runners.output import LogSink, follow

_PROGRESS_EVERY_S = 5.0

_IMAGES: dict[str, dict[int | None, str]] = {
    # None: no GPU. The CPU and the CUDA build of ours are made by images/build and images/pytorch/Dockerfile.
    "transformers": {
        None: f"llem-airflow/pytorch-cpu:{__version__}",
        12: "llem-airflow/pytorch:latest",
        13: "llem-airflow/pytorch:latest-cuda13",
    },
    "vllm": {
        None: "vllm/vllm-openai-cpu:v0.31.0",
        12: "vllm/vllm-openai:v0.31.0",
        13: "vllm/vllm-openai:v0.33.0",
    },
    "tensorrt": {
        13: "nvcr.io/nvidia/tensorrt-llm/release:1.2.1",
        12: "nvcr.io/nvidia/tensorrt-llm/release:1.0.0",
    },
}

_ENTRYPOINTS: dict[str, tuple[str, ...]] = {
    # NVIDIA's entrypoint sets the library paths that TensorRT-LLM needs.
    "tensorrt": ("/opt/nvidia/nvidia_entrypoint.sh", "python3"),
}


def default_image(engine: str, cuda_major: int | None = None) -> str:
    """The image of an engine when nobody names one.

    Args:
        engine: Name of the engine.
        cuda_major: Newest CUDA that the host's driver can run (``Inventory.cuda_major``), or None without a GPU.

    Raises:
        ValueError: There is no image of that engine; the message says how to name one.
    """
    known = _IMAGES.get(engine)
    if known is None:
        raise ValueError(
            f"no default image for engine {engine!r}; set LLEM_IMAGE_{engine.upper()} or `runners:`"
        )
    if cuda_major in known:
        return known[cuda_major]
    majors = [
        major for major in known if major is not None and cuda_major is not None and major <= cuda_major
    ]
    if majors:
        return known[max(majors)]
    return known.get(None) or known[max(major for major in known if major is not None)]


def default_images(engine: str) -> tuple[str, ...]:
    """Every image that :func:`default_image` can name for an engine."""
    return tuple(_IMAGES.get(engine, {}).values())


def default_entrypoint(engine: str) -> tuple[str, ...]:
    """What starts the bundle in an image of that engine."""
    return _ENTRYPOINTS.get(engine, ("python3",))


class ImagePullError(RuntimeError):
    """An image could not be pulled; the text is the engine's or the registry's."""


def pull(api: docker.APIClient, image: str, on_line: Callable[[str], None]) -> None:
    """Pull an image and show the progress.

    Raises:
        ImagePullError: The registry or the engine refused.
    """
    repository, tag = parse_repository_tag(image)
    on_line(f"Pulling image {image}")
    layers: dict[str, tuple[int, int]] = {}
    shown_mono_s = time.monotonic()
    try:
        for event in api.pull(repository, tag=tag or "latest", stream=True, decode=True):
            if error := event.get("error"):
                raise ImagePullError(str(error))
            _note(layers, event)
            if layers and time.monotonic() - shown_mono_s >= _PROGRESS_EVERY_S:
                shown_mono_s = time.monotonic()
                on_line(f"Pulling image {image}: {_progress(layers)}")
    except APIError as error:
        raise ImagePullError(error.explanation or str(error)) from error
    on_line(f"Pulled image {image}")


def _note(layers: dict[str, tuple[int, int]], event: dict[str, Any]) -> None:
    detail = event.get("progressDetail") or {}
    if event.get("status") == "Downloading" and "total" in detail:
        layers[str(event.get("id"))] = (int(detail.get("current", 0)), int(detail["total"]))
    elif event.get("status") in ("Download complete", "Pull complete") and event.get("id") in layers:
        total = layers[str(event["id"])][1]
        layers[str(event["id"])] = (total, total)


def _progress(layers: dict[str, tuple[int, int]]) -> str:
    current = sum(done for done, _ in layers.values())
    total = sum(size for _, size in layers.values())
    return f"{current / 1e6:.0f} of {total / 1e6:.0f} MB"


def digest(api: docker.APIClient, image: str) -> str | None:
    """Repository digest of an image, else its id, else None when the engine does not know it any more."""
    facts = _facts(api, image)
    return None if facts is None else str(next(iter(facts.get("RepoDigests") or ()), facts["Id"]))


def exact_name(api: docker.APIClient, image: str) -> str | None:
    """The digest of an image in the repository that its name means, else its id; None when it is not there."""
    facts = _facts(api, image)
    if facts is None:
        return None
    repository = parse_repository_tag(image)[0].removeprefix("docker.io/").removeprefix("library/")
    digests = [str(each) for each in facts.get("RepoDigests") or ()]
    return next((each for each in digests if each.partition("@")[0] == repository), str(facts["Id"]))


def _facts(api: docker.APIClient, image: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = api.inspect_image(image)  # type: ignore[no-untyped-call]  # the stubs lack its types
    except NotFound:
        return None
    return found


def default_user(api: docker.APIClient, image: str) -> str:
    """The user that an image runs as when nothing else is said; empty is root."""
    facts = api.inspect_image(image)  # type: ignore[no-untyped-call]  # the stubs lack its types
    return str(facts.get("Config", {}).get("User") or "")


OLDEST_MAJOR = 12
"""Taken when the host has GPUs and nobody tells their driver: newer drivers run older CUDA, not the other way round."""


def host_cuda_major(api: docker.APIClient, images: Iterable[str]) -> int | None:
    """Newest CUDA that the engine's host can run, or None where it has no GPU.

    The driver says it: to this process, else to a container of an image that is there already. The toolkit (``nvcc``)
    is only asked when the driver cannot be, as it may be older or newer than what the driver runs.

    Args:
        api: The engine.
        images: Images with Python, to ask the driver from.

    Raises:
        GpuLookError: It cannot be known whether the host has GPUs.
        docker.errors.DockerException: The engine refused.
        requests.exceptions.RequestException: The engine went away.
    """
    here = on_this_machine(api)
    if here and (local := local_inventory()) is not None and local.gpus:
        return local.cuda_major
    present = next((image for image in images if digest(api, image) is not None), None)
    found = None if present is None else inventory(api, present)
    if found is not None and found.gpus:
        return found.cuda_major
    if engine_names_gpus(api) or (here and kernel_gpus()):
        return (_nvcc_major() if here else None) or OLDEST_MAJOR
    if found is None and not here:
        raise GpuLookError(
            f"whether the host of the engine at {api.base_url} has GPUs is not known, as it has no image to ask its "
            "driver from: pull one there, or name one (`images:`, LLEM_IMAGE_<ENGINE>)"
        )
    return None


@cache
def _nvcc_major() -> int | None:
    """CUDA of the toolkit on this machine, or None."""
    try:
        said = subprocess.run(
            ["nvcc", "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\brelease (\d+)\.", said)
    return int(found[1]) if found else None


_DOWNLOAD = """\
import json, os, pathlib, sys
os.dup2(1, 2)  # one stream: what is said last comes last, whichever of two pipes is read first
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
print("\\n" + json.dumps({"commit": pathlib.Path(folder).name}))  # a progress bar may have left its line open
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
    settings: ContainerSettings,
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
    remove_all(api, attempt)
    arguments = create_arguments(api, attempt, attempt.experiment_hash, settings)
    arguments |= {"entrypoint": ["python3", "-c", _DOWNLOAD], "command": [model, revision or ""]}
    try:
        api.create_volume(attempt.volume_name, labels=attempt.labels)
        identity = str(api.create_container(**arguments)["Id"])
        for cache in settings.caches:
            api.put_archive(identity, str(cache.parent), shared_folder(cache.name))
        api.start(identity)
        with LogSink(folder / "fetch.log", on_line, settings.secrets(), settings.log_bytes) as sink:
            state = follow(api, identity, sink, lambda: None)["State"]
    except ENGINE_ERRORS as error:
        headline = f"model {model} cannot be fetched: {error}"
        failed = AttemptFailedError(classify(None, "", error=error), headline, folder=folder)
        failed.blank(Redactor(settings.secrets()))
        raise failed from error
    finally:
        remove_all(api, attempt)
    exit_code = int(state["ExitCode"])
    commit = next(filter(None, map(_commit_in, reversed(sink.tail))), None)
    if exit_code == 0 and commit is not None:
        return commit
    raise AttemptFailedError(
        classify(exit_code, "\n".join(sink.tail), oom_killed=bool(state.get("OOMKilled"))),
        f"model {model} cannot be fetched (revision: {revision or 'the newest'})",
        folder=folder,
        log_tail=sink.tail,
        exit_code=exit_code,
    )


def _commit_in(line: str) -> str | None:
    """The commit that a line of ``_DOWNLOAD`` tells, or None where it is another line."""
    found = re.fullmatch(r'\{"commit": "([^"]+)"\}', line)
    return found[1] if found else None
