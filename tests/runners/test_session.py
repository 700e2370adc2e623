"""A session's container: what it does between and around its attempts, on a real engine."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.types import Mount

from llem_airflow.protocol.session import EVIDENCE
from llem_airflow.runners import docker as docker_runner
from llem_airflow.runners.attempt import LABEL_SESSION, Attempt
from llem_airflow.runners.base import Busy, Collected, Place
from llem_airflow.runners.docker import ContainerPlace
from llem_airflow.runners.failures import AttemptFailedError
from llem_airflow.runners.gc import find_leftovers
from llem_airflow.runners.gpus import inventory
from llem_airflow.runners.session import SessionRunner
from llem_airflow.runners.session_container import session_of
from llem_airflow.study import GpuRequest
from tests.runners.conftest import left_of
from tests.runners.living_session import LivingSession
from tests.runners.programs import SPEC, program, see_through

pytestmark = pytest.mark.docker

LONG = "print('up', flush=True)\nfor _ in range(6000): time.sleep(0.1)\n"


class World(LivingSession):
    """A session whose attempts are programs."""

    def runner(self, task: str, text: str = "result()", **how: Any) -> SessionRunner:
        return self.attempt(task, lambda folder: program(folder, text), **how)

    def run(self, task: str, text: str = "result()", **how: Any) -> tuple[Collected, dict[str, Any]]:
        """One attempt seen through; what it left, and its record with the evidence of the session."""
        runner = self.runner(task, text, **how)
        collected = see_through(runner, self.folder)
        evidence = json.loads((collected.folder / EVIDENCE).read_text())
        return collected, {**runner.record(collected), **evidence}

    def inside(self, container: str, code: str) -> None:
        """Run Python in the container."""
        made = self.api.exec_create(container, ["python3", "-c", code])["Id"]
        assert self.api.exec_start(made) == b""

    def pids(self, container: str, words: str) -> list[int]:
        """Processes of the container, by this host's numbers."""
        listed = self.api.top(container, ps_args="-eo pid,args")["Processes"]
        return [int(pid) for pid, argv in listed if words in argv]


@pytest.fixture
def world(
    docker_api: docker.APIClient, python_image: str, this_attempt: Attempt, tmp_path: Path
) -> Iterator[World]:
    made = World(docker_api, python_image, this_attempt, tmp_path)
    with made.stopped_at_the_end():
        yield made


def test_cycles_of_a_session_are_processes_of_one_container_and_take_turns(world: World) -> None:
    starts = world.container()
    session, again = starts.begin(SPEC), world.start()
    assert isinstance(session, ContainerPlace)
    assert (session.adopted, again.adopted, again.container) == (False, True, session.container)
    inspection = world.api.inspect_container(session.container)
    assert inspection["Config"]["Labels"][LABEL_SESSION] == "warm-1"
    assert "beat" in inspection["Config"]["Healthcheck"]["Test"][-1]
    assert inspection["State"]["Health"]["Status"] in ("starting", "healthy")
    listed = find_leftovers(world.api, older_than_s=-60, installation=world.who.installation, running="any")
    (own,) = (one for one in listed if one.name == world.name)
    assert own.what == f"session warm-1, {world.who.dag_id} {world.who.run_id}"
    said = "print(os.environ['LLEM_SESSION'], os.getppid() > 1, os.getpid() == os.getsid(0)); result()"
    first, told = world.run("one", said)
    assert first.log.read_text() == "warm-1 True True\n"
    assert {name: told[name] for name in ("start_kind", "session", "position_in_session")} == {
        "start_kind": "exec",
        "session": "warm-1",
        "position_in_session": 0,
    }
    up = threading.Event()
    holder = world.runner("two", LONG, on_line=lambda _: up.set())
    place = holder.place(SPEC)
    assert isinstance(place, Place)
    busy = world.runner("three").place(SPEC)
    assert isinstance(busy, Busy)
    assert f"of the session ({world.who.experiment_id} of DAG {world.who.dag_id})" in busy.text

    def kill_it() -> None:
        up.wait(60)
        holder.kill()

    killer = threading.Thread(target=kill_it)
    killer.start()
    with pytest.raises(AttemptFailedError) as caught:
        holder.run(place, SPEC, str)
    killer.join()
    assert caught.value.failure.category == "cancelled"
    _, told = world.run("three")
    assert told["position_in_session"] == 2
    assert [life["after"] for life in told["lives"]] == [None]
    assert [look["problems"] for look in told["health"]] == [[]] * len(told["health"])
    starts.kill()  # a task that dies late: the run goes on in the container
    assert world.api.inspect_container(session.container)["State"]["Running"]


def test_a_start_that_is_ended_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = world.container()

    def ended(_place: ContainerPlace) -> str:
        starts.kill()
        raise KeyboardInterrupt

    monkeypatch.setattr(starts, "_not_ready", ended)
    monkeypatch.setattr(docker_runner, "KILL_S", 60.0)  # an engine that is busy takes longer
    with pytest.raises(KeyboardInterrupt):
        starts.begin(SPEC)
    assert left_of(world.api, session_of(world.who, world.session.session_id)) == []


