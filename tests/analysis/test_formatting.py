"""How numbers are written, at both sides of every limit."""

from __future__ import annotations

import math

import pytest

from llem_airflow.analysis.formatting import (
    ABSENT,
    change,
    change_interval,
    detectable,
    interval,
    labelled,
    number,
    p_value,
    percent,
    sentence,
    signed,
    when,
    with_unit,
)
from llem_airflow.analysis.statistics import describe


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ABSENT),
        (math.nan, ABSENT),
        (math.inf, ABSENT),
        (0.0, "0"),
        (1.0, "1"),
        (-1.0, "-1"),
        (12.345, "12.3"),
        (999.4, "999"),
        (1234.0, "1,234"),
        (-1234567.0, "-1,234,567"),
        (9.9e14, "990,000,000,000,000"),
        (1e15 - 1, "999,999,999,999,999"),
        (1e15, "1.00e+15"),
        (0.00012345, "0.000123"),
        (0.0000123456, "0.0000123"),
        (1e-9, "0.00000000100"),
        (9.9e-10, "9.90e-10"),
    ],
)
def test_a_number_has_three_digits_and_an_exponent_only_far_out(value: float | None, text: str) -> None:
    assert number(value) == text


def test_a_number_may_have_other_digits() -> None:
    assert number(12.345, 2) == "12"
    assert number(0.0000123456, 2) == "0.000012"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("ttft_p50_s", None, ABSENT),
        ("ttft_p50_s", 0.999, "999 ms"),
        ("ttft_p50_s", 1.0, "1 s"),
        ("ttft_p50_s", 0.0, "0 s"),
        ("energy_per_output_token_j", 0.0999, "99.9 mJ/token"),
        ("energy_per_output_token_j", 0.1, "0.1 J/token"),
        ("energy_j", 0.05, "0.05 J"),
        ("slo_attainment_ratio", 0.905, "90.5 %"),
    ],
)
def test_a_value_has_the_unit_in_which_it_is_easy_to_read(name: str, value: float | None, text: str) -> None:
    assert with_unit(name, value) == text


def test_an_estimate_says_so_wherever_it_is_an_energy() -> None:
    assert with_unit("energy_j", 5.0, estimate=True) == "~ 5 J estimate"
    assert with_unit("energy_j", 5.0, estimate=True, tag=False) == "~ 5 J"
    assert with_unit("ttft_p50_s", 5.0, estimate=True) == "5 s"
    assert labelled(ABSENT, estimate=True) == ABSENT
    assert labelled("5 J", estimate=True) == "~ 5 J estimate"


@pytest.mark.parametrize(
    ("values", "factor", "text"),
    [
        ([2.0], 1.0, "no interval (n = 1)"),
        ([2.0] * 2, 1.0, "no interval (n = 2)"),
        ([2.0] * 3, 1.0, "2 to 2"),
        ([2.0] * 3, 1000.0, "2,000 to 2,000"),
        ([-1.0, 1.0, 2.0], 1.0, "no interval"),
    ],
)
def test_an_interval_is_told_where_there_are_enough_values(
    values: list[float], factor: float, text: str
) -> None:
    found = describe(values)
    assert found is not None
    assert interval(found, factor) == text
    if factor == 1.0:
        assert interval(found) == text


def test_ratios_are_percent() -> None:
    assert (percent(None), percent(0.1234), percent(0.1234, 3)) == (ABSENT, "12 %", "12.3 %")
    assert (signed(None), signed(0.1234), signed(-0.5), signed(0.0004)) == (
        ABSENT,
        "+12.3 %",
        "\N{MINUS SIGN}50.0 %",
        "0.0 %",
    )
    assert signed(12.3456) == "+1,234.6 %"
    assert (change(4.3), change(-0.61), change(0.012), change(0.0)) == (
        "+430 %",
        "\N{MINUS SIGN}61 %",
        "+1.2 %",
        "0 %",
    )
    assert (change(0.0994), change(0.0995), change(0.0004)) == ("+9.9 %", "+10 %", "0 %")


@pytest.mark.parametrize(
    ("low_ratio", "high_ratio", "text"),
    [
        (None, 0.5, ""),
        (0.5, None, ""),
        (-0.5, 1.0, "cannot tell (half to double)"),
        (-0.5, 0.99, "\N{MINUS SIGN}50.0 % to +99.0 %"),
        (-0.49, 1.0, "\N{MINUS SIGN}49.0 % to +100.0 %"),
    ],
)
def test_an_interval_from_half_to_double_tells_nothing(
    low_ratio: float | None, high_ratio: float | None, text: str
) -> None:
    assert change_interval(low_ratio, high_ratio) == text


def test_what_could_have_been_found() -> None:
    assert (detectable(None), detectable(0.031)) == ("", "detects from 3.1 %")
    assert (detectable(0.99), detectable(1.0)) == ("detects from 99 %", "would not detect a doubling")


def test_instants_sentences_and_p_values() -> None:
    assert (when(None), when(1_600_000_000_900_000_000)) == (ABSENT, "2020-09-13 12:26:40 UTC")
    assert when(1_600_000_000_000_000_000) == "2020-09-13 12:26:40 UTC"
    assert (sentence(" give it more. "), sentence("a")) == ("Give it more.", "A.")
    assert (p_value(None), p_value(0.0009), p_value(0.001), p_value(0.0456)) == (
        ABSENT,
        "< 0.001",
        "0.001",
        "0.046",
    )
