"""The meter reads what CUDA_VISIBLE_DEVICES leaves to the engine, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from llem_airflow.measurement.meters.contract import MeterUnavailableError
from llem_airflow.measurement.sampler import start_sampler
from llem_airflow.protocol.gpus import AmbiguousDeviceError, visible_to_cuda
from llem_airflow.protocol.spec import MeterSpec
from tests.standins.gpus import measure, use_script

GPU_0, GPU_1 = (f"GPU-5741d000-0000-0000-0000-{number:012d}" for number in (0, 1))
UUIDS = ["GPU-aaaa0000", "GPU-aaaa1111", "GPU-bbbb2222"]
SAME = ["A100"] * 3


@pytest.mark.parametrize(
    ("value", "left"),
    [
        (None, None),
        ("0,1,2", UUIDS),
        ("1", UUIDS[1:2]),
        ("2,0", [UUIDS[2], UUIDS[0]]),
        (" 1 , 2 ", UUIDS[1:]),
        ("", []),
        ("-1", []),
        ("0,-1,1", UUIDS[:1]),
        ("3", []),
        ("7", []),
        ("0,7,1", UUIDS[:1]),
        ("NoDevFiles", []),
        ("GPU-bbbb", UUIDS[2:]),
        ("GPU-aaaa", []),  # the beginning of two
        ("MIG-1234", ["MIG-1234"]),
    ],
)
def test_the_list_is_read_as_cuda_reads_it(value: str | None, left: list[str] | None) -> None:
    environ = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    assert visible_to_cuda(environ, UUIDS, SAME) == left


def test_a_number_among_different_boards_is_refused_where_the_order_is_cuda_s_own() -> None:
    names = ["A100", "RTX 3090", "A100"]
    with pytest.raises(AmbiguousDeviceError, match="CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        visible_to_cuda({"CUDA_VISIBLE_DEVICES": "1"}, UUIDS, names)
    by_bus = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert visible_to_cuda(by_bus, UUIDS, names) == UUIDS[1:2]
    assert visible_to_cuda({"CUDA_VISIBLE_DEVICES": UUIDS[1]}, UUIDS, names) == UUIDS[1:2]


def test_only_the_board_that_the_engine_may_use_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_script(monkeypatch, tmp_path, "gpus = 2\ngpu.0.power = const 2000\ngpu.1.power = const 500")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    measured = measure(tmp_path, MeterSpec(kind="auto"))
    assert measured.result.meter.devices == (GPU_1,)
    assert measured.energy.average_power_w == pytest.approx(500.0, rel=0.01)
    assert GPU_0 not in measured.result.meter.devices


@pytest.mark.parametrize("kind", ["nvml", "auto"])
def test_without_a_gpu_for_the_engine_no_board_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    use_script(monkeypatch, tmp_path, "gpus = 1\ngpu.0.power = const 300")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if kind == "nvml":
        with pytest.raises(MeterUnavailableError, match="hides every GPU from the engine"):
            start_sampler(MeterSpec(kind=kind), tmp_path / "power.csv")
        return
    sampler = start_sampler(MeterSpec(kind=kind), tmp_path / "power.csv")
    assert sampler.stop().kind in ("rapl", "cpu-estimate")
