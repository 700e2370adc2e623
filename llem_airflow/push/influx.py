"""InfluxDB's line protocol, over the HTTP interface of version 1, which VictoriaMetrics and later versions have, too.

Written here because the client library of version 2 cannot talk to version 1 and makes an object a point.
Source: https://docs.influxdata.com/influxdb/v1/write_protocols/line_protocol_reference/
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from llem_airflow.push.send import HttpTarget, PushError, http_url
from llem_airflow.push.series import Series

_POINTS = 5_000
"""In a body, as InfluxDB's documentation advises."""
_ESCAPED = str.maketrans({",": r"\,", "=": r"\=", " ": r"\ ", "\n": r"\ ", "\r": r"\ "})


class Influx(HttpTarget):
    """A database of InfluxDB.

    Args:
        url: ``http://[USER:PASSWORD@]HOST:8086/DATABASE``.

    Raises:
        PushError: The URL names no database.
    """

    def __init__(self, url: str) -> None:
        asked = http_url(url)
        database = asked.path.strip("/")
        if not asked.host or not database or "/" in database:
            raise PushError("influx wants a URL like http://USER:PASSWORD@HOST:8086/DATABASE")
        query = {"db": database, "precision": "ns"}
        headers = {"content-type": "text/plain; charset=utf-8"}
        super().__init__(asked.copy_with(path="/write", params=query), headers)

    def write(self, series: Sequence[Series]) -> int:
        """Write points; a point that is there already is written over. Returns their number."""
        written, body = 0, []
        for line in (line for one in series for line in lines(one)):
            body.append(line)
            if len(body) == _POINTS:
                self.post("\n".join(body).encode())
                written, body = written + len(body), []
        if body:
            self.post("\n".join(body).encode())
        return written + len(body)


def lines(series: Series) -> Iterator[str]:
    """A line for each point. A point without any known number has none."""
    labels = sorted(series.labels().items())
    head = ",".join([series.table, *(f"{_escaped(key)}={_escaped(value)}" for key, value in labels)])
    names = list(series.fields)
    columns = [values.tolist() for values in series.fields.values()]
    for t_ns, row in zip(series.t_ns.tolist(), zip(*columns, strict=True), strict=True):
        told = [f"{name}={value!r}" for name, value in zip(names, row, strict=True) if math.isfinite(value)]
        if told:
            yield f"{head} {','.join(told)} {t_ns}"


def _escaped(text: str) -> str:
    """A key or value of a tag. A backslash at its end would escape what follows, and cannot itself be escaped."""
    return text.translate(_ESCAPED).rstrip("\\") or "_"
