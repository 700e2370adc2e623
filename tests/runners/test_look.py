"""Which GPUs a host has: what cannot be found out is not "none", is not kept, and is tried again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import pytest
import requests
from docker.errors import APIError

from llem_airflow.runners import gpus
from llem_airflow.runners.gpus import GpuLookError, inventory
from llem_airflow.runners.images import host_cuda_major
from tests.standins.build import Standins

GPU = {"id": "GPU-aaaaaaaa-0", "index": "0"}
FOUND = json.dumps({"gpus": [GPU], "cuda_major": 12, "driver": "580"})
NO_TOOLKIT = 'could not select device driver "" with capabilities: [[gpu]]'
DRIVER_DOWN = "nvidia-container-cli: initialization error: nvml error: driver not loaded: unknown"


class ScriptedEngine(docker.APIClient):
    """An engine on another machine: each of its containers ends with the next output, or refuses to start."""

    def __init__(self, *outputs: str | Exception, info: dict[str, Any] | None = None) -> None:
        self.base_url = "http://gpu1:2375"
        self.outputs = iter(outputs)
        self.asked: list[bool] = []
        self.left: list[str] = []
        self._info = info or {}
        self._said = ""

    def info(self) -> Any:
        return self._info

    def inspect_image(self, image: str) -> Any:
        raise docker.errors.ImageNotFound(image)

    def create_host_config(self, *_: Any, **config: Any) -> Any:
        return config

    def create_container(self, *_: Any, **arguments: Any) -> Any:
        self.asked.append(bool(arguments["host_config"]["device_requests"]))
        self.left.append("c")
        return {"Id": "c"}

    def put_archive(self, *_: Any, **__: Any) -> Any:
        return True

    def start(self, *_: Any, **__: Any) -> None:
        output = next(self.outputs)
        if isinstance(output, Exception):
            raise output
        self._said = output

    def wait(self, *_: Any, **__: Any) -> Any:
        return {"StatusCode": 0}

    def logs(self, *_: Any, **options: Any) -> Any:
        return self._said.encode() if options["stdout"] else b""

    def remove_container(self, *_: Any, **__: Any) -> None:
        self.left.pop()


def refusal(text: str) -> APIError:
    return APIError("500 Server Error", requests.Response(), text)


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_LOOK_AGAIN_AFTER_S", (0.0, 0.0))
    monkeypatch.setattr(gpus, "_known", {})


@pytest.mark.parametrize(
    "trouble",
    [refusal(DRIVER_DOWN), refusal("authorization denied by plugin"), "NVMLError: GPU is lost", "{}", ""],
)
def test_a_failed_look_is_an_error_that_is_told_after_three_tries(trouble: str | Exception) -> None:
    engine = ScriptedEngine(trouble, trouble, trouble, FOUND)
    with pytest.raises(GpuLookError) as caught:
        inventory(engine, "image")
    assert str(getattr(trouble, "explanation", trouble)) in str(caught.value)
    assert inventory(engine, "image").gpus  # nothing of the failure was kept
    assert engine.left == []


def test_a_look_that_fails_twice_is_made_a_third_time() -> None:
    assert inventory(ScriptedEngine(refusal(DRIVER_DOWN), "", FOUND), "image").gpus


def test_an_engine_without_a_toolkit_on_a_host_without_gpus_has_none_and_says_so() -> None:
    found = inventory(ScriptedEngine(refusal(NO_TOOLKIT), "0"), "image")
    assert (found.gpus, found.hidden) == ((), False)
    assert NO_TOOLKIT in found.absent


def test_that_there_are_none_is_not_kept() -> None:
    engine = ScriptedEngine(refusal(NO_TOOLKIT), "0", FOUND)
    assert not inventory(engine, "image").gpus
    assert inventory(engine, "image").gpus


def test_a_host_whose_kernel_drives_gpus_that_its_engine_cannot_give_is_told() -> None:
    engine = ScriptedEngine(refusal(NO_TOOLKIT), "2")
    found = inventory(engine, "image")
    assert found.hidden
    assert "the host has 2 NVIDIA GPU(s) that its engine cannot give to containers" in found.absent
    assert engine.asked == [True, False]


def test_an_engine_that_names_gpus_and_gives_none_is_told() -> None:
    engine = ScriptedEngine(refusal(NO_TOOLKIT), "0", info={"Runtimes": {"nvidia": {}}})
    assert inventory(engine, "image").hidden


def test_whether_a_remote_host_has_gpus_is_not_guessed_for_the_default_image() -> None:
    with pytest.raises(GpuLookError, match="pull one there, or name one"):
        host_cuda_major(ScriptedEngine(), ["image"])
    assert host_cuda_major(ScriptedEngine(info={"Runtimes": {"nvidia": {}}}), ["image"]) == 12


LOCAL = "from llem_airflow.runners.gpus import local_inventory; print(local_inventory())"


def locally(standin: Standins, tmp_path: Path, script: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "gpus.conf"
    path.write_text(script)
    environment = {**os.environ, **standin.environment(path)}
    return subprocess.run(
        [sys.executable, "-c", LOCAL], env=environment, capture_output=True, text=True, check=False
    )


def test_a_local_driver_that_does_not_answer_is_no_missing_driver(standin: Standins, tmp_path: Path) -> None:
    assert "GPU-" in locally(standin, tmp_path, "t0 = 0\ngpus = 1\n").stdout
    lost = locally(standin, tmp_path, "t0 = 0\ngpus = 1\nfault = lost call=nvmlDeviceGetUUID\n")
    assert "GpuLookError: the NVIDIA driver of this machine does not answer" in lost.stderr


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], None]:
    def drives(count: int) -> None:
        for index in range(count):
            (tmp_path / "gpus" / f"0000:{index:02}:00.0").mkdir(parents=True)
        monkeypatch.setattr(gpus, "_KERNEL_GPUS", str(tmp_path / "gpus"))

    return drives


def test_the_kernel_of_this_machine_is_asked_without_a_container(kernel: Callable[[int], None]) -> None:
    kernel(3)
    assert gpus.kernel_gpus() == 3
    engine = ScriptedEngine(refusal(NO_TOOLKIT))
    engine.base_url = "http+docker://localhost"
    assert "the host has 3 NVIDIA GPU(s)" in inventory(engine, "image").absent
