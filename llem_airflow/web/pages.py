"""The pages: the report of a DAG run, for users who may see its DAG."""

from __future__ import annotations

import base64
import hashlib
import html
from typing import Annotated

from airflow.api_fastapi.core_api.security import get_user, requires_access_dag
from fastapi import Depends, FastAPI, Query
from fastapi.responses import HTMLResponse

from llem_airflow.operators.settings import settings
from llem_airflow.results import ResultsRoot, StoredRun
from llem_airflow.results.names import REPORT

# Airflow keeps the theme that was chosen in its pages (light, dark or system), and a change of it reaches frames.
_FOLLOW_THEME = (
    "(()=>{const show=()=>{const t=localStorage.getItem('theme');const d=document.documentElement.dataset;"
    "if(t==='light'||t==='dark')d.theme=t;else delete d.theme};show();addEventListener('storage',show)})()"
)
_SCRIPT_HASH = base64.b64encode(hashlib.sha256(_FOLLOW_THEME.encode()).digest()).decode()
HEADERS = {
    # A report is a document: nothing is fetched from elsewhere, it is shown only inside Airflow's own pages, and the
    # one script is ours, by its hash.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; "
    f"script-src 'sha256-{_SCRIPT_HASH}'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def create_app() -> FastAPI:
    """The application behind ``/llem``: nothing in it answers without a user."""
    app = FastAPI(
        title="LLEM", dependencies=[Depends(get_user)], docs_url=None, redoc_url=None, openapi_url=None
    )
    app.add_api_route(
        "/run", run_report, dependencies=[Depends(requires_access_dag("GET"))], response_class=HTMLResponse
    )
    return app


def run_report(
    dag_id: Annotated[str, Query(min_length=1)], run_id: Annotated[str, Query(min_length=1)]
) -> HTMLResponse:
    """The report of a DAG run, or what is known of it before there is one."""
    run = ResultsRoot(settings().results_root).find_run(dag_id, run_id)
    if run is None:
        return _page(
            "No results yet",
            "No cycle of this run has started, or its results lie under another results root than "
            f"{settings().results_root} (option results_root of section [llem]).",
            status=404,
        )
    if not run.folder.exists(REPORT):
        return _page("Not aggregated yet", _progress(run))
    return HTMLResponse(in_theme(run.folder.read(REPORT).decode()), headers=HEADERS)


def in_theme(page: str) -> str:
    """The page in the theme that is chosen in Airflow, not in that of the operating system."""
    return page.replace("<head>", f"<head><script>{_FOLLOW_THEME}</script>", 1)


def _progress(run: StoredRun) -> str:
    planned = run.plan().get("runs", 0)
    return (
        f"{len(run.cycles())} of {planned} planned cycles are measured, {len(run.failures())} attempts failed. "
        "The report appears when the task `aggregate` has run."
    )


def _page(title: str, text: str, *, status: int = 200) -> HTMLResponse:
    body = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<title>{html.escape(title)}</title>"
        "<style>:root{color-scheme:light dark}:root[data-theme=light]{color-scheme:light}"
        ":root[data-theme=dark]{color-scheme:dark}"
        "body{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:3rem auto;padding:0 1rem}</style></head>"
        f"<h1>{html.escape(title)}</h1><p>{html.escape(text)}</p></html>"
    )
    return HTMLResponse(in_theme(body), status_code=status, headers=HEADERS)
