"""Fixtures of the whole suite, and the rule that nothing is skipped in CI."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import docker
import pytest

from tests import parts
from tests.standins.build import Standins
from tests.standins.build import build as build_standins

# Two cores, and neighbours: a second OpenMP thread that waits for the first costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def docker_api() -> Iterator[docker.APIClient]:
    """A client of a Docker engine that answers."""
    with parts.engine_client() as client:
        yield client


@pytest.fixture(scope="session")
def cpu_image(docker_api: docker.APIClient) -> str:
    """The name of the image with torch (CPU) and transformers."""
    return parts.build_image("cpu")


@pytest.fixture(scope="session")
def vllm_image(docker_api: docker.APIClient) -> str:
    """The name of the image with vLLM's CPU build."""
    return parts.build_image("vllm-cpu")


@pytest.fixture(scope="session")
def python_image(docker_api: docker.APIClient) -> str:
    """The name of a small image with Debian's Python, for tests that need no engine in the box."""
    return parts.build_image("debian")


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The folder of a tiny Llama with random weights: loads in half a second, writes noise."""
    return parts.make_model("tiny_llama.py", "tiny-llama-random")


@pytest.fixture(scope="session")
def smol_model() -> Path:
    """The folder of SmolLM2-135M-Instruct, a real model that writes sentences."""
    return parts.make_model("smollm2.py", "SmolLM2-135M-Instruct")


@pytest.fixture(scope="session")
def standin() -> Standins:
    """The stand-in GPU driver and its container hook, built."""
    try:
        return build_standins()
    except RuntimeError as error:
        parts.missing(str(error))


SLOWEST_FIRST = ("compose", "airflow", "docker", "engine")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the tests for parallel workers: a file stays together, and so do those who share a server.

    The groups that take longest come first, so that no worker is left alone with one at the end.
    """
    ranks: dict[str, int] = {}
    groups = []
    for item in items:
        shared = "process_airflow" in getattr(item, "fixturenames", ())
        group = "process_airflow" if shared else item.path.stem
        groups.append(group)
        item.add_marker(pytest.mark.xdist_group(group))
        slow = [SLOWEST_FIRST.index(mark.name) for mark in item.iter_markers() if mark.name in SLOWEST_FIRST]
        ranks[group] = min([ranks.get(group, len(SLOWEST_FIRST)), *slow])
    in_order = sorted(zip(groups, items, strict=True), key=lambda pair: ranks[pair[0]])
    items[:] = [item for _, item in in_order]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Give a test marked ``alone`` the Docker engine for itself; other Docker tests may run beside each other."""
    if item.get_closest_marker("docker") is None:
        return (yield)
    with parts.engine_turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in CI that skips are what made the run fail."""
    skipped = terminalreporter.stats.get("skipped", [])
    if parts.in_ci() and skipped:
        terminalreporter.write_line(f"{len(skipped)} skipped: in CI every part must be there", red=True)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Turn a CI run that skipped something into a failed one."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if parts.in_ci() and exitstatus == 0 and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
