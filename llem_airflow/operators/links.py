"""The button that leads from a task to the report of its run."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from airflow.sdk import BaseOperatorLink, conf

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey


class ReportLink(BaseOperatorLink):
    """The report of the run, in Airflow's own pages."""

    name = "Energy report"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002 - Airflow's interface
        """Where the report is shown, also where Airflow is served below a path."""
        below = urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")
        return f"{below}/llem/run?{urlencode({'dag_id': ti_key.dag_id, 'run_id': ti_key.run_id})}"
