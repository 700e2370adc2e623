"""Hostile series: every one ends in the right number, or in none with its reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import hostile
from llem_airflow.analysis.checks import flags
from llem_airflow.analysis.energy import EnergyOfWindow, window_energy
from llem_airflow.analysis.flags import Flag
from tests.analysis.sampled import GPU, at_ns, columns, cycle_result, meter, row, samples, window

POWER_W, WINDOW_S = 250.0, 30.0
TRUE_J = POWER_W * WINDOW_S
LIMIT_W = 400.0

Rows = list[dict[str, Any]]


def steady(*, counter: bool = True) -> Rows:
    integral_j = (lambda t: POWER_W * t) if counter else None
    return samples(lambda _: POWER_W, integral_j, end_s=WINDOW_S + 1.5, register_s=0.1 if counter else 0.0)


def of(
    rows: Rows, kind: str = "nvml", *, limit_w: float | None = LIMIT_W
) -> tuple[EnergyOfWindow, tuple[Flag, ...]]:
    the_meter = meter(kind)
    limits = {} if limit_w is None else {GPU: limit_w}
    energy = window_energy(columns(rows), the_meter, window(WINDOW_S), limits_w=limits)
    return energy, flags(cycle_result(window(WINDOW_S), the_meter), energy)


@pytest.mark.parametrize("case", hostile.cases(), ids=lambda case: case.name)
def test_every_hostile_series_gives_the_right_number_or_none_with_its_reason(case: hostile.Hostile) -> None:
    energy = hostile.measured(case)
    assert hostile.right(case, energy), (energy.energy_j, energy.withheld)


def codes(found: Sequence[Flag]) -> list[str]:
    return [flag.code for flag in found]


def between(rows: Rows, begin_s: float, end_s: float) -> Rows:
    return [one for one in rows if at_ns(begin_s) <= one["t_before_mono_ns"] <= at_ns(end_s)]


def say(rows: Rows, begin_s: float, end_s: float, **cells: Any) -> None:
    for one in between(rows, begin_s, end_s):
        one.update(cells)


@pytest.mark.parametrize("counter", [True, False])
@pytest.mark.parametrize("limit_w", [LIMIT_W, None])
@pytest.mark.parametrize("said_w", [65_535, 2_147_483, 4_294_967, 0, -1])
def test_one_impossible_sample_is_a_missing_sample(
    said_w: float, limit_w: float | None, counter: bool
) -> None:
    rows = steady(counter=counter)
    say(rows, 10.0, 10.0, power_instant_mw=said_w * 1000)
    energy, found = of(rows, limit_w=limit_w)
    assert energy.energy_j == pytest.approx(TRUE_J, rel=0.004)
    assert energy.gpus[0].max_power_w == pytest.approx(POWER_W)
    assert "implausible_readings" in codes(found)
    message = next(flag.message for flag in found if flag.code == "implausible_readings")
    assert f"1 of {GPU}" in message
    assert f"{said_w:,} W" in message


def test_a_board_s_own_limit_decides_what_it_can_draw() -> None:
    rows = steady(counter=False)
    say(rows, 10.0, 10.2, power_instant_mw=700_000)
    assert of(rows)[0].energy_j == pytest.approx(TRUE_J)
    unknown, _ = of(rows, limit_w=None)
    assert unknown.energy_j == pytest.approx(TRUE_J + 3 * 450 * 0.1)


def test_ten_seconds_of_nothing_are_a_gap_and_not_a_third_less() -> None:
    rows = steady(counter=False)
    say(rows, 10.0, 20.0, power_instant_mw=0)
    energy, found = of(rows)
    assert energy.energy_j is None
    assert "gap_without_counter" in codes(found)
    rows = steady()
    say(rows, 10.0, 20.0, power_instant_mw=0)
    energy, found = of(rows)
    assert energy.energy_j == pytest.approx(TRUE_J, rel=0.004)
    assert {"implausible_readings", "gap"} <= set(codes(found))


def jump(rows: Rows) -> None:
    for one in rows:
        one["energy_mj"] += 500_000_000 if one["t_before_mono_ns"] > at_ns(12) else 0


def freeze(rows: Rows) -> None:
    held_mj = between(rows, 14.9, 15.1)[0]["energy_mj"]
    say(rows, 15.0, 99.0, energy_mj=held_mj)


def short_freeze(rows: Rows) -> None:
    """Three of thirty seconds: a tenth, which no comparison with an integral would tell from sampling."""
    lost_mj = between(rows, 12.9, 13.1)[0]["energy_mj"] - between(rows, 9.9, 10.1)[0]["energy_mj"]
    say(rows, 10.0, 13.0, energy_mj=between(rows, 9.9, 10.1)[0]["energy_mj"])
    for one in between(rows, 13.01, 99.0):
        one["energy_mj"] -= lost_mj


def scale(factor: float) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        for one in rows:
            one["energy_mj"] = round(one["energy_mj"] * factor)

    change.__name__ = f"unit_x{factor:g}"
    return change


BROKEN = [jump, freeze, short_freeze, *map(scale, (1000.0, 0.001, 2.0, 1.35, 0.7, 1e6))]


@pytest.mark.parametrize("change", BROKEN, ids=lambda change: change.__name__)
@pytest.mark.parametrize("column", ["power_instant_mw", "power_average_mw"])
def test_a_counter_that_contradicts_the_power_is_no_energy(
    change: Callable[[Rows], None], column: str
) -> None:
    rows = steady()
    change(rows)
    for one in rows:
        one[column] = one.pop("power_instant_mw")
    energy, found = of(rows)
    assert energy.energy_j is None
    assert [reason.code for reason in energy.withheld] == ["sources_disagree"]
    assert energy.gpus[0].counter_j is not None
    integral_j = energy.gpus[0].instant_j or energy.gpus[0].average_j
    assert integral_j == pytest.approx(TRUE_J, rel=0.05)
    flag = next(flag for flag in found if flag.code == "sources_disagree")
    assert flag.severity == "withheld"
    assert f"{energy.gpus[0].counter_j:,.1f} J" in flag.message
    assert f"{integral_j:,.1f} J" in flag.message


@pytest.mark.parametrize("change", [jump, freeze, scale(1000.0)], ids=lambda change: change.__name__)
def test_a_broken_counter_without_power_is_no_energy_either(change: Callable[[Rows], None]) -> None:
    rows = steady()
    change(rows)
    for one in rows:
        del one["power_instant_mw"]
    energy, _ = of(rows)
    assert [reason.code for reason in energy.withheld] == ["implausible_counter"]


def test_one_absurd_reading_of_the_counter_leaves_the_integral() -> None:
    rows = steady()
    say(rows, 12.0, 12.0, energy_mj=2**62)
    energy, found = of(rows)
    assert energy.source == "integral_instant"
    assert energy.energy_j == pytest.approx(TRUE_J)
    assert "counter_reset" in codes(found)


def test_two_values_at_one_instant_are_none() -> None:
    rows = steady(counter=False)
    again = [dict(one, power_instant_mw=900_000 // 3) for one in between(rows, 5.0, 6.0)]
    energy, found = of(sorted(rows + again, key=lambda one: int(one["t_before_mono_ns"])))
    assert energy.energy_j == pytest.approx(TRUE_J)
    assert codes(found).count("implausible_readings") == 1


def test_the_same_row_twice_changes_nothing() -> None:
    rows = steady()
    twice = sorted(rows + [dict(one) for one in rows], key=lambda one: int(one["t_before_mono_ns"]))
    assert of(twice)[0].energy_j == of(rows)[0].energy_j
    assert "implausible_readings" not in codes(of(twice)[1])


def test_a_clock_that_jumps_forward_is_told() -> None:
    rows = [
        row(t, power_instant_mw=250_000, energy_mj=round((1e4 + POWER_W * (t - (5 if t > 12 else 0))) * 1e3))
        for t in (i / 10 for i in range(-15, round(WINDOW_S * 10) + 15))
        if not 12 < t < 17
    ]
    energy, found = of(rows)
    assert energy.energy_j == pytest.approx(POWER_W * (WINDOW_S - 5), rel=0.01)
    flag = next(flag for flag in found if flag.code == "clock_jump")
    assert flag.severity == "error"
    assert "5.0 s" in flag.message or "5.1 s" in flag.message


def test_a_stalled_host_is_a_gap_and_no_jump_of_the_clock() -> None:
    rows = [one for one in steady() if not at_ns(10) < one["t_before_mono_ns"] < at_ns(15)]
    energy, found = of(rows)
    assert energy.energy_j == pytest.approx(TRUE_J, rel=0.004)
    assert "clock_jump" not in codes(found)


@given(st.floats(0.11, 3), st.floats(0.11, 3), st.floats(20, 180), st.floats(190, 400), st.floats(0, 1))
def test_sound_sources_are_never_said_to_disagree(
    high_s: float, low_s: float, low_w: float, high_w: float, phase: float
) -> None:
    """A square load that ten samples a second see both levels of, whatever its shape."""
    period_s, duty = high_s + low_s, high_s / (high_s + low_s)

    def power_w(t: float) -> float:
        return high_w if (t / period_s + phase) % 1 < duty else low_w

    def integral_j(t: float) -> float:
        whole, rest = divmod(t / period_s + phase, 1)
        share = whole * duty + min(rest, duty)
        return period_s * (low_w * (t / period_s + phase) + (high_w - low_w) * share)

    energy, _ = of(samples(power_w, integral_j, end_s=WINDOW_S + 1.5, register_s=0.1))
    assert energy.energy_j == pytest.approx(integral_j(WINDOW_S) - integral_j(0), rel=0.03)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(-(2**40), 2**40)), min_size=1, max_size=20))
def test_arbitrary_readings_of_power_never_become_more_than_the_board_can_draw(
    said: list[tuple[int, int]],
) -> None:
    rows = steady(counter=False)
    for at, power_mw in said:
        rows[at]["power_instant_mw"] = power_mw
    energy, _ = of(rows)
    if energy.energy_j is not None:
        most_j = 0.1 * len(said) * 1.5 * LIMIT_W
        assert TRUE_J - len(said) * 0.1 * POWER_W - 1 <= energy.energy_j <= TRUE_J + most_j


def test_estimates_may_be_nothing() -> None:
    """An estimate of an idle machine that somebody set to 0 W is what he asked for."""
    rows = samples(lambda t: 0.0 if t < 10 else 90.0, end_s=WINDOW_S + 1.5)
    the_meter = meter("cpu-estimate", "estimate")
    energy = window_energy(columns(rows), the_meter, window(WINDOW_S))
    assert energy.energy_j == pytest.approx(90 * 20, rel=0.01)
