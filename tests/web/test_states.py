"""Each page in the states that only some data has: for who sees it badly, on a phone, and on a wide screen."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from tests.browser import chromium_page
from tests.web.pictures import DARK, scenes

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


def problems(page: Page) -> list[tuple[str, str]]:
    found = Axe().run(page, context="[data-testid=llem-page]").response["violations"]
    serious = [one for one in found if one["impact"] in {"serious", "critical"}]
    return [(one["id"], one["nodes"][0]["html"][:200]) for one in serious]


def test_every_state_of_a_page_is_accessible_in_each_theme_and_fits_every_width() -> None:
    with chromium_page() as page:
        for name in scenes(page):
            page.evaluate("localStorage.clear()")
            for theme in (DARK, DARK.replace("add", "remove")):
                page.evaluate(theme)
                assert not problems(page), name
            for width in (400, 2000):
                page.set_viewport_size({"width": width, "height": 900})
                page.evaluate(
                    "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
                )
                assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, (name, width)
