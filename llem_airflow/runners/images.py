"""Images: bring a missing one, and say exactly which one ran."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import docker
from docker.errors import APIError, NotFound
from docker.utils import parse_repository_tag

from llem_airflow import __version__

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
