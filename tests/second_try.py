"""A plugin of pytest's for CI: what has processes, containers and browsers of a busy machine in it is tried twice."""

from __future__ import annotations

import pytest

REAL = frozenset({"airflow", "browser", "compose", "docker", "engine"})
"""Marks of such tests."""
AT_MOST = 4
"""So many tests may pass only when tried again; one more fails the run."""


def pytest_configure(config: pytest.Config) -> None:
    """Show what a first try failed with: a second one hides nothing."""
    config.option.max_suite_reruns = AT_MOST
    config.option.rerun_show_tracebacks = True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give them their second try."""
    for item in items:
        if REAL.intersection(mark.name for mark in item.iter_markers()):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Make anew what the tests of a file share: else the second try would look again at what the first one found."""
    if getattr(item, "execution_count", 1) > 1:
        for made in item._fixtureinfo.name2fixturedefs.values():  # type: ignore[attr-defined]
            if made[-1].scope == "module":
                made[-1].finish(item._request)  # type: ignore[attr-defined]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many were used."""
    again = terminalreporter.stats.get("rerun", [])
    if again:
        terminalreporter.write_line(f"{len(again)} of {AT_MOST} second tries were used", yellow=True)
