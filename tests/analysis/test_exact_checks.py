"""A cycle's checks, a server and its latencies: both sides of each limit, by exact values."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from llem_airflow.analysis.checks import flags
from llem_airflow.analysis.contrast import Measured, answer
from llem_airflow.analysis.energy import mismatch, window_energy
from llem_airflow.analysis.latency import Requests, distribution, e2el_s, good_requests, tpot_s, ttft_s
from llem_airflow.analysis.plausibility import (
    broken_counter,
    duration_mismatch,
    explained_j,
)
from llem_airflow.analysis.power_checks import iteration_bias_ratio, mser5_cut, power_drift_ratio
from llem_airflow.analysis.series import (
    UnreadableSeriesError,
    series_by_gpu,
)
from llem_airflow.analysis.serving import Slo, backlog, server_rows, serving_flags, serving_measures
from llem_airflow.analysis.statistics import outliers
from llem_airflow.analysis.verdict import compare, compare_pairs
from llem_airflow.protocol.result import Anchor, CpuTime, Served, Warmup
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
    row,
    samples,
    window,
)

# checks of a cycle


def codes(rows: list[dict[str, Any]], duration_s: float = 60.0, **changes: Any) -> dict[str, str]:
    events = changes.pop("events", ())
    the_meter = changes.pop("meter", meter())
    result = dataclasses.replace(cycle_result(window(duration_s), the_meter), **changes)
    energy = window_energy(columns(rows), the_meter, result.window, events=events)
    return {flag.code: flag.message for flag in flags(result, energy, events=events)}


def steady(**cells: Any) -> list[dict[str, Any]]:
    return [one | cells for one in samples(lambda _: 300.0, lambda t: 300.0 * t, end_s=61.5)]


@pytest.mark.parametrize(
    ("cv", "said"),
    [(0.025, "after 12 iterations (CV of the last ones 2.5%): why"), (None, "after 12 iterations: why")],
)
def test_a_warm_up_that_hit_its_cap_tells_its_scatter_where_it_is_known(cv: float | None, said: str) -> None:
    found = codes(steady(), warmup=Warmup("cap_iterations", 12, 5.0, cv, "why"))
    assert found["warmup_not_converged"].endswith(said)


@pytest.mark.parametrize(("idle_w", "told"), [(299.0, False), (300.5, True)])
def test_active_energy_is_above_nothing(idle_w: float, told: bool) -> None:
    events = [
        {
            "event": "baselines_reused",
            "measured_in": "x",
            "baselines": [{"name": "baseline_bare", "power_w": idle_w, "sd_w": 1.0, "samples": 9}],
        }
    ]
    assert ("baseline_above_load" in codes(steady(), events=events)) == told


@pytest.mark.parametrize(
    ("active_j", "told"), [(None, False), (0.5, False), (0.0, True), (-0.5, True), (-60.0, True)]
)
def test_active_energy_has_to_be_above_nothing(active_j: float | None, told: bool) -> None:
    result = cycle_result(window(60.0), meter())
    energy = window_energy(columns(steady()), meter(), result.window)
    seen = flags(result, dataclasses.replace(energy, active_j=active_j, active_over="baseline_bare"))
    assert ("baseline_above_load" in {flag.code for flag in seen}) == told


def test_joules_of_another_program_are_told_as_such() -> None:
    result = cycle_result(window(60.0), meter(note="By X 1.0."))
    energy = window_energy(columns(steady()), result.meter, result.window)
    (found,) = (
        flag
        for flag in flags(result, dataclasses.replace(energy, source="reported"))
        if flag.code == "reported"
    )
    assert found.severity == "info"
    assert found.message == "Energy was reported by another program and cannot be computed again. By X 1.0."
    assert "reported" not in {flag.code for flag in flags(result, energy)}


@pytest.mark.parametrize(("step_s", "told"), [(0.5, False), (0.6, True), (-0.6, True)])
def test_a_clock_is_set_between_the_first_and_the_last_anchor(step_s: float, told: bool) -> None:
    anchors = [Anchor(at_ns(t_s), 10**18 + round(t_s * 1e9)) for t_s in (-20.0, 0.0)]
    anchors.append(Anchor(at_ns(20.0), 10**18 + round((20.0 + step_s) * 1e9)))
    found = codes(steady(), anchors=tuple(anchors))
    assert ("clock_step" in found) == told
    if told:
        assert found["clock_step"].startswith(f"The wall clock was set by {step_s:+.1f} s during the cycle")


@pytest.mark.parametrize(("others_s", "told"), [(0.0, False), (-1.0, False), (0.2, False), (0.21, True)])
def test_others_may_use_a_tenth_of_the_host_s_cores_in_the_shortest_window(
    others_s: float, told: bool
) -> None:
    estimate = meter("cpu-estimate", "estimate", ("cpu",))
    found = codes(
        [one | {"gpu": "cpu"} for one in steady()],
        1.0,
        meter=estimate,
        cpu=CpuTime(0.5, 0.5 + others_s, 2),
    )
    assert ("foreign_load" in found) == told


@pytest.mark.parametrize(("samples_", "told"), [(0, False), (1, True), (100, True)])
def test_a_sampler_that_died_had_written_something(samples_: int, told: bool) -> None:
    found = codes(steady(), meter=meter(achieved_hz=None, samples=samples_))
    assert ("sampler_died" in found) == told


def iterations(durations_s: list[float]) -> list[dict[str, Any]]:
    return [
        {"event": "iteration", "phase": "measure", "duration_s": one, "output_tokens": 5}
        for one in durations_s
    ]


def test_a_ramp_is_biased_by_its_halves_and_few_iterations_tell_nothing() -> None:
    ramp_s = [float(k) for k in range(1, 41)]  # no steady state: 10.5 against 30.5
    assert iteration_bias_ratio(iterations(ramp_s)) == pytest.approx(10.5 / 30.5 - 1)
    assert iteration_bias_ratio(iterations(ramp_s[:20])) == pytest.approx(5.5 / 15.5 - 1)
    assert iteration_bias_ratio(iterations(ramp_s[:19])) is None


def test_power_drifts_from_the_median_of_the_first_third_to_that_of_the_last() -> None:
    rows = [row(t / 10, power_instant_mw=round((100 + t / 10) * 1e3)) for t in range(301)]
    series = series_by_gpu(columns(rows), T0_NS).values()
    assert power_drift_ratio(series, 30.0) == pytest.approx(125 / 105 - 1)
    assert power_drift_ratio(series, 2.9) == pytest.approx((100 + 2.45) / (100 + 0.45) - 1)
    assert power_drift_ratio(series, 2.4) is None  # nine samples in each third, and ten are needed


# verdict and answer


def test_values_without_spread_are_equal_for_certain_or_different_for_certain() -> None:
    assert compare((2.0, 2.0), (2.0, 2.0), "lower").p == 1.0
    assert compare((2.0, 2.0), (2.0001, 2.0001), "lower").p == 0.0


# a server


def of(*rows: dict[str, Any]) -> Requests:
    return Requests.of(pa.Table.from_pylist(list(rows), schema=REQUESTS_SCHEMA))


def test_one_row_of_the_server_is_read_and_both_ends_of_the_window_count() -> None:
    text = "t_mono_ns,waiting\n{},3\n"
    for at_s, found in ((0, [3.0]), (10, [3.0]), (10.001, []), (-0.001, [])):
        seen = server_rows(text.format(at_ns(at_s)), window(10.0))
        assert seen["waiting"].tolist() == found


def test_the_backlog_s_slope_is_that_of_the_line_through_the_means_of_ten_parts() -> None:
    """One request more each second, none done: from 1 to 10 in ten seconds."""
    due_ns = np.array([float(at_ns(k)) for k in range(10)])
    found = backlog(due_ns, np.full(10, np.nan), window(10.0))
    assert found.slope_per_s == pytest.approx(1.0)
    assert found.requests[[0, 19, 20, -1]].tolist() == [1, 1, 2, 10]
    assert found.t_s[[0, 1, -1]] == pytest.approx([0.0, 0.05, 9.95])
    assert found.p == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("slope_per_s", "p", "due", "told"),
    [
        (0.5, 0.0099, 100, True),  # 5 of 100 requests in 10 s
        (0.499, 0.0099, 100, False),
        (0.5, 0.01, 100, False),
        (0.3, 0.001, 10, True),  # 3 are the fewest
        (0.299, 0.001, 10, False),
        (9.0, None, 10, False),
    ],
)
def test_a_backlog_grows_by_a_twentieth_of_the_requests_and_by_three(
    slope_per_s: float, p: float | None, due: int, told: bool
) -> None:
    seen = dataclasses.replace(backlog(np.array([]), np.array([]), window()), slope_per_s=slope_per_s, p=p)
    assert seen.saturated(10.0, due) == told


@pytest.mark.parametrize(("late_ms", "told"), [(25.0, False), (25.01, True), (900.0, True)])
def test_a_client_may_be_late_by_a_twentieth_of_the_median_first_token(late_ms: float, told: bool) -> None:
    served = Served(("serve",), 5.0, 0.5, 5, late_ms, 1.0, 20.0)
    nothing = backlog(np.array([]), np.array([]), window())
    requests = of(asked(0.0, 0.1), asked(1.0, 0.5), asked(2.0, 0.9))
    found = {one.code: one.message for one in serving_flags(requests, served, window(), nothing)}
    assert ("client_late" in found) == told
    if told:
        said = f"99th percentile {late_ms:.1f} ms, against a median time to first token of 500.0 ms"
        assert said in found["client_late"]


@pytest.mark.parametrize(("late_ms", "told"), [(1.0, False), (1.01, True)])
def test_a_millisecond_is_never_late(late_ms: float, told: bool) -> None:
    served = Served(("serve",), 5.0, 0.5, 5, late_ms, 1.0, 20.0)
    nothing = backlog(np.array([]), np.array([]), window())
    found = [one.code for one in serving_flags(of(), served, window(), nothing)]
    assert found == ["client_late"] * told


@pytest.mark.parametrize(("devices", "told"), [(2, False), (3, True)])
def test_every_device_is_read_in_turn(devices: int, told: bool) -> None:
    """20 ms each at ten readings a second: two take 40 of 100 ms, three 60."""
    found = codes(steady(), meter=meter(devices=(GPU,) * devices, call_p50_s=0.02))
    assert ("slow_reads" in found) == told
    if told:
        assert found["slow_reads"] == "Reading all devices takes 60 ms of the 100 ms between samples."


@pytest.mark.parametrize(("cpu_s", "told"), [(16.0, False), (16.1, True)])
def test_a_client_may_use_four_fifths_of_a_core(cpu_s: float, told: bool) -> None:
    served = Served(("serve",), 5.0, 0.5, 5, 0.1, cpu_s, 20.0)
    nothing = backlog(np.array([]), np.array([]), window())
    found = [one.code for one in serving_flags(of(), served, window(), nothing)]
    assert found == ["client_busy"] * told


@pytest.mark.parametrize(("percentile", "met"), [(0.75, 1.0), (0.76, 0.0)])
def test_the_bounds_are_met_from_their_percentile_on(percentile: float, met: float) -> None:
    requests = of(asked(0.0, 0.1), asked(1.0, 0.1), asked(2.0, 0.1), asked(3.0, 0.9))
    served = Served(("serve",), 5.0, 0.5, 4, 0.1, 1.0, 20.0)
    found = serving_measures(
        requests, served, window(10.0), slo=Slo(0.5, None, percentile), energy_j=60.0, idle_w=None, server={}
    )
    assert found["slo_met_ratio"] == met
    assert found["slo_attainment_ratio"] == 0.75
    assert found["energy_per_good_request_j"] == 20.0
    assert found["goodput_requests_per_s"] == pytest.approx(0.3)


def test_times_of_requests_count_from_the_first_of_them() -> None:
    requests = of(asked(3.0), asked(1.0, status="error"))
    assert requests.origin_ns == at_ns(1.0)
    assert requests.submit_ns.tolist() == [2e9, 0.0]
    assert (requests.first_ns[0], requests.last_ns[0], requests.second_ns[0]) == (2.5e9, 3e9, 2.75e9)
    assert np.isnan([requests.first_ns[1], requests.last_ns[1], requests.output_tokens[1]]).all()
    assert requests.end_ns.tolist() == [3e9, 1e9]
    assert (requests.tokens, requests.tokens_from.tolist(), requests.disordered) == (3, [0, 3, 6], 0)
    assert requests.failed.tolist() == [False, True]


def test_nothing_measured_is_said() -> None:
    assert answer([Measured("a", "A", {}, ())], 2, 0).sentence.startswith("Nothing was measured")


def timed(tokens_s: list[float], n: int | None = None, **cells: Any) -> dict[str, Any]:
    """A request of time 0 whose tokens came at some instants."""
    times = [at_ns(t) for t in tokens_s]
    marks = {"t_first_mono_ns": times[0], "t_last_mono_ns": times[-1]} if times else {}
    return {
        "phase": "measure",
        "t_submit_mono_ns": at_ns(0),
        "token_mono_ns": times,
        "output_tokens": len(times) if n is None else n,
        **marks,
        **cells,
    }


def test_two_tokens_have_one_time_between_them_and_one_at_the_submission_is_in_order() -> None:
    requests = of(timed([0.5, 0.75]), timed([0.0]), timed([1.0]))
    assert tpot_s(requests)[0] == 0.25
    assert np.isnan(tpot_s(requests)[1:]).all()
    assert ttft_s(requests).tolist() == [0.5, 0.0, 1.0]
    assert e2el_s(requests).tolist() == [0.75, 0.0, 1.0]
    assert requests.disordered == 0
    assert requests.second_ns.tolist() == [0.75e9, np.inf, np.inf]
    assert requests.iteration.tolist() == [-1, -1, -1]
    assert of(timed([1.0], iteration=3)).iteration.tolist() == [3]


def test_a_latency_equal_to_its_limit_meets_it() -> None:
    requests = of(timed([0.5, 0.75]), timed([0.5]), timed([], 0))
    for limits_s, good in (
        ({"ttft": 0.5}, [True, True, False]),
        ({"ttft": 0.499}, [False, False, False]),
        ({"tpot": 0.25}, [True, True, False]),
        ({"tpot": 0.249}, [False, True, False]),
        ({"e2el": 0.75}, [True, True, False]),
        ({"e2el": 0.749}, [False, True, False]),
    ):
        assert good_requests(requests, limits_s).tolist() == good


@pytest.mark.parametrize(("share", "fewest"), [("p90_s", 10), ("p95_s", 20), ("p99_s", 100)])
def test_a_percentile_is_told_from_its_fewest_values_on(share: str, fewest: int) -> None:
    for n in (fewest - 1, fewest):
        found = distribution(np.arange(n, dtype=float))
        assert found is not None
        expected = np.percentile(np.arange(n), int(share[1:3]))
        assert getattr(found, share) == (None if n < fewest else pytest.approx(expected))
        assert (found.n, found.mean_s, found.p50_s) == (n, (n - 1) / 2, (n - 1) / 2)
    assert distribution(np.array([np.nan])) is None


def test_pairs_without_spread_on_one_side_are_judged_by_the_other() -> None:
    exact = compare_pairs((1.0, 1.0, 1.0), (2.0, 2.0, 2.0), "lower")
    assert (exact.p, exact.low_ratio, exact.reason) == (0.0, 1.0, "no spread on either side: exact")
    for a, b in (((1.0, 1.0, 1.0), (2.0, 2.2, 2.1)), ((2.0, 2.2, 2.1), (1.0, 1.0, 1.0))):
        found = compare_pairs(a, b, "lower")
        apart = np.array(b) / np.mean(b) - np.array(a) / np.mean(a) + math.log(np.mean(b) / np.mean(a))
        assert found.p == pytest.approx(stats.ttest_1samp(apart, 0.0).pvalue)
        assert found.reason == ""


def test_values_of_which_most_are_equal_have_no_outlier() -> None:
    assert outliers((1.0, 1.0, 1.0, 5.0)) == ()


@pytest.mark.parametrize("seed", range(20))
def test_mser_5_cuts_where_the_mean_is_known_best(seed: int) -> None:
    """White 1997: the least sum of squares around the mean of what is left / its number squared, in batches of 5."""
    rng = np.random.default_rng(seed)
    values = rng.normal(10, 1, int(rng.integers(20, 90)))
    values[: int(rng.integers(0, 30))] += rng.uniform(0, 6)
    k = len(values) // 5
    batches = [float(np.mean(values[5 * i : 5 * i + 5])) for i in range(k)]
    scores = [
        sum((one - sum(batches[d:]) / (k - d)) ** 2 for one in batches[d:]) / (k - d) ** 2
        for d in range(k // 2 + 1)
    ]
    best = scores.index(min(scores))
    assert mser5_cut(values.tolist()) == (5 * best if best < k // 2 else None)


def test_a_window_may_begin_before_the_first_sample() -> None:
    power = curve((0.0, 100.0), (0.5, 200.0), (1.0, 150.0))
    assert explained_j(power, -1.0, 1.0) == pytest.approx(25 + 12.5)
    jump = curve((0.0, 0.0), (1.0, 900.0), (2.0, 910.0), (3.0, 920.0))
    for begin_s in (-1.0, 0.0):
        assert broken_counter(jump, begin_s, 3.0, 100.0) == "rose by 900 J in 1.00 s"


def test_a_window_outside_of_its_phase_says_both_lengths() -> None:
    found = duration_mismatch(window(10.0), phase("measure", 2.0, 9.5))
    assert found is not None
    assert "window of 10.00 s lies outside the measure phase of 7.50 s" in found.message


@pytest.mark.parametrize("device", ["", "meta", None, 7])
def test_a_device_that_is_not_told_contradicts_no_meter(device: Any) -> None:
    result = dataclasses.replace(cycle_result(window(), meter("rapl")), model={"device": device})
    assert mismatch(result) is None


@pytest.mark.parametrize("column", ["gpu", "error", "energy_mj", "t_before_mono_ns"])
def test_a_series_without_a_column_says_which(column: str) -> None:
    power = columns([row(0)])
    del power[column]
    with pytest.raises(UnreadableSeriesError, match=f"column {column} is missing"):
        series_by_gpu(power, T0_NS)


def test_a_frozen_counter_is_told_where_it_brackets_the_window() -> None:
    for begin_s, told in ((0.0, True), (0.1, False)):
        rows = [
            row(t, power_instant_mw=300_000, energy_mj=5 if t >= begin_s else None)
            for t in (i / 10 for i in range(-15, 616))
        ]
        assert ("counter_frozen" in codes(rows)) == told


@pytest.mark.parametrize("from_s", [0.0, 3.0, 6.0])
def test_a_counter_that_stands_still_is_broken_at_the_begin_in_the_middle_and_at_the_end(
    from_s: float,
) -> None:
    """It rises by 30 J ten times a second, but for four seconds."""
    times_s = [k / 10 for k in range(101)]
    moved_s = [t - min(max(t - from_s, 0.0), 4.0) for t in times_s]
    found = broken_counter(
        curve(*((t, round(300.0 * m)) for t, m in zip(times_s, moved_s, strict=True))), 0.0, 10.0, 1000.0
    )
    assert found in {"stood still for 3.9 s", "stood still for 4.0 s"}
