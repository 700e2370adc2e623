"""The pages: what a DAG run came to, and the evidence of one cycle, for users who may see the DAG."""

from __future__ import annotations

from typing import Annotated

from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import get_user, requires_access_dag
from fastapi import Depends, FastAPI, Query
from fastapi.responses import HTMLResponse

from llem_airflow.operators.settings import settings
from llem_airflow.results import ResultsRoot
from llem_airflow.results.layout import REPORT
from llem_airflow.web.document import HEADERS, in_theme, page, paragraph
from llem_airflow.web.evidence import cycle_page
from llem_airflow.web.seen import seen_run
from llem_airflow.web.unfinished import comparison_page, unfinished_page

Id = Annotated[str, Query(min_length=1)]


def create_app() -> FastAPI:
    """The application behind ``/llem``: nothing in it answers without a user."""
    app = FastAPI(
        title="LLEM", dependencies=[Depends(get_user)], docs_url=None, redoc_url=None, openapi_url=None
    )
    for path, endpoint in (("/run", run_report), ("/cycle", cycle_evidence)):
        app.add_api_route(
            path, endpoint, dependencies=[Depends(requires_access_dag("GET"))], response_class=HTMLResponse
        )
    return app


def run_report(dag_id: Id, run_id: Id, session: SessionDep) -> HTMLResponse:
    """The report of a DAG run, or what is known of it before there is one."""
    root = ResultsRoot(settings().results_root)
    run = root.find_run(dag_id, run_id)
    if run is not None and run.folder.exists(REPORT):
        return HTMLResponse(in_theme(run.folder.read(REPORT).decode()), headers=HEADERS)
    seen = seen_run(session, dag_id, run_id)
    if seen is None:
        return _nothing(dag_id, run_id)
    if seen.comparisons:
        return comparison_page(seen)
    return unfinished_page(seen, run, root)


def cycle_evidence(
    dag_id: Id, run_id: Id, experiment: Id, cycle: Annotated[int, Query(ge=1)]
) -> HTMLResponse:
    """What one cycle left: its result, or why there is none."""
    run = ResultsRoot(settings().results_root).find_run(dag_id, run_id)
    return cycle_page(run, experiment, cycle) if run else _nothing(dag_id, run_id)


def _nothing(dag_id: str, run_id: str) -> HTMLResponse:
    return page(
        "No results yet: no such run",
        paragraph(
            f"Airflow has no run {run_id} of {dag_id} with results under {settings().results_root} (option "
            "results_root of section [llem])."
        ),
        status=404,
    )
