"""LLEMAggregateOperator: what the cycles of a run mean together, and into which databases that goes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from airflow.sdk import BaseOperator, Connection, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from llem_airflow.operators.evidence import open_run
from llem_airflow.operators.gates import matches, note_gated, quarantine
from llem_airflow.operators.metrics import StudyMetrics
from llem_airflow.operators.notify import tell
from llem_airflow.operators.outcome import baseline_run, cautions, compared, key_numbers, nightly, said, worse
from llem_airflow.operators.request import RunRequest, study_in_form, study_of_run
from llem_airflow.operators.retries import is_last_try
from llem_airflow.operators.settings import settings
from llem_airflow.operators.ui import ReportLink, keeps_failure
from llem_airflow.protocol.failures import CATEGORIES, how_to_rerun
from llem_airflow.results import ResultsRoot, StoredRun
from llem_airflow.study import Study, load_study
from llem_airflow.text.wording import counted

if TYPE_CHECKING:
    from llem_airflow.analysis.summary import Summary

_log = logging.getLogger(__name__)

_PORTS = {"influx": 8086, "prometheus": 9090, "postgres": 5432}
_WRITE = "/api/v1/write"


class LLEMAggregateOperator(BaseOperator):
    """Merge the results of a DAG run into summary.json, Parquet tables and report.html.

    Its trigger rule should be ``all_done``: it works with what is there, and then fails when a planned cycle has no
    result, so that a run is green only if every planned cycle was measured.

    Args:
        study: The study, or the path of its file; None for the text in the run's trigger form.
        allow_missing: Succeed although planned cycles are missing. Default: what the study says
            (``study_execution.allow_missing_cycles``).
    """

    ui_color = "#e8f4ea"
    operator_extra_links = (ReportLink(),)

    def __init__(
        self, *, study: Study | str | Path | None, allow_missing: bool | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.study = load_study(study) if isinstance(study, str | Path) else study
        self.allow_missing = allow_missing
        self._told: tuple[Study, dict[str, Any]] | None = None

    @keeps_failure
    def execute(self, context: Context) -> dict[str, Any]:
        """Aggregate the run.

        Returns:
            Where the run and its report lie, how many cycles were planned and valid, the key numbers of each
            experiment and, where the study asks for one, the comparison with its baseline. The same goes to the
            asset event.

        Raises:
            AirflowFailException: Planned cycles have no result and the study does not allow that, or a database of
                ``airflow.export`` did not take the run.
            AirflowSkipException: The run was a dry run.
        """
        if RunRequest.of(context).dry_run:
            raise AirflowSkipException("dry run: nothing was measured")
        study = self.study or study_in_form(context)
        try:
            return self._aggregate(study, context)
        except (
            Exception
        ) as error:  # whatever the reason: a night without numbers is what somebody wants to know
            if "failure" in study.airflow.notify_on and _for_good(error, context):
                tell(context, "failure", f"{study.name}: {error}")
            raise

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:  # noqa: ARG002 - OpenLineage's interface
        """What OpenLineage's provider, where it is installed, asks after the task."""
        return run_lineage(*self._told) if self._told else None

    def _aggregate(self, asked: Study, context: Context) -> dict[str, Any]:
        from llem_airflow.analysis.aggregate import aggregate_run  # noqa: PLC0415 - SciPy and the plots are for this task alone
        from llem_airflow.report.page import report_html  # noqa: PLC0415 - likewise

        study = study_of_run(asked, context)
        run = open_run(study, context)
        run.remove_orphans()
        note_gated(study, run)
        summary = aggregate_run(run, page=report_html)
        StudyMetrics(self.dag_id, study.name).aggregated(summary)
        self.log.info("Report: %s/report.html", run.url)
        returned = {"run": run.url, "report": f"{run.url}/report.html", **key_numbers(summary)}
        if summary.valid:
            returned["comparison"] = self._comparison(study, run, context)
        for asset in self.outlets:
            context["outlet_events"][asset].extra = returned
        not_exported = export_run(study, run)
        if missing := self._missing(study, summary):
            raise AirflowFailException("\n".join([_report(run, summary, missing), *not_exported]))
        if not_exported:
            raise AirflowFailException(
                "\n".join([*not_exported, "The run is merged; clear this task to export it again."])
            )
        self._told = study, returned
        return returned

    def _missing(self, study: Study, summary: Summary) -> list[dict[str, Any]]:
        """Planned cycles whose absence fails the run: none in quarantine, none that are no longer needed."""
        allowed = study.execution.allow_missing_cycles if self.allow_missing is None else self.allow_missing
        if allowed or not summary.missing:
            return []
        quarantined = quarantine()
        held = [m for m in summary.missing if matches(m["experiment"], quarantined)]
        for each in held:
            where = f"{each['experiment']} cycle {each['cycle']}"
            self.log.warning("in quarantine, does not fail the run: %s: %s", where, each["reason"])
        precise = {each.id for each in summary.experiments if each.precision_met}
        return [m for m in summary.missing if m not in held and m["experiment"] not in precise]

    def _comparison(self, study: Study, run: StoredRun, context: Context) -> dict[str, Any] | None:
        """The run against its history or a release, when the study asks for that and there is something earlier."""
        wanted = study.airflow.compared
        baseline = baseline_run(study, run, ResultsRoot(settings().results_root))
        if wanted is None or baseline is None:
            return None
        told = (
            self._history(study, run)
            if wanted.baseline == "previous"
            else self._release(study, baseline, run)
        )
        if told["worse"] and "regression" in study.airflow.notify_on:
            lines = [f"{study.name} became worse:", *told["worse"], *told["cautions"]]
            tell(context, "regression", "\n".join(lines))
        return {"baseline": baseline.url, **told}

    def _history(self, study: Study, run: StoredRun) -> dict[str, Any]:
        trends = nightly(study, run)
        for name, one in trends.items():
            self.log.info("%s: %s", name, one.state)
        return {
            "method": "history",
            "verdicts": {name: str(one.verdict) for name, one in trends.items()},
            "states": {name: one.state for name, one in trends.items()},
            "worse": worse(trends, run, study.airflow.compared.metric if study.airflow.compared else ""),
            "cautions": sorted({f"{one.note[0].upper()}{one.note[1:]}." for one in trends.values()}),
        }

    def _release(self, study: Study, baseline: StoredRun, run: StoredRun) -> dict[str, Any]:
        found = compared(study, baseline, run)
        for report in found.reports:
            self.log.info("%s: %s against %s", report.candidate, report.verdict, report.baseline)
        metric = study.airflow.compared.metric if study.airflow.compared else ""
        return {
            "method": "two runs",
            "verdicts": {one.candidate.rpartition("#")[2]: str(one.verdict) for one in found.reports},
            "worse": said(found, metric, "regression"),
            "cautions": cautions(found),
        }


