"""A page that loads badly says so and goes on by itself; none stays empty."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, Route

from tests.analysis.conftest import IDS
from tests.results.recorded import Recording
from tests.web.conftest import Site
from tests.web.drawn import SHOW

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

CYCLE = f"/dags/nightly/runs/r1/plugin/llem-energy?view=cycle&cell={IDS[0]}.1"
RUN = [CYCLE, {"dagId": "nightly", "runId": "r1"}]


@pytest.fixture(autouse=True)
def measured(site: Site) -> None:
    site.stored({(0, 1): Recording(power_w=200.0)}, cycles=1)
    site.dag_run("nightly", "r1", "success")


def spoilt(page: Page, address: str, *by: Callable[[Route], Any]) -> list[str]:
    """Spoil the first requests of an address; the others are answered as ever. What was asked, as it comes."""
    asked: list[str] = []

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        (by[len(asked) - 1] if len(asked) <= len(by) else Route.fallback)(route)

    page.route(re.compile(address), answer)
    return asked


def drawn(page: Page) -> None:
    page.get_by_test_id("llem-power").locator("polyline").first.wait_for(state="attached")


def test_modules_that_failed_are_told_of_and_loaded_again(page: Page) -> None:
    entry = spoilt(page, r"/pages\.js$", lambda route: route.abort())
    common = spoilt(page, r"/base\.js$", lambda route: route.fulfill(status=500, body="database is locked"))
    deep = spoilt(page, r"/save\.js$", *[lambda route: route.abort()] * 2)
    page.evaluate(SHOW, RUN)
    page.get_by_role("alert").get_by_text("could not be loaded").wait_for()
    page.get_by_role("button", name="Ask now").click()
    drawn(page)
    for asked in (entry, common, deep):
        assert len(set(asked)) >= 2  # a browser may remember that an address failed


def test_a_page_that_throws_hangs_or_is_not_seen_is_there_in_the_end(page: Page) -> None:
    spoilt(page, "/api/run", lambda route: route.fulfill(json={"state": "success", "ended": True}))
    page.evaluate(SHOW, RUN)
    page.get_by_role("alert").get_by_text("cannot be shown").wait_for()
    page.get_by_role("button", name="Show it again").click()
    drawn(page)

    hanging: list[Route] = []
    page.clock.install()
    spoilt(page, "/api/cycle", hanging.append)
    page.evaluate(SHOW, RUN)
    while not hanging:
        page.wait_for_timeout(50)
    page.clock.fast_forward(61_000)
    page.get_by_text("did not answer within 60 s").wait_for()
    page.clock.fast_forward(16_000)
    drawn(page)

    page.evaluate("Object.defineProperty(document, 'hidden', {get: () => true})")
    page.evaluate(SHOW, RUN)
    drawn(page)
