"""Numbers, times and labels of axes as the pages write them, in a real Chromium."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from playwright.sync_api import Page

from llem_airflow.web.modules import MODULES
from tests.browser import chromium_page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

URL = "http://airflow.test/"
TICKS = """async (ranges) => {
  const {logTicks, niceTicks, told} = await import('/format.js');
  const logs = ranges.map(([a, b]) => logTicks(a % 9, a % 9 + 1.5 + Math.abs(b) % 9));
  return [ranges.map((one) => niceTicks(...one)), logs, told([2048, 4096])];
}"""
WHEN = """async (zone) => {
  if (zone === null) localStorage.removeItem('timezone'); else localStorage.setItem('timezone', zone);
  const {day, when} = await import('/format.js');
  return [when(1.79e18), day(1.79e18)];
}"""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A page that may load the module."""
    with chromium_page() as opened:
        text = MODULES["format.js"].read_text()
        opened.route(
            URL + "**",
            lambda route: route.fulfill(
                body=text if route.request.url.endswith(".js") else "<title>a page</title>",
                content_type="text/javascript" if route.request.url.endswith(".js") else "text/html",
            ),
        )
        opened.goto(URL)
        yield opened


def local(epoch_s: float) -> str:
    """An instant in this machine's zone, which is that of the browser."""
    return datetime.fromtimestamp(epoch_s, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M")


SHOWN: list[tuple[str, list[Any], str]] = [
    ("number", [None], "\N{EN DASH}"),
    ("number", [0], "0"),
    ("number", [1234.5], "1,230"),
    ("number", [0.0012345], "0.00123"),
    ("number", [2e15], "2.00e+15"),
    ("change", [-0.1234], "\N{MINUS SIGN}12.3 %"),
    ("change", [0.0001], "0.0 %"),
    ("change", [0.0006], "+0.1 %"),
    ("duration", [None], "\N{EN DASH}"),
    ("duration", [9.96], "10 s"),
    ("duration", [59.6], "1 min 0 s"),
    ("duration", [3599], "1 h 0 min"),
    ("duration", [3660], "1 h 1 min"),
    ("duration", [200_000], "2 days"),
    ("stretch", [-0.0012245, 115.81], "0 to 116 s"),
    ("stretch", [10.2001, 10.7034], "10.2 to 10.703 s"),
    ("stretch", [0, 5000], "0 to 5,000 s"),
    ("stretch", [1, 1], "1 to 1 s"),
    ("counted", [1, "sample"], "1 sample"),
    ("counted", [1160, "sample"], "1,160 samples"),
    ("cycles", [4, 2], "n = 4 on 2 hosts"),
    ("quantity", [{"unit": "ratio"}, 0.975], "97.5 %"),
    ("interval", [{"unit": "ratio"}, {"mean": 0.9, "low": 0.8, "high": 1, "n": 3}], "80 to 100"),
    ("spread", [{"unit": "J"}, {"mean": 1, "low": None, "n": 1, "hosts": 1}], "no interval, n = 1"),
    (
        "spread",
        [{"unit": "J"}, {"mean": 1, "low": None, "n": 4, "hosts": 3}],
        "no interval, n = 4 on 3 hosts",
    ),
    (
        "spread",
        [{"unit": "J"}, {"mean": 2, "low": 1.5, "high": 2.5, "n": 3, "hosts": 1}],
        "1.5 to 2.5, n = 3",
    ),
    ("between", [1.79e18, 1.79e18], local(1.79e9)),
    ("between", [1.79e18, 1.79e18 + 1e9], local(1.79e9)),
    ("between", [1.79e18, 1.79e18 + 864e11], f"{local(1.79e9)} to {local(1.79e9 + 86_400)}"),
]


def test_numbers_and_times_are_written_for_people(page: Page) -> None:
    told = page.evaluate(
        "async (calls) => { const all = await import('/format.js');"
        " return JSON.stringify(calls.map(([name, given]) => all[name](...given))) }",
        [[name, given] for name, given, _ in SHOWN],
    )
    assert json.loads(told) == [text for *_, text in SHOWN]


def test_times_are_in_the_zone_that_was_chosen_in_airflow_else_in_that_of_the_browser(page: Page) -> None:
    far = datetime.fromtimestamp(1.79e9, tz=ZoneInfo("Pacific/Kiritimati"))
    assert page.evaluate(WHEN, '"Pacific/Kiritimati"') == [f"{far:%Y-%m-%d %H:%M}", f"{far:%Y-%m-%d}"]
    for unknown in (None, '"Nowhere/At all"', "{", "null", "7"):
        assert page.evaluate(WHEN, unknown) == [local(1.79e9), local(1.79e9)[:10]], unknown


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


def test_ticks_are_two_at_least_and_their_texts_tell_them_apart(page: Page) -> None:
    asked = ranges()
    linear, logarithmic, levels = page.evaluate(TICKS, asked)
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