def test_a_process_that_an_attempt_left_behind_ends_by_a_restart_that_is_told(world: World) -> None:
    session = world.start()
    stays = "import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True); result()"
    world.run("one", stays)
    _, told = world.run("two")
    (again,) = world.restarts()
    assert again.startswith("(1 of 3): a process was left running: ")
    assert again.endswith("sleep 600")
    assert [life["after"] for life in told["lives"]][1].endswith("sleep 600")
    assert told["position_in_session"] == 1
    assert world.pids(session.container, "sleep 600") == []
    assert world.api.inspect_container(session.container)["Id"] == session.container


def test_a_container_that_is_killed_fails_its_attempt_and_the_next_try_goes_on_in_it(world: World) -> None:
    session = world.start()
    up = threading.Event()

    def kill() -> None:
        up.wait(60)
        world.api.kill(session.container)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(AttemptFailedError) as caught:
        see_through(world.runner("one", LONG, on_line=lambda _: up.set()), world.folder)
    killer.join()
    assert (caught.value.failure.category, caught.value.failure.retryable) == ("killed", True)
    collected, told = world.run("one", try_number=2)
    assert not collected.adopted
    assert "its container was killed" in [life["after"] for life in told["lives"]]
    assert world.api.inspect_container(session.container)["Id"] == session.container


def test_what_kills_the_attempt_s_parent_ends_the_attempt_and_nothing_else(world: World) -> None:
    session = world.start()

    def kill(_: str) -> None:
        for pid in world.pids(session.container, "session keep"):
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(AttemptFailedError) as caught:
        see_through(world.runner("one", LONG, on_line=kill), world.folder)
    assert caught.value.failure.category == "killed"
    assert world.pids(session.container, "attempts/") == []
    _, told = world.run("two")
    assert [life["after"] for life in told["lives"]] == [None]


def test_a_lost_connection_loses_no_line_and_gives_none_twice(world: World) -> None:
    session = world.start()
    lines: list[str] = []

    def cut(line: str) -> None:
        lines.append(line)
        if line in ("3", "6"):
            for pid in world.pids(session.container, "session run"):
                os.kill(pid, signal.SIGKILL)

    text = "for n in range(10): print(n, flush=True); time.sleep(0.3)\nresult()"
    runner = world.runner("one", text, on_line=cut)
    assert see_through(runner, world.folder).exit_code == 0
    assert lines == [str(n) for n in range(10)]


@pytest.mark.alone
def test_a_gpu_that_keeps_memory_is_unhealthy_until_the_restarts_are_used_up(world: World) -> None:
    gpu = inventory(world.api, world.settings.image).boards[0].id
    script = world.folder / "gpus.conf"
    lines = (
        f"t0 = 0\ngpus = 1\ngpu.0.uuid = {gpu}\ngpu.0.power = const 100\ngpu.0.memory_total = 0x1000000000\n"
    )
    script.write_text(lines + "gpu.0.memory_used = 0x1000000\n")
    world.settings = replace(
        world.settings,
        gpu_request=GpuRequest(1, ids=(gpu,)),
        mounts=(Mount("/gpus", str(world.folder), type="bind", read_only=True),),
        environment={"STANDIN_NVML_SCRIPT": "/gpus/gpus.conf"},
    )
    world.session = replace(world.session, max_restarts=1)
    world.folder.chmod(0o755)
    world.start()
    _, told = world.run("one")
    assert [gpu["memory_used_bytes"] for gpu in told["health"][-1]["gpus"]] == [0x1000000]
    script.write_text(lines + "gpu.0.memory_used = 0x80000000\n")
    with pytest.raises(AttemptFailedError) as caught:
        world.run("two")
    assert (caught.value.failure.category, caught.value.failure.retryable) == ("session_unhealthy", False)
    assert f"over after 1 restarts of 1: GPU {gpu}: 2032 MiB more are in use" in str(caught.value)


def test_the_guard_ends_an_idle_session_and_one_whose_time_is_over_for_good(world: World) -> None:
    session = world.start()
    world.inside(session.container, "open('/run/llem/state/renewed', 'w').write('-1e6')")
    assert world.api.wait(session.container, timeout=60)["StatusCode"] == 0
    assert b"the session ends: no cycle for 120 s" in world.api.logs(session.container)
    _, told = world.run("one")
    assert told["lives"][1]["after"] == "no cycle for 120 s"
    old = "import json, re; p = '/run/llem/state/lives.jsonl'; t = open(p).read(); "
    world.inside(
        session.container, old + "open(p, 'w').write(re.sub('ns\": [0-9]+', 'ns\": -1000000000000000000', t))"
    )
    world.api.kill(session.container)
    with pytest.raises(AttemptFailedError, match="it has lived for max_runtime") as caught:
        world.run("two")
    assert caught.value.failure.category == "session_unhealthy"
