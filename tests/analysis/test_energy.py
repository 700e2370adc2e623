from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llem_airflow.analysis.energy import SEMANTICS_VERSION, EnergyOfWindow, window_energy
from llem_airflow.analysis.latency import Requests
from llem_airflow.analysis.series import Curve
from llem_airflow.results.parquet import REQUESTS_SCHEMA
from tests.analysis.sampled import GPU, Profile, at_ns, columns, meter, phase, row, samples, window


def of(rows: list[dict[str, Any]], duration_s: float = 10.0, **more: Any) -> EnergyOfWindow:
    return window_energy(columns(rows), more.pop("meter", meter()), window(duration_s), **more)


def codes(energy: EnergyOfWindow) -> list[str]:
    return [reason.code for reason in energy.withheld]


# The exact energies of the method's analytic profiles over 10 s.
ANALYTIC: dict[str, tuple[Profile, float, float]] = {
    "constant": (lambda _: 300.0, 3000.0, 1e-9),
    "ramp": (lambda t: 100 + 20 * t, 2000.0, 1e-6),
    "sine of whole periods": (lambda t: 250 + 100 * math.sin(2 * math.pi * 0.5 * t), 2500.0, 1e-3),
    "exponential warm-up": (
        lambda t: 300 - 100 * math.exp(-t / 2),
        300 * 10 - 100 * 2 * (1 - math.exp(-5)),
        1e-4,
    ),
}


@pytest.mark.parametrize("name", ANALYTIC)
def test_the_integral_of_an_analytic_profile_is_its_exact_energy(name: str) -> None:
    power_w, exact_j, tolerance = ANALYTIC[name]
    energy = of(samples(power_w))
    assert energy.source == "integral_instant"
    assert energy.energy_j == pytest.approx(exact_j, rel=tolerance)


def test_window_edges_between_samples_are_interpolated() -> None:
    # Samples every 0.1 s at 0.05, 0.15, ...; without the edges 9.9 s of the 10 s would be counted.
    energy = of(samples(lambda _: 100.0, begin_s=-1.45))
    assert energy.energy_j == pytest.approx(1000.0)


def test_averaged_power_alone_of_a_ramp_is_taken_as_it_stands_and_its_uncertainty_is_not_known() -> None:
    rows = [
        row(-2 + i / 10, power_average_mw=round((100 + 20 * (-2 + i / 10 - 0.5)) * 1e3)) for i in range(150)
    ]
    energy = of(rows)
    assert energy.source == "integral_average"
    assert energy.energy_j == pytest.approx(1900.0, rel=1e-6)
    assert energy.uncertainty_j is None


def test_the_delay_of_averaged_power_is_learnt_from_instant_power_beside_it() -> None:
    rows = [
        row(
            -4 + i / 10,
            power_instant_mw=round((200 + 20 * (-4 + i / 10)) * 1e3),
            power_average_mw=round((200 + 20 * (-4 + i / 10 - 0.5)) * 1e3),
        )
        for i in range(170)
    ]
    energy = of(rows)
    assert energy.source == "integral_instant"
    assert energy.gpus[0].average_j == pytest.approx(3000.0, rel=1e-3)


def test_the_counter_is_preferred_and_the_integral_checks_it() -> None:
    energy = of(samples(lambda _: 103.0, lambda t: 100.0 * t))
    assert energy.source == "counter"
    assert energy.energy_j == pytest.approx(1000.0)
    assert energy.check_ratio == pytest.approx(0.03)


def test_a_sharp_move_at_each_edge_resolves_the_counter_finer_than_its_register() -> None:
    # The register moves at 0.0, 0.1, ...; the window ends 70 ms after a move, the next one is caught.
    rows = samples(lambda _: 400.0, lambda t: 400.0 * t, register_s=0.1, begin_s=-1.53, ticks_s=[0.0, 10.1])
    energy = of(rows, 10.07)
    assert energy.source == "counter"
    assert energy.energy_j == pytest.approx(400 * 10.07, rel=2e-4)
    assert energy.energy_j is not None
    assert energy.uncertainty_j is not None
    assert abs(energy.energy_j - 400 * 10.07) <= energy.uncertainty_j < 400 * 0.003


