"""A real headless Chromium for tests of pages."""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Error, Page, Response, expect, sync_playwright

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


PATIENCE_MS = 60_000
"""How long a busy machine may take to draw something."""


SETTLED = """() => Promise.all(document.getAnimations()
    .filter((one) => one.effect.getComputedTiming().iterations !== Infinity)
    .map((one) => one.finished.catch(() => null)))"""
"""Waits for what fades or slides to be where it will stay."""
OPEN: list[Page] = []
"""The pages of this process that are open."""
SAID: deque[str] = deque(maxlen=60)
"""What the console said and which requests went wrong, of all pages of this process."""


def listen(page: Page) -> None:
    """Keep what the page says and which of its requests go wrong."""
    page.on("console", lambda told: SAID.append(f"{told.type}: {told.text[:300]}"))
    page.on("pageerror", lambda error: SAID.append(f"error: {str(error)[:600]}"))
    page.on("requestfailed", lambda asked: SAID.append(f"no answer: {asked.url} {asked.failure or ''}"))
    page.on("response", _refused)
    page.on("framenavigated", lambda frame: SAID.append(f"--- {frame.url}"))


def _refused(got: Response) -> None:
    if got.status >= 400:
        SAID.append(f"{got.status}: {got.url}")


def last_seen() -> list[tuple[str, str]]:
    """Sections for the report of a failed test: what pages said, and what those that are open show."""
    found = [("browser's console and requests", "\n".join(SAID))]
    for page in OPEN:
        with suppress(Error):
            found.append((f"text of {page.url}", page.inner_text("body", timeout=5_000)[:3000]))
    return found


@contextmanager
def chromium_page(width: int = 1400, height: int = 1000) -> Iterator[Page]:
    """A page of a fresh browser; without a Chromium the test is skipped (in CI it fails)."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        reason = "no chromium on PATH: install Debian's package `chromium`"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(PATIENCE_MS)
            listen(page)
            OPEN.append(page)
            expect.set_options(timeout=PATIENCE_MS)
            yield page
        finally:
            OPEN.clear()
            browser.close()


def assert_accessible(page: Page) -> None:
    """Nothing on our page is hard to see, to reach or to name, as far as axe-core tells."""
    page.evaluate(SETTLED)  # a button that is fading in has the contrast of no theme
    found = Axe().run(page, context="[data-testid=llem-page]")
    serious = [one for one in found.response["violations"] if one["impact"] in {"serious", "critical"}]
    assert not serious, [(page.url, one["id"], one["nodes"][0]["html"][:200]) for one in serious]
