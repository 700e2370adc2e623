"""What a server did under its load, against values worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llem_airflow.analysis.energy import Baseline, window_energy
from llem_airflow.analysis.latency import Requests, e2el_s, good_requests, latency, ttft_s
from llem_airflow.analysis.serving import (
    Slo,
    backlog,
    server_rows,
    serving,
    serving_flags,
    serving_measures,
    slo_of,
)
from llem_airflow.protocol.result import Served, Window
from llem_airflow.results.parquet import REQUESTS_SCHEMA
from tests.analysis.sampled import columns, cycle_result, meter

S = 1_000_000_000
WINDOW = Window(100 * S, 110 * S, 0, 3, 30, 30)
SERVED = Served(("serve",), 5.0, 0.5, 5, 2.0, 1.0, 20.0)


def asked(
    due_s: float, ttft_s: float = 0.1, e2el_s: float = 0.4, *, status: str = "ok", phase: str = "measure"
) -> dict[str, Any]:
    """A request of 4 tokens, sent 50 ms after it was due."""
    due_ns = round(due_s * S)
    times = [due_ns + round((ttft_s + k * (e2el_s - ttft_s) / 3) * S) for k in range(4)]
    return {
        "phase": phase,
        "status": status,
        "t_due_mono_ns": due_ns,
        "t_submit_mono_ns": due_ns + S // 20,
        "t_first_mono_ns": times[0],
        "t_last_mono_ns": times[-1],
        "t_end_mono_ns": times[-1],
        "token_mono_ns": times,
        "output_tokens": 4,
    }


def of(*rows: dict[str, Any]) -> Requests:
    return Requests.of(pa.Table.from_pylist(list(rows), schema=REQUESTS_SCHEMA))


ROWS = (
    asked(100.0),
    asked(101.0, 0.3, 0.9),
    asked(102.0, 0.1, 1.3),
    asked(103.0, status="error"),
    asked(104.0, status="timeout"),
    asked(99.0, phase="ramp"),
)


def test_latencies_count_from_the_due_time_and_failed_requests_have_none() -> None:
    requests = of(*ROWS)
    assert len(requests) == 5
    assert ttft_s(requests)[:3] == pytest.approx([0.1, 0.3, 0.1])
    assert e2el_s(requests)[:3] == pytest.approx([0.4, 0.9, 1.3])
    assert np.isnan(ttft_s(requests)[3:]).all()
    seen = latency(requests)
    assert seen.ttft is not None
    assert seen.ttft.n == 3
    assert seen.ttft.p90_s is None  # of three


def test_a_table_without_the_columns_of_a_server_reads_as_before() -> None:
    older = pa.Table.from_pylist([asked(100.0)], schema=REQUESTS_SCHEMA).select(
        [name for name in REQUESTS_SCHEMA.names if name not in {"t_due_mono_ns", "t_end_mono_ns", "status"}]
    )
    requests = Requests.of(older)
    assert not requests.failed.any()
    assert ttft_s(requests) == pytest.approx([0.05])


@pytest.mark.parametrize(
    ("limits_s", "good"),
    [
        ({}, [True, True, True, False, False]),
        ({"ttft": 0.1}, [True, False, True, False, False]),
        ({"ttft": 0.2, "tpot": 0.1}, [True, False, False, False, False]),
        ({"tpot": 0.2}, [True, True, False, False, False]),
    ],
)
def test_good_requests_meet_every_bound_and_a_bound_is_met_by_its_own_value(
    limits_s: dict[str, float], good: list[bool]
) -> None:
    exact = {name: s + 1e-9 for name, s in limits_s.items()}
    assert good_requests(of(*ROWS), exact).tolist() == good


def test_failed_requests_count_in_every_denominator() -> None:
    found = serving_measures(
        of(*ROWS),
        SERVED,
        WINDOW,
        slo=Slo(0.35, 0.25, 0.99),
        energy_j=600.0,
        idle_w=30.0,
        server=server_rows(CSV, WINDOW),
    )
    assert found == {
        "offered_requests_per_s": 0.5,
        "concurrency_users": None,
        "failed_ratio": 0.4,
        "goodput_requests_per_s": 0.2,
        "slo_attainment_ratio": 0.4,
        "slo_met_ratio": 0.0,
        "energy_per_good_request_j": 300.0,
        "idle_power_w": 30.0,
        "idle_share_ratio": 0.5,
        "kv_cache_usage_mean_ratio": 0.5,
        "kv_cache_usage_max_ratio": 0.75,
        "queue_mean_requests": 3.0,
        "queue_max_requests": 5.0,
        "preemptions": 3.0,
        "client_lateness_p99_s": 0.002,
    }


def test_a_closed_loop_has_users_and_no_offered_rate() -> None:
    found = serving_measures(
        of(*ROWS),
        replace(SERVED, rate_per_s=None, users=7),
        WINDOW,
        slo=None,
        energy_j=1.0,
        idle_w=None,
        server={},
    )
    assert (found["concurrency_users"], found["offered_requests_per_s"]) == (7.0, None)


CSV = """\
t_mono_ns,running,waiting,kv_cache_usage_ratio,preemptions,prompt_tokens,generation_tokens
99000000000,9,90,0.9,0,10,10
101000000000,1,1,0.25,1,10,10
102000000000,1,5,0.75,3,10,10
103000000000,1,,,,,
111000000000,9,90,0.9,9,10,10
"""


def test_what_is_not_known_is_none_and_never_zero() -> None:
    found = serving_measures(
        of(), SERVED, WINDOW, slo=None, energy_j=None, idle_w=None, server=server_rows("", WINDOW)
    )
    known = {name: value for name, value in found.items() if value is not None}
    assert known == {"offered_requests_per_s": 0.5, "client_lateness_p99_s": 0.002}


def test_one_reading_of_a_counter_tells_no_growth() -> None:
    page = "t_mono_ns,preemptions\n101000000000,7\n"
    found = serving_measures(
        of(), SERVED, WINDOW, slo=None, energy_j=None, idle_w=None, server=server_rows(page, WINDOW)
    )
    assert found["preemptions"] is None


def test_no_good_request_has_no_energy_per_good_request() -> None:
    found = serving_measures(
        of(*ROWS), SERVED, WINDOW, slo=Slo(0.01, None, 0.99), energy_j=1.0, idle_w=None, server={}
    )
    assert (found["goodput_requests_per_s"], found["energy_per_good_request_j"]) == (0.0, None)


@pytest.mark.parametrize(
    ("slo", "expected"),
    [
        (None, None),
        ({}, None),
        ({"percentile": 0.9}, None),
        ({"ttft_ms": 500}, Slo(0.5, None, 0.99)),
        ({"ttft_ms": 500, "tpot_ms": 50, "percentile": 0.9}, Slo(0.5, 0.05, 0.9)),
    ],
)
def test_bounds_are_those_of_the_study(slo: dict[str, float] | None, expected: Slo | None) -> None:
    assert slo_of({"server": {"traffic": {"slo": slo}}}) == expected
    assert slo_of({}) is None


def queue(
    rate_per_s: float, seed: int, window_s: float = 120.0, ramp_s: float = 30.0
) -> tuple[Any, Any, Window]:
    """Due and end times, in nanoseconds, of a server that answers ten requests a second, one after the other."""
    draw = np.random.default_rng(seed)
    n = int(rate_per_s * (window_s + ramp_s) * 1.3) + 50
    due_s = np.cumsum(draw.exponential(1 / rate_per_s, n))
    service_s = draw.exponential(0.1, n)
    begun = np.maximum.accumulate(due_s - np.concatenate([[0.0], np.cumsum(service_s)[:-1]]))
    ended_s = begun + np.cumsum(service_s)
    inside = due_s < window_s + ramp_s
    window = Window(round(ramp_s * S), round((window_s + ramp_s) * S), 0, 1, 1, 1)
    return due_s[inside] * S, ended_s[inside] * S, window


def test_a_rate_above_what_the_server_can_do_is_saturated_and_one_well_below_is_not() -> None:
    def share(rate_per_s: float) -> float:
        found = []
        for seed in range(200):
            due_ns, end_ns, window = queue(rate_per_s, seed)
            found.append(backlog(due_ns, end_ns, window).saturated(120.0, round(rate_per_s * 120)))
        return float(np.mean(found))

    assert share(13.0) > 0.95
    assert share(8.0) <= 0.01
    assert share(5.0) == 0.0


def test_an_idle_server_has_no_slope() -> None:
    found = backlog(np.array([]), np.array([]), WINDOW)
    assert (found.slope_per_s, found.p) == (0.0, None)
    assert not found.saturated(10.0, 0)


def test_a_request_without_an_end_waits_to_the_end() -> None:
    found = backlog(np.array([100.0 * S, 101.0 * S]), np.array([101.0 * S, np.nan]), WINDOW)
    assert found.requests[0] == 1
    assert found.requests[-1] == 1


def codes(requests: Requests, served: Served, due: Any, end: Any) -> list[str]:
    return [flag.code for flag in serving_flags(requests, served, WINDOW, backlog(due, end, WINDOW))]


def test_a_late_or_busy_client_is_told_and_so_are_failed_requests() -> None:
    good = of(*ROWS[:3])
    nothing = np.array([])
    assert codes(good, SERVED, nothing, nothing) == []
    assert codes(good, Served(("s",), 5.0, 0.5, 5, 20.0, 1.0, 20.0), nothing, nothing) == ["client_late"]
    assert codes(good, Served(("s",), 5.0, 0.5, 5, None, 19.0, 20.0), nothing, nothing) == ["client_busy"]
    assert codes(of(*ROWS), SERVED, nothing, nothing) == ["requests_failed"]
    grown = np.linspace(100, 110, 100) * S
    assert codes(good, SERVED, grown, np.full(100, 200.0 * S)) == ["saturated"]


def test_a_late_client_is_compared_with_no_time_to_first_token_where_none_is_known() -> None:
    late, nothing = Served(("s",), 5.0, 0.5, 5, 20.0, 1.0, 20.0), np.array([])
    (flag,) = serving_flags(of(), late, WINDOW, backlog(nothing, nothing, WINDOW))
    assert "(99th percentile 20.0 ms, against no first token)" in flag.message


def test_flags_of_a_server_say_how_many_requests_and_which_limits() -> None:
    """A request more each 0.1 s and none done: 100 through the window."""
    grown = np.linspace(100, 110, 100, endpoint=False) * S
    seen = backlog(grown, np.full(100, np.nan), WINDOW)
    assert seen.slope_per_s == pytest.approx(10.0)
    saturated, failed = serving_flags(of(*ROWS), SERVED, WINDOW, seen)
    assert saturated.message.startswith(
        "The backlog grew by 100 requests through the window, of 5 requests: "
    )
    assert saturated.threshold == "a slope of the backlog above 0 with p < 0.01, and 5% of the requests"
    assert failed.message.startswith("2 of 5 requests of the window failed. ")
    closed = replace(SERVED, rate_per_s=None, users=3)
    assert [flag.code for flag in serving_flags(of(*ROWS), closed, WINDOW, seen)] == ["requests_failed"]
    busy = replace(SERVED, client_cpu_s=19.0)
    (flag,) = serving_flags(of(*ROWS[:3]), busy, WINDOW, backlog(np.array([]), np.array([]), WINDOW))
    assert flag.message == "The load client used 95% of a core: it may not keep up with this rate."
    assert flag.threshold == "80% of a core"


def test_a_server_s_cycle_takes_the_requests_of_all_phases_for_its_backlog() -> None:
    """Those of the ramp are still waiting when the window begins."""
    loaded = Baseline("baseline_loaded", 30.0, 1.0, 9)
    energy = replace(
        window_energy(columns([]), meter("none", "none", devices=()), WINDOW),
        energy_j=600.0,
        baselines=(replace(loaded, name="baseline_bare", power_w=9.0), loaded),
    )
    result = replace(cycle_result(WINDOW, meter()), served=SERVED)
    table = pa.Table.from_pylist(list(ROWS), schema=REQUESTS_SCHEMA)
    config = {"server": {"traffic": {"slo": {"ttft_ms": 350, "tpot_ms": 250}}}}
    found = serving(table, result, energy, config, CSV)
    assert found.measures == serving_measures(
        of(*ROWS), SERVED, WINDOW, slo=Slo(0.35, 0.25, 0.99), energy_j=600.0, idle_w=30.0,
        server=server_rows(CSV, WINDOW),
    )  # fmt: skip
    assert [flag.code for flag in found.flags] == ["requests_failed"]
    waiting = [asked(100.0 + k / 50, phase="ramp" if k % 2 else "measure") for k in range(500)]
    for row in waiting:
        row["t_end_mono_ns"] = 200 * S
    table = pa.Table.from_pylist(waiting, schema=REQUESTS_SCHEMA)
    (flag,) = serving(table, result, energy, config, "").flags
    assert flag.message.startswith("The backlog grew by 500 requests through the window, of 250 requests: ")
    assert serving(table, cycle_result(WINDOW, meter()), energy, config, CSV).measures == {}
