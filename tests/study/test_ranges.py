from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llem_airflow.study.plan.sweep import RangeError, expand_range


@pytest.mark.parametrize(
    ("shorthand", "expected"),
    [
        ({"min": 1, "max": 4, "num": 4}, [1, 2, 3, 4]),
        ({"min": 1, "max": 4, "num": 1}, [1]),
        ({"min": 0, "max": 1, "num": 6}, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ({"min": 0.1, "max": 0.3, "num": 3}, [0.1, 0.2, 0.3]),
        ({"min": 1, "max": 2, "num": 3}, [1.0, 1.5, 2.0]),
        ({"min": 5, "max": 5, "num": 3}, [5]),
        ({"log": {"min": 1, "max": 1000, "num": 4}}, [1, 10, 100, 1000]),
        ({"log": {"min": 1, "max": 100, "num": 4}}, [1.0, 4.641588834, 21.5443469, 100.0]),
        ({"log": {"min": 2, "max": 8, "num": 1}}, [2]),
        ({"pow2": {"min": 1, "max": 9}}, [1, 2, 4, 8]),
        ({"pow2": {"min": 0.25, "max": 2}}, [0.25, 0.5, 1.0, 2.0]),
    ],
)
def test_a_shorthand_stands_for_these_values(shorthand: dict[str, Any], expected: list[float]) -> None:
    found = expand_range(shorthand)
    assert found == expected
    assert [type(value) for value in found] == [type(value) for value in expected]


@pytest.mark.parametrize(
    ("shorthand", "expected"),
    [
        ({}, "the keys none is no range"),
        ({"min": 1, "max": 2}, "the keys max, min is no range"),
        ({"lin": {"min": 1, "max": 2, "num": 2}}, "the keys lin is no range"),
        ({"log": [1, 2]}, "log needs exactly the keys max, min, num"),
        ({"pow2": {"min": 1, "max": 2, "num": 2}}, "pow2 needs exactly the keys max, min"),
        ({"min": 1, "max": 2, "num": 0}, "num must be a whole number, 1 or more"),
        ({"min": 1, "max": 2, "num": 2.0}, "num must be a whole number, 1 or more"),
        ({"min": 1, "max": 2, "num": True}, "num must be a whole number, 1 or more"),
        ({"min": 1, "max": 2, "num": 10**9}, "num is above 100,000"),
        ({"min": "a", "max": 2, "num": 2}, "min must be a finite number"),
        ({"min": 1, "max": float("inf"), "num": 2}, "max must be a finite number"),
        ({"min": float("nan"), "max": 2, "num": 2}, "min must be a finite number"),
        ({"min": True, "max": 2, "num": 2}, "min must be a finite number"),
        ({"min": 3, "max": 2, "num": 2}, "min 3 is above max 2"),
        ({"log": {"min": 0, "max": 2, "num": 2}}, "log needs min above 0, found 0"),
        ({"pow2": {"min": 0, "max": 2}}, "pow2 needs min above 0, found 0"),
        ({"pow2": {"min": 5, "max": 7}}, "no power of two lies between 5 and 7"),
    ],
)
def test_what_makes_no_range_is_refused(shorthand: dict[str, Any], expected: str) -> None:
    with pytest.raises(RangeError, match=expected):
        expand_range(shorthand)


@given(st.integers(-(10**6), 10**6), st.integers(0, 10**6), st.integers(1, 500))
def test_a_linear_range_has_exact_ends_ascends_and_repeats_nothing(low: int, width: int, num: int) -> None:
    found = expand_range({"min": low, "max": low + width, "num": num})
    assert found[0] == low
    assert found[-1] == (low if num == 1 else low + width)
    assert found == sorted(set(found))
    assert len(found) <= num


@given(st.integers(1, 2**40), st.integers(0, 2**40))
def test_every_power_of_two_inside_is_there_and_no_other(low: int, width: int) -> None:
    expected = [2**k for k in range(90) if low <= 2**k <= low + width]
    if expected:
        assert expand_range({"pow2": {"min": low, "max": low + width}}) == expected
    else:
        with pytest.raises(RangeError):
            expand_range({"pow2": {"min": low, "max": low + width}})
