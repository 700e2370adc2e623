"""What pages need to be drawn without an Airflow: its bundle gives React, Router and Chakra."""

from __future__ import annotations

import json
import mimetypes
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import airflow
from playwright.sync_api import Page, Route

DIST = Path(airflow.__file__).parent / "ui" / "dist"
SHOW = """async ([where, props]) => {
  await import('/llem/static/app.js');
  const {ChakraProvider, defaultSystem} = ChakraUI;
  history.replaceState(null, '', where);
  const page = React.createElement(ReactRouterDOM.BrowserRouter, null, React.createElement(AirflowPlugin, props));
  document.body.replaceChildren(document.createElement('div'));
  createRoot(document.body.firstChild).render(React.createElement(ChakraProvider, {value: defaultSystem}, page));
}"""
READY = "globalThis.createRoot && globalThis.ChakraUI && globalThis.ReactRouterDOM"
"""Airflow's bundle has given what pages are made of."""
SAID = "[   12.3 s] measure         pass 3: 12.1 of 20 s"
"""The end of every task's log."""


def bundled(name: str) -> bytes:
    """A file of Airflow's UI; its entry gives ``createRoot`` away, and its page lies at the root of the server."""
    text = (DIST / name).read_bytes()
    text = text.replace(b".createRoot=", b".createRoot=globalThis.createRoot=")
    return text.replace(b"{{ backend_server_base_url }}", b"/") if name == "index.html" else text


def open_bundle(page: Page, site: Any) -> None:
    """Load Airflow's bundle; the test's API answers what pages ask, and of Airflow's own API there is only a log."""

    def answer(route: Route) -> None:
        url = urlsplit(route.request.url)
        name = url.path.removeprefix("/static/")
        if url.path.startswith("/llem/"):
            path, asked = url.path.removeprefix("/llem"), route.request
            if asked.method == "POST":
                found = site.post(path, asked.post_data_buffer)
            else:
                found = site.get(path, **dict(parse_qsl(url.query)))
            route.fulfill(status=found.status_code, body=found.content, headers=dict(found.headers))
        elif url.path.startswith("/static/") and (DIST / name).is_file():
            route.fulfill(body=bundled(name), content_type=mimetypes.guess_type(name)[0])
        elif url.path.startswith(("/api", "/ui")):
            route.fulfill(body=json.dumps({"content": [SAID]}), content_type="application/json")
        else:
            route.fulfill(body=bundled("index.html"), content_type="text/html")

    page.route("**/*", answer)
    page.goto("http://localhost:9999/")
    page.wait_for_function(READY)