def _for_good(error: Exception, context: Context) -> bool:
    """Whether no further try of the task follows on an error."""
    return isinstance(error, AirflowFailException) or is_last_try(context["ti"])


def _report(run: StoredRun, summary: Summary, missing: list[dict[str, Any]]) -> str:
    lines = "\n".join(f"  {m['experiment']} cycle {m['cycle']}: {m['reason']}" for m in missing)
    last = {(ref.experiment_id, ref.cycle): ref.reason()[0] for ref in run.failures()}
    kinds = [CATEGORIES.get(last.get((m["experiment"], m["cycle"]), "unknown")) for m in missing]
    by_study = sum(kind is not None and kind.by_study for kind in kinds)
    advice = []
    if by_study:
        which = "These cycles fail" if by_study == len(missing) else f"{by_study} of them fail"
        advice.append(f"{which} again unless the study is changed: correct it and start a new run.")
    if by_study < len(missing):
        advice.append(f"To measure just these cycles again, {how_to_rerun()}.")
    return (
        f"{len(missing)} of {counted(summary.planned, 'planned cycle')} without a result:\n{lines}\n"
        f"What was measured is summarised in {run.url}/report.html; evidence of failed attempts is in "
        f"{run.url}/failed. {' '.join(advice)} Or set study_execution.allow_missing_cycles: true to accept such runs."
    )


