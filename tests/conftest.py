"""Fixtures of the whole suite, and the rule that nothing is skipped in CI."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
