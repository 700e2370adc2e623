"""Which boards the meter nvml reads and what it says of them, on drivers that answer as they are told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from llem_airflow.measurement.meters import nvml
from llem_airflow.measurement.meters.contract import MeterUnavailableError


class NVMLError(Exception):
    """Of the driver."""


class NVMLError_GpuIsLost(NVMLError):  # noqa: N801, N818  # the library's name
    """One of them."""


def driver(**answers: Any) -> Any:
    """A driver of one board, or what ``answers`` say."""
    calls: dict[str, Any] = {
        "NVMLError": NVMLError,
        "nvmlDeviceGetName": lambda handle: f"Board {handle}",
        "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceIsMigDeviceHandle": lambda handle: handle >= 10,
        "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": lambda handle: handle - 10,
    }
    return SimpleNamespace(**{**calls, **answers})


def board(number: int, *, mig: bool = False, module: bool = False) -> Any:
    scope = nvml.SCOPE_MODULE if module else nvml.SCOPE_GPU
    return SimpleNamespace(handle=number, uuid=f"GPU-{number}", mig=mig, scope=scope)


def test_boards_that_are_measured_say_how_many_and_what_they_are() -> None:
    facts = nvml._facts(driver(), [board(1), board(0)], [])
    assert (facts.kind, facts.energy_kind, facts.boundary) == ("nvml", "measured", "board")
    assert facts.devices == ("GPU-1", "GPU-0")
    assert facts.note == "2 x Board 0, Board 1; the sensor itself may be off by about 5 %."


@pytest.mark.parametrize(
    ("boards", "slices", "kind", "boundary", "note"),
    [
        ([board(0)], ["MIG-1", "MIG-2"], "attributed", "board",
         "MIG-1, MIG-2 has no power sensor of its own: this is the power of its whole board, whoever used it."),
        ([board(0, mig=True)], [], "attributed", "board",
         "A MIG slice has no power sensor of its own: this is the power of its whole board, whoever used it."),
        ([board(0), board(1, module=True)], [], "measured", "module",
         "The board tells only the power of its module, which includes the CPU."),
    ],
)  # fmt: skip
def test_what_is_not_a_board_s_own_is_said(
    boards: list[Any], slices: list[str], kind: str, boundary: str, note: str
) -> None:
    facts = nvml._facts(driver(), boards, slices)
    assert (facts.energy_kind, facts.boundary, facts.note) == (kind, boundary, note)


def test_slices_of_one_board_are_read_as_that_board_once() -> None:
    assert nvml._parents(driver(), [("MIG-a", 10), ("MIG-b", 10), ("GPU-1", 1)]) == {"GPU-0": 0, "GPU-1": 1}


def test_a_board_that_fails_is_of_no_concern_to_who_asked_for_another() -> None:
    def handle(index: int) -> int:
        if index == 0:
            raise NVMLError_GpuIsLost
        return index

    lost = driver(nvmlDeviceGetHandleByIndex=handle)
    assert nvml._visible(lost, all_of_them=False) == {"GPU-1": 1}
    with pytest.raises(NVMLError_GpuIsLost):
        nvml._visible(lost, all_of_them=True)


def test_what_cuda_does_not_see_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    by_uuid = driver(nvmlDeviceGetHandleByUUID=lambda uuid: int(uuid.removeprefix("GPU-")))
    assert nvml._handles(by_uuid, ()) == [("GPU-0", 0), ("GPU-1", 1)]
    assert nvml._handles(by_uuid, ("GPU-1",)) == [("GPU-1", 1)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1")
    assert nvml._handles(by_uuid, ()) == [("GPU-1", 1)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(nvml.NoDriverError, match="CUDA_VISIBLE_DEVICES= hides every GPU"):
        nvml._handles(by_uuid, ())


def test_a_gpu_that_is_not_there_is_named_with_those_that_are() -> None:
    def missing(_: str) -> int:
        raise NVMLError_GpuIsLost

    with pytest.raises(MeterUnavailableError) as told:
        nvml._handles(driver(nvmlDeviceGetHandleByUUID=missing), ("GPU-7",))
    assert str(told.value) == (
        "meter nvml: GPU-7 was asked for but is not visible here (GpuIsLost); visible: GPU-0, GPU-1"
    )


def test_the_slow_questions_are_asked_once_a_second() -> None:
    reads: Any = object.__new__(nvml._Board)
    reads._slowly, reads._slowly_at_ns = [lambda: 1, lambda: 2], 0
    assert reads._read_slowly(1000) == [1, 2]
    assert set(reads._read_slowly(1000 + 949_999_999)) == {None}
    assert reads._read_slowly(1000 + 950_000_000) == [1, 2]


@pytest.mark.parametrize(
    ("compute", "instant"), [((7, 5), True), ((8, 0), True), ((8, 6), False), ((9, 0), False), (None, False)]
)
def test_the_old_question_for_power_is_answered_with_a_mean_from_ampere_on_but_for_its_first(
    compute: tuple[int, int] | None, instant: bool
) -> None:
    def tells(_: Any) -> tuple[int, int]:
        if compute is None:
            raise NVMLError_GpuIsLost
        return compute

    asked: Any = object.__new__(nvml._Board)
    asked._nvml, asked.handle = driver(nvmlDeviceGetCudaComputeCapability=tells), 0
    assert asked._averages_nothing() == instant
