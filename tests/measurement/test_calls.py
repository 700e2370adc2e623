"""Repeated calls of the driver: what it answers, by its type, and nothing that it did not say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from llem_airflow.measurement.meters.calls import Fields, extras


def fields(library: SimpleNamespace) -> Fields:
    """One field of a device of a driver library that is scripted."""
    module = SimpleNamespace(
        nvmlLib=library,
        c_nvmlFieldValue_t=pynvml.c_nvmlFieldValue_t,
        NVML_ERROR_FUNCTION_NOT_FOUND=pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    )
    return Fields(module, None, [(186, 0)])


def answering(kind: int, member: str, value: float, returned: int = 0) -> Any:
    def call(_handle: None, _count: int, array: Any) -> int:
        (field,) = array._obj  # what byref() points to
        assert (field.fieldId, field.scopeId) == (186, 0)
        field.valueType, field.nvmlReturn = kind, returned
        setattr(field.value, member, value)
        return 0

    return call


@pytest.mark.parametrize(
    ("kind", "member", "value"),
    [
        (0, "dVal", 250.0),
        (1, "uiVal", 2**32 - 1),
        (2, "ulVal", 2**40),
        (3, "ullVal", 2**63 + 1),
        (4, "sllVal", -7),
        (5, "siVal", -7),
    ],
)
def test_a_value_is_read_by_its_type(kind: int, member: str, value: float) -> None:
    asked = fields(SimpleNamespace(nvmlDeviceGetFieldValues=answering(kind, member, value)))
    assert (asked.ask(), asked.values()) == (0, [value])


def test_a_type_that_is_not_known_and_a_field_that_failed_have_no_value() -> None:
    for call in (answering(9, "uiVal", 5), answering(1, "uiVal", 5, returned=3)):
        asked = fields(SimpleNamespace(nvmlDeviceGetFieldValues=call))
        assert (asked.ask(), asked.values()) == (0, [None])


def test_a_field_that_the_driver_does_not_touch_is_not_known_and_keeps_no_earlier_value() -> None:
    library = SimpleNamespace(nvmlDeviceGetFieldValues=answering(1, "uiVal", 300_000))
    asked = fields(library)
    asked.ask()
    assert asked.values() == [300_000]
    asked._function = lambda *_: 0
    assert (asked.ask(), asked.values()) == (0, [None])


def test_a_driver_too_old_for_the_call_says_so_as_nvml_does() -> None:
    assert fields(SimpleNamespace()).ask() == pynvml.NVML_ERROR_FUNCTION_NOT_FOUND


def device(**answers: Any) -> tuple[Any, dict[str, list[int]]]:
    """A driver library in which a call answers with these numbers, or refuses with a negative one."""
    told: dict[str, list[int]] = {}

    def answer(name: str, numbers: list[int]) -> Any:
        def call(_handle: None, *arguments: Any) -> int:
            told.setdefault(name, []).extend(arguments[:-1])
            if numbers[0] < 0:
                return -numbers[0]
            for place, number in enumerate(numbers):
                arguments[-1]._obj[place] = number
            return 0

        return call

    library = SimpleNamespace(**{name: answer(name, numbers) for name, numbers in answers.items()})
    return SimpleNamespace(
        nvmlLib=library,
        **{
            name: getattr(pynvml, name)
            for name in (
                *("NVML_CLOCK_SM", "NVML_CLOCK_MEM", "NVML_TEMPERATURE_GPU"),
                *("NVML_ERROR_NOT_SUPPORTED", "NVML_ERROR_FUNCTION_NOT_FOUND"),
            )
        },
    ), told


def test_what_else_a_device_tells_is_read_from_its_place_in_the_answer() -> None:
    nvml, told = device(
        nvmlDeviceGetClockInfo=[1410],
        nvmlDeviceGetCurrentClocksEventReasons=[2**40],
        nvmlDeviceGetCurrentClocksThrottleReasons=[7],
        nvmlDeviceGetTemperature=[55],
        nvmlDeviceGetUtilizationRates=[98, 12],
        nvmlDeviceGetMemoryInfo=[80, 30, 50],
    )
    asked = extras(nvml, None)
    assert {column: ask() for column, ask in asked.items()} == {
        "sm_clock_mhz": 1410,
        "mem_clock_mhz": 1410,
        "event_reasons": 2**40,
        "temperature_c": 55,
        "utilisation_percent": 98,
        "memory_used_bytes": 50,
    }
    assert set(told["nvmlDeviceGetClockInfo"]) == {pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM}
    assert set(told["nvmlDeviceGetTemperature"]) == {pynvml.NVML_TEMPERATURE_GPU}


def test_what_a_device_does_not_know_is_left_out_and_what_fails_now_is_not_known() -> None:
    nvml, _ = device(
        nvmlDeviceGetCurrentClocksThrottleReasons=[7],
        nvmlDeviceGetTemperature=[-pynvml.NVML_ERROR_NOT_SUPPORTED],
        nvmlDeviceGetUtilizationRates=[-pynvml.NVML_ERROR_FUNCTION_NOT_FOUND],
        nvmlDeviceGetMemoryInfo=[-pynvml.NVML_ERROR_GPU_IS_LOST],
    )
    asked = extras(nvml, None)
    assert {column: ask() for column, ask in asked.items()} == {"event_reasons": 7, "memory_used_bytes": None}


def test_a_call_that_fails_as_a_whole_says_so_and_the_first_field_says_why() -> None:
    asked = fields(SimpleNamespace(nvmlDeviceGetFieldValues=lambda *_: pynvml.NVML_ERROR_GPU_IS_LOST))
    assert asked.ask() == pynvml.NVML_ERROR_GPU_IS_LOST
    asked = fields(SimpleNamespace(nvmlDeviceGetFieldValues=answering(1, "uiVal", 5, returned=3)))
    assert asked.first_failure == 999
    asked.ask()
    assert asked.first_failure == 3
