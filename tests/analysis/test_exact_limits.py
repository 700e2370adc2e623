"""Both sides of limits that only an exact value tells apart, and small cases that can be had with a pencil."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llem_airflow.analysis.energy import EnergyOfWindow, mismatch, window_energy
from llem_airflow.analysis.latency import Requests
from llem_airflow.analysis.plausibility import (
    Withheld,
    broken_counter,
    ceiling,
    duration_mismatch,
    explained_j,
    slept_s,
    unusable,
    without_impossible,
)
from llem_airflow.analysis.series import (
    Curve,
    Labels,
    delay_s,
    phase_windows,
    rows_between,
    series_by_gpu,
)
from llem_airflow.protocol.result import Window
from llem_airflow.results.parquet import REQUESTS_SCHEMA
from tests.analysis.sampled import (
    GPU,
    T0_NS,
    asked,
    at_ns,
    columns,
    curve,
    cycle_result,
    meter,
    phase,
    read,
    row,
    samples,
    window,
)

# series


def test_a_curve_covers_what_lies_between_its_first_and_last_sample() -> None:
    one = curve((0.0, 1.0), (2.0, 3.0))
    assert one.covers(0.0, 2.0)
    assert not one.covers(-0.001, 1.0)
    assert not one.covers(1.0, 2.001)
    assert not curve((0.0, 1.0)).covers(0.0, 0.0)


def test_the_longest_gap_is_one_that_overlaps_the_window() -> None:
    one = curve((0.0, 1.0), (5.0, 1.0), (6.0, 1.0), (8.0, 1.0), (14.0, 1.0))
    assert one.longest_gap_s(5.0, 8.0) == 2.0
    assert one.longest_gap_s(4.9, 8.0) == 5.0
    assert one.longest_gap_s(5.0, 8.1) == 6.0
    assert one.longest_gap_s(6.2, 6.4) == 2.0
    assert curve((1.0, 1.0)).longest_gap_s(0.0, 2.0) == 0.0


def test_an_integral_is_that_of_the_straight_lines() -> None:
    one = curve((0.0, 0.0), (2.0, 4.0), (3.0, 10.0))  # 2 t, then 4 + 6 (t - 2)
    assert one.integral(0.5, 1.5) == pytest.approx(1.5**2 - 0.5**2)
    assert one.integral(1.0, 2.5) == pytest.approx((4 - 1) + 4 * 0.5 + 3 * 0.5**2)
    assert one.integral(2.0, 3.0) == pytest.approx(7.0)
    assert one.at(2.5) == pytest.approx(7.0)
    assert one.inside(0.0, 2.0).tolist() == [0.0, 4.0]
    assert rows_between(one.t_s, 2.0, 3.0) == slice(1, 3)


def test_labels_keep_their_order_and_what_is_no_text_is_not_known() -> None:
    found = Labels.of(["b", None, "a", "b", 7])
    assert (found.names, found.codes.tolist(), len(found)) == (("b", "a"), [0, -1, 1, 0, -1], 5)
    assert list(found) == ["b", None, "a", "b", None]
    assert [found[2], found[1]] == ["a", None]
    assert list(found.take(slice(2, 4))) == ["a", "b"]


def test_readings_become_seconds_watts_and_joules_of_each_device_in_time_order() -> None:
    cells = {"power_instant_mw": 1500, "power_average_mw": 2500, "energy_mj": 3500, "event_reasons": 4}
    rows = [
        {"t_before_mono_ns": at_ns(2), "t_after_mono_ns": at_ns(3), "gpu": "b", "error": "lost"},
        {"t_before_mono_ns": at_ns(1), "t_after_mono_ns": at_ns(1.5), "gpu": "a", **cells},
        {
            "t_before_mono_ns": at_ns(0),
            "t_after_mono_ns": at_ns(0.5),
            "gpu": "b",
            "temperature_c": 61,
            "utilisation_percent": 50,
        },
    ]
    found = series_by_gpu(columns(rows), T0_NS)
    assert list(found) == ["b", "a"]  # in the order in which they are first told
    assert found["b"].t_s == pytest.approx([0.25, 2.5])
    assert found["b"].call_s == pytest.approx([0.5, 1.0])
    assert list(found["b"].errors) == [None, "lost"]
    assert (found["b"].temperature_c[0], found["b"].utilisation_percent[0]) == (61, 50)
    one = found["a"]
    told = [one.instant_w[0], one.average_w[0], one.counter_j[0], one.event_reasons[0]]
    assert told == [1.5, 2.5, 3.5, 4]
    assert one.answered_t_s == pytest.approx([1.25])
    assert found["b"].answered_t_s.size == 0


def test_a_phase_window_has_both_marks_and_the_last_one_counts() -> None:
    events = [*phase("load", 0, 1), *phase("measure", 2, 3), *phase("measure", 4, 6)]
    events += [{"event": "phase_begin", "phase": "late", "t_mono_ns": 9}]
    events += [{"event": "phase_end", "phase": "unbegun", "t_mono_ns": 9}]
    events += [
        {"event": "progress", "phase": "load", "t_mono_ns": 9},
        {"event": "phase_end", "phase": "load"},
    ]
    assert phase_windows(events) == {"load": (at_ns(0), at_ns(1)), "measure": (at_ns(4), at_ns(6))}


@pytest.mark.parametrize("window_s", [0.2, 0.6, 1.0, 1.5])
@pytest.mark.parametrize("kind", ["mean", "exponential"])
def test_the_delay_of_averaged_power_is_that_of_its_filter(kind: str, window_s: float) -> None:
    """A square load, seen by an exact filter: half of the window of a mean, the time constant of an exponential."""
    t_s = np.arange(0, 40, 0.05)
    instant_w = np.where(np.floor(t_s / 3.713) % 2, 300.0, 100.0)
    fine_s = np.arange(-3, 40, 0.001)
    fine_w = np.where(np.floor(np.maximum(fine_s, 0) / 3.713) % 2, 300.0, 100.0)
    if kind == "mean":
        sums = np.concatenate([[0.0], np.cumsum(fine_w)]) * 0.001
        ends = np.round((t_s + 3) / 0.001).astype(int)
        average_w = (sums[ends] - sums[ends - round(window_s / 0.001)]) / window_s
        expected_s = window_s / 2
    else:
        tau_s = window_s / 2
        weights = np.exp(-np.arange(0, 8 * tau_s, 0.001) / tau_s)
        smooth = np.convolve(fine_w - 100, weights / weights.sum())[: len(fine_w)] + 100
        average_w = smooth[np.round((t_s + 3) / 0.001).astype(int)]
        expected_s = tau_s
    assert delay_s(t_s, instant_w, average_w) == pytest.approx(
        expected_s, abs=0.051
    )  # one step of the search
    assert delay_s(t_s, instant_w, instant_w) == 0.0


# plausibility


@pytest.mark.parametrize(
    ("limit_w", "most_w"), [(None, 5000.0), (0.0, 5000.0), (-1.0, 5000.0), (1.0, 1.5), (4000.0, 5000.0)]
)
def test_a_device_can_draw_half_more_than_its_limit(limit_w: float | None, most_w: float) -> None:
    assert ceiling(limit_w) == most_w


@pytest.mark.parametrize(
    ("said_w", "board", "kept"), [(0.5, True, True), (0.499, True, False), (0.0, False, True)]
)
@pytest.mark.parametrize("column", ["power_instant_mw", "power_average_mw"])
def test_a_power_may_be_as_low_as_that_of_an_idle_board(
    said_w: float, board: bool, kept: bool, column: str
) -> None:
    _, dropped = without_impossible(read(row(0) | {column: said_w * 1e3}), board=board, limit_w=100.0)
    assert (dropped.readings, dropped.worst_w) == ((0, None) if kept else (1, said_w))
    assert dropped.ceiling_w == 150.0


@pytest.mark.parametrize(("said_w", "kept"), [(150.0, True), (150.001, False)])
def test_a_power_may_be_as_high_as_what_the_board_can_draw(said_w: float, kept: bool) -> None:
    cleaned, dropped = without_impossible(
        read(row(0, power_instant_mw=said_w * 1e3)), board=True, limit_w=100.0
    )
    assert dropped.readings == (not kept)
    assert np.isnan(cleaned.instant_w[0]) == (not kept)


def test_the_worst_reading_is_the_one_furthest_from_zero_of_either_column() -> None:
    rows = [row(0, power_instant_mw=-7000), row(1, power_instant_mw=300_000, power_average_mw=-900_000)]
    _, dropped = without_impossible(read(*rows), board=True, limit_w=100.0)
    assert (dropped.readings, dropped.worst_w) == (2, -900.0)


def test_what_two_readings_of_one_instant_contradict_in_is_not_known() -> None:
    rows = [
        row(0, power_instant_mw=5000, energy_mj=1),
        row(1, power_instant_mw=5000, energy_mj=2),
        row(1, power_instant_mw=5000, energy_mj=3),
        row(2, power_instant_mw=5000, energy_mj=4),
    ]
    cleaned, dropped = without_impossible(read(*rows), board=True)
    assert cleaned.instant_w.tolist() == [5.0] * 4
    assert np.isnan(cleaned.counter_j).tolist() == [False, True, True, False]
    assert (dropped.readings, dropped.worst_w) == (2, None)


def test_a_counter_rises_by_what_can_be_drawn_since_two_of_its_steps_before() -> None:
    """Steps of 1 s at up to 100 W: a rise of 300 J in one of them is the most."""
    t_s = np.arange(8.0)
    for more_j, told in ((0.0, None), (0.5, "rose by 300 J in 1.00 s")):
        y = 50 * t_s + np.where(t_s > 4.5, 250 + more_j, 0.0)
        assert broken_counter(Curve(t_s, y), 0.0, 7.0, 100.0) == told
        assert broken_counter(Curve(t_s, y), 0.0, 4.0, 100.0) is None
        assert broken_counter(Curve(t_s, y), 5.0, 7.0, 100.0) is None
        assert broken_counter(Curve(t_s, y), 4.2, 4.4, 100.0) == told


@pytest.mark.parametrize(("steps", "told"), [(25, None), (26, "stood still for 2.6 s")])
def test_a_counter_may_stand_still_for_two_and_a_half_seconds(steps: int, told: str | None) -> None:
    t_s = np.arange(100) / 10
    tenths = np.arange(100)
    y = np.where((tenths >= 30) & (tenths <= 30 + steps), 3.0, t_s)
    assert broken_counter(Curve(t_s, y), 0.0, 9.0, 100.0) == told
    still = curve((0.0, 0.0), (1.0, 1.0), (4.0, 1.0), (5.0, 5.0))  # two readings alone are a gap
    assert broken_counter(still, 0.0, 5.0, 100.0) is None
    assert broken_counter(curve((0.0, 0.0)), 0.0, 5.0, 100.0) is None


def test_samples_leave_open_half_of_their_difference_and_all_of_a_gap() -> None:
    power = curve((0.0, 100.0), (0.5, 200.0), (1.0, 150.0), (1.6, 160.0), (1.7, 50.0))
    # 100 W x 0.5 s / 2 + 50 W x 0.5 s / 2 + 0.6 s x 200 W + 110 W x 0.1 s / 2
    assert explained_j(power, 0.0, 1.7) == pytest.approx(25 + 12.5 + 120 + 5.5)
    assert explained_j(power, 0.6, 0.9) == pytest.approx(12.5)
    assert explained_j(power, 0.5, 1.0) == pytest.approx(12.5)


@pytest.mark.parametrize(
    ("gap_s", "share", "slept"), [(2.5, 0.0, False), (2.6, 0.0, True), (2.6, 0.49, True), (2.6, 0.5, False)]
)
def test_the_machine_slept_where_the_counter_rose_by_less_than_half_of_the_lowest_power(
    gap_s: float, share: float, slept: bool
) -> None:
    rows = [
        row(t, power_instant_mw=power_mw, energy_mj=round(joules * 1e3))
        for t, power_mw, joules in (
            (0.0, 100_000, 0.0),
            (1.0, 100_000, 100.0),
            (1.0 + gap_s, 200_000, 100.0 + share * 100 * gap_s),
            (2.0 + gap_s, 200_000, 400.0),
        )
    ]
    assert slept_s(read(*rows), 0.0, 5.0) == pytest.approx(gap_s if slept else 0.0)
    assert slept_s(read(*rows), 0.0, 1.0) == 0.0  # the gap begins at the window's end
    assert slept_s(read(*rows), 1.0 + gap_s, 9.0) == 0.0


def withheld(found: Withheld | None) -> str | None:
    return None if found is None else found.code


@pytest.mark.parametrize(
    ("begin_s", "end_s", "source", "gap_s", "code"),
    [
        (0.0, 10.0, "integral_instant", 3.0, None),
        (0.0, 10.0, "integral_instant", 3.01, "gap_without_counter"),
        (0.0, 10.0, "counter", 9.0, None),
        (0.0, 10.0, None, 0.1, "no_energy"),
        (0.1, 10.0, None, 0.1, "not_bracketed"),
        (0.0, 9.9, None, 0.1, "not_bracketed"),
    ],
)
def test_why_a_device_has_no_energy(
    begin_s: float, end_s: float, source: str | None, gap_s: float, code: str | None
) -> None:
    one = read(row(begin_s, power_instant_mw=100_000), row(end_s, power_instant_mw=100_000))
    assert withheld(unusable(one, source, gap_s, 10.0)) == code


def test_a_device_that_told_nothing_but_errors_was_lost_at_the_begin() -> None:
    found = unusable(read(row(3.0, error="GPU is lost")), None, 0.0, 10.0)
    assert found is not None
    assert (
        found.message == f"{GPU} stopped answering (GPU is lost) 0.0 s into the measurement window of 10.0 s."
    )
    later = read(
        row(0, power_instant_mw=1), row(4.25, power_instant_mw=1), row(5, error="first"), row(6, error="x")
    )
    found = unusable(later, None, 0.0, 10.0)
    assert found is not None
    assert "(first) 4.2 s" in found.message
    nothing = unusable(read(row(1.0)), None, 0.0, 10.0)
    assert withheld(nothing) == "no_energy"


@pytest.mark.parametrize(
    ("begin_s", "end_s", "fits"),
    [(0.05, 9.95, True), (0.051, 10.0, False), (0.0, 9.949, False), (0.0, 10.0, True)],
)
def test_a_window_may_reach_fifty_milliseconds_beyond_its_phase(
    begin_s: float, end_s: float, fits: bool
) -> None:
    found = duration_mismatch(window(10.0), phase("measure", begin_s, end_s))
    assert (found is None) == fits
    assert withheld(duration_mismatch(Window(5, 5, 1, 1, 1, 1), [])) == "duration_mismatch"


@pytest.mark.parametrize(("mean_w", "told"), [(0.5, True), (0.51, False), (150.0, False), (150.1, True)])
def test_a_counter_without_power_has_a_mean_power_that_can_be(mean_w: float, told: bool) -> None:
    rows = [row(t, energy_mj=round(mean_w * t * 1e3)) for t in (i / 10 for i in range(-15, 320))]
    energy = window_energy(columns(rows), meter("nvml"), window(30.0), limits_w={GPU: 100.0})
    assert [one.code for one in energy.withheld] == ["implausible_counter"] * told


# energy of the window


def energy_of(rows: list[dict[str, Any]], duration_s: float = 10.0, **more: Any) -> EnergyOfWindow:
    return window_energy(columns(rows), more.pop("meter", meter()), window(duration_s), **more)


def test_every_number_of_two_devices_follows_from_their_samples() -> None:
    other = "GPU-1"
    rows = [*samples(lambda _: 100.0), *samples(lambda t: 50.0 + t, gpu=other)]
    for one in rows:
        if one["t_before_mono_ns"] < at_ns(-0.85):
            one["power_instant_mw"] = {GPU: 20_000, other: 10_000}[one["gpu"]]
    rows[2]["power_instant_mw"] = 26_000
    energy = energy_of(rows, meter=meter(devices=(GPU, other)), events=phase("baseline_bare", -1.5, -0.9))
    assert energy.energy_j == pytest.approx(1000 + 500 + 50)
    assert energy.average_power_w == pytest.approx(155.0)
    assert [gpu.average_power_w for gpu in energy.gpus] == pytest.approx([100.0, 55.0])
    assert [gpu.max_power_w for gpu in energy.gpus] == pytest.approx([100.0, 60.0])
    assert [gpu.samples for gpu in energy.gpus] == [101, 101]
    assert [gpu.longest_gap_s for gpu in energy.gpus] == pytest.approx([0.1, 0.1])
    (bare,) = energy.baselines
    assert (bare.power_w, bare.samples) == pytest.approx((30.0, 7))
    # one of seven samples 6 W higher: a variance of 36 (1 - 1/7) / 6
    assert bare.sd_w == pytest.approx(math.sqrt(36 * (6 / 7) / 6))
    assert energy.active_j == pytest.approx(1550 - 30 * 10)
    assert (energy.active_over, energy.source, energy.uncertainty_j) == (
        "baseline_bare",
        "integral_instant",
        None,
    )


def test_the_check_is_the_integral_over_the_counter_of_all_devices_together() -> None:
    other = "GPU-1"
    rows = [
        *samples(lambda _: 101.0, lambda t: 100.0 * t),
        *samples(lambda _: 306.0, lambda t: 300.0 * t, gpu=other),
    ]
    energy = energy_of(rows, meter=meter(devices=(GPU, other)))
    assert [gpu.check_ratio for gpu in energy.gpus] == pytest.approx([0.01, 0.02], rel=1e-3)
    assert energy.check_ratio == pytest.approx(4070 / 4000 - 1, rel=1e-3)


def test_a_baseline_of_an_earlier_cycle_says_where_it_was_measured() -> None:
    told = {"name": "baseline_loaded", "power_w": 12.0, "sd_w": 1.0, "samples": 9}
    events = [{"event": "baselines_reused", "measured_in": "exp/cycle-1", "baselines": [told]}]
    energy = energy_of(samples(lambda _: 100.0), events=events)
    (one,) = energy.baselines
    assert dataclasses.asdict(one) == told | {"measured_in": "exp/cycle-1"}
    assert energy.active_j == pytest.approx(1000 - 120)


def test_idle_power_that_is_taken_over_stands_beside_what_the_cycle_measured_itself() -> None:
    told = [
        {"name": name, "power_w": power_w, "sd_w": 1.0, "samples": 9}
        for name, power_w in (("baseline_bare", 12.0), ("baseline_loaded", 90.0))
    ]
    events = [
        {"event": "baselines_reused", "measured_in": "the session's start", "baselines": told},
        *phase("baseline_loaded", -1.5, -0.9),
    ]
    energy = energy_of(samples(lambda _: 100.0), events=events)
    assert [(one.name, one.power_w, one.measured_in) for one in energy.baselines] == [
        ("baseline_bare", 12.0, "the session's start"),
        ("baseline_loaded", 100.0, ""),
    ]
    assert energy.active_over == "baseline_bare"
    assert energy.active_j == pytest.approx(1000 - 120)


def test_a_curve_of_one_sample_splits_nothing() -> None:
    table = pa.Table.from_pylist([asked(0.0)], schema=REQUESTS_SCHEMA)
    rows = [
        row(t, power_instant_mw=None if t else 100_000, energy_mj=round((t + 9) * 1e5)) for t in range(-2, 12)
    ]
    energy = energy_of(rows, requests=Requests.of(table))
    assert (energy.prefill_j, energy.decode_j) == (None, None)


@pytest.mark.parametrize(
    ("used", "told"), [([GPU], None), ([GPU, "GPU-2", "GPU-3"], "GPU-2, GPU-3"), ([], None), (None, None)]
)
def test_gpus_that_the_meter_did_not_read_are_named(used: list[str] | None, told: str | None) -> None:
    result = dataclasses.replace(cycle_result(window(), meter()), model={"device": "cuda", "gpu_uuids": used})
    expected = None if told is None else f"The model ran on {told}, which the meter did not read ({GPU})."
    assert mismatch(result) == expected
