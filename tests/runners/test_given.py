"""Every way in which a container comes by GPUs, and what it really gets."""

from __future__ import annotations

from typing import Any

import pytest

from llem_airflow.runners.gpus import Gpu, Inventory
from llem_airflow.runners.holders import requested

A, B, C = (Gpu(f"GPU-{name * 8}-0", str(index)) for index, name in enumerate("abc"))
C0 = Gpu("MIG-cccccccc-0", "2:0", parent=C.id)
HOST = Inventory((A, B, C, C0), 12)
ALL = (A.id, B.id, C.id)

BY_RUNTIME = {"Runtime": "nvidia"}
DEFAULT_NVIDIA = {"DefaultRuntime": "nvidia", "Runtimes": {"nvidia": {"path": "nvidia-container-runtime"}}}
RENAMED = {"DefaultRuntime": "gpu", "Runtimes": {"gpu": {"path": "/usr/bin/nvidia-container-runtime"}}}
RUNC = {"DefaultRuntime": "runc", "Runtimes": {"runc": {"path": "runc"}, "nvidia": {"path": "x"}}}
BAKED = "NVIDIA_VISIBLE_DEVICES=all"


def ask(driver: str = "", count: int = 0, ids: tuple[str, ...] = (), caps: str = "gpu") -> dict[str, Any]:
    return {"Driver": driver, "Count": count, "DeviceIDs": list(ids), "Capabilities": [[caps]]}


def mount(name: str, source: str = "/dev/null") -> dict[str, str]:
    return {"Source": source, "Destination": f"/var/run/nvidia-container-devices/{name}"}


