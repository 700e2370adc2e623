"""Every flag is raised by what it is about, alone, and says what to do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pynvml
import pytest

from llem_airflow.analysis.checks import flags
from llem_airflow.analysis.energy import window_energy
from llem_airflow.analysis.flags import Flag
from llem_airflow.analysis.power_checks import iteration_bias_ratio, mser5_cut, power_drift_ratio
from llem_airflow.analysis.series import series_by_gpu
from llem_airflow.protocol.result import Anchor, CpuTime, CycleResult, Meter
from tests.analysis.sampled import (
    GPU,
    Profile,
    at_ns,
    columns,
    cycle_result,
    meter,
    phase,
    samples,
    window,
)


def good_rows(power_w: Profile = lambda _: 300.0, **changes: Any) -> list[dict[str, Any]]:
    rows = samples(power_w, lambda t: 300.0 * t, end_s=61.5)
    for one in rows:
        one |= {"event_reasons": 0, "temperature_c": 60, **changes}
    return rows


def of(
    rows: list[dict[str, Any]],
    *,
    the_meter: Meter | None = None,
    duration_s: float = 60.0,
    warmup: str = "converged",
    events: Sequence[Mapping[str, Any]] = (),
    anchors: tuple[Anchor, ...] | None = None,
    **seen: Any,
) -> tuple[Flag, ...]:
    the_meter = the_meter or meter()
    result = cycle_result(window(duration_s), the_meter, warmup)
    if anchors is not None:
        result = CycleResult(**{**result.__dict__, "anchors": anchors})
    power = columns(rows)
    energy = window_energy(power, the_meter, result.window, events=events)
    found = flags(result, energy, events=events, **seen)
    for flag in found:
        assert flag.next_step, flag.code
        assert flag.threshold, flag.code
        assert flag.severity in ("info", "warning", "error", "withheld")
    return found


def only(found: tuple[Flag, ...]) -> Flag:
    assert len(found) == 1, [flag.code for flag in found]
    return found[0]


def test_a_good_cycle_has_no_flag() -> None:
    assert of(good_rows()) == ()


@pytest.mark.parametrize(("duration_s", "severity"), [(8.0, "error"), (20.0, "warning")])
def test_a_short_window(duration_s: float, severity: str) -> None:
    flag = only(of(good_rows(), duration_s=duration_s))
    assert (flag.code, flag.severity) == ("short_window", severity)
    assert f"{duration_s} s long" in flag.message


@pytest.mark.parametrize(
    ("kind", "energy_kind", "duration_s", "told"),
    [
        ("cpu-estimate", "estimate", 12.0, False),
        ("cpu-estimate", "estimate", 4.0, True),
        ("rapl", "measured", 12.0, True),
        ("nvml", "measured", 12.0, True),
    ],
)
def test_only_a_board_s_window_is_held_against_its_register(
    kind: str, energy_kind: str, duration_s: float, told: bool
) -> None:
    found = of(good_rows(), the_meter=meter(kind, energy_kind), duration_s=duration_s)
    messages = [flag.message for flag in found if flag.code == "short_window"]
    assert len(messages) == told
    assert any("register" in text for text in messages) == (kind == "nvml")


def test_few_samples() -> None:
    rows = [one for i, one in enumerate(good_rows()) if i % 4]
    flag = only(of(rows))
    assert (flag.code, flag.message[:40]) == ("few_samples", "451 of 600 power samples that were due a")


def test_a_gap() -> None:
    rows = [one for one in good_rows() if not at_ns(20) < one["t_before_mono_ns"] < at_ns(21.5)]
    flag = only(of(rows))
    assert (flag.code, flag.message[:6]) == ("gap", "1.50 s")


def test_slow_reads() -> None:
    flag = only(of(good_rows(), the_meter=meter(call_p50_s=0.08)))
    assert (flag.code, flag.message) == (
        "slow_reads",
        "Reading all devices takes 80 ms of the 100 ms between samples.",
    )


def test_a_sampler_that_died_after_the_window() -> None:
    assert only(of(good_rows(), the_meter=meter(achieved_hz=None))).code == "sampler_died"


def test_a_throttled_run() -> None:
    rows = good_rows()
    for one in rows[100:130]:
        one["event_reasons"] = 0x40
    flag = only(of(rows))
    assert (flag.code, flag.severity) == ("throttled", "error")
    assert "5% of the samples" in flag.message


def test_a_power_cap_is_information() -> None:
    flag = only(of(good_rows(event_reasons=0x4)))
    assert (flag.code, flag.severity) == ("power_capped", "info")


def test_a_foreign_process() -> None:
    flag = only(of(good_rows(), environment={"gpus": [{"uuid": GPU, "processes": [{"pid": 77}]}]}))
    assert (flag.code, flag.severity) == ("foreign_process", "error")
    assert "pid 77" in flag.message


@pytest.mark.parametrize("kind", ["cpu-estimate", "rapl"])
def test_load_of_other_processes_is_told_where_the_meter_counts_the_whole_host(kind: str) -> None:
    result = cycle_result(window(60.0), meter(kind, "estimate" if kind == "cpu-estimate" else "measured"))
    energy = window_energy(columns(good_rows()), result.meter, result.window)

    def seen(own_s: float, host_s: float) -> dict[str, str]:
        found = flags(dataclasses.replace(result, cpu=CpuTime(own_s, host_s, 2)), energy)
        return {flag.code: flag.message for flag in found}

    assert "foreign_load" not in seen(60.0, 70.0)
    assert (
        "used 1.0 of the host's 2 cores in the measurement window, the experiment 0.7 cores"
        in seen(42.0, 102.0)["foreign_load"]
    )


def test_a_gpu_s_energy_is_not_of_the_host_s_processes() -> None:
    result = dataclasses.replace(cycle_result(window(60.0), meter()), cpu=CpuTime(1.0, 119.0, 2))
    energy = window_energy(columns(good_rows()), result.meter, result.window)
    assert "foreign_load" not in {flag.code for flag in flags(result, energy)}


def test_neighbours() -> None:
    flag = only(of(good_rows(), host={"neighbours": ["llem-other"]}))
    assert (flag.code, "llem-other" in flag.message) == ("neighbours", True)


def test_an_older_record_s_database_and_airflow_were_no_experiments() -> None:
    names = ["airflow-scheduler-1", "postgres", "traefik"]
    assert of(good_rows(), host={"neighbours": names}) == ()
    told = only(of(good_rows(), host={"neighbours": [*names, "llem-1-try1"]})).message
    assert told == "Other experiments ran on this host at the same time: llem-1-try1."


def foreign(cpus: float | None, gpus: tuple[str, ...] = (), name: str = "db") -> dict[str, Any]:
    return {"name": name, "image": "postgres:16", "gpus": list(gpus), "cpus": cpus}


@pytest.mark.parametrize(
    ("one", "host_cpus", "told"),
    [
        (foreign(3.14), 8, "container db (postgres:16) used 3.1 of the host's 8 CPUs."),
        (foreign(0.6), 2, "container db (postgres:16) used 0.6 of the host's 2 CPUs."),
        (foreign(0.6), 64, None),  # less than a tenth of the host
        (foreign(0.4), 2, None),  # less than half a CPU
        (foreign(None), 2, None),
        (foreign(0.0, ("GPU-a",)), 8, "container db (postgres:16) holds the same GPU GPU-a."),
        (
            foreign(4, ("GPU-a",)),
            8,
            "container db (postgres:16) holds the same GPU GPU-a and used 4.0 of the host's 8 CPUs.",
        ),
    ],
)
def test_a_foreign_container_is_told_with_what_it_took(
    one: dict[str, Any], host_cpus: int, told: str | None
) -> None:
    idle = foreign(0.01, name="airflow")
    flags = of(good_rows(), host={"neighbours": [], "foreign_containers": [idle, one], "cpus": host_cpus})
    if told is None:
        assert flags == ()
    else:
        assert (only(flags).code, only(flags).message) == (
            "foreign_container",
            f"Beside it on this host: {told}",
        )


def test_a_look_that_failed_is_said() -> None:
    seen = {"neighbours": None, "foreign_containers": None, "neighbours_unknown": "403 Forbidden"}
    flag = only(of(good_rows(), host=seen))
    assert (flag.code, "403 Forbidden" in flag.message) == ("neighbours_unknown", True)


def test_an_experiment_on_the_cpu_of_a_host_with_gpus_is_flagged() -> None:
    flag = only(of(good_rows(), host={"on_cpu": "the host has 2 NVIDIA GPU(s)"}))
    assert (flag.code, flag.severity) == ("on_cpu", "warning")


def test_a_privileged_container_is_flagged() -> None:
    flag = only(of(good_rows(), host={"privileged": True}))
    assert (flag.code, flag.severity) == ("privileged", "info")


def test_a_counter_that_disagrees_with_the_samples() -> None:
    flag = only(of(good_rows(lambda _: 310.0)))
    assert (flag.code, "+3.3%" in flag.message) == ("counter_disagreement", True)


def test_a_counter_that_agrees_within_three_percent_is_not_flagged() -> None:
    assert of(good_rows(lambda _: 308.0)) == ()


def test_no_counter() -> None:
    assert only(of(good_rows(energy_mj=None))).code == "no_counter"


def test_a_counter_that_is_frozen_from_the_start() -> None:
    flag = only(of(good_rows(energy_mj=5_000)))
    assert flag.code == "counter_frozen"
    assert f"{GPU} never moved" in flag.message


def test_an_uncertainty_that_is_not_characterised() -> None:
    rows = samples(lambda _: 300.0, lambda t: 300.0 * t, end_s=61.5, register_s=2.0)
    flag = only(of([one | {"event_reasons": 0, "temperature_c": 60} for one in rows]))
    assert flag.code == "uncertainty_not_characterised"
    assert "not characterised" in flag.message


def test_averaged_power_tells_whether_its_delay_is_known() -> None:
    rows = [one | {"power_average_mw": one["power_instant_mw"]} for one in good_rows(energy_mj=None)]
    flag = only(of([one | {"power_instant_mw": None} for one in rows]))
    assert flag.code == "no_counter"
    assert "do not tell" in flag.message


def test_a_counter_reset() -> None:
    rows = good_rows()
    for one in rows[300:]:
        one["energy_mj"] -= 10_000_000
    assert only(of(rows)).code == "counter_reset"


def test_a_temperature_that_moves() -> None:
    rows = good_rows()
    for i, one in enumerate(rows):
        one["temperature_c"] = 45 + i // 40
    assert only(of(rows)).code == "temperature_drift"


def test_power_over_the_limit() -> None:
    rows = good_rows()
    rows[50]["power_instant_mw"] = 500_000
    flag = only(of(rows, environment={"gpus": [{"uuid": GPU, "enforced_power_limit_w": 400.0}]}))
    assert (flag.code, "500 W" in flag.message) == ("over_limit", True)


@pytest.mark.parametrize(
    ("outcome", "code", "severity"),
    [
        ("cap_time", "warmup_not_converged", "warning"),
        ("cap_iterations", "warmup_not_converged", "warning"),
        ("fixed", "warmup_not_checked", "info"),
        ("disabled", "warmup_not_checked", "info"),
    ],
)
def test_a_warm_up_that_did_not_converge_or_was_not_checked(outcome: str, code: str, severity: str) -> None:
    flag = only(of(good_rows(), warmup=outcome))
    assert (flag.code, flag.severity) == (code, severity)
    assert ("(CV of the last ones 1.0%)" in flag.message) == outcome.startswith("cap_")


def test_power_that_drifts() -> None:
    rows = samples(lambda t: 300 + t / 2, lambda t: 300 * t + t * t / 4, end_s=61.5)
    flag = only(of(rows))
    assert (flag.code, "+6.6%" in flag.message) == ("drift", True)


def test_a_warm_up_with_slow_drift_that_reaches_into_the_window() -> None:
    events = [
        {"event": "iteration", "phase": "measure", "t_mono_ns": 0, "index": i, "duration_s": 1 + 0.3 * 0.9**i}
        for i in range(60)
    ]
    flag = only(of(good_rows(), events=events))
    assert (flag.code, "MSER-5" in flag.message) == ("drift", True)


def test_a_baseline_above_the_load() -> None:
    rows = [
        one | ({"power_instant_mw": 400_000} if one["t_before_mono_ns"] < at_ns(-1) else {})
        for one in samples(lambda _: 300.0, lambda t: 300.0 * t, begin_s=-9, end_s=61.5)
    ]
    flag = only(of(rows, events=phase("baseline_bare", -8, -2)))
    assert (flag.code, flag.severity) == ("baseline_above_load", "error")


def test_a_wall_clock_that_was_set_is_information() -> None:
    anchors = (Anchor(0, 10**18), Anchor(10**10, 10**18 + 12 * 10**9))
    flag = only(of(good_rows(), anchors=anchors))
    assert (flag.code, flag.severity, "+2.0 s" in flag.message) == ("clock_step", "info", True)


def test_an_estimate_is_information_with_its_assumptions() -> None:
    estimate = meter("cpu-estimate", "estimate", note="10 W idle to 65 W")
    flag = only(of(good_rows(), the_meter=estimate))
    assert (flag.code, flag.severity, "10 W idle to 65 W" in flag.message) == ("estimate", "info", True)


def test_an_attributed_energy() -> None:
    flag = only(of(good_rows(), the_meter=meter(energy_kind="attributed")))
    assert (flag.code, flag.severity) == ("attributed", "warning")


def test_a_stand_in_is_seen_by_the_meters_note_or_the_devices_name() -> None:
    assert only(of(good_rows(), the_meter=meter(note="STAND-IN driver"))).code == "stand_in"
    assert only(of(good_rows(), environment={"gpus": [{"name": "X (STAND-IN)"}]})).code == "stand_in"


# Reasons that take the number away: exactly one flag, and no decoration of a number that is not there.


def lost(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for one in rows:
        if one["t_before_mono_ns"] > at_ns(30):
            one.update(
                power_instant_mw=None,
                energy_mj=None,
                event_reasons=None,
                temperature_c=None,
                error="GpuIsLost",
            )
    return rows


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        (lost(good_rows()), "gpu_lost"),
        ([one for one in good_rows() if one["t_before_mono_ns"] < at_ns(50)], "not_bracketed"),
        (
            [one for one in good_rows(energy_mj=None) if not at_ns(9) < one["t_before_mono_ns"] < at_ns(15)],
            "gap_without_counter",
        ),
        ([], "gpu_missing"),
        ([one | {"power_instant_mw": math.inf} for one in good_rows()], "unreadable_series"),
    ],
)
def test_a_reason_that_withholds_the_energy_is_the_only_flag(rows: list[dict[str, Any]], code: str) -> None:
    flag = only(of(rows))
    assert (flag.code, flag.severity) == (code, "withheld")
    assert flag.message.startswith("Energy is not known: ")


def test_a_duration_mismatch_withholds() -> None:
    assert only(of(good_rows(), events=phase("measure", 0.0, 30.0))).code == "duration_mismatch"


def test_several_missing_gpus_are_one_flag() -> None:
    flag = only(of(good_rows(), the_meter=meter(devices=(GPU, "GPU-1", "GPU-2"))))
    assert flag.code == "gpu_missing"
    assert "GPU-1" in flag.message
    assert "GPU-2" in flag.message


def test_no_meter_is_information() -> None:
    flag = only(of([], the_meter=meter("none", "none", devices=())))
    assert (flag.code, flag.severity) == ("no_meter", "info")


def test_the_gravest_flag_comes_first() -> None:
    found = of(good_rows(event_reasons=0x44), duration_s=20.0)
    assert [flag.severity for flag in found] == ["error", "warning", "info"]


# MSER-5 by hand.


def test_mser5_cuts_the_batches_before_the_steady_state() -> None:
    values = [2.0] * 5 + [1.5] * 5 + [1.0, 1.01, 0.99, 1.0, 1.0] * 8
    assert mser5_cut(values) == 10


def test_mser5_keeps_everything_of_a_flat_series() -> None:
    assert mser5_cut([1.0, 1.02, 0.98, 1.01, 0.99] * 6) == 0


def test_mser5_cannot_tell_from_a_ramp_or_from_few_values() -> None:
    assert mser5_cut([float(i) for i in range(40)]) is None
    assert mser5_cut([1.0] * 19) is None


def test_the_bias_of_unsteady_iterations_is_relative_to_the_steady_ones() -> None:
    events = [
        {"event": "iteration", "phase": "measure", "duration_s": duration}
        for duration in [2.0] * 5 + [1.0] * 45
    ]
    assert iteration_bias_ratio(events) == pytest.approx(0.1)
    assert iteration_bias_ratio(events[:19]) is None
    assert iteration_bias_ratio(events[:20]) is not None


def test_a_smaller_last_batch_of_each_pass_is_no_drift() -> None:
    passes = [(64, 1.0)] * 6 + [(8, 0.2)]
    events = [
        {"event": "iteration", "phase": "measure", "output_tokens": tokens, "duration_s": duration}
        for tokens, duration in passes * 5
    ]
    assert iteration_bias_ratio(events) == pytest.approx(0.0)
    assert iteration_bias_ratio([]) is None


@pytest.mark.parametrize("bit", [1 << place for place in range(9)])
def test_a_clock_event_slows_the_gpu_where_heat_or_its_supply_is_the_reason(bit: int) -> None:
    """The reasons of nvml.h; idle, set clocks, sync boost and the display's clock are no slowdown."""
    slowdown = {
        pynvml.nvmlClocksEventReasonSwThermalSlowdown,
        pynvml.nvmlClocksEventReasonHwSlowdown,
        pynvml.nvmlClocksEventReasonHwThermalSlowdown,
        pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
    }
    wanted = ["throttled"] if bit in slowdown else []
    wanted += ["power_capped"] if bit == pynvml.nvmlClocksEventReasonSwPowerCap else []
    assert [flag.code for flag in of(good_rows(event_reasons=bit))] == wanted


@pytest.mark.parametrize(("set_by_s", "told"), [(0.5, False), (0.6, True), (-0.5, False), (-0.6, True)])
def test_a_wall_clock_that_was_set_by_more_than_half_a_second_is_told(set_by_s: float, told: bool) -> None:
    anchors = (Anchor(0, 10**18), Anchor(10**10, 10**18 + 10**10 + round(set_by_s * 1e9)))
    assert [flag.code for flag in of(good_rows(), anchors=anchors)] == ["clock_step"] * told


def test_a_drift_of_power_needs_ten_samples_in_the_first_and_in_the_last_third() -> None:
    """At 10 Hz each third of 3 s has ten, and at half of that it has not."""
    rows = samples(lambda t: 100.0 if t < 1.5 else 110.0, end_s=3.0)
    found = power_drift_ratio(series_by_gpu(columns(rows), at_ns(0)).values(), 3.0)
    assert found == pytest.approx(0.1)
    few = power_drift_ratio(series_by_gpu(columns(rows[::2]), at_ns(0)).values(), 3.0)
    assert few is None