def test_without_sharp_moves_the_counter_is_within_one_register_quantum() -> None:
    for phase_s in (0.0, 0.02, 0.05, 0.09):
        rows = samples(lambda _: 400.0, lambda t: 400.0 * t, register_s=0.1, begin_s=-1.5 - phase_s)
        energy = of(rows, 10.03)
        assert energy.energy_j is not None
        assert energy.uncertainty_j is not None
        assert abs(energy.energy_j - 4012.0) <= energy.uncertainty_j <= 400 * 0.1 * 1.05


@pytest.mark.parametrize(
    ("kind", "energy_kind", "known"),
    [("nvml", "measured", False), ("rapl", "measured", True), ("cpu-estimate", "estimate", False)],
)
def test_an_uncertainty_that_nothing_bounds_is_not_known_and_never_zero(
    kind: str, energy_kind: str, known: bool
) -> None:
    integral_j = None if kind == "nvml" else (lambda t: 40.0 * t)
    energy = of(samples(lambda _: 40.0, integral_j), meter=meter(kind, energy_kind))
    assert energy.energy_j == pytest.approx(400.0)
    if not known:
        assert energy.uncertainty_j is None
    else:
        assert energy.uncertainty_j is not None
        assert energy.uncertainty_j > 0


def test_the_uncertainty_of_several_devices_is_known_only_where_each_of_theirs_is() -> None:
    ticks_s = [0.0, 10.0]
    one = samples(lambda _: 100.0, lambda t: 100.0 * t, register_s=0.1, ticks_s=ticks_s)
    other = samples(lambda _: 100.0, lambda t: 100.0 * t, register_s=0.1, ticks_s=ticks_s, gpu="GPU-1")
    both = of(one + other, meter=meter(devices=(GPU, "GPU-1")))
    alone = of(one)
    assert alone.uncertainty_j is not None
    assert both.uncertainty_j == pytest.approx(2 * alone.uncertainty_j)
    without = of(one + samples(lambda _: 50.0, gpu="GPU-1"), meter=meter(devices=(GPU, "GPU-1")))
    assert without.uncertainty_j is None


def test_a_counter_reset_falls_back_to_the_integral_and_is_counted() -> None:
    rows = samples(lambda _: 100.0, lambda t: 100.0 * t)
    for one in rows:
        if one["t_before_mono_ns"] > at_ns(5):
            one["energy_mj"] -= 10_000_000
    energy = of(rows)
    assert energy.source == "integral_instant"
    assert energy.energy_j == pytest.approx(1000.0)
    assert energy.gpus[0].counter_resets == 1


def test_a_counter_that_stands_still_is_not_zero_joules() -> None:
    energy = of(samples(lambda _: 100.0, lambda _: 0.0))
    assert energy.source == "integral_instant"
    assert energy.energy_j == pytest.approx(1000.0)


def test_a_gap_is_integrated_over_and_reported() -> None:
    rows = [one for one in samples(lambda _: 100.0) if not at_ns(4) < one["t_before_mono_ns"] < at_ns(6)]
    energy = of(rows)
    assert energy.energy_j == pytest.approx(1000.0)
    assert energy.gpus[0].longest_gap_s == pytest.approx(2.0)


def test_a_long_gap_without_a_counter_withholds_the_energy() -> None:
    rows = [one for one in samples(lambda _: 100.0) if not at_ns(3) < one["t_before_mono_ns"] < at_ns(7)]
    energy = of(rows)
    assert (energy.energy_j, codes(energy)) == (None, ["gap_without_counter"])
    assert "4.0 s without a sample" in energy.withheld[0].message


