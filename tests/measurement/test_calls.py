"""Repeated calls of the driver: what it answers, by its type, and nothing that it did not say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from llem_airflow.measurement.meters.calls import Fields


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
