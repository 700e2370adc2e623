"""A run's power series and numbers for time-series databases: InfluxDB, Prometheus' remote write, PostgreSQL."""

from llem_airflow.push.run import TARGETS, dashboard, push_run
from llem_airflow.push.send import PushError

__all__ = ["TARGETS", "PushError", "dashboard", "push_run"]
