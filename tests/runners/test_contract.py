"""The contract of every runner (llem_airflow/runners/base.py): on a real engine, real processes, a stand-in cluster."""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import docker
import pytest

from llem_airflow.protocol.session import EVIDENCE, EXEC, WARM
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.base import KILL_S, RUNNERS, Busy, Collected, Place, Runner, Wait
from llem_airflow.runners.claims import Ticket
from llem_airflow.runners.container_spec import ContainerSettings, create_arguments
from llem_airflow.runners.docker import DockerRunner
from llem_airflow.runners.engine import containers_of
from llem_airflow.runners.exchange import hand_in
from llem_airflow.runners.failures import AttemptFailedError
from llem_airflow.runners.gpus import Gpu, Inventory, inventory, local_inventory
from llem_airflow.runners.leases import ENV_FOLDER, Demand, everyone
from llem_airflow.runners.process import ProcessRunner, ProcessSettings
from llem_airflow.runners.session import SessionRunner
from llem_airflow.runners.session_container import (
    SessionContainer,
    SessionSettings,
    session_of,
    stop_session,
)
from llem_airflow.study import GpuRequest
from tests import parts
from tests.runners.conftest import left_of
from tests.runners.engine_proxy import Call, EngineProxy
from tests.runners.programs import HASH, RESULT, SPEC, attempt, program
from tests.standins.build import Standins

ROOT = Path(__file__).parents[2]
SECRET = "hf_canary1234567890"
STALLS_S = 10
"""A busy machine may stand still for so long."""
LONG = "print('up', flush=True)\nfor _ in range(600): time.sleep(0.1)\n"


@dataclass
class Kind(ABC):
    """One kind of runner, and what can be seen of its attempts from outside.

    Attributes:
        folder: Where its files are.
        lines: Output of its attempts.
        starts_when_placed: Whether a place that was found has begun to measure, as nobody else starts what has one.
    """

    folder: Path
    lines: list[str] = field(default_factory=list)
    evidence: ClassVar[frozenset[str]] = frozenset()
    starts_when_placed: ClassVar[bool] = False

    @abstractmethod
    def runner(
        self, who: Attempt, text: str, on_line: Callable[[str], object] | None = None, **settings: Any
    ) -> Runner:
        """A runner of one try, whose program is ``text``."""

    @abstractmethod
    def gpus(self) -> list[str]:
        """UUIDs of the GPUs that its attempts can have."""

    @abstractmethod
    def left(self, who: Attempt) -> list[str]:
        """What is there of any try of the attempt: containers, volumes, processes, leases, folders."""

    def end(self, who: Attempt) -> None:  # noqa: B027  # nothing, for most
        """End what lives on over the attempts."""

    def bundle(self, who: Attempt, text: str) -> Path:
        folder = self.folder / f"bundle-{who.try_number}"
        folder.mkdir(exist_ok=True)
        return program(folder, text)

    def out(self, who: Attempt) -> Path:
        return self.folder / f"try-{who.try_number}"


class Containers(Kind):
    api: docker.APIClient
    image: str

    def runner(
        self, who: Attempt, text: str, on_line: Callable[[str], object] | None = None, **settings: Any
    ) -> Runner:
        made = ContainerSettings(self.image, **{"gpu_request": GpuRequest(0), **settings})
        hear: Any = on_line or self.lines.append
        return DockerRunner(
            self.api, who, made, folder=self.out(who), on_line=hear, bundle=self.bundle(who, text)
        )

    def gpus(self) -> list[str]:
        return [gpu.id for gpu in inventory(self.api, self.image).boards]

    def left(self, who: Attempt) -> list[str]:
        return left_of(self.api, who)


class Sessions(Containers):
    """Attempts of one session; its container is none of an attempt's."""

    evidence = frozenset({EVIDENCE})
    start_kind = EXEC

    def runner(
        self, who: Attempt, text: str, on_line: Callable[[str], object] | None = None, **settings: Any
    ) -> Runner:
        made = ContainerSettings(self.image, **{"gpu_request": GpuRequest(0), **settings})
        session = SessionSettings("session-1", idle_s=60.0, start_kind=self.start_kind)
        container = SessionContainer(self.api, who, made, session, folder=self.folder, on_line=lambda _: None)
        if isinstance(started := container.begin(SPEC, Wait(30.0)), Busy):
            pytest.fail(str(started))
        hear: Any = on_line or self.lines.append
        return SessionRunner(
            self.api, who, made, session, folder=self.out(who), on_line=hear, bundle=self.bundle(who, text)
        )

    def left(self, who: Attempt) -> list[str]:
        found = containers_of(self.api, session_of(who, "session-1"))
        return [name for each in found for name in in_session(self.api, each["Id"]) if who.key in name]

    def end(self, who: Attempt) -> None:
        stop_session(self.api, who, "session-1")
        assert left_of(self.api, session_of(who, "session-1")) == []


