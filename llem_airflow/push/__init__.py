"""A run's power series and numbers for time-series databases: InfluxDB, Prometheus' remote write, PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib.resources import files
from typing import Protocol

from llem_airflow.push.influx import Influx
from llem_airflow.push.postgres import Postgres
from llem_airflow.push.prometheus import Prometheus
from llem_airflow.push.send import PushError
from llem_airflow.push.series import Series, series_of
from llem_airflow.results import StoredRun

__all__ = ["TARGETS", "PushError", "dashboard", "push_run"]


class Target(Protocol):
    """A database that takes series."""

    def write(self, series: Sequence[Series]) -> int:
        """Write points and return their number; points that are there already do not count twice."""


TARGETS: dict[str, Callable[[str], AbstractContextManager[Target]]] = {
    "influx": Influx,
    "prometheus": Prometheus,
    "postgres": Postgres,
}
"""The databases by their name: each opens a URL."""


def push_run(
    run: StoredRun, to: str, url: str, *, power: bool = True, wrote: Callable[[int], None] = lambda _: None
) -> int:
    """Write a run's samples of power and its cycles' numbers. The same again changes nothing.

    Args:
        run: An aggregated run.
        to: A key of ``TARGETS``.
        url: Where the database is; it may hold a user and a password.
        power: Whether samples are written, or only the numbers of the cycles.
        wrote: Called with the number of points written so far.

    Returns:
        Number of points.

    Raises:
        PushError: The database did not take them.
        ResultReadError: The run was not aggregated, or something of it does not open.
    """
    points = 0
    with TARGETS[to](url) as target:
        for part in series_of(run, power=power):
            points += target.write(part)
            wrote(points)
    return points


def dashboard(to: str) -> str:
    """Grafana's dashboard for a database, as JSON to import."""
    return files("llem_airflow.push").joinpath("grafana", f"{to}.json").read_text("utf-8")
