"""Does an image still have the engine API that our calls were written against? Asked inside the image itself."""

from __future__ import annotations

import sys
from pathlib import Path

import docker
from docker.types import DeviceRequest

from llem_airflow.runners import engine_api
from llem_airflow.runners.engine import ENGINE_ERRORS, connect, run_once
from llem_airflow.runners.exchange import packed
from llem_airflow.runners.failures import classify
from llem_airflow.runners.gpus import has_nvidia
from llem_airflow.runners.images import ImagePullError, default_entrypoint, default_image, digest, pull

LABEL_CHECK = "llem.check"
"""Marks the container of a check; it holds no GPU for anybody."""

_FOLDER = "/tmp"  # noqa: S108  # the container's own, there in every image
_CHECKER = "llem-engine-api"
_IMPORT_TIMEOUT_S = 900
_USER_ERROR = 2


def check_engine(engine: str, image: str | None) -> int:
    """Compare the engine in an image with its record, and print what has changed.

    Args:
        engine: ``vllm`` or ``tensorrt``.
        image: The image; default: the engine's usual one.

    Returns:
        0 when every recorded call still fits, 1 when not, 2 when it could not be compared.
    """
    try:
        with connect() as api:
            wanted = image or default_image(engine)
            sys.stdout.write(f"{engine} in {wanted}:\n")
            sys.stdout.flush()
            _bring(api, wanted)
            return _ask(api, engine, wanted)
    except (*ENGINE_ERRORS, ImagePullError) as error:
        hint = classify(None, str(error), error=error).hint
        sys.stderr.write(f"{error}\nWhat to do: {hint}\n")
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
    return _USER_ERROR


def _bring(api: docker.APIClient, image: str) -> None:
    if digest(api, image) is None:
        pull(api, image, lambda line: print(line, file=sys.stderr))  # noqa: T201  # progress, for people


def _ask(api: docker.APIClient, engine: str, image: str) -> int:
    # An engine may look for its driver while it is imported: it gets one where there is one.
    gpus = [DeviceRequest(count=-1, capabilities=[["gpu"]])] if has_nvidia(api, image) else None
    exit_code, out, err = run_once(
        api,
        image,
        _FOLDER,
        _archive(),
        _IMPORT_TIMEOUT_S,
        entrypoint=list(default_entrypoint(engine)),
        command=[f"{_FOLDER}/{_CHECKER}/recorded.py", engine],
        labels={LABEL_CHECK: "1"},
        environment={"HOME": _FOLDER, "PYTHONUNBUFFERED": "1"},
        host_config=api.create_host_config(
            init=True,
            network_mode="none",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            shm_size="1g",
            device_requests=gpus,
        ),
    )
    sys.stdout.write(out + err * (exit_code > 1))
    return exit_code if exit_code in (0, 1) else _USER_ERROR


def _archive() -> bytes:
    files = [path for path in Path(engine_api.__file__).parent.iterdir() if path.is_file()]
    return packed({f"{_CHECKER}/{path.name}": path.read_bytes() for path in files}, [_CHECKER], None)