CASES: list[tuple[str, dict[str, Any], list[str], dict[str, Any], tuple[str, ...]]] = [
    # name, HostConfig (and "Mounts"), Env of the container with its image's, the engine, what it gets
    ("nothing", {"DeviceRequests": None}, [], RUNC, ()),
    ("--gpus all", {"DeviceRequests": [ask(count=-1)]}, [], RUNC, ALL),
    ("--gpus 2", {"DeviceRequests": [ask(count=2)]}, [], RUNC, (A.id, B.id)),
    ("--gpus device=1", {"DeviceRequests": [ask(ids=("1",))]}, [], RUNC, ("1",)),
    ("--gpus device=all", {"DeviceRequests": [ask(ids=("all",))]}, [], RUNC, ALL),
    ("--gpus by driver", {"DeviceRequests": [ask("nvidia", ids=("0",), caps="")]}, [], RUNC, ("0",)),
    ("a capability of the driver", {"DeviceRequests": [ask(count=-1, caps="utility")]}, [], RUNC, ALL),
    ("another vendor's request", {"DeviceRequests": [ask("other", count=-1)]}, [], RUNC, ()),
    (
        "a request and an image that says all, NVIDIA's runtime by default",
        {"DeviceRequests": [ask(ids=("0",))], "Runtime": ""},
        [BAKED],
        DEFAULT_NVIDIA,
        ("0",),
    ),
    ("the same, runtime named", {"DeviceRequests": [ask(ids=("0",))], **BY_RUNTIME}, [BAKED], RUNC, ("0",)),
    ("two requests: the last", {"DeviceRequests": [ask(ids=("0",)), ask(ids=("1",))]}, [], RUNC, ("1",)),
    ("a request of nothing: the image decides", {"DeviceRequests": [ask()]}, [BAKED], RUNC, ALL),
    ("the image, default runtime", {}, [BAKED], DEFAULT_NVIDIA, ALL),
    ("the image, default runtime of another name", {}, [BAKED], RENAMED, ALL),
    ("the image, runc", {}, [BAKED], RUNC, ()),
    ("the image, runc by name", {"Runtime": "runc"}, [BAKED], DEFAULT_NVIDIA, ()),
    ("the variable", BY_RUNTIME, ["NVIDIA_VISIBLE_DEVICES=0, 2:0"], RUNC, ("0", "2:0")),
    ("a UUID", BY_RUNTIME, [f"NVIDIA_VISIBLE_DEVICES={B.id}"], RUNC, (B.id,)),
    ("a slice", BY_RUNTIME, [f"NVIDIA_VISIBLE_DEVICES={C0.id}"], RUNC, (C0.id,)),
    ("all among others", BY_RUNTIME, ["NVIDIA_VISIBLE_DEVICES=0,all"], RUNC, ALL),
    ("void", BY_RUNTIME, ["NVIDIA_VISIBLE_DEVICES=void"], DEFAULT_NVIDIA, ()),
    ("none", BY_RUNTIME, ["NVIDIA_VISIBLE_DEVICES=none"], DEFAULT_NVIDIA, ()),
    ("empty", BY_RUNTIME, ["NVIDIA_VISIBLE_DEVICES="], DEFAULT_NVIDIA, ()),
    ("not set", BY_RUNTIME, ["NVIDIA_VISIBLE_DEVICES"], DEFAULT_NVIDIA, ()),
    ("not set, an image of before 2018", BY_RUNTIME, ["CUDA_VERSION=8.0.61"], RUNC, ALL),
    ("not set, a newer image", BY_RUNTIME, ["CUDA_VERSION=12", "NVIDIA_REQUIRE_CUDA=cuda>=12"], RUNC, ()),
    ("mounts go before", {**BY_RUNTIME, "Mounts": [mount("1")]}, [BAKED], RUNC, ("1",)),
    ("mounts as binds", {**BY_RUNTIME, "Binds": [":".join(mount("0").values())]}, [BAKED], RUNC, ("0",)),
    ("mounts of all", {**BY_RUNTIME, "Mounts": [mount("all")]}, [], RUNC, ALL),
    ("mounts of CDI", {**BY_RUNTIME, "Mounts": [mount("cdi/nvidia.com/gpu/1")]}, [], RUNC, ("1",)),
    ("a mount of something else", {**BY_RUNTIME, "Mounts": [mount("1", "/srv")]}, [], RUNC, ()),
    ("CDI", {"DeviceRequests": [ask("cdi", ids=("nvidia.com/gpu=0",))]}, [], RUNC, ("nvidia.com/gpu=0",)),
    ("CDI all", {"DeviceRequests": [ask("cdi", ids=("nvidia.com/gpu=all",))]}, [], RUNC, ALL),
    ("CDI of another vendor", {"DeviceRequests": [ask("cdi", ids=("amd.com/gpu=0",))]}, [], RUNC, ()),
    (
        "CDI, but the default runtime gives all the same",
        {"DeviceRequests": [ask("cdi", ids=("nvidia.com/gpu=0",))]},
        [BAKED],
        DEFAULT_NVIDIA,
        ALL,
    ),
    (
        "CDI by annotation",
        {**BY_RUNTIME, "Annotations": {"cdi.k8s.io/x": "nvidia.com/gpu=0,nvidia.com/gpu=1"}},
        [BAKED],
        RUNC,
        ("nvidia.com/gpu=0", "nvidia.com/gpu=1"),
    ),
    ("--device", {"Devices": [{"PathOnHost": "/dev/nvidia1"}]}, [], RUNC, (B.id,)),
    ("--device, controls only", {"Devices": [{"PathOnHost": "/dev/nvidiactl"}]}, [], RUNC, ()),
    ("--device /dev", {"Devices": [{"PathOnHost": "/dev"}]}, [], RUNC, ALL),
    (
        "--device of an unknown board",
        {"Devices": [{"PathOnHost": "/dev/nvidia9"}]},
        [],
        RUNC,
        ("/dev/nvidia9",),
    ),
    ("a cgroup rule", {"DeviceCgroupRules": ["c 195:* rwm"]}, [], RUNC, ALL),
    ("a cgroup rule for one", {"DeviceCgroupRules": ["c 195:0 rw", "c 195:255 rw"]}, [], RUNC, (A.id,)),
    ("a cgroup rule for a disk", {"DeviceCgroupRules": ["b 8:* rwm", "c 1:3 r"]}, [], RUNC, ()),
    ("privileged", {"Privileged": True}, [], RUNC, ALL),
    ("privileged with void", {"Privileged": True, **BY_RUNTIME}, ["NVIDIA_VISIBLE_DEVICES=void"], RUNC, ALL),
]


@pytest.mark.parametrize(
    ("host", "env", "info", "gets"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_what_a_container_gets(
    host: dict[str, Any], env: list[str], info: dict[str, Any], gets: tuple[str, ...]
) -> None:
    inspection = {
        "HostConfig": {key: value for key, value in host.items() if key != "Mounts"},
        "Mounts": host.get("Mounts", []),
        "Config": {"Env": env},
    }
    assert requested(inspection, HOST, info) == gets


def test_a_device_file_is_a_minor_number_and_not_an_index() -> None:
    swapped = Inventory((Gpu("GPU-x", "0", minor=1), Gpu("GPU-y", "1", minor=0)))
    host = {"HostConfig": {"Devices": [{"PathOnHost": "/dev/nvidia1"}]}}
    assert requested(host, swapped) == ("GPU-x",)


@pytest.mark.parametrize(
    "name",
    [
        B.id,
        B.id.upper(),
        "1",
        "GPU-bbbb",
        "nvidia.com/gpu=1",
        "nvidia.com/gpu=gpu1",
        f"nvidia.com/gpu={B.id}",
        f"MIG-{B.id}/1/0",
    ],
)
def test_a_gpu_has_many_names(name: str) -> None:
    assert HOST.find(name) == B


def test_a_slice_has_two_names_of_cdi() -> None:
    assert HOST.find("nvidia.com/gpu=mig2:0") == HOST.find("nvidia.com/gpu=2:0") == C0
