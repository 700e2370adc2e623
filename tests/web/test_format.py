"""Numbers and times as the pages write them, in a real Chromium."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import llem_airflow
from tests.browser import chromium_page

MODULE = Path(llem_airflow.__file__).parent / "web" / "static" / "format.js"
URL = "http://airflow.test/"


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


@pytest.mark.browser
def test_numbers_and_times_are_written_for_people() -> None:
    with chromium_page() as page:
        page.route(
            URL + "**",
            lambda route: route.fulfill(
                body=MODULE.read_text() if route.request.url.endswith(".js") else "<title>a page</title>",
                content_type="text/javascript" if route.request.url.endswith(".js") else "text/html",
            ),
        )
        page.goto(URL)
        told = page.evaluate(
            "async (calls) => { const all = await import('/format.js');"
            " return JSON.stringify(calls.map(([name, given]) => all[name](...given))) }",
            [[name, given] for name, given, _ in SHOWN],
        )
    assert json.loads(told) == [text for *_, text in SHOWN]
