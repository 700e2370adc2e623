"""`llem-airflow gpus`: each device with its holder, since when, the quota, and the queue."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest
from click.testing import CliRunner, Result
from docker.types import DeviceRequest

from llem_airflow.cli import main
from llem_airflow.runners.attempt import LABEL_GPUS
from llem_airflow.runners.claims import Ticket, new_ticket
from llem_airflow.runners.gpus import Gpu, Inventory, inventory
from llem_airflow.runners.holders import LABEL_QUOTA, LABEL_TICKET
from llem_airflow.runners.leases import Demand
from llem_airflow.text.wording import span
from tests.runners.programs import attempt
from tests.standins.build import Standins

SLEEP = ["python3", "-c", "import time; time.sleep(300)"]
OURS = replace(attempt(), dag_id="nightly", experiment_id="bs-8-a1b2c3d4")
WAITS = replace(attempt(), dag_id="nightly", experiment_id="bs-16-a1b2c3d4", cycle=3)


def gpus(*arguments: str, columns: int = 120) -> Result:
    return CliRunner().invoke(main, ["gpus", *arguments], env={"COLUMNS": str(columns)})


@pytest.fixture
def busy(docker_api: docker.APIClient, python_image: str, cpu_image: str) -> Iterator[tuple[str, Inventory]]:
    """A foreign container on GPU 0, an experiment on GPU 1, and a task that waits; the foreign one's name."""
    known = inventory(docker_api, cpu_image)
    foreign = f"train-{uuid.uuid4().hex[:6]}"
    asked = [DeviceRequest(device_ids=["0"], capabilities=[["gpu"]])]
    host = docker_api.create_host_config(device_requests=asked, init=True)
    made = [
        docker_api.create_container(
            python_image, SLEEP, name=foreign, labels={"ds01.user": "ada"}, host_config=host
        )["Id"]
    ]
    lease = {LABEL_GPUS: known.boards[1].id, LABEL_TICKET: new_ticket(OURS), LABEL_QUOTA: "2"}
    made.append(
        docker_api.create_container(
            python_image,
            SLEEP,
            name=OURS.container_name,
            labels={**OURS.labels, **lease},
            host_config=docker_api.create_host_config(init=True),
        )["Id"]
    )
    for each in made:
        docker_api.start(each)
    ticket = Ticket(docker_api, WAITS, new_ticket(WAITS), Demand(2, known.boards[:2], quota=2))
    ticket.hold()
    yield foreign, known
    ticket.give_back()
    for each in made:
        docker_api.remove_container(each, force=True)


@pytest.mark.docker
@pytest.mark.alone
def test_each_device_has_its_holder_and_the_queue_is_told(busy: tuple[str, Inventory]) -> None:
    foreign, known = busy
    done = gpus("--json")
    assert done.exit_code == 0
    (host,) = json.loads(done.stdout)
    held = {gpu["index"]: gpu["held_by"] for gpu in host["gpus"]}
    assert list(held) == ["0", "1", "2", "2:0", "2:1"]
    ((theirs,), (ours,)) = held["0"], held["1"]
    assert (theirs["kind"], theirs["name"], theirs["owner"]) == ("container", foreign, "ada")
    assert 0 <= host["now_epoch_s"] - theirs["since_epoch_s"] < 300
    assert (ours["kind"], ours["what"]) == ("task", "bs-8-a1b2c3d4 of DAG nightly")
    assert [held[index] for index in ("2", "2:0", "2:1")] == [[], [], []]
    assert (host["held_by_experiments"], host["quota"]) == (1, 2)
    (waiter,) = host["waiting"]
    assert waiter["what"].startswith("bs-16-a1b2c3d4 cycle 3 of DAG nightly, run test+")
    assert (waiter["count"], waiter["candidates"]) == (2, [gpu.id for gpu in known.boards[:2]])


