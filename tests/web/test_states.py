"""Each page in the states that only some data has: for who sees it badly, on a phone, and on a wide screen."""

from __future__ import annotations

import pytest

from tests.browser import assert_accessible, chromium_page
from tests.web.pictures import DARK, scenes

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


def test_every_state_of_a_page_is_accessible_in_each_theme_and_fits_every_width() -> None:
    with chromium_page() as page:
        for name in scenes(page):
            for theme in (DARK, DARK.replace("add", "remove")):
                page.evaluate(theme)
                assert_accessible(page)
            for width in (400, 2000):
                page.set_viewport_size({"width": width, "height": 900})
                page.evaluate(
                    "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
                )
                assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, (name, width)
