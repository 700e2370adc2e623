"""The limit of every check: what lies just within it raises nothing, what lies just beyond it does."""

from __future__ import annotations

from typing import Any

import pytest

from llem_airflow.analysis.checks import flags
from llem_airflow.analysis.energy import window_energy
from llem_airflow.protocol.result import CpuTime, CycleResult
from tests.analysis.sampled import GPU, at_ns, columns, cycle_result, meter, samples, window


def rows(power_w: float = 300.0, **changes: Any) -> list[dict[str, Any]]:
    found = samples(lambda _: power_w, lambda t: 300.0 * t, end_s=61.5)
    return [one | {"event_reasons": 0, "temperature_c": 60, **changes} for one in found]


def codes(
    power: list[dict[str, Any]],
    *,
    duration_s: float = 60.0,
    kind: tuple[str, str] = ("nvml", "measured"),
    changes: dict[str, Any] | None = None,
    said: dict[str, Any] | None = None,
    **of_meter: Any,
) -> list[str]:
    the_meter = meter(*kind, **of_meter)
    result = cycle_result(window(duration_s), the_meter, "converged")
    result = CycleResult(**{**result.__dict__, **(changes or {})})
    energy = window_energy(columns(power), the_meter, result.window)
    return [f"{flag.code}: {flag.severity}" for flag in flags(result, energy, **(said or {}))]


@pytest.mark.parametrize(
    ("duration_s", "told"),
    [
        (9.9, ["short_window: error"]),
        (10.0, ["short_window: warning"]),
        (29.9, ["short_window: warning"]),
        (30.0, []),
    ],
)
def test_a_window_is_short_below_30_seconds_and_very_short_below_10(
    duration_s: float, told: list[str]
) -> None:
    assert codes(rows(), duration_s=duration_s) == told


@pytest.mark.parametrize(("duration_s", "told"), [(4.9, True), (5.0, False)])
def test_an_estimate_needs_five_seconds(duration_s: float, told: bool) -> None:
    found = codes(rows(), duration_s=duration_s, kind=("cpu-estimate", "estimate"))
    assert ("short_window: warning" in found) is told


@pytest.mark.parametrize(("period_s", "told"), [(0.5, []), (0.6, ["gap: warning"])])
def test_five_sampling_periods_without_a_sample_are_a_gap(period_s: float, told: list[str]) -> None:
    lost = [one for one in rows() if not at_ns(20) < one["t_before_mono_ns"] < at_ns(20 + period_s)]
    assert codes(lost) == told


@pytest.mark.parametrize(("call_s", "told"), [(0.05, []), (0.051, ["slow_reads: warning"])])
def test_readings_may_take_half_a_sampling_period(call_s: float, told: list[str]) -> None:
    assert codes(rows(), call_p50_s=call_s) == told


@pytest.mark.parametrize("bit", [0x4, 0x40])
@pytest.mark.parametrize(("slowed", "told"), [(5, False), (8, True)])
def test_one_sample_in_a_hundred_may_be_slowed_down(bit: int, slowed: int, told: bool) -> None:
    power = rows()
    for one in power[100 : 100 + slowed]:
        one["event_reasons"] = bit
    assert codes(power) == {0x4: ["power_capped: info"], 0x40: ["throttled: error"]}[bit] * told


@pytest.mark.parametrize(("power_w", "told"), [(308.9, False), (309.1, True), (291.1, False), (290.9, True)])
def test_counter_and_integral_agree_within_three_per_cent(power_w: float, told: bool) -> None:
    assert codes(rows(power_w)) == ["counter_disagreement: warning"] * told


@pytest.mark.parametrize(("moved_c", "at_s", "told"), [(10, 30, False), (11, 30, True), (40, 61, False)])
def test_the_temperature_may_move_by_ten_degrees_inside_the_window(
    moved_c: int, at_s: float, told: bool
) -> None:
    power = rows()
    for one in power:
        one["temperature_c"] = 60 + moved_c * (one["t_before_mono_ns"] >= at_ns(at_s))
    assert codes(power) == ["temperature_drift: warning"] * told


@pytest.mark.parametrize(("limit_w", "told"), [(273.0, False), (272.0, True), (None, False)])
def test_a_sample_may_be_a_tenth_over_the_limit_of_the_board(limit_w: float | None, told: bool) -> None:
    environment = {"gpus": [{"uuid": GPU, "enforced_power_limit_w": limit_w}]}
    assert codes(rows(), said={"environment": environment}) == ["over_limit: warning"] * told


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("change", "told"), [(0.049, False), (0.051, True)])
def test_power_may_change_by_a_twentieth_from_the_first_to_the_last_third(
    sign: int, change: float, told: bool
) -> None:
    def energy_j(t: float) -> float:
        return 300.0 * (min(t, 40) + (1 + sign * change) * max(t - 40, 0))

    found = samples(lambda t: 300.0 * (1 + sign * change * (t > 40)), energy_j, end_s=61.5)
    assert (
        codes([one | {"event_reasons": 0, "temperature_c": 60} for one in found]) == ["drift: warning"] * told
    )


@pytest.mark.parametrize(("others_s", "told"), [(11.9, False), (12.1, True)])
def test_other_processes_may_use_a_tenth_of_the_host_s_cores(others_s: float, told: bool) -> None:
    """Two cores for 60 s: 120 core-seconds."""
    cpu = CpuTime(own_s=50.0, host_s=50.0 + others_s, cores=2)
    found = codes(rows(), kind=("rapl", "measured"), changes={"cpu": cpu})
    assert ("foreign_load: warning" in found) is told
    assert "foreign_load: warning" not in codes(rows(), changes={"cpu": cpu})


@pytest.mark.parametrize(
    ("cpus", "host_cpus", "told"),
    [
        (0.49, None, False),
        (0.5, None, True),
        (0.5, 5, True),
        (3.1, 32, False),
        (3.2, 32, True),
        (None, 2, False),
    ],
)
def test_another_container_may_use_half_a_cpu_or_a_tenth_of_the_host_s(
    cpus: float | None, host_cpus: int | None, told: bool
) -> None:
    host = {"foreign_containers": [{"name": "db", "image": "i", "cpus": cpus}], "cpus": host_cpus}
    assert codes(rows(), said={"host": host}) == ["foreign_container: warning"] * told


@pytest.mark.parametrize(("kept", "told"), [(541, False), (535, True)])
def test_nine_samples_in_ten_have_to_be_there(kept: int, told: bool) -> None:
    power = rows()
    inside = [
        number for number, one in enumerate(power) if at_ns(0.05) < one["t_before_mono_ns"] < at_ns(59.95)
    ]
    lost = len(inside) - kept
    dropped = {inside[(2 * number + 1) * len(inside) // (2 * lost)] for number in range(lost)}
    assert len(dropped) == lost
    found = codes([one for number, one in enumerate(power) if number not in dropped])
    assert found == ["few_samples: warning"] * told