@pytest.mark.docker
@pytest.mark.alone
@pytest.mark.parametrize("columns", [120, 80, 40])
def test_a_person_reads_the_same_at_any_width(busy: tuple[str, Inventory], columns: int) -> None:
    foreign, _ = busy
    done = gpus(columns=columns)
    assert max(map(len, done.stdout.splitlines())) <= columns
    text = re.sub(r"\s", "", done.stdout)
    for said in (
        "2 of 4 GPUs held, 1 by experiments of the quota of 2; 1 waiting",
        "1. bs-16-a1b2c3d4 cycle 3 of DAG nightly",
        "wants 2 GPU(s)",
    ):
        assert re.sub(r"\s", "", said) in text, said
    cells = (f"container {foreign}", "ada", "bs-8-a1b2c3d4 of DAG nightly", "in slices", "free")
    for cell in cells if columns == 120 else ():  # in a narrow table they lie in several lines
        assert cell in done.stdout


@pytest.mark.docker
def test_watching_says_it_again_until_ctrl_c(docker_api: docker.APIClient, cpu_image: str) -> None:
    # A test run in the background of a shell ignores the signal, and so would this process.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from llem_airflow.cli import main; main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, "gpus", "--watch", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        looks = [json.loads(watching.stdout.readline()) for _ in range(2)]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=20) == 130
    first, second = (look[0]["now_epoch_s"] for look in looks)
    assert second - first >= 2


def test_an_engine_that_does_not_answer_is_an_error_and_the_other_hosts_are_shown() -> None:
    done = gpus("--host", "tcp://127.0.0.1:1", "--host", "unix:///nowhere/docker.sock")
    assert done.exit_code == 2
    assert "tcp://127.0.0.1:1: the Docker engine does not answer: cannot connect" in done.stdout
    assert "unix:///nowhere/docker.sock: the Docker engine does not answer" in done.stdout
    found = json.loads(gpus("--host", "gpu1:1", "--json").stdout)
    assert [sorted(each) for each in found] == [["error", "host"]]


def test_a_port_that_cannot_be_is_a_mistake() -> None:
    done = gpus("--host", "gpu1:99999")
    assert (done.exit_code, "allowed: a name or URL with a port" in done.output) == (2, True)


LOOK = "import json; from llem_airflow.runners.gpus_shown import look, to_json; print(json.dumps(to_json(look(None))))"


def test_without_an_engine_processes_are_holders_with_their_user_and_since_when(
    standin: Standins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gpus.conf"
    path.write_text(f"t0 = 0\ngpus = 2\ngpu.1.process = {os.getpid()} 3000000000\n")
    env = {**os.environ, **standin.environment(path), "LLEM_GPU_LOCKS": str(tmp_path / "locks")}
    done = subprocess.run([sys.executable, "-c", LOOK], env=env, capture_output=True, text=True, check=True)
    host: dict[str, Any] = json.loads(done.stdout)
    free, (holder,) = (gpu["held_by"] for gpu in host["gpus"])
    assert free == []
    assert holder["kind"] == "process"
    assert holder["name"].startswith(f"process {os.getpid()} (")
    assert holder["owner"] == Path("/proc/self").owner()
    assert 0 < host["now_epoch_s"] - holder["since_epoch_s"] < 86400


def test_a_whole_gpu_and_its_slice_are_told_apart() -> None:
    from llem_airflow.runners.gpus_shown import HostGpus  # noqa: PLC0415
    from llem_airflow.runners.holders import Holder  # noqa: PLC0415

    board, part = Gpu("GPU-a", "0"), Gpu("MIG-a", "0:0", parent="GPU-a")
    held = (
        Holder("c", "x", ("0",), "running", "", False, "img"),
        Holder("d", "y", ("GPU-zz",), "running", "1", False, "e"),
    )
    host = HostGpus("h", Inventory((board, part)), held, (), 0, None, 10.0, "")
    assert [each.name for each in host.holders_of("GPU-a")] == ["x"]
    assert host.holders_of("MIG-a") == []
    assert [each.name for each in host.holders_above("MIG-a")] == ["x"]
    assert [each.name for each in host.nameless()] == ["y"]  # of no device that is known


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (3700, "1 h 1 min"), (90000, "1 d 1 h"), (-3, "0 s")],
)
def test_times_are_told_in_their_two_largest_units(seconds: float, said: str) -> None:
    assert span(seconds) == said
