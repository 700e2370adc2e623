"""Labels of the axes of plots, in Chromium: whatever the range, two ticks at least, and no two with the same text."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from llem_airflow.web.modules import MODULES
from tests.browser import chromium_page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

ASK = """async (ranges) => {
  const {logTicks, niceTicks, told} = await import('/ticks.js');
  const logs = ranges.map(([a, b]) => logTicks(a % 9, a % 9 + 1.5 + Math.abs(b) % 9));
  return [ranges.map((one) => niceTicks(...one)), logs, told([2048, 4096])];
}"""


def ranges() -> list[list[float]]:
    """Ranges of every size anywhere: also a narrow one far from zero, as that of a clock that hardly changes."""
    random = np.random.default_rng(0)
    low = random.choice([-1, 1], 2000) * 10 ** random.uniform(-6, 9, 2000)
    span = np.maximum(10 ** random.uniform(-6, 9, 2000), np.abs(low) * 1e-8)
    found = [
        [float(a), float(a + b), float(c)]
        for a, b, c in zip(low, span, random.uniform(0, 12, 2000), strict=True)
    ]
    return [*found, [30.6, 37.1, 2], [1.42, 1.58, 2], [99.79, 100.21, 2], [0, 0, 3], [1e17, 1e17 + 64, 2]]


def value(text: str) -> float:
    return float(text.replace(",", ""))


def test_ticks_are_two_at_least_and_their_texts_tell_them_apart() -> None:
    def answer(route: Any) -> None:
        name = route.request.url.rpartition("/")[2]
        body = MODULES[name].read_bytes() if name in MODULES else b"<p>"
        route.fulfill(body=body, content_type="text/javascript" if name in MODULES else "text/html")

    asked = ranges()
    with chromium_page() as page:
        page.route("**/*", answer)
        page.goto("http://airflow.test/")
        linear, logarithmic, levels = page.evaluate(ASK, asked)
    assert levels == [[2048, "2,048"], [4096, "4,096"]]
    for (low, high, count), ticks in zip(asked[:-2], linear, strict=False):
        assert 2 <= len(ticks) <= max(2, count) * 2 + 1, (low, high, count, ticks)
        assert all(low - 1e-6 * (high - low) <= at <= high + 1e-6 * (high - low) for at, _ in ticks)
    for ticks in (*linear, *logarithmic):
        for (one, text), (following, next_text) in pairwise(ticks):
            assert one < following
            assert abs(value(text) - one) < (following - one) / 100, ticks
            assert text != next_text, ticks
    assert min(map(len, logarithmic)) > 1