def test_a_long_gap_with_a_counter_keeps_the_energy() -> None:
    rows = samples(lambda _: 100.0, lambda t: 100.0 * t)
    energy = of([one for one in rows if not at_ns(3) < one["t_before_mono_ns"] < at_ns(7)])
    assert energy.source == "counter"
    assert energy.energy_j == pytest.approx(1000.0)


@pytest.mark.parametrize("bounds", [(0.5, 11.5), (-1.5, 9.5)])
def test_a_window_that_is_not_bracketed_by_samples_withholds_the_energy(bounds: tuple[float, float]) -> None:
    energy = of(samples(lambda _: 100.0, begin_s=bounds[0], end_s=bounds[1]))
    assert (energy.energy_j, codes(energy)) == (None, ["not_bracketed"])


def test_a_gpu_without_samples_withholds_the_total_and_is_named() -> None:
    energy = of(samples(lambda _: 100.0), meter=meter(devices=(GPU, "GPU-1")), expected_gpus=("GPU-2", GPU))
    assert (energy.energy_j, codes(energy)) == (None, ["gpu_missing", "gpu_missing"])
    assert "GPU-1 was in use" in energy.withheld[0].message
    assert energy.gpus[0].energy_j == pytest.approx(1000.0)


def test_a_gpu_lost_inside_the_window_withholds_the_energy_and_says_when() -> None:
    rows = samples(lambda _: 100.0, lambda t: 100.0 * t)
    for one in rows:
        if one["t_before_mono_ns"] > at_ns(6):
            one.update(power_instant_mw=None, energy_mj=None, error="GpuIsLost")
    energy = of(rows)
    assert (energy.energy_j, codes(energy)) == (None, ["gpu_lost"])
    assert "stopped answering (GpuIsLost) 6.0 s into the measurement window" in energy.withheld[0].message


def test_a_gpu_lost_after_the_window_changes_nothing() -> None:
    rows = samples(lambda _: 100.0)
    for one in rows:
        if one["t_before_mono_ns"] > at_ns(10.5):
            one.update(power_instant_mw=None, error="GpuIsLost")
    assert of(rows).energy_j == pytest.approx(1000.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda power: power.pop("power_instant_mw"), "power_instant_mw is missing"),
        (lambda power: power["energy_mj"].__setitem__(0, "many"), "energy_mj is missing or not numeric"),
        (lambda power: power["t_before_mono_ns"].__setitem__(0, None), "a row has no time"),
        (lambda power: power["power_instant_mw"].__setitem__(3, math.inf), "infinite"),
    ],
)
def test_an_unreadable_series_withholds_the_energy_and_names_the_column(change: Any, said: str) -> None:
    power = columns(samples(lambda _: 100.0))
    change(power)
    energy = window_energy(power, meter(), window())
    assert (energy.energy_j, codes(energy)) == (None, ["unreadable_series"])
    assert said in energy.withheld[0].message


def test_no_samples_at_all_is_unknown_and_not_zero() -> None:
    energy = window_energy(columns([]), meter(), window())
    assert (energy.energy_j, energy.average_power_w, codes(energy)) == (None, None, ["gpu_missing"])


def test_power_of_zero_everywhere_is_unknown_and_not_zero() -> None:
    energy = of(samples(lambda _: 0.0, lambda _: 0.0))
    assert (energy.energy_j, codes(energy)) == (None, ["no_energy"])


def test_a_window_outside_its_phase_withholds_the_energy() -> None:
    energy = of(samples(lambda _: 100.0), events=phase("measure", 0.0, 5.0))
    assert (energy.energy_j, codes(energy)) == (None, ["duration_mismatch"])


def test_a_window_that_ends_before_it_begins_withholds_the_energy() -> None:
    assert codes(of(samples(lambda _: 100.0), -1.0)) == ["duration_mismatch"]


def test_without_a_meter_there_is_no_energy_and_no_reproach() -> None:
    none = meter("none", "none", devices=())
    energy = window_energy(columns([]), none, window())
    assert (energy.energy_j, energy.kind, codes(energy)) == (None, "none", ["no_meter"])


