"""A few of the kill points of `make soak`, and secrets that are looked for everywhere afterwards."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from llem_airflow.operators.host import DEFAULT_CONN_ID
from llem_airflow.results import ResultsRoot
from tests import parts
from tests.chaos.kill import MOMENT_S, RECOVERY_S, Outcome, kill_side_by_side
from tests.chaos.points import (
    CREATED,
    EXPERIMENT,
    FEW,
    FEW_OF_SESSIONS,
    INIT,
    LIVING,
    MEASURING,
    NEXT,
    STORED,
    TASK,
    Point,
)
from tests.chaos.world import DAG_ID, TASK_ID, Watch, World
from tests.runners.engine_proxy import Call
from tests.runners.test_engine_proxy import allowed_with_sessions
from tests.standins.build import Standins

pytestmark = [pytest.mark.airflow, pytest.mark.docker, pytest.mark.timeout(2 * (MOMENT_S + RECOVERY_S))]
"""Eight kills, four at a time."""

CANARIES = {
    "HF_TOKEN": "hf_CanaryOfTheConnection0123456789",
    "HUGGING_FACE_HUB_TOKEN": "hf_CanaryOfTheWorkerSEnvironment0123456789",
}
"""Secrets by the variable that brings them into the container."""


class Onlooker(Watch):
    """Notes, when an attempt's container has started, what everybody on the host can see of it."""

    def __init__(self, api: docker.APIClient) -> None:
        self._api = api
        self.saw: list[str] = []
        self.reached = 0

    def seen(self, call: Call, *, answered: bool) -> None:
        started = re.fullmatch(r"/containers/(\w+)/start", call.path)
        if started is None or not answered:
            return
        inspection = self._api.inspect_container(started[1])
        # The private environment is where they belong; only who may use the engine can read it.
        environment = inspection["Config"].pop("Env")
        self.reached += all(f"{name}={secret}" in environment for name, secret in CANARIES.items())
        self.saw += [str(inspection), *_command_lines()]


def _command_lines() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            yield path.read_text(errors="replace")


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory,
    docker_api: docker.APIClient,
    python_image: str,
    standin: Standins,
) -> Iterator[World]:
    engine = parts.ENGINE_SOCKET
    home = tmp_path_factory.mktemp("chaos")
    (in_the_connection, of_the_worker) = CANARIES
    environment = {of_the_worker: CANARIES[of_the_worker]}
    with World(home, engine, python_image, environment, allowed=allowed_with_sessions) as running:
        host = {
            "connection_id": DEFAULT_CONN_ID,
            "conn_type": "llem",
            "password": CANARIES[in_the_connection],
        }
        running.airflow.send("POST", "/api/v2/connections", host).raise_for_status()
        yield running


@pytest.fixture(scope="module")
def onlooker(world: World) -> Onlooker:
    onlooker = Onlooker(world.api)
    world.watches.append(onlooker)
    return onlooker


@pytest.fixture(scope="module")
def outcomes(world: World, onlooker: Onlooker) -> dict[Point, Outcome]:
    points = (*FEW_OF_SESSIONS, *FEW)  # those that take longest first
    return {outcome.point: outcome for outcome in kill_side_by_side(world, points, at_once=4)}


def test_whoever_is_killed_the_result_is_stored_once_and_nothing_stays(
    world: World, outcomes: dict[Point, Outcome]
) -> None:
    assert [outcome for outcome in outcomes.values() if not outcome.good] == []
    assert world.left_on_worker() == []


def test_what_runs_is_taken_over_and_what_failed_is_tried_again(outcomes: dict[Point, Outcome]) -> None:
    assert outcomes[Point(TASK, MEASURING)].adopted
    assert not outcomes[Point(TASK, CREATED)].adopted
    assert outcomes[Point(TASK, STORED)].tries == 2
    assert outcomes[Point(EXPERIMENT, MEASURING)].failures == ["killed"]
    assert outcomes[Point(TASK, NEXT, "engine")].adopted
    assert outcomes[Point(LIVING, NEXT, "engine")].failures == ["killed"]
    assert outcomes[Point(INIT, MEASURING, "process")].failures == ["killed"]


def test_the_scheduler_s_tasks_need_only_the_documented_calls_of_the_engine(
    world: World, outcomes: dict[Point, Outcome]
) -> None:
    assert [str(call) for call in world.proxy.refused] == []


@pytest.mark.parametrize("secret", CANARIES.values())
def test_a_secret_is_nowhere_but_in_the_private_environment(
    world: World, onlooker: Onlooker, outcomes: dict[Point, Outcome], secret: str
) -> None:
    assert onlooker.reached >= len(FEW)  # the engine had it, printed it and wrote it into its result
    assert [text for text in onlooker.saw if secret in text] == []
    files = [path for path in world.home.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"airflow.db", "result.json", "container.log", "inspect.json"}
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
    with contextlib.closing(sqlite3.connect(world.airflow.home / "airflow.db")) as database:
        assert [row for row in database.iterdump() if secret in row] == []


def test_what_the_engine_said_of_its_secret_is_blanked(world: World, outcomes: dict[Point, Outcome]) -> None:
    run_id = world.airflow.runs(DAG_ID)[0]["dag_run_id"]
    (cycle,) = ResultsRoot(world.airflow.results).run(DAG_ID, run_id).cycles()
    folder = Path(cycle.folder.url)
    said = "tokens: [redacted] [redacted]"
    assert said in (folder / "container.log").read_text()
    assert "[redacted]" in (folder / "result.json").read_text() + (folder / "environment.json").read_text()
    tries = int(max(ti["try_number"] for ti in world.airflow.instances(DAG_ID, run_id)))
    assert said in "".join(
        world.airflow.task_log(DAG_ID, run_id, TASK_ID, number) for number in range(1, tries + 1)
    )