class WarmSessions(Sessions):
    """The program in the place of an engine that lives on: it ends with its attempt, and each starts another."""

    start_kind = WARM


def in_session(api: docker.APIClient, container: str) -> list[str]:
    """What attempts left in the volume of a session, and their turn."""
    found = []
    for folder in ("attempts", "state"):
        chunks, _ = api.get_archive(container, f"/run/llem/{folder}")
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            for member in archive:
                parts = member.name.split("/")
                if len(parts) == 2 and (folder == "attempts" or parts[1].startswith("owner-")):
                    found.append(member.name)
                elif member.name == "state/turn" and (file := archive.extractfile(member)) is not None:
                    found.append(f"turn of {json.load(file)['key']}")
    return found


class Processes(Kind):
    def runner(
        self, who: Attempt, text: str, on_line: Callable[[str], object] | None = None, **settings: Any
    ) -> Runner:
        made = ProcessSettings(**{"gpu_request": GpuRequest(0), **settings})
        hear: Any = on_line or self.lines.append
        return ProcessRunner(who, made, folder=self.out(who), on_line=hear, bundle=self.bundle(who, text))

    def gpus(self) -> list[str]:
        found = local_inventory()
        assert found is not None
        return [gpu.id for gpu in found.boards]

    def left(self, who: Attempt) -> list[str]:
        mark = str(self.folder / "tmp").encode()
        found = [path.name for path in (self.folder / "tmp").iterdir()]
        found += [f"lease of {holder.name}" for holder in everyone(None, Inventory())]
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if b"LLEM_OUTPUT_DIR=" + mark in path.read_bytes():
                    found.append(f"process {path.parent.name}")
        return found


class Pods(Kind):
    url: str
    cluster: Any
    starts_when_placed = True

    @functools.cached_property
    def closes(self) -> list[Callable[[], None]]:
        return []

    def end(self, who: Attempt) -> None:
        for close in self.closes:
            close()

    def runner(
        self, who: Attempt, text: str, on_line: Callable[[str], object] | None = None, **settings: Any
    ) -> Runner:
        from kubernetes.client import Configuration  # noqa: PLC0415  # an extra

        from llem_airflow.runners.cluster import client_of  # noqa: PLC0415  # likewise
        from llem_airflow.runners.kubernetes import KubernetesRunner  # noqa: PLC0415  # likewise
        from llem_airflow.runners.pod_spec import PodSettings  # noqa: PLC0415  # likewise

        made = PodSettings("image:1", **settings)
        hear: Any = on_line or self.lines.append
        api = client_of(Configuration(host=self.url))
        self.closes.append(api.api_client.rest_client.pool_manager.clear)
        return KubernetesRunner(
            api, who, made, folder=self.out(who), on_line=hear, bundle=self.bundle(who, text)
        )

    def gpus(self) -> list[str]:
        raise NotImplementedError  # the cluster chooses; tests/kubernetes/test_runner.py tries it

    def left(self, who: Attempt) -> list[str]:
        found = list(self.cluster.objects.items())  # one that is to be removed is the cluster's to end
        return [
            name
            for (_, name), made in found
            if who.key in name and "deletionTimestamp" not in made["metadata"]
        ]


@pytest.fixture(
    params=[
        pytest.param("container", marks=pytest.mark.docker),
        pytest.param("session", marks=pytest.mark.docker),
        pytest.param("warm", marks=pytest.mark.docker),
        "process",
        "kubernetes",
    ]
)
def kind(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    this_attempt: Attempt,
) -> Iterator[Kind]:
    """A kind of runner; nothing of the attempt is left after the test, whatever it did."""
    made: Kind
    in_containers = {"container": Containers, "session": Sessions, "warm": WarmSessions}
    if request.param in in_containers:
        made = in_containers[request.param](tmp_path)
        made.api = request.getfixturevalue("docker_api")
        made.image = request.getfixturevalue("python_image")
    elif request.param == "kubernetes":
        made = Pods(tmp_path)
        made.cluster = request.getfixturevalue("cluster")
        made.url = made.cluster.url
    else:
        made = Processes(tmp_path)
        for name in ("tmp", "leases"):
            (tmp_path / name).mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setenv(ENV_FOLDER, str(tmp_path / "leases"))
    yield made
    try:
        deadline_s = time.monotonic() + 10
        while made.left(this_attempt) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert made.left(this_attempt) == []
    finally:
        made.runner(this_attempt, "").release()
        made.end(this_attempt)


