"""Following a container's output to its end, over broken connections and engine restarts."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from typing import Any

import docker
import requests
from docker.errors import NotFound

from llem_airflow.runners.engine import patiently
from llem_airflow.runners.logs import LogSink

# Every message of the log begins with the time when the engine got it; of fixed width, it compares as text.
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(?:Z|[+-]\d\d:\d\d)) ")
_END_TIMEOUT_S = 2


class GoneError(RuntimeError):
    """The container was removed while it was followed."""


def follow(
    api: docker.APIClient, container: str, sink: LogSink, heard: Callable[[], None], *, patience_s: float
) -> dict[str, Any]:
    """Feed the container's output to ``sink`` until it has ended.

    A connection that ends before the container does (a proxy's idle timeout, an engine's restart) is taken up
    again where it broke: no line is lost and none comes twice. What a container wrote last is read once more
    when it has ended: an engine may end the stream of a container that ends before it has sent everything.

    Args:
        api: The engine.
        container: Id of the container.
        sink: Where the output goes.
        heard: Called when there was output.
        patience_s: How long the engine may be away, in seconds.

    Returns:
        The inspection of the ended container.

    Raises:
        GoneError: The container is not there any more.
        docker.errors.DockerException: The engine refused.
        requests.exceptions.RequestException: The engine stayed away.
    """
    last = b""
    try:
        while True:
            last = _read(api, container, sink, heard, last)
            inspection = patiently(lambda: _ended(api, container), patience_s)
            if not inspection["State"]["Running"]:
                _read(api, container, sink, heard, last, follow=False)
                sink.finish()
                return inspection
    except NotFound as error:
        raise GoneError("the container was removed from outside while the attempt ran") from error


def _read(
    api: docker.APIClient,
    container: str,
    sink: LogSink,
    heard: Callable[[], None],
    last: bytes,
    *,
    follow: bool = True,
) -> bytes:
    """Read until the connection ends; returns the time of the last message."""
    resume = last
    try:
        stream = api.logs(container, stream=True, follow=follow, timestamps=True, since=_seconds(last))
        try:
            for message in stream:
                stamped = _STAMP.match(message)
                stamp, data = (stamped[1], message[stamped.end() :]) if stamped else (b"", message)
                if stamp and stamp <= resume:
                    continue
                last = stamp or last
                heard()
                sink.feed(data)
        except BaseException:
            stream.close()
            for _ in stream:  # closing only ends the connection; reading its end gives it back
                pass
            raise
    except NotFound:
        raise
    except requests.exceptions.RequestException:
        pass  # whether the container goes on is what the next inspection says
    return last


def _ended(api: docker.APIClient, container: str) -> dict[str, Any]:
    """Inspect a container whose output has ended; its state follows a moment later."""
    inspection: dict[str, Any] = api.inspect_container(container)
    if inspection["State"]["Running"]:
        try:
            api.wait(container, timeout=_END_TIMEOUT_S)
        except requests.exceptions.RequestException:
            return inspection  # it goes on: only the connection had ended
        inspection = api.inspect_container(container)
    return inspection


def _seconds(stamp: bytes) -> float | None:
    """A little before ``stamp``, in seconds since 1970: what is read twice is dropped by comparing times."""
    if not stamp:
        return None
    moment = datetime.datetime.fromisoformat(stamp[:26].decode() + stamp[29:].decode().replace("Z", "+00:00"))
    return moment.timestamp() - 0.001