def test_an_estimate_says_so_and_is_checked_against_nothing() -> None:
    rows = samples(lambda _: 40.0, lambda t: 40.0 * t, gpu="cpu")
    energy = of(rows, meter=meter("cpu-estimate", "estimate", ("cpu",)))
    assert (energy.source, energy.kind, energy.boundary) == ("estimate", "estimate", "estimate")
    assert energy.energy_j == pytest.approx(400.0)
    assert energy.check_ratio is None


def test_devices_are_summed_and_differing_sources_are_called_mixed() -> None:
    rows = samples(lambda _: 100.0, lambda t: 100.0 * t) + samples(lambda _: 50.0, gpu="GPU-1")
    energy = of(rows, meter=meter(devices=(GPU, "GPU-1")))
    assert energy.energy_j == pytest.approx(1500.0)
    assert energy.source == "mixed"
    assert energy.average_power_w == pytest.approx(150.0)
    assert [gpu.average_power_w for gpu in energy.gpus] == [pytest.approx(100.0), pytest.approx(50.0)]
    assert energy.semantics_version == SEMANTICS_VERSION


def test_a_mig_slice_is_looked_for_under_its_board() -> None:
    energy = of(samples(lambda _: 100.0), meter=meter(energy_kind="attributed"), expected_gpus=("MIG-7",))
    assert energy.energy_j == pytest.approx(1000.0)
    assert energy.kind == "attributed"


def test_active_energy_subtracts_the_median_of_the_first_baseline_that_was_measured() -> None:
    rows = samples(lambda t: 20.0 if t < -4 else 50.0 if t < -0.5 else 100.0, begin_s=-8)
    rows[5]["power_instant_mw"] = 900_000  # a spike does not move a median
    events = phase("baseline_bare", -7.9, -4.1) + phase("baseline_loaded", -3.9, -0.6)
    energy = of(rows, events=events)
    assert [(one.name, one.power_w) for one in energy.baselines] == [
        ("baseline_bare", 20.0),
        ("baseline_loaded", 50.0),
    ]
    assert energy.active_over == "baseline_bare"
    assert energy.active_j == pytest.approx(800.0)


def test_a_baseline_of_too_few_samples_is_not_used() -> None:
    energy = of(samples(lambda _: 100.0), events=phase("baseline_bare", -0.35, -0.05))
    assert (energy.baselines, energy.active_j) == ((), None)


def requests(first_s: float, second_token_s: float | None = None) -> list[dict[str, Any]]:
    return [
        {
            "phase": "measure",
            "iteration": i,
            "t_submit_mono_ns": at_ns(5.0 * i),
            "t_first_mono_ns": at_ns(5.0 * i + first_s),
            "t_last_mono_ns": at_ns(5.0 * i + 5.0),
            "token_mono_ns": [at_ns(5.0 * i + first_s), at_ns(5.0 * i + (second_token_s or first_s + 0.1))],
        }
        for i in range(2)
        for _ in range(2)
    ]


def measured(rows: list[dict[str, Any]]) -> Requests:
    return Requests.of(pa.Table.from_pylist(rows, schema=REQUESTS_SCHEMA))


def test_prefill_and_decode_are_told_apart_where_the_prefill_is_resolved() -> None:
    energy = of(samples(lambda t: 300.0 if 0 <= t % 5 < 0.999 else 100.0), requests=measured(requests(1.0)))
    assert energy.prefill_j == pytest.approx(2 * (300 - 10 + 5), rel=0.06)
    assert energy.decode_j == pytest.approx(2 * 4 * 100, rel=0.06)


def test_prefill_is_where_its_requests_are_however_late_in_the_window_the_first_is_sent() -> None:
    """One iteration from 5 s on: 300 W while it prefills for a second, then 100 W; before it, 200 W."""
    rows = samples(lambda t: 200.0 if t < 4.95 else 300.0 if t < 5.999 else 100.0)
    energy = of(rows, requests=measured(requests(1.0)[2:]))
    assert energy.prefill_j == pytest.approx(300 - 10 + 5, rel=0.06)
    assert energy.decode_j == pytest.approx(4 * 100, rel=0.06)