def placed(runner: Runner, wait: Wait = Wait()) -> Place:  # noqa: B008  # frozen
    place = runner.place(SPEC, wait)
    assert isinstance(place, Place)
    return place


def test_every_runner_is_held_to_it() -> None:
    assert set(RUNNERS) == {DockerRunner.name, ProcessRunner.name, "kubernetes"}


def test_a_valid_result_is_stored_once_and_nothing_is_left(kind: Kind, this_attempt: Attempt) -> None:
    runner = kind.runner(this_attempt, "print('hello'); open(out + '/power.csv', 'w').write('x'); result()")
    stored: list[Collected] = []
    place = placed(runner)
    assert (place.gpus, place.adopted) == ((), False)
    collected = runner.run(place, SPEC, stored.append)
    assert stored == [collected]
    assert kind.lines == ["hello"]
    assert collected.log.read_text() == "hello\n"
    assert {path.name for path in collected.folder.iterdir()} == {
        f"{HASH}_result.json",
        "power.csv",
        "container.log",
        *kind.evidence,
    }
    assert (collected.exit_code, collected.adopted, collected.gpus) == (0, False, ())
    assert runner.record(collected)["exit_code"] == 0
    assert kind.left(this_attempt) == []


@pytest.mark.parametrize("text", ["sys.exit(3)", "result('{')", "error(); sys.exit(1)"])
def test_without_a_valid_result_nothing_is_stored_and_nothing_is_left(
    kind: Kind, this_attempt: Attempt, text: str
) -> None:
    stored: list[Collected] = []
    runner = kind.runner(this_attempt, text)
    with pytest.raises(AttemptFailedError):
        runner.run(placed(runner), SPEC, stored.append)
    assert stored == []
    assert kind.left(this_attempt) == []


def test_what_could_still_be_collected_is_there_until_it_is_stored(kind: Kind, this_attempt: Attempt) -> None:
    runner = kind.runner(this_attempt, "result()")
    during: list[list[str]] = []
    runner.run(placed(runner), SPEC, lambda _: during.append(kind.left(this_attempt)))
    assert bool(during[0]) is runner.outlives_worker


def test_a_result_that_could_not_be_stored_is_stored_by_the_next_try_once(
    kind: Kind, this_attempt: Attempt
) -> None:
    def full(_: Collected) -> None:
        raise OSError(28, "No space left on device")

    first = kind.runner(this_attempt, "print('measured'); result()")
    with pytest.raises(OSError, match="No space left"):
        first.run(placed(first), SPEC, full)
    later = attempt(2, this_attempt)
    text = "sys.exit('measured twice')" if first.outlives_worker else "result()"
    second = kind.runner(later, text)
    stored: list[Collected] = []
    place = placed(second)
    assert place.adopted is second.outlives_worker
    second.run(place, SPEC, stored.append)
    assert len(stored) == 1


WORKER = """
import os, sys
from pathlib import Path
from tests.runners import test_contract as t
kind = t.{kind}(Path({folder!r}))
{make}
who = t.Attempt(**{attempt!r})
def say(line): print(line, flush=True)
runner = kind.runner(who, {text!r}, say)
place = t.placed(runner)
print("placed", flush=True)
{meanwhile}
def store(_):
    print("stored", flush=True)
    {in_store}
runner.run(place, t.SPEC, store)
"""


