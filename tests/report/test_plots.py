"""Pictures stay readable when there are many experiments, cycles and GPUs."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from llem_airflow.analysis.aggregate import Curve
from llem_airflow.analysis.cycle import Cycle
from llem_airflow.analysis.formatting import change_interval, detectable, number, percent, signed
from llem_airflow.analysis.plan import factor_label
from llem_airflow.analysis.statistics import describe
from llem_airflow.analysis.summary import ExperimentSummary, MetricSummary
from llem_airflow.report.plots import forest, power_overlay, power_panels, trade_off
from llem_airflow.report.view import fronts

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


ENERGY, SPEED, LATENCY = "energy_per_output_token_j", "output_tokens_per_s", "e2el_mean_s"


def _measured(name: str, energy: list[float], speed: list[float]) -> tuple[ExperimentSummary, list[Cycle]]:
    """An experiment with these values of its cycles, and the cycles."""
    latency = [1000 / value for value in speed]
    metrics = []
    for metric, values in ((ENERGY, energy), (SPEED, speed), (LATENCY, latency)):
        found = describe(values)
        assert found is not None
        metrics.append(MetricSummary(metric, found))
    rows = [
        Cycle(name, k, "valid", measures={ENERGY: e, SPEED: s, LATENCY: t})
        for k, (e, s, t) in enumerate(zip(energy, speed, latency, strict=True), start=1)
    ]
    n = len(energy)
    return ExperimentSummary(
        id=name,
        slug=name,
        hash=name,
        engine="vllm",
        engine_version="1",
        model="m",
        factors={},
        planned=n,
        valid=n,
        statuses={"valid": n},
        energy_kind="measured",
        energy_source="counter",
        energy_boundary="board",
        active_over=None,
        metrics=tuple(metrics),
        doubts=(),
    ), rows


def test_every_cycle_is_a_dot_and_two_cycles_have_no_bar_but_a_word() -> None:
    two, its_cycles = _measured("bs1", [5.0, 6.9], [10.0, 11.0])
    three, cycles = _measured("bs8", [2.0, 2.1, 2.2], [20.0, 21.0, 20.0])
    picture = forest([two, three], ENERGY, ["bs1", "bs8"], [*its_cycles, *cycles])
    assert picture is not None
    assert "bs1  (n = 2, no interval)" in picture
    assert "bs8  (n = 3)" in picture
    # Dots are drawn in the muted colour, one mark each; the one bar is that of three cycles.
    marks = Counter(re.findall(r'<use href="([^"]*)"[^>]*fill: var\(--muted\)', picture))
    assert 5 in marks.values()
    bars = picture.split("LineCollection")[1].split("</g>")[0]
    assert bars.count("<path") == 1


@pytest.mark.parametrize("values", [[5.0, 69.0, 160.0], [0.0, 1.0, 5.0], [2.0, 2.0, 2.0]])
def test_no_axis_of_a_quantity_that_cannot_be_negative_goes_below_zero(values: list[float]) -> None:
    drawn = [_measured("bs1", values, [10.0, 11.0, 90.0]), _measured("bs8", values, [20.0, 21.0, 20.0])]
    experiments, cycles = [e for e, _ in drawn], [row for _, rows in drawn for row in rows]
    pictures = (
        forest(experiments, ENERGY, ["bs1", "bs8"], cycles),
        trade_off(experiments, {"speed": set()}, {"speed": SPEED}, ["bs1", "bs8"]),
    )
    for picture in pictures:
        assert picture is not None
        ticks = re.findall(r">([\d.,]+|\N{MINUS SIGN}[\d.,]+)</text>", picture)
        assert ticks
        assert not [tick for tick in ticks if tick.startswith("\N{MINUS SIGN}")]


def test_every_point_of_energy_against_speed_has_its_name() -> None:
    drawn = [_measured(f"batch_size {k}", [5.0, 5.1, 5.0], [10.0, 10.0, 10.1])[0] for k in range(1, 13)]
    labels = [e.id for e in drawn]
    picture = trade_off(drawn, {"a": set(), "b": set()}, {"a": SPEED, "b": LATENCY}, labels)
    assert picture is not None
    heights = []
    for label in labels:
        found = re.findall(
            rf'translate\([\d.]+ ([\d.]+)\)[^>]*>{label}</text>|y="([\d.]+)"[^>]*>{label}</text>', picture
        )
        assert len(found) == 2, f"{label}: once in each panel"
        heights.append(float(found[0][0] or found[0][1]))
    apart = np.diff(sorted(heights))
    assert apart.min() > 8, "names of points that lie on each other do not cover each other"


def test_the_name_of_an_axis_is_no_longer_than_the_axis() -> None:
    """Two experiments make the lowest panels: the longest line of 10 pt letters fits into 3 in."""
    drawn = [
        replace(_measured(name, [5.0, 5.1, 5.0], [10.0, 10.0, 10.1])[0], energy_kind="estimate")
        for name in ("a", "b")
    ]
    picture = trade_off(drawn, {"a": set(), "b": set()}, {"a": SPEED, "b": LATENCY}, ["a", "b"])
    assert picture is not None
    lines = re.findall(r"rotate\(-90\)[^>]*>([^<]+)</t|<tspan[^>]*>([^<]+)</tspan>", picture)
    told = [one or other for one, other in lines]
    assert "(estimate)" in told
    assert max(map(len, told)) <= 34


def test_a_pareto_front_is_drawn_only_where_intervals_separate() -> None:
    frugal, _ = _measured("frugal", [1.0, 1.01, 0.99], [10.0, 10.1, 9.9])
    fast, _ = _measured("fast", [2.0, 2.01, 1.99], [20.0, 20.1, 19.9])
    worse, _ = _measured("worse", [3.0, 3.01, 2.99], [15.0, 15.1, 14.9])
    assert fronts([frugal, fast, worse])["throughput"] == {"frugal", "fast"}
    vague, _ = _measured("vague", [0.2, 2.9, 5.7], [5.0, 20.0, 40.0])
    assert fronts([vague, fast])["throughput"] == set()
    single, _ = _measured("single", [9.0], [1.0])
    assert fronts([frugal, fast, single])["throughput"] == set()


def test_a_label_names_engine_and_model_by_value_and_leaves_out_what_is_not_there() -> None:
    factors = {
        "engine": "vllm",
        "task.model": "org/Qwen3-8B",
        "vllm.engine_params.dtype": "float16",
        "x.batch_size": None,
    }
    assert factor_label(factors, "slug") == "vllm, Qwen3-8B, dtype float16"
    assert factor_label({"x.batch_size": None}, "slug") == "slug"


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
    assert change_interval(-0.8, 3.03) == "cannot tell (half to double)"
    assert change_interval(-0.012, 0.034) == "\N{MINUS SIGN}1.2 % to +3.4 %"
    assert change_interval(-0.6, 0.5) == "\N{MINUS SIGN}60.0 % to +50.0 %"
    assert change_interval(None, None) == ""


def test_a_difference_beyond_double_is_not_told_in_percent() -> None:
    assert detectable(0.0307) == "detects from 3.1 %"
    assert detectable(385.28) == "would not detect a doubling"
    assert detectable(None) == ""


@pytest.mark.parametrize(
    ("ratio", "text"), [(0.0816, "+8.2 %"), (-0.01, "\N{MINUS SIGN}1.0 %"), (-0.0001, "0.0 %")]
)
def test_a_change_has_its_sign_and_no_signed_zero(ratio: float, text: str) -> None:
    assert signed(ratio) == text
