"""Prometheus' remote write 1.0, which Prometheus, VictoriaMetrics, Mimir and Thanos take.

Source: https://prometheus.io/docs/specs/prw/remote_write_spec/ (messages, order of labels and samples, headers).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from llem_airflow.push.send import HttpTarget, PushError, http_url
from llem_airflow.push.series import Series

_SAMPLES = 10_000
"""In a body."""
_HEADERS = {
    "content-encoding": "snappy",
    "content-type": "application/x-protobuf",
    "user-agent": "llem-airflow",
    "x-prometheus-remote-write-version": "0.1.0",
}
_NO_LABEL = re.compile(r"[^a-zA-Z0-9_]")
_MESSAGES: dict[str, tuple[tuple[str, int, str, bool], ...]] = {
    "Label": (("name", 1, "string", False), ("value", 2, "string", False)),
    "Sample": (("value", 1, "double", False), ("timestamp", 2, "int64", False)),
    "TimeSeries": (("labels", 1, "Label", True), ("samples", 2, "Sample", True)),
    "WriteRequest": (("timeseries", 1, "TimeSeries", True),),
}
"""prompb's messages: name, number, type and whether repeated, of each field that is written."""


class Prometheus(HttpTarget):
    """A receiver of remote write.

    Args:
        url: Of the receiver, such as ``http://[USER:PASSWORD@]HOST:8428/api/v1/write``.

    Raises:
        PushError: The URL names no receiver, or protobuf is not installed.
    """

    def __init__(self, url: str) -> None:
        asked = http_url(url)
        if not asked.host or asked.path in {"", "/"}:
            raise PushError("prometheus wants the URL of remote write, like http://HOST:8428/api/v1/write")
        self._request = write_request()
        super().__init__(asked, _HEADERS)

    def write(self, series: Sequence[Series]) -> int:
        """Write points; one that is there already stays. Returns their number: one a time and series of tags."""
        body, samples, written = self._request(), 0, 0
        for one in series:
            written += len(one.t_ns)
            for labels, times_ms, values in labelled(one):
                for begin in range(0, len(times_ms), _SAMPLES):
                    part = slice(begin, begin + _SAMPLES)
                    _add(body, labels, times_ms[part], values[part])
                    samples += len(times_ms[part])
                    if samples >= _SAMPLES:
                        self._post(body)
                        body, samples = self._request(), 0
        if samples:
            self._post(body)
        return written

    def _post(self, body: Any) -> None:
        self.post(pa.compress(body.SerializeToString(), codec="snappy", asbytes=True))


def labelled(series: Series) -> list[tuple[dict[str, str], Any, Any]]:
    """A series of Prometheus for each field: labels, times in milliseconds (each once), values."""
    tags = {_NO_LABEL.sub("_", key): value for key, value in series.labels().items()}
    found = []
    for name, values in series.fields.items():
        known = np.isfinite(values)
        times_ms = series.t_ns[known] // 1_000_000
        last = np.append(times_ms[1:] != times_ms[:-1], True)[: len(times_ms)]
        labels = tags | {"__name__": f"{series.table}_{name}"}
        found.append((dict(sorted(labels.items())), times_ms[last], values[known][last]))
    return found


def _add(body: Any, labels: dict[str, str], times_ms: Any, values: Any) -> None:
    added = body.timeseries.add()
    for name, value in labels.items():
        added.labels.add(name=name, value=value)
    for at_ms, value in zip(times_ms.tolist(), values.tolist(), strict=True):
        added.samples.add(value=value, timestamp=at_ms)


@cache
def write_request() -> Any:
    """The class of remote write's message.

    Raises:
        PushError: protobuf is not installed.
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # noqa: PLC0415  # an extra
    except ImportError:
        raise PushError("prometheus needs protobuf: pip install 'llem-airflow[prometheus]'") from None
    file = descriptor_pb2.FileDescriptorProto(
        name="llem_airflow/remote_write.proto", package="llem_airflow", syntax="proto3"
    )
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, number, kind, repeated in fields:
            field = described.field.add(name=name, number=number, label=3 if repeated else 1)
            if kind in _MESSAGES:
                field.type, field.type_name = field.TYPE_MESSAGE, f".llem_airflow.{kind}"
            else:
                field.type = getattr(field, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("llem_airflow.WriteRequest"))
