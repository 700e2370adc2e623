"""Containers with stand-in GPUs, given by the engine's own device requests."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import APIError
from docker.types import DeviceRequest

from llem_airflow.analysis.energy import EnergyOfWindow, window_energy
from llem_airflow.protocol.result import Meter, Window
from llem_airflow.protocol.typed_json import from_json
from llem_airflow.runners.bundle import build_bundle
from tests.parts import missing
from tests.standins.gpus import built, doubt_ratio, read_columns

pytestmark = pytest.mark.docker

GPU_0, GPU_1, GPU_2 = (f"GPU-5741d000-0000-0000-0000-{number:012d}" for number in (0, 1, 2))
SLICE = "MIG-5741d000-0000-0000-0002-000000000001"

# The measured window of an attempt, without an engine in it.
MEASURE = """
import json, pathlib, sys, time
sys.path.insert(0, "/llem.pyz")
from llem_airflow.measurement.sampler import start_sampler
from llem_airflow.protocol.spec import MeterSpec
from llem_airflow.protocol.typed_json import to_json
sampler = start_sampler(MeterSpec(kind="nvml"), pathlib.Path("/tmp/power.csv"))
gpus = sampler.describe_gpus()
begin_ns = sampler.wait_for_tick() or time.monotonic_ns()  # a busy host may hide the move
time.sleep(3)
end_ns = time.monotonic_ns()
sampler.wait_for_tick()
meter = sampler.stop()
print(json.dumps({"begin_ns": begin_ns, "end_ns": end_ns, "meter": to_json(meter), "gpus": gpus,
                  "power": pathlib.Path("/tmp/power.csv").read_text()}))
"""


@pytest.fixture(autouse=True, scope="module")
def hook(docker_api: docker.APIClient, python_image: str) -> None:
    """An engine that was started with the stand-in's hook on its PATH."""
    built()
    box = docker_api.create_container(
        python_image, ["true"], host_config=docker_api.create_host_config(device_requests=[_request(GPU_0)])
    )
    try:
        docker_api.start(box)
    except APIError as error:
        missing(f"no stand-in GPU hook in the engine (see .ci/start-engine): {error.explanation}")
    finally:
        docker_api.remove_container(box, force=True)


def _request(*gpus: str) -> DeviceRequest:
    return DeviceRequest(device_ids=list(gpus), capabilities=[["gpu"]])


def run(api: docker.APIClient, image: str, *gpus: str) -> dict[str, Any]:
    """Measure three seconds in a hardened container that was given these GPUs."""
    box = api.create_container(
        image,
        ["python3", "-c", MEASURE],
        host_config=api.create_host_config(
            device_requests=[_request(*gpus)] if gpus else [],
            network_mode="none",
            cap_drop=["ALL"],
            tmpfs={"/tmp": ""},
        ),
    )
    try:
        api.put_archive(box, "/", _tar("llem.pyz", build_bundle()))
        api.start(box)
        code = api.wait(box)["StatusCode"]
        said = api.logs(box, stdout=True, stderr=False).decode()
        assert code == 0, api.logs(box).decode()
        answer: dict[str, Any] = json.loads(said.splitlines()[-1])
        return answer
    finally:
        api.remove_container(box, force=True)


def _tar(name: str, path: Path) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as files:
        files.add(path, name)
    return packed.getvalue()


def energy_of(folder: Path, answer: dict[str, Any]) -> EnergyOfWindow:
    (folder / "power.csv").write_text(answer["power"])
    window = Window(answer["begin_ns"], answer["end_ns"], 1, 1, 1, 1)
    return window_energy(
        read_columns(folder / "power.csv"), from_json(Meter, answer["meter"], "meter"), window
    )


@pytest.fixture
def steady_gpus() -> Iterator[None]:
    """Give containers steady GPUs, whatever other tests have asked for."""
    script = built().script
    before = script.read_text()
    t0 = time.time_ns() // 10**9
    script.write_text(
        f"t0 = {t0}\ngpus = 3\ngpu.0.uuid = {GPU_0}\ngpu.0.power = const 250\ngpu.1.uuid = {GPU_1}\n"
        f"gpu.1.power = sine 300 50 1.737\ngpu.2.uuid = {GPU_2}\ngpu.2.power = const 120\n"
        f"gpu.2.mig.1.uuid = {SLICE}\n"
    )
    yield
    script.write_text(before)


@pytest.mark.usefixtures("steady_gpus")
@pytest.mark.alone
def test_a_container_measures_the_gpu_that_it_was_given(
    docker_api: docker.APIClient, python_image: str, tmp_path: Path
) -> None:
    answer = run(docker_api, python_image, GPU_0)
    energy = energy_of(tmp_path, answer)
    assert [gpu["uuid"] for gpu in answer["gpus"]] == [GPU_0]
    assert (energy.source, energy.kind, energy.boundary) == ("counter", "measured", "board")
    # Two milliseconds of doubt at the edges of three seconds, and no more, unless a busy host hid the counter's moves.
    assert energy.energy_j == pytest.approx(250.0 * energy.duration_s, rel=doubt_ratio(energy, 2e-3))
    assert energy.check_ratio == pytest.approx(0.0, abs=doubt_ratio(energy, 2e-3))


@pytest.mark.usefixtures("steady_gpus")
@pytest.mark.alone
def test_two_gpus_in_one_container_are_told_apart(
    docker_api: docker.APIClient, python_image: str, tmp_path: Path
) -> None:
    energy = energy_of(tmp_path, run(docker_api, python_image, GPU_0, GPU_1))
    by_gpu = {gpu.gpu: gpu.average_power_w for gpu in energy.gpus}
    assert by_gpu[GPU_0] == pytest.approx(250.0, rel=doubt_ratio(energy, 2e-3))
    assert by_gpu[GPU_1] == pytest.approx(300.0, rel=0.12)  # 3 s are not whole periods


@pytest.mark.usefixtures("steady_gpus")
@pytest.mark.alone
def test_a_mig_slice_in_a_container_is_attributed(
    docker_api: docker.APIClient, python_image: str, tmp_path: Path
) -> None:
    answer = run(docker_api, python_image, SLICE)
    energy = energy_of(tmp_path, answer)
    assert (energy.kind, [gpu.gpu for gpu in energy.gpus]) == ("attributed", [GPU_2])
    assert [mig["uuid"] for mig in answer["gpus"][0]["mig_devices"]] == [SLICE]


def test_an_unknown_gpu_does_not_start(docker_api: docker.APIClient, python_image: str) -> None:
    with pytest.raises(APIError, match="device error: GPU-of-yesterday: unknown device"):
        run(docker_api, python_image, "GPU-of-yesterday")


def test_a_container_without_a_request_sees_no_gpu(docker_api: docker.APIClient, python_image: str) -> None:
    with pytest.raises(AssertionError, match="no NVIDIA driver answers here"):
        run(docker_api, python_image)
