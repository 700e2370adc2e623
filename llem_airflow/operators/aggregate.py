"""LLEMAggregateOperator: what the cycles of a run mean together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from llem_airflow.operators.evidence import open_run
from llem_airflow.operators.request import RunRequest, study_of_run
from llem_airflow.study import Study, load_study


class LLEMAggregateOperator(BaseOperator):
    """Merge the results of a DAG run into summary.json, Parquet tables and report.html.

    Its trigger rule should be ``all_done``: it works with what is there, and then fails when a planned cycle has no
    result, so that a run is green only if every planned cycle was measured.

    Args:
        study: The study, or the path of its file.
        allow_missing: Succeed although planned cycles are missing. Default: what the study says
            (``study_execution.allow_missing_cycles``).
    """

    ui_color = "#e8f4ea"

    def __init__(
        self, *, study: Study | str | Path, allow_missing: bool | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.study = study if isinstance(study, Study) else load_study(study)
        self.allow_missing = (
            self.study.execution.allow_missing_cycles if allow_missing is None else allow_missing
        )

    def execute(self, context: Context) -> dict[str, Any]:
        """Aggregate the run.

        Returns:
            Where the summary and the report lie, and how many cycles were planned and valid.

        Raises:
            AirflowFailException: Planned cycles have no result and the study does not allow that.
            AirflowSkipException: The run was a dry run.
        """
        # The DAG processor and every worker import this module; SciPy and the plots are for this task alone.
        from llem_airflow.analysis.aggregate import aggregate_run  # noqa: PLC0415 - costs every parse a second

        if RunRequest.of(context).dry_run:
            raise AirflowSkipException("dry run: nothing was measured")
        run = open_run(study_of_run(self.study, context), context)
        summary = aggregate_run(run)
        self.log.info("Report: %s/report.html", run.url)
        if summary.missing and not self.allow_missing:
            lines = "\n".join(
                f"  {m['experiment']} cycle {m['cycle']}: {m['reason']}" for m in summary.missing
            )
            raise AirflowFailException(
                f"{len(summary.missing)} of {summary.planned} planned cycles have no result:\n{lines}\n"
                f"What was measured is summarised in {run.url}/report.html; evidence of failed attempts is in "
                f"{run.url}/failed. Clear the failed tasks to measure just these cycles again, or set "
                "study_execution.allow_missing_cycles: true to accept such runs."
            )
        return {
            "run": run.url,
            "report": f"{run.url}/report.html",
            "planned": summary.planned,
            "valid": summary.valid,
        }