def test_requests_of_no_batch_are_not_split_into_prefill_and_decode() -> None:
    rows = [one | {"iteration": None} for one in requests(1.0)]
    energy = of(samples(lambda _: 100.0), requests=measured(rows))
    assert (energy.prefill_j, energy.decode_j) == (None, None)


@pytest.mark.parametrize("rows", [requests(0.05), requests(1.0, 0.5), [{"phase": "measure", "iteration": 0}]])
def test_prefill_is_not_split_off_when_short_or_interleaved_or_untimed(rows: list[dict[str, Any]]) -> None:
    energy = of(samples(lambda _: 100.0), requests=measured(rows))
    assert (energy.prefill_j, energy.decode_j) == (None, None)


def test_tables_and_lists_give_the_same_energy() -> None:
    power = columns(samples(lambda t: 100 + t, lambda t: 100 * t + t * t / 2))
    found = {
        window_energy(kind, meter(), window()).energy_j
        for kind in (power, pa.table(power), pd.DataFrame(power), pd.DataFrame(power).convert_dtypes())
    }
    assert len(found) == 1


# Physics as properties: whatever the power does, energy adds up, shifts and scales.
POWERS = st.lists(st.integers(1_000, 700_000), min_size=20, max_size=80)
TENTHS = st.integers(1, 18)


def polyline(powers_mw: list[int], offset_s: float = 0.0) -> list[dict[str, Any]]:
    return [row(offset_s + i / 10, power_instant_mw=power) for i, power in enumerate(powers_mw)]


def energy_j(rows: list[dict[str, Any]], begin_s: float, end_s: float) -> float:
    energy = window_energy(columns(rows), meter(), window(end_s - begin_s, begin_s)).energy_j
    assert energy is not None
    return energy


@st.composite
def analytic(draw: st.DrawFn) -> tuple[Profile, Profile, float]:
    """Power, its integral, and the highest value of its second derivative."""
    base_w, change_w, tau_s = draw(st.floats(100, 400)), draw(st.floats(0, 90)), draw(st.floats(0.5, 30))
    kind = draw(st.sampled_from(["ramp", "sine", "warm-up"]))
    if kind == "ramp":
        return lambda t: base_w + change_w * t / 2, lambda t: base_w * t + change_w * t * t / 4, 0.0
    if kind == "sine":
        return (
            lambda t: base_w + change_w * math.sin(t / tau_s),
            lambda t: base_w * t - change_w * tau_s * math.cos(t / tau_s),
            change_w / tau_s**2,
        )
    return (
        lambda t: base_w - change_w * math.exp(-(t + 2) / tau_s),
        lambda t: base_w * t + change_w * tau_s * math.exp(-(t + 2) / tau_s),
        change_w / tau_s**2,
    )


@given(analytic(), st.floats(0, 0.1), st.floats(1, 9.9))
def test_the_integral_is_off_by_no_more_than_the_trapezoid_rule_allows(
    profile: tuple[Profile, Profile, float], begin_s: float, end_s: float
) -> None:
    power_w, integral_j, bend = profile
    found = energy_j(samples(power_w), begin_s, end_s)
    allowed_j = (end_s - begin_s + 0.2) * 0.1**2 / 12 * bend + 0.0005 * 10  # and powers are whole milliwatts
    assert abs(found - (integral_j(end_s) - integral_j(begin_s))) <= allowed_j


@given(POWERS, TENTHS, st.floats(0.01, 0.09))
def test_energy_of_adjoining_windows_adds_up(powers_mw: list[int], middle: int, beside_s: float) -> None:
    rows, between_s, end_s = (
        polyline(powers_mw),
        middle / 10 + beside_s / 10,
        (len(powers_mw) - 1) / 10 - 0.03,
    )
    parts = energy_j(rows, 0.02, between_s + 0.05) + energy_j(rows, between_s + 0.05, end_s)
    assert parts == pytest.approx(energy_j(rows, 0.02, end_s), rel=1e-6)


