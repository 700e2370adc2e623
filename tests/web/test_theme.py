"""The report inside Airflow has the theme that was chosen there, whatever the operating system prefers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.web.answers import PAGE_HEADERS, in_theme
from tests.analysis.conftest import IDS, MakeRun, make_run
from tests.browser import chromium_page
from tests.report.test_report import ESTIMATE, page_of

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
        page.route(
            URL, lambda route: route.fulfill(body=body, content_type="text/html", headers=PAGE_HEADERS)
        )
        if chosen:
            page.add_init_script(f"localStorage.setItem('theme', '{chosen}')")
        page.goto(URL)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == shown


def test_nothing_but_our_own_script_may_run() -> None:
    policy = PAGE_HEADERS["Content-Security-Policy"]
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}'$", policy)
    assert "default-src 'none'" in policy


def test_why_nothing_was_measured_is_read_on_a_phone_without_moving_the_table(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run({}, cycles=1)
    (tmp_path / "left").mkdir()
    message = (
        "the model 'lab/a-model-with-a-long-name' is not to be had: /srv/models/of/everybody has none of it"
    )
    failed = {"category": "model_missing", "message": message, "hint": "correct task.model"}
    run.commit_failed(IDS[0], 1, 1, tmp_path / "left", {"failure": failed})
    with chromium_page(width=400) as page:
        page.set_content(page_of(run))
        hidden = page.locator(".reasons").evaluate("one => one.scrollWidth - one.parentElement.clientWidth")
        assert hidden <= 0
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
