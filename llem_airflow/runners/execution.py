"""Commands that are executed in a living container, by three calls of the engine's API."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

import docker
import requests
from docker.errors import APIError, create_api_error_from_http_exception
from urllib3.exceptions import HTTPError

STDOUT = 1
STDERR = 2

COMMAND_S = 150.0
"""How long a command may be silent that does not follow anything, in seconds."""

_HEADER = struct.Struct(">BxxxL")


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
    """Execute a command and give what it writes: the stream (:data:`STDOUT`, :data:`STDERR`) and the bytes.

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