@given(POWERS, TENTHS)
def test_a_sample_on_the_line_or_a_repeated_one_changes_nothing(powers_mw: list[int], where: int) -> None:
    rows, end_s = polyline(powers_mw), (len(powers_mw) - 1) / 10 - 0.02
    between_mw = (powers_mw[where - 1] + powers_mw[where]) / 2
    on_line = row((where - 0.5) / 10, power_instant_mw=between_mw)
    before = energy_j(rows, 0.03, end_s)
    assert energy_j([*rows, on_line], 0.03, end_s) == pytest.approx(before, rel=1e-9)
    assert energy_j([*rows, dict(rows[where])], 0.03, end_s) == pytest.approx(before, rel=1e-9)


@given(POWERS, st.integers(-1_000_000, 1_000_000))
def test_energy_does_not_depend_on_when(powers_mw: list[int], shift_s: int) -> None:
    end_s = (len(powers_mw) - 1) / 10 - 0.02
    here = energy_j(polyline(powers_mw), 0.03, end_s)
    there = energy_j(polyline(powers_mw, shift_s), shift_s + 0.03, shift_s + end_s)
    assert there == pytest.approx(here, rel=1e-6)


@given(POWERS, st.integers(2, 5))
def test_energy_scales_with_power(powers_mw: list[int], factor: int) -> None:
    end_s = (len(powers_mw) - 1) / 10
    scaled = energy_j(polyline([factor * power for power in powers_mw]), 0.0, end_s)
    assert scaled == pytest.approx(factor * energy_j(polyline(powers_mw), 0.0, end_s), rel=1e-9)


@given(POWERS)
def test_the_order_of_rows_changes_nothing(powers_mw: list[int]) -> None:
    rows, end_s = polyline(powers_mw), (len(powers_mw) - 1) / 10
    assert energy_j(rows[::-1], 0.0, end_s) == energy_j(rows, 0.0, end_s)


@given(POWERS, st.integers(2, 10), st.integers(1, 8))
def test_a_gap_costs_at_most_what_power_varied_in_it(powers_mw: list[int], begin: int, length: int) -> None:
    rows, end_s = polyline(powers_mw), (len(powers_mw) - 1) / 10
    kept = [one for i, one in enumerate(rows) if not begin <= i < begin + length]
    inside = powers_mw[begin - 1 : begin + length + 1]
    bound_j = (max(inside) - min(inside)) / 1e3 * (length + 1) / 10
    assert abs(energy_j(kept, 0.0, end_s) - energy_j(rows, 0.0, end_s)) <= bound_j + 1e-6


@given(st.integers(10, 700), st.integers(1, 98))
def test_a_counter_reset_is_seen_wherever_it_happens(power_w: int, where: int) -> None:
    rows = samples(lambda _: power_w, lambda t: power_w * t, begin_s=-0.5, end_s=10.5)
    for one in rows:
        if one["t_before_mono_ns"] > at_ns(where / 10):
            one["energy_mj"] -= 9_900_000
    energy = of(rows)
    assert energy.gpus[0].counter_resets == 1
    assert energy.energy_j == pytest.approx(power_w * 10.0)


@pytest.mark.parametrize(("prefill_s", "told"), [(0.15, False), (0.25, True)])
def test_a_prefill_is_resolved_from_two_samples_on(prefill_s: float, told: bool) -> None:
    energy = of(samples(lambda _: 100.0), requests=measured(requests(prefill_s)))
    assert (energy.prefill_j is not None, energy.decode_j is not None) == (told, told)


def test_a_ramp_between_readings_is_integrated_exactly() -> None:
    """Of y = 100 t from 0.3 to 1.7: 50 (1.7^2 - 0.3^2)."""
    assert Curve(np.array([0.0, 1.0, 2.0]), np.array([0.0, 100.0, 200.0])).integral(
        0.3, 1.7
    ) == pytest.approx(140.0)
