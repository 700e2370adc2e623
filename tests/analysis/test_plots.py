"""Pictures stay readable when there are many experiments, cycles and GPUs."""

from __future__ import annotations

import numpy as np
import pytest

from llem_airflow.analysis.curves import Curve
from llem_airflow.analysis.plots import _apart
from llem_airflow.analysis.power_plots import power_overlay, power_panels
from llem_airflow.analysis.quantity import change_interval, factor_text, number, percent, signed

SECONDS = np.arange(0.0, 60.0)


def _curve(cycle: int, gpus: int = 1) -> Curve:
    phases = (("warmup", 0.0, 10.0), ("measure", 10.0 + cycle, 50.0 + cycle))
    series = {f"GPU-{k}": (SECONDS, np.full(60, 100.0 * (k + 1))) for k in range(gpus)}
    return Curve("bs8", cycle, phases, series, estimate=False)


def test_cycles_over_each_other_are_one_small_picture_with_each_cycle_named() -> None:
    curves = [_curve(cycle, gpus=2) for cycle in (1, 2, 3)]
    overlay, panels = power_overlay("bs8", curves), power_panels("bs8", curves)
    assert overlay is not None
    assert panels is not None
    assert len(overlay) < len(panels)
    for text in ("cycle 1", "cycle 3", "sum of 2 devices", "since the begin of the measured window"):
        assert text in overlay


def test_cycles_without_a_series_give_no_picture() -> None:
    nothing = Curve("bs8", 1, (), {}, estimate=False)
    assert power_overlay("bs8", [nothing]) is None
    assert power_panels("bs8", []) is None


def test_numbers_that_would_cover_each_other_are_left_to_the_table() -> None:
    points = [(1, 10.0, 5.0, True), (2, 10.05, 5.1, True), (3, 10.0, 9.0, True), (4, 20.0, 5.0, True)]
    assert [place for place, _, _ in _apart(points)] == [1, 3, 4]


def test_a_label_names_engine_and_model_by_value_and_leaves_out_what_is_not_there() -> None:
    factors = {
        "engine": "vllm",
        "task.model": "org/Qwen3-8B",
        "vllm.engine_params.dtype": "float16",
        "x.batch_size": None,
    }
    assert factor_text(factors, "slug") == "vllm, Qwen3-8B, dtype float16"
    assert factor_text({"x.batch_size": None}, "slug") == "slug"


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (432.1, 2, "432"),
        (0.1, 2, "0.1"),
        (12345.6, 3, "12,346"),
        (1.234e-5, 3, "0.0000123"),
        (-4.3e-7, 2, "-0.00000043"),
        (1.2e-12, 2, "1.2e-12"),
        (0.0, 3, "0"),
        (float("nan"), 3, "\N{EN DASH}"),
        (None, 3, "\N{EN DASH}"),
    ],
)
def test_a_number_has_no_exponent_where_people_would_not_write_one(
    value: float | None, digits: int, text: str
) -> None:
    assert number(value, digits) == text


def test_a_large_percentage_is_a_number() -> None:
    assert percent(4.3) == "430 %"
    assert percent(0.0123) == "1.2 %"
    assert signed(123.4) == "+12,340.0 %"
    assert signed(None) == "\N{EN DASH}"


def test_an_interval_that_holds_half_and_double_cannot_tell() -> None:
    assert change_interval(-0.8, 3.03) == "cannot tell: half and double are both possible"
    assert change_interval(-0.012, 0.034) == "\N{MINUS SIGN}1.2 % to +3.4 %"
    assert change_interval(-0.6, 0.5) == "\N{MINUS SIGN}60.0 % to +50.0 %"
    assert change_interval(None, None) == ""


@pytest.mark.parametrize(
    ("ratio", "text"), [(0.0816, "+8.2 %"), (-0.01, "\N{MINUS SIGN}1.0 %"), (-0.0001, "0.0 %")]
)
def test_a_change_has_its_sign_and_no_signed_zero(ratio: float, text: str) -> None:
    assert signed(ratio) == text
