"""Does an image still have the engine API that our calls were written against? Asked inside the image itself."""

from __future__ import annotations

import contextlib
import io
import sys
import tarfile
from pathlib import Path

import docker
from docker.errors import APIError
from docker.types import DeviceRequest

from llem_airflow.runners import engine_api
from llem_airflow.runners.engine import ENGINE_ERRORS, connect
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
    identity: str = api.create_container(
        image,
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
    )["Id"]
    try:
        api.put_archive(identity, _FOLDER, _archive())
        api.start(identity)
        exit_code = int(api.wait(identity, timeout=_IMPORT_TIMEOUT_S)["StatusCode"])
        sys.stdout.write(api.logs(identity, stdout=True, stderr=exit_code > 1).decode("utf-8", "replace"))
        return exit_code if exit_code in (0, 1) else _USER_ERROR
    finally:
        with contextlib.suppress(APIError):
            api.remove_container(identity, force=True, v=True)


def _archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(Path(engine_api.__file__).parent, _CHECKER, filter=_readable)
    return buffer.getvalue()


def _readable(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """The member as any user of the image may read it; None leaves it out."""
    info.mode, info.uid, info.gid, info.uname, info.gname = 0o555, 0, 0, "", ""
    return None if "__pycache__" in info.name else info
