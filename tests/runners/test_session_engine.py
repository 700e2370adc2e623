"""An engine that lives on in a session's container, on a real engine of Docker: reused, refused, dead, leaking."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.types import Mount

from llem_airflow.analysis.cycle import read_cycle
from llem_airflow.analysis.sessions import session_flags
from llem_airflow.protocol.files import EVENTS, REQUESTS, config_name
from llem_airflow.protocol.session import EVIDENCE, WARM
from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.results import ResultsRoot
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.base import Collected
from llem_airflow.runners.bundle import build_bundle
from llem_airflow.runners.failures import AttemptFailedError
from llem_airflow.runners.gpus import inventory
from llem_airflow.runners.session import SessionRunner
from llem_airflow.runners.session_container import stop_session
from llem_airflow.study import GpuRequest
from tests.measurement.running import HASH, spec_of
from tests.results.recorded import provenance
from tests.runners.living_session import LivingSession
from tests.runners.programs import see_through

pytestmark = pytest.mark.docker

ENGINE = """
import os, signal, time
from pathlib import Path
from llem_airflow.measurement.engines.contract import Completion, EngineFacts, Vocabulary
from llem_airflow.measurement.generation import section

GPUS = Path("/gpus/gpus.conf")

class Engine:
    loads = attempts = 0

    def open_context(self): return False
    def load(self, spec):
        print("loads", flush=True)
        self.reset(spec)
    def reset(self, spec):
        self.act = section(spec).get("sampling_params", {}).get("act")
        self.attempts += 1
    def encode(self, texts, max_tokens): return [tuple(text.encode())[:max_tokens] for text in texts]
    def vocabulary(self): return Vocabulary(size=256, special_ids=frozenset())
    def batch_size(self): return None
    def generate(self, batch, on_step):
        begin_ns = time.monotonic_ns()
        if self.act == "waits":
            print("waits", flush=True)
            time.sleep(600)
        if self.act == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.act == "fails":
            raise ValueError("the engine broke")
        if self.act == "keeps":
            GPUS.write_text(GPUS.read_text().replace("used = 0x1000000\\n", "used = 0x80000000\\n"))
        time.sleep(0.2 if self.act == "ages" and self.attempts > 1 else 0.01)
        now_ns = time.monotonic_ns()
        return [Completion(one.index, (self.attempts,) * one.output_tokens, begin_ns, (now_ns,) * one.output_tokens,
                           "length") for one in batch]
    def sync(self): pass
    def reset_peaks(self): pass
    def describe(self): return EngineFacts("1", {"name": "own", "dtype": None}, (), {})
    def memory(self): return {"gpu_peak_bytes": None}
    def close(self): pass
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with an engine of a third party in it."""
    path = tmp_path_factory.mktemp("bundle") / "llem.pyz"
    path.write_bytes(build_bundle().read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("llem_own.py", ENGINE)
        archive.writestr(
            "llem_own-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: llem-own\nVersion: 1.0\n"
        )
        archive.writestr(
            "llem_own-1.0.dist-info/entry_points.txt", "[llem_airflow.engines]\nown = llem_own:Engine\n"
        )
    return path


def asks(act: str = "", *, size: int = 1, idle: bool = False) -> ExperimentSpec:
    sampling = {"act": act} if act else {}
    section = {"engine_params": {"size": size}, "sampling_params": sampling}
    phases = {"baseline": {"enabled": idle, "duration_seconds": 1.0}}
    return spec_of("own", section, output_tokens=2, min_window_s=0.05, config={"measurement": phases})


class World(LivingSession):
    """One session whose engine lives on."""

    def __init__(self, api: docker.APIClient, image: str, who: Attempt, folder: Path, bundle: Path) -> None:
        super().__init__(api, image, who, folder)
        self.session = replace(self.session, start_kind=WARM)
        self.settings = replace(self.settings, stop_grace_s=1.0)
        self.bundle, self.spec, self._bundle = bundle, asks(), bundle

    def runner(self, task: str, **how: Any) -> SessionRunner:
        return self.attempt(task, lambda _: self._bundle, **how)

    def run(self, task: str, spec: ExperimentSpec, **settings: Any) -> Collected:
        return see_through(self.runner(task, **settings), self.folder, spec=spec)

    def fails(self, task: str, spec: ExperimentSpec, **settings: Any) -> AttemptFailedError:
        with pytest.raises(AttemptFailedError) as caught:
            self.run(task, spec, **settings)
        return caught.value


@pytest.fixture
def world(
    docker_api: docker.APIClient, python_image: str, this_attempt: Attempt, tmp_path: Path, bundle: Path
) -> Iterator[World]:
    made = World(docker_api, python_image, this_attempt, tmp_path, bundle)
    with made.stopped_at_the_end():
        yield made


def rows(collected: Collected, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (collected.folder / name).read_text().splitlines()]


def nth(collected: Collected) -> int:
    """Which experiment it was of its engine, which answers with that number."""
    (number,) = {token for row in rows(collected, REQUESTS) for token in row["output_token_ids"]}
    return int(number)


def phases(collected: Collected) -> list[str]:
    return [row["phase"] for row in rows(collected, EVENTS) if row["event"] == "phase_end"]


def evidence(collected: Collected) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((collected.folder / EVIDENCE).read_text())
    return found


def test_one_engine_serves_all_that_load_alike_and_refuses_what_does_not(world: World) -> None:
    session = world.start()
    first, second = world.run("one", asks(idle=True)), world.run("two", asks("echoes", idle=True))
    assert (nth(first), nth(second)) == (1, 2)
    assert world.lines.count("loads") == 1
    assert phases(first) == [
        "baseline_bare",
        "import",
        "load",
        "baseline_loaded",
        "warmup",
        "measure",
        "cooldown",
    ]
    assert phases(second) == ["baseline_loaded", "warmup", "measure", "cooldown"]
    (bare,) = [one for one in rows(second, EVENTS) if one["event"] == "baselines_reused"]
    assert [one["name"] for one in bare["baselines"]] == ["baseline_bare"]
    assert bare["measured_in"] == "the session's start"
    refused = world.fails("three", asks(size=2))
    assert "own.engine_params.size: 1 is loaded, 2 is asked for" in str(refused)
    assert (refused.failure.category, refused.failure.retryable) == ("config", False)
    fourth = world.run("four", asks())
    assert nth(fourth) == 3, "a refusal does the engine no harm"
    told = evidence(fourth)
    assert (told["start_kind"], told["position_in_session"]) == (WARM, 3)
    assert [look["problems"] for look in told["health"]] == [[]] * len(told["health"])
    assert world.runner("four").record(fourth)["start_kind"] == WARM
    assert world.api.inspect_container(session.container)["State"]["Running"]


def test_what_ends_or_fails_one_cycle_costs_the_next_a_load_and_no_restart(world: World) -> None:
    world.start()
    world.run("one", asks())
    late = world.fails("two", asks("waits"), silence_s=10.0)
    assert "waits" in world.lines  # the engine had it in its hands
    assert late.failure.category == "timeout_silence"
    assert nth(world.run("three", asks())) == 1
    broken = world.fails("four", asks("fails"))
    assert "the engine broke" in str(broken)
    assert nth(world.run("five", asks())) == 1
    assert (world.lines.count("loads"), world.restarts()) == (3, [])


def test_an_engine_that_dies_fails_its_own_cycle_and_is_restarted_as_often_as_it_may_be(world: World) -> None:
    world.session = replace(world.session, max_restarts=1)
    world.start()
    world.run("one", asks())
    died = world.fails("two", asks("dies"))
    assert (died.failure.category, died.failure.retryable) == ("killed", True)
    third = world.run("three", asks())
    assert nth(third) == 1
    (again,) = world.restarts()
    assert again.startswith("(1 of 1): the engine's process ")
    assert again.endswith("has ended by signal SIGKILL")
    assert evidence(third)["lives"][1]["after"].endswith("SIGKILL")
    world.fails("four", asks("dies"))
    over = world.fails("five", asks())
    assert (over.failure.category, over.failure.retryable) == ("session_unhealthy", False)
    assert "over after 1 restarts of 1: the engine's process " in str(over)


def test_an_engine_that_works_slower_from_cycle_to_cycle_is_told_as_a_drift(world: World) -> None:
    """Each of three experiments is once first in a session and once second, where it takes twenty times as long.

    Nothing of this machine's is as large, so that its interval cannot hold 0.
    """
    run = ResultsRoot(world.folder / "results").run("drift", "run")
    for number, pair in enumerate(("ab", "bc", "ca"), start=1):
        world.session = replace(world.session, session_id=f"own-c{number}")
        world.start()
        for name in pair:
            runner = world.runner(f"{name}-{number}")
            collected = see_through(runner, world.folder, spec=asks("ages"))
            (collected.folder / config_name(HASH)).write_text(asks("ages").dumps())
            kept = {**provenance(), **runner.record(collected)}
            run.commit_cycle(f"{name}-{HASH[:8]}", number, collected.folder, kept)
        stop_session(world.api, world.who, world.session.session_id)
    rows = [read_cycle(ref, position=None, failed_attempts=0)[0] for ref in run.cycles()]
    assert sorted((row.session, row.position_in_session, row.start_kind) for row in rows) == [
        (f"own-c{number}", place, WARM) for number in (1, 2, 3) for place in (0, 1)
    ]
    found = session_flags(rows)
    assert sorted(found) == [f"{name}-{HASH[:8]}" for name in "abc"]
    assert {flag.code for flags in found.values() for flag in flags} == {"session_drift"}
    assert "at later places of the sessions of own differs by +" in found[f"a-{HASH[:8]}"][0].message


@pytest.mark.alone
def test_an_engine_that_keeps_memory_is_unhealthy_and_is_loaded_again(world: World) -> None:
    gpu = inventory(world.api, world.settings.image).boards[0].id
    folder = world.folder / "gpus"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    script = folder / "gpus.conf"
    lines = (
        f"t0 = 0\ngpus = 1\ngpu.0.uuid = {gpu}\ngpu.0.power = const 100\ngpu.0.memory_total = 0x1000000000\n"
    )
    script.write_text(lines + "gpu.0.memory_used = 0x1000000\n")
    script.chmod(0o666)
    world.settings = replace(
        world.settings,
        gpu_request=GpuRequest(1, ids=(gpu,)),
        mounts=(Mount("/gpus", str(folder), type="bind"),),
        environment={"STANDIN_NVML_SCRIPT": "/gpus/gpus.conf"},
    )
    world.folder.chmod(0o755)
    world.start()
    world.run("one", asks())
    assert nth(world.run("two", asks("keeps"))) == 2

    def hear(line: str) -> None:
        world.lines.append(line)
        if world.restarts():  # the end of the process gives it back
            script.write_text(lines + "gpu.0.memory_used = 0x1000000\n")

    third = see_through(world.runner("three", on_line=hear), world.folder, spec=asks())
    assert nth(third) == 1
    more = f"GPU {gpu}: 2032 MiB more are in use than at the end of the engine's first cycle; allowed: 512"
    assert world.restarts() == [f"(1 of 3): {more}"]
    assert evidence(third)["lives"][1]["after"] == more
