"""What Airflow's plugin loader finds: the pages called Energy, the timetable of model releases, the preload.

Every Airflow process imports this module, so it stays light: the pages are imported by the first request.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from airflow.plugins_manager import AirflowPlugin
from airflow.sdk import conf

from llem_airflow.factory import preload
from llem_airflow.timetables.releases import ModelReleaseTimetable

URL_PREFIX = "/llem"
NAME = "Energy"
"""Of the pages, in every place; Airflow looks for the one component of all of them under it."""


class _Pages:
    """The ASGI application of the pages, made when the API server gets the first request for one."""

    def __init__(self) -> None:
        self._app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._app is None:
            from llem_airflow.web.app import create_app  # noqa: PLC0415 - for the API server alone

            self._app = create_app()
        await self._app(scope, receive, send)


def _href(path: str) -> str:
    """A link that also works where Airflow is served below a path."""
    base = urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")
    return f"{base}{URL_PREFIX}{path}"


class LLEMPlugin(AirflowPlugin):
    """The pages and where Airflow's UI shows them."""

    name = "llem"
    fastapi_apps = [{"app": _Pages(), "url_prefix": URL_PREFIX, "name": "LLEM"}]  # noqa: RUF012 - Airflow's interface
    timetables = [ModelReleaseTimetable]  # noqa: RUF012 - Airflow's interface
    listeners = [preload]  # noqa: RUF012 - Airflow's interface
    react_apps = [  # noqa: RUF012 - Airflow's interface
        {
            "name": NAME,
            "bundle_url": _href("/static/app.js"),
            "destination": destination,
            "url_route": route,
            "nav_top_level": destination == "nav",
        }
        for destination, route in (
            ("nav", "llem-studies"),
            ("dashboard", "llem-card"),
            ("dag", "llem-study"),
            ("dag_run", "llem-energy"),
            ("task", "llem-task"),
            ("task_instance", "llem-cycle"),
        )
    ]
