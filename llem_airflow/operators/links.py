"""The buttons that lead from a task to what it left: the report of its run, the evidence of its cycle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
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
        return _page("run", ti_key)


class EvidenceLink(BaseOperatorLink):
    """What a cycle's task observed, or why it failed."""

    name = "Evidence"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Where the evidence of the cycle is shown."""
        task: Any = operator
        return _page("cycle", ti_key, experiment=task.experiment_id, cycle=task.cycle)


def _page(name: str, ti_key: TaskInstanceKey, **more: object) -> str:
    below = urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")
    return f"{below}/llem/{name}?{urlencode({'dag_id': ti_key.dag_id, 'run_id': ti_key.run_id, **more})}"
