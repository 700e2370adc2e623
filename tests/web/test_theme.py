"""The report inside Airflow has the theme that was chosen there, whatever the operating system prefers."""

from __future__ import annotations

import re
from typing import Any

import pytest

from llem_airflow.web.document import HEADERS, in_theme
from tests.analysis.conftest import MakeRun, make_run
from tests.analysis.test_report import ESTIMATE, page_of
from tests.browser import chromium_page

__all__ = ["make_run"]

URL = "http://airflow.test/llem/run"
LIGHT, DARK = "rgb(255, 255, 255)", "rgb(20, 23, 27)"


@pytest.mark.parametrize(
    ("chosen", "system", "shown"),
    [
        ("dark", "light", DARK),
        ("light", "dark", LIGHT),
        ("system", "dark", DARK),
        (None, "light", LIGHT),
    ],
)
def test_the_report_follows_airflow_s_theme(
    make_run: MakeRun,
    chosen: str | None,
    system: Any,
    shown: str,
) -> None:
    body = in_theme(page_of(make_run({(0, 1): ESTIMATE}, cycles=1)))
    with chromium_page() as page:
        page.emulate_media(color_scheme=system)
        page.route(URL, lambda route: route.fulfill(body=body, content_type="text/html", headers=HEADERS))
        if chosen:
            page.add_init_script(f"localStorage.setItem('theme', '{chosen}')")
        page.goto(URL)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == shown


def test_nothing_but_our_own_script_may_run() -> None:
    policy = HEADERS["Content-Security-Policy"]
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}'$", policy)
    assert "default-src 'none'" in policy