@pytest.mark.parametrize(
    ("moment", "text", "meanwhile", "in_store"),
    [
        ("placed", LONG, "import time; time.sleep(600)", "pass"),
        ("up", LONG, "", "pass"),
        ("stored", "result()", "", "import time; time.sleep(600)"),
    ],
)
def test_a_worker_that_is_killed_at_any_step_leaves_one_result_to_the_next_try(
    kind: Kind, this_attempt: Attempt, moment: str, text: str, meanwhile: str, in_store: str
) -> None:
    make = ""
    if isinstance(kind, Containers):
        make = f"kind.api = t.docker.APIClient(); kind.image = {kind.image!r}"
    elif isinstance(kind, Pods):
        make = f"kind.url = {kind.url!r}"
    code = WORKER.format(
        kind=type(kind).__name__,
        folder=str(kind.folder),
        make=make,
        attempt={name: getattr(this_attempt, name) for name in Attempt.__slots__},
        text=text.replace("range(600)", "range(30)") + ("\nresult()" if text is LONG else ""),
        meanwhile=meanwhile,
        in_store=in_store,
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        for line in worker.stdout:
            if line.strip() == moment:
                break
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    began = moment != "placed" or kind.starts_when_placed
    second = kind.runner(attempt(2, this_attempt), "result()")
    place = placed(second)
    assert place.adopted is (began and second.outlives_worker)
    stored: list[Collected] = []
    collected = second.run(place, SPEC, stored.append)
    assert len(stored) == 1
    assert (collected.folder / f"{HASH}_result.json").read_text() == RESULT


@pytest.mark.parametrize("step", ["nothing", "placed", "running", "storing"])
def test_kill_ends_what_this_try_owns_in_time_whatever_it_is_doing(
    kind: Kind, this_attempt: Attempt, step: str
) -> None:
    up = threading.Event()
    runner = kind.runner(
        this_attempt,
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + (LONG if step == "running" else "result()"),
        lambda line: up.set(),
    )
    took_s: list[float] = []

    def kill() -> None:
        began_s = time.monotonic()
        runner.kill()
        took_s.append(time.monotonic() - began_s)

    def kill_it_when_up() -> None:
        up.wait(60)
        kill()

    place = placed(runner) if step != "nothing" else Place()
    if step == "running":
        killer = threading.Thread(target=kill_it_when_up)
        killer.start()
        with pytest.raises(AttemptFailedError) as caught:
            runner.run(place, SPEC, lambda _: None)
        killer.join()
        assert caught.value.failure.category in ("cancelled", "killed")
    elif step == "storing":
        runner.run(place, SPEC, lambda _: kill())
    else:
        kill()
    assert took_s[0] < KILL_S + STALLS_S
    assert kind.left(this_attempt) == []


@pytest.mark.docker
def test_kill_takes_no_longer_when_the_engine_does_not_answer(
    docker_api: docker.APIClient, this_attempt: Attempt, tmp_path: Path
) -> None:
    over = threading.Event()

    def hang(_: Call) -> None:
        over.wait(60)

    engine = parts.ENGINE_SOCKET
    with EngineProxy(tmp_path / "e.sock", engine, before=hang) as proxy:
        api = docker.APIClient(base_url=proxy.url, version="1.41")
        runner = DockerRunner(api, this_attempt, ContainerSettings("x"), folder=tmp_path, on_line=str)  # type: ignore[arg-type]  # it is not called
        began_s = time.monotonic()
        with pytest.raises(Exception, match="timed out"):
            runner.kill()
        assert time.monotonic() - began_s < KILL_S + STALLS_S
        over.set()
        api.close()


def test_an_interrupt_of_the_wait_leaves_nothing(kind: Kind, this_attempt: Attempt) -> None:
    class WorkerDiedError(BaseException):
        pass

    def interrupt(line: str) -> None:
        raise WorkerDiedError

    runner = kind.runner(this_attempt, LONG, interrupt)
    with pytest.raises(WorkerDiedError):
        runner.run(placed(runner), SPEC, lambda _: None)
    assert kind.left(this_attempt) == []


def test_releasing_an_attempt_removes_what_all_its_tries_left(kind: Kind, this_attempt: Attempt) -> None:
    def fails(_: Collected) -> None:
        raise OSError(28, "No space left on device")

    runner = kind.runner(this_attempt, "result()")
    with pytest.raises(OSError, match="No space"):
        runner.run(placed(runner), SPEC, fails)
    kind.runner(attempt(2, this_attempt), "").release()
    assert kind.left(this_attempt) == []


def test_a_secret_is_in_no_line_no_file_and_no_error(kind: Kind, this_attempt: Attempt) -> None:
    text = (
        "t = os.environ['HF_TOKEN']; print('token', t, flush=True)\n"
        "open(out + '/environment.json', 'w').write(t); error(message='bad token ' + t); sys.exit(1)"
    )
    runner = kind.runner(this_attempt, text, private_environment={"HF_TOKEN": SECRET})
    with pytest.raises(AttemptFailedError) as caught:
        runner.run(placed(runner), SPEC, lambda _: None)
    assert kind.lines == ["token [redacted]"]
    said = [str(caught.value), json.dumps(runner.record(None)), *kind.lines]
    said += [path.read_text() for path in kind.out(this_attempt).rglob("*") if path.is_file()]
    assert [
        text for text in said if SECRET in text or base64.b64encode(SECRET.encode()).decode() in text
    ] == []


def test_limits_of_time_end_it(kind: Kind, this_attempt: Attempt) -> None:
    for number, category in enumerate(("timeout_wall_clock", "timeout_silence"), start=1):
        limit: dict[str, Any] = {category.replace("timeout_", "") + "_s": 1.5}
        runner = kind.runner(replace(this_attempt, try_number=number), LONG, stop_grace_s=1.0, **limit)
        with pytest.raises(AttemptFailedError) as caught:
            runner.run(placed(runner), SPEC, lambda _: None)
        assert caught.value.failure.category == category


with_gpus = pytest.mark.parametrize(
    "kind",
    [
        pytest.param("container", marks=pytest.mark.docker),
        pytest.param("session", marks=pytest.mark.docker),
        "process",
    ],
    indirect=True,
)
"""Of the kinds that get GPUs from us. An engine that lives on has those of its session; a cluster chooses its own."""


@pytest.fixture
def on_gpus(kind: Kind, request: pytest.FixtureRequest, standin: Standins) -> list[str]:
    """UUIDs of at least two GPUs that attempts of this kind can have.

    Empty when the test has been run already: a process sees a driver that is there when it starts, so that a test of
    processes with GPUs is run in a child that has the stand-in driver.
    """
    if isinstance(kind, Processes) and CHILD not in os.environ:
        script = kind.folder / "gpus.conf"
        script.write_text("t0 = 0\ngpus = 2\ngpu.0.power = const 100\ngpu.1.power = const 100\n")
        child = {**os.environ, **standin.environment(script), CHILD: "1", "PYTHONPATH": str(ROOT)}
        for name in ("CUDA_VISIBLE_DEVICES", "TMPDIR"):
            child.pop(name, None)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", request.node.nodeid]
        ran = subprocess.run(command, env=child, cwd=ROOT, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout
        assert "1 passed" in ran.stdout
        return []
    found = kind.gpus()
    assert len(found) >= 2
    return found


CHILD = "LLEM_TEST_SEES_STANDIN"

SEES = """
told = json.load(open(os.environ["LLEM_CONFIG_PATH"]))["meter"]["gpus"]
names = ("NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
print(json.dumps([told, next(os.environ[name] for name in names if name in os.environ)]))
result()
"""


@pytest.mark.alone
@with_gpus
def test_engine_and_meter_have_the_devices_of_the_place_and_no_others(
    kind: Kind, on_gpus: list[str], this_attempt: Attempt
) -> None:
    if not on_gpus:
        return
    runner = kind.runner(this_attempt, SEES, gpu_request=GpuRequest(1, ids=(on_gpus[1],)))
    place = placed(runner)
    collected = runner.run(place, SPEC, lambda _: None)
    assert place.gpus == collected.gpus == (on_gpus[1],)
    meter, engine = next(json.loads(line) for line in reversed(kind.lines) if line.startswith("[["))
    assert meter == [on_gpus[1]]
    assert engine == on_gpus[1]


@pytest.mark.alone
@with_gpus
def test_what_one_attempt_holds_another_cannot_have_and_is_told_who_holds_it(
    kind: Kind, on_gpus: list[str], this_attempt: Attempt
) -> None:
    if not on_gpus:
        return
    wanted = GpuRequest(1, ids=(on_gpus[0],))
    first = kind.runner(this_attempt, LONG, gpu_request=wanted)
    placed(first)
    other = replace(this_attempt, task_id="other")
    before = kind.left(other)
    second = kind.runner(replace(other, try_number=2), "result()", gpu_request=wanted)
    try:
        busy = second.place(SPEC, Wait(1.0))
        assert isinstance(busy, Busy)
        assert busy.text.startswith(f"1 GPU(s) not free after 1 s; held by: {on_gpus[0]}: ")
        (holder,) = (each for each in busy.holders if each.gpus)
        assert holder.gpus == (on_gpus[0],)
        assert holder.what == f"{this_attempt.experiment_id} of DAG {this_attempt.dag_id}"
        assert busy.later is None
        assert busy.error(kind.folder).failure.retryable
        assert "`llem-airflow gpus`" in busy.hint
        assert kind.left(other) == before
        first.kill()
        assert placed(second, Wait(5.0)).gpus == (on_gpus[0],)
    finally:
        second.kill()
    assert kind.left(other) == []


@pytest.mark.alone
@with_gpus
def test_who_waits_says_so_and_gets_the_place_when_it_is_free(
    kind: Kind, on_gpus: list[str], this_attempt: Attempt
) -> None:
    if not on_gpus:
        return
    wanted = GpuRequest(1, ids=(on_gpus[0],))
    first = kind.runner(this_attempt, LONG, lambda _: None, gpu_request=wanted)
    placed(first)
    second = kind.runner(replace(this_attempt, task_id="other", try_number=2), "result()", gpu_request=wanted)
    freed = threading.Timer(2.0, first.kill)
    freed.start()
    try:
        assert placed(second, Wait(60.0)).gpus == (on_gpus[0],)
    finally:
        freed.join()
        second.kill()
    assert kind.lines[0].startswith("Waiting for 1 GPU(s), ")


GOLDEN = json.loads((Path(__file__).parent / "golden" / "container.json").read_text())


def test_names_and_labels_are_those_of_the_version_before() -> None:
    who = Attempt(**GOLDEN["attempt"])
    assert (who.key, who.container_name, who.volume_name, who.labels) == (
        GOLDEN["key"],
        GOLDEN["container"],
        GOLDEN["volume"],
        GOLDEN["labels"],
    )
    api = docker.APIClient(version="1.41")
    settings = ContainerSettings(
        "image:1", extra_labels={"ds01.user": "ada"}, private_environment={"HF_TOKEN": "t"}
    )
    lease = {name: GOLDEN["create"]["labels"][name] for name in LEASE}
    made = create_arguments(api, who, who.experiment_hash, settings, ("GPU-0",), lease)
    assert made["labels"].pop("llem.private") == "HF_TOKEN"  # nobody has to find it to adopt the container
    assert json.loads(json.dumps(made)) == GOLDEN["create"]
    alone = create_arguments(api, who, who.experiment_hash, settings)
    assert alone["environment"] == GOLDEN["without_gpu"]
    ticket = Ticket(api, who, "1", Demand(1, (Gpu("GPU-0"),), exclusive_host=True, quota=2))
    assert ticket.labels == GOLDEN["ticket_labels"]


LEASE = ("llem.ticket", "llem.gpus", "llem.exclusive", "llem.quota", "llem.on_cpu")


@pytest.mark.docker
def test_a_running_container_of_the_version_before_is_adopted(
    docker_api: docker.APIClient, python_image: str, this_attempt: Attempt, tmp_path: Path
) -> None:
    """Made with the recorded arguments alone, under this attempt's key."""
    text = json.dumps(GOLDEN["create"]).replace(GOLDEN["key"], this_attempt.key)
    before = json.loads(text.replace(GOLDEN["attempt"]["experiment_hash"], HASH))
    before["host_config"]["DeviceRequests"] = None
    before["labels"] |= {"llem.gpus": "", "llem.exclusive": ""}  # other tests need neither wait nor say so
    second = attempt(3, this_attempt)
    volume = f"llem-{this_attempt.key}-try2-exchange"
    docker_api.create_volume(volume, labels={"llem.key": this_attempt.key})
    code = program(tmp_path, "print('begun before', flush=True); time.sleep(1); result()")
    identity = docker_api.create_container(**{**before, "image": python_image})["Id"]
    hand_in(docker_api, identity, None, code, SPEC, before["user"])
    docker_api.start(identity)
    lines: list[str] = []
    runner = DockerRunner(
        docker_api, second, ContainerSettings(python_image), folder=tmp_path / "out", on_line=lines.append
    )
    place = placed(runner)
    assert (place.adopted, place.on_cpu) == (True, "why")
    stored: list[Collected] = []
    runner.run(place, SPEC, stored.append)
    assert lines == [f"Taking over container {before['name']} of an earlier try", "begun before"]
    assert len(stored) == 1
    assert left_of(docker_api, this_attempt) == []