def export_run(study: Study, run: StoredRun) -> list[str]:
    """Write a run to each database of ``airflow.export``.

    Returns:
        What went wrong, a sentence for each database that does not have the run.
    """
    if not study.airflow.export:
        return []
    from llem_airflow.push import PushError, push_run  # noqa: PLC0415  # pandas and the clients are for this alone

    problems = []
    for one in study.airflow.export:
        try:
            url = database_url(Connection.get(one.conn_id), one.to)
            points = push_run(run, one.to, url, power=one.power)
        except AirflowException as error:
            problems.append(f"{one.to}: there is no connection {one.conn_id!r} that can be used ({error})")
        except PushError as error:
            problems.append(f"{one.to} (connection {one.conn_id!r}): {error}")
        else:
            _log.info("%s (connection %r): %s written", one.to, one.conn_id, counted(points, "point"))
    return problems


def database_url(conn: Connection, to: str) -> str:
    """The URL of a database, as ``results push`` takes it.

    The connection's schema is the database; for Prometheus it is nothing, and the extra ``path`` is that of remote
    write. The extra ``scheme`` chooses https.

    Args:
        conn: The connection.
        to: influx, prometheus or postgres.
    """
    user = "" if not conn.login else quote(conn.login, safe="")
    if conn.password:
        user += f":{quote(conn.password, safe='')}"
    place = f"{user}@" if user else ""
    place += f"{conn.host or 'localhost'}:{conn.port or _PORTS[to]}"
    database = quote(conn.schema or "", safe="")
    if to == "postgres":
        return f"postgresql://{place}/{database}"
    scheme = conn.extra_dejson.get("scheme") or "http"
    path = f"/{database}" if to == "influx" else str(conn.extra_dejson.get("path") or _WRITE)
    return f"{scheme}://{place}{path}"


def run_lineage(study: Study | None, returned: Mapping[str, Any]) -> Any:
    """What a run read and wrote, for OpenLineage where its provider is installed.

    The models that were measured as inputs, the run's results as output, the key numbers as a facet of the run.

    Args:
        study: What was measured, as far as it is known.
        returned: What the aggregate returned.

    Returns:
        An OperatorLineage, or None where there is no OpenLineage.
    """
    if not find_spec("airflow.providers.openlineage"):
        return None
    import attrs  # noqa: PLC0415 - OpenLineage's facets are attrs classes, and it is an optional dependency
    from airflow.providers.common.compat.openlineage.facet import Dataset, RunFacet  # noqa: PLC0415
    from airflow.providers.openlineage.extractors import OperatorLineage  # noqa: PLC0415

    @attrs.define
    class EnergyRunFacet(RunFacet):  # type: ignore[misc]  # untyped where OpenLineage is not installed
        """Key numbers of a run; the same as in the asset event."""

        study: str
        planned: int
        valid: int
        energyKind: str  # noqa: N815 - OpenLineage's facets are in camel case
        experiments: dict[str, Any]
        comparison: dict[str, Any] | None

    url = urlsplit(returned["run"])
    models = sorted({each.model for each in study.experiments}) if study else []
    return OperatorLineage(
        inputs=[Dataset(namespace="model", name=model) for model in models],
        outputs=[Dataset(namespace=f"{url.scheme or 'file'}://{url.netloc}", name=url.path)],
        run_facets={
            "llem_energy": EnergyRunFacet(
                study=returned["study"],
                planned=returned["planned"],
                valid=returned["valid"],
                energyKind=returned["energy_kind"],
                experiments=returned["experiments"],
                comparison=returned.get("comparison"),
            )
        },
    )
