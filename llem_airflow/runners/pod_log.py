"""What comes out of a pod: a container's output, followed through connections that break, and the attempt's files."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from llem_airflow.protocol.redaction import Redactor
from llem_airflow.runners.cluster import API_ERRORS, Cluster, PodGoneError
from llem_airflow.runners.exchange import unpack
from llem_airflow.runners.output import LogSink
from llem_airflow.runners.pod_spec import KEEPER, SENDS
from llem_airflow.runners.pod_status import is_over

# Each line begins with the time when the node's runtime got it; of fixed width, it compares as text.
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(?:Z|[+-]\d\d:\d\d)) ")
_CLOCKS_DIFFER_S = 60.0
"""How much more is asked for again after a break: the API counts seconds back from its own now."""
_END_LOOKS_S = 3.0
_END_READS = 5
_READ_AGAIN_S = 0.5
QUIET_S = 60.0
"""How long the pod's keeper may write nothing while it hands files out, in seconds."""


def collect(
    cluster: Cluster, name: str, folder: Path, redactor: Redactor, *, quiet_s: float = QUIET_S
) -> None:
    """Bring what an attempt wrote out of its pod, while its keeper lives.

    Args:
        cluster: Where the pod is.
        name: The pod.
        folder: Where the files go.
        redactor: Blanks the secrets in them.
        quiet_s: How long nothing may come, in seconds.

    Raises:
        ExecError: The keeper could not be asked, or broke off.
        CollectError: There is more than the bounds allow, or the archive is broken.
    """
    with contextlib.closing(cluster.output_of(name, KEEPER, ["python3", "-c", SENDS], quiet_s)) as chunks:
        unpack(chunks, folder, redactor)


def follow(
    cluster: Cluster, name: str, container: str, sink: LogSink, heard: Callable[[], None]
) -> dict[str, Any]:
    """Feed a container's output to ``sink`` until it has ended; no line is lost and none comes twice.

    Args:
        cluster: Where the pod is.
        name: The pod.
        container: The container, which has begun.
        sink: Where the output goes.
        heard: Called when there was output of the attempt itself.

    Returns:
        The pod after the container's end.

    Raises:
        PodGoneError: The pod is not there any more.
        ApiException: The API server refused.
    """
    reader = _Reader(sink, heard)

    def ended(pod: dict[str, Any]) -> tuple[dict[str, Any] | None] | None:
        if is_over(pod, container):
            return (pod,)
        # It goes on where only the connection had ended.
        return (None,) if time.monotonic() - read_s >= _END_LOOKS_S else None

    while True:
        with contextlib.suppress(
            PodGoneError
        ):  # of an evicted pod there is no log; the next look says what there is
            reader.read(cluster.log(name, container, since_s=reader.since_s, follow=True))
        read_s = time.monotonic()
        (pod,) = cluster.until(name, ended, every_s=1.0)  # the state follows the output's end a moment later
        if pod is not None:
            reader.read_rest(cluster, name, container)
            sink.finish()
            return pod


def read_all(cluster: Cluster, name: str, container: str, sink: LogSink) -> None:
    """Feed the whole output of a container that has ended to ``sink``."""
    _Reader(sink, lambda: None).read_rest(cluster, name, container)
    sink.finish()


class _Reader:
    def __init__(self, sink: LogSink, heard: Callable[[], None]) -> None:
        self._sink, self._heard = sink, heard
        self._last = b""
        self._read_s: float | None = None

    @property
    def since_s(self) -> float | None:
        """How far back to ask for, in seconds; what comes again is known by its time."""
        return None if self._read_s is None else time.monotonic() - self._read_s + _CLOCKS_DIFFER_S

    def read(self, chunks: Generator[bytes]) -> None:
        known, rest = self._last, b""
        with contextlib.closing(chunks):
            for chunk in chunks:
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._line(line, known)

    def read_rest(self, cluster: Cluster, name: str, container: str) -> None:
        """Read what a container wrote last: a stream may end before it has brought everything."""
        error: Exception | None = None
        for _ in range(_END_READS):
            try:
                self.read(cluster.log(name, container, since_s=self.since_s, follow=False))
                return
            except (*API_ERRORS, PodGoneError) as broken:
                error = broken
                time.sleep(_READ_AGAIN_S)
        self._sink.line(f"The end of the log could not be read: {error}")

    def _line(self, line: bytes, known: bytes) -> None:
        stamped = _STAMP.match(line)
        stamp, data = (stamped[1], line[stamped.end() :]) if stamped else (b"", line)
        if stamp and stamp <= known:
            return
        self._last, self._read_s = stamp or self._last, time.monotonic()
        if self._sink.feed(data + b"\n"):
            self._heard()
