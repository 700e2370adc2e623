"""A process of the host that computes on a GPU holds it, and so does memory that nobody admits to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llem_airflow.runners.holders import _WATCHERS
from tests.standins.build import Standins

SCRIPT = """\
t0 = 0
gpus = 4
gpu.1.process = {pid} 3000000000
gpu.2.memory_used = 9000000000
gpu.3.process = {pid} 1000000000
"""
LOOK = """\
import json, sys
from types import SimpleNamespace
from llem_airflow.runners.gpus import Inventory, local_inventory
from llem_airflow.runners.leases import Demand, choose, said
from llem_airflow.runners.holders import Holder
from llem_airflow.runners.holders import gpu_processes

known = local_inventory() or Inventory()
in_a_container = Holder("c", "theirs", (known.gpus[3].id,), "running", "", False, "an image") if known.gpus else None
held = [in_a_container] if in_a_container else []
found = gpu_processes(SimpleNamespace(base_url=sys.argv[1]), known, held)
print(json.dumps({
    "gpus": [known.find(gpu).index for holder in found for gpu in holder.gpus],
    "said": said(found),
    "chosen": choose(Demand(1, known.gpus), [*held, *found], [], known) and "some",
    "two": choose(Demand(2, known.gpus), [*held, *found], [], known),
}))
"""


def look(
    standin: Standins, script: str, tmp_path: Path, url: str = "http+docker://localhost"
) -> dict[str, object]:
    path = tmp_path / "gpus.conf"
    path.write_text(script)
    done = subprocess.run(
        [sys.executable, "-c", LOOK, url],
        env={**os.environ, **standin.environment(path)},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_processes_and_memory_of_the_host_are_holders_with_a_name(standin: Standins, tmp_path: Path) -> None:
    seen = look(standin, SCRIPT.format(pid=os.getpid()), tmp_path)
    assert seen["gpus"] == ["1", "2"]  # the process on GPU 3 is taken for the container's that holds it
    said = str(seen["said"])
    assert f"process {os.getpid()} (" in said
    assert "3.0 GB) (on the host, in no container that holds this GPU)" in said
    assert "9.0 GB in use by a process that cannot be seen" in said
    assert (seen["chosen"], seen["two"]) == ("some", None)


def test_what_a_driver_reserves_is_nobody_s(standin: Standins, tmp_path: Path) -> None:
    assert look(standin, "t0 = 0\ngpus = 4\ngpu.0.memory_used = 900000000\n", tmp_path)["gpus"] == []


def test_a_driver_of_this_machine_says_nothing_about_another_machine_s_engine(
    standin: Standins, tmp_path: Path
) -> None:
    busy = SCRIPT.format(pid=os.getpid())
    assert look(standin, busy, tmp_path, url="http://gpu1:2375")["gpus"] == []


@pytest.mark.parametrize("watcher", ["nvidia-smi", "nvidia-cuda-mps-server", "nv-hostengine"])
def test_watchers_hold_nothing(watcher: str) -> None:
    assert _WATCHERS.search(watcher)


def test_a_gpu_whose_driver_does_not_answer_is_not_free(standin: Standins, tmp_path: Path) -> None:
    lost = "t0 = 0\ngpus = 4\nfault = lost gpu=1 call=nvmlDeviceGetComputeRunningProcesses_v3\n"
    seen = look(standin, lost, tmp_path)
    assert seen["gpus"] == ["1"]
    assert "the driver does not answer for it" in str(seen["said"])


def test_a_gpu_that_does_not_tell_its_processes_is_taken_by_its_memory_s_word_for_free(
    standin: Standins, tmp_path: Path
) -> None:
    silent = "t0 = 0\ngpus = 4\nfault = not_supported gpu=1 call=nvmlDeviceGetComputeRunningProcesses_v3\n"
    assert look(standin, silent, tmp_path)["gpus"] == []
