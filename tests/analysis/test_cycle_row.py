"""A cycle as a row: what it takes from each file, its metrics by hand, and what it says of streams that disagree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llem_airflow.analysis import cycle as rows
from llem_airflow.analysis.cycle import (
    FACTORS,
    HAS_RESULT,
    STATUSES,
    Cycle,
    absent_cycle,
    fingerprint,
    measures,
    read_cycle,
)
from llem_airflow.analysis.energy import EnergyOfWindow, window_energy
from llem_airflow.analysis.flags import Flag
from llem_airflow.analysis.latency import Requests
from llem_airflow.analysis.series import Phase, StoredPower
from llem_airflow.protocol.gpu_profile import Sensor
from llem_airflow.protocol.result import CycleResult, Served, Window
from llem_airflow.results import StoredRun
from llem_airflow.results.parquet import REQUESTS_SCHEMA
from tests.analysis.conftest import IDS, MakeRun
from tests.results.recorded import EPOCH_NS, Recording

S = 10**9
ONE = Recording()
RESULT = ONE.result()
SERVED = Served(("serve",), 1.0, 2.0, 20, None, None, 60.0)


def test_a_fingerprint_has_factors_and_conditions_from_all_files() -> None:
    environment = {
        "gpus": [{"uuid": "GPU-1", "name": "H100", "temperature_c": 40}, "odd"],
        "driver": "550",
        "cpu": {"model": "EPYC", "count": 8},
        "cgroup": {"cpus": 4, "memory": 1},
    }
    record = {"image_digest": "sha256:1", "runner": "container", "start_kind": "exec"}
    result = replace(RESULT, bundle_sha256="0123456789abcdef")
    assert fingerprint(ONE.spec(), result, environment, record, semantics_version=6) == {
        "experiment_hash": "0123456789abcdef",
        "model": "tiny",
        "model_revision": None,
        "engine": "transformers",
        "engine_version": "5.16.0",
        "image_digest": "sha256:1",
        "gpus": [{"uuid": "GPU-1", "name": "H100"}],
        "driver": "550",
        "cpu": "EPYC",
        "cpu_limit": 4,
        "runner": "container",
        "start_kind": "exec",
        "meter": "nvml",
        "energy_kind": "measured",
        "prompts_sha256": "ab" * 32,
        "n_prompts": 1,
        "measured_by": "0.1.0 (0123456789ab)",
        "energy_semantics": 6,
    }
    bare = fingerprint(ONE.spec(), RESULT, {"gpus": {}, "cpu": "EPYC", "cgroup": 4}, {}, semantics_version=6)
    assert [bare[name] for name in ("gpus", "cpu", "cpu_limit", "measured_by")] == [[], None, None, "0.1.0"]
    assert "start_kind" not in bare
    traffic = {"server": {"traffic": {"rate": 2, "slo": {"ttft_ms": 5}}}}
    served = fingerprint(
        replace(ONE.spec(), config=traffic), replace(RESULT, served=SERVED), {}, {}, semantics_version=6
    )
    assert served["slo"] == {"ttft_ms": 5}


def test_names_of_statuses_and_factors() -> None:
    assert STATUSES == ("valid", "invalid_energy", "failed", "missed", "missing", "damaged", "skipped")
    assert [status for status in STATUSES if Cycle("a", 1, status).has_result] == list(HAS_RESULT)
    assert {"model", "model_revision", "engine", "engine_version", "image_digest", "measured_by"} == FACTORS
    flag = Flag("x", "", "", "", "info")
    assert [
        Cycle("a", 1, "valid", flags=flags).doubtful
        for flags in ((), (flag,), (flag, replace(flag, severity="warning")))
    ] == [False, False, True]
    assert (Cycle("a", 1, "valid").failed_attempts, Cycle("a", 1, "valid").energy_kind) == (0, "none")


# what is read of a stored cycle


def test_a_row_takes_identity_place_and_time_from_its_files(make_run: MakeRun) -> None:
    ref = make_run({(0, 2): ONE}).cycle(IDS[0], 2)
    assert ref is not None
    row, reading = read_cycle(ref, position=7, failed_attempts=3)
    assert reading is not None
    assert (row.experiment, row.cycle, row.status, row.reason) == (IDS[0], 2, "valid", "")
    assert (row.position, row.failed_attempts, row.host, row.runner) == (7, 3, "gpu-1", "process")
    assert (row.engine, row.engine_version, row.model, row.warmup) == (
        "transformers", "5.16.0", "tiny", "converged",
    )  # fmt: skip
    assert row.started_epoch_ns == EPOCH_NS + 240 * S
    assert row.finished_epoch_ns == EPOCH_NS + 300 * S
    assert row.gpus == tuple(ONE.gpus)
    assert (row.energy_kind, row.energy_source, row.energy_boundary) == ("measured", "counter", "board")
    assert row.characterised == "not characterised"
    assert (row.start_kind, row.session, row.position_in_session) == (None, None, None)
    assert row.measures["energy_j"] == pytest.approx(8000.0, rel=1e-3)


def test_a_cycle_without_a_meter_is_valid_and_one_that_does_not_read_is_damaged(make_run: MakeRun) -> None:
    run = make_run({(0, 1): Recording(meter_kind="none"), (1, 1): ONE})
    unmetered, other = run.cycle(IDS[0], 1), run.cycle(IDS[1], 1)
    assert unmetered is not None
    assert other is not None
    row, _ = read_cycle(unmetered, position=None, failed_attempts=0)
    assert (row.status, row.reason, row.energy_kind, row.characterised) == ("valid", "", "none", None)
    other.folder.write("result.json", b"{")
    row, reading = read_cycle(other, position=1, failed_attempts=2)
    assert reading is None
    assert (row.experiment, row.cycle, row.status, row.position, row.failed_attempts) == (
        IDS[1], 1, "damaged", 1, 2,
    )  # fmt: skip
    assert "result.json" in row.reason


def failed(run: StoredRun, folder: Path, attempt: int, category: str) -> None:
    folder.mkdir()
    told = {
        "host": {"hostname": "node"},
        "runner": "container",
        "image_digest": "sha256:1",
        "session": "s-c1",
        "position_in_session": 4,
        "started_epoch_ns": 5,
        "finished_epoch_ns": "odd",
        "failure": {"category": category, "message": f"try {attempt}\nmore", "hint": "give it more"},
    }
    run.commit_failed(IDS[0], 1, attempt, folder, told)


def test_a_cycle_without_a_result_says_what_its_last_attempt_said(make_run: MakeRun, tmp_path: Path) -> None:
    missing = absent_cycle("a", 1, [], position=3)
    assert missing == Cycle("a", 1, "missing", "no attempt left a result or an error", 3)
    run = make_run({})
    failed(run, tmp_path / "1", 1, "gpu_unavailable")
    failed(run, tmp_path / "2", 2, "out_of_memory_gpu")
    row = absent_cycle(IDS[0], 1, run.failures(), position=3)
    assert row == Cycle(
        IDS[0], 1, "failed", "out_of_memory_gpu: try 2", 3, 2,
        host="node", runner="container", image_digest="sha256:1", session="s-c1", position_in_session=4,
        started_epoch_ns=5, next_step="Give it more.",
    )  # fmt: skip
    missed = absent_cycle(IDS[0], 1, run.failures()[:1], position=None)
    assert (missed.status, missed.reason, missed.failed_attempts) == ("missed", "gpu_unavailable: try 1", 1)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (rows._host({}), ""),
        (rows._host({"host": "node"}), "node"),
        (rows._host({"host": {"name": "a", "hostname": "b"}}), "a"),
        (rows._host({"host": {"hostname": "b"}}), "b"),
        (rows._given({"gpus": ["GPU-1", 2]}), ("GPU-1",)),
        (rows._given({"gpus": "GPU-1"}), ()),
        (rows._given({}), ()),
        (rows._limits_w({"gpus": {"uuid": "x"}}), {}),
        (
            rows._limits_w(
                {
                    "gpus": [
                        {"uuid": "a", "enforced_power_limit_w": 300},
                        {"uuid": "b", "enforced_power_limit_w": None},
                        {"enforced_power_limit_w": 1.0},
                        "odd",
                    ]
                }
            ),
            {"a": 300.0},
        ),
        (rows._epoch({"t": 5}, "t"), 5),
        (rows._epoch({"t": "5"}, "t"), None),
    ],
)
def test_what_records_say_in_odd_ways_is_not_known(found: object, told: object) -> None:
    assert found == told


def test_profiles_of_two_boards_are_told_by_their_dates() -> None:
    def made(day: int) -> dict[str, Any]:
        return {"driver": "5", "made_epoch_ns": day * 86_400 * S, "made_by": "x", "power_period_s": 0.1}

    record = {"power_sensors": {"a": made(1), "b": made(0), "c": made(0)}}
    sensors = rows.characterised(record, {"driver": "5"})
    assert sensors == dict.fromkeys("abc", Sensor(power_period_s=0.1))
    assert rows.by_which_profiles(record, sensors, ("a", "b", "c")) == (
        "characterised by gpu-check 1970-01-01 (x) and 1970-01-02 (x)"
    )


# metrics


def energy(joules: float | None, window: Window) -> EnergyOfWindow:
    columns: dict[str, list[Any]] = {name: [] for name in ("t_before_mono_ns", "t_after_mono_ns", "gpu")}
    nothing = window_energy(columns, replace(RESULT.meter, kind="none", energy_kind="none"), window)
    if joules is None:
        return nothing
    return replace(nothing, energy_j=joules, average_power_w=60.0, active_j=joules - 400.0)


def measured(joules: float | None, window: Window, *requests: Mapping[str, Any]) -> dict[str, float | None]:
    table = pa.Table.from_pylist([{**row, "phase": "measure"} for row in requests], schema=REQUESTS_SCHEMA)
    marks = [Phase("load", 0, 3 * S), Phase("warmup", 3 * S, 5 * S), Phase("load", 6 * S, 7 * S)]
    return measures(window, energy(joules, window), Requests.of(table), marks)


def test_metrics_of_a_window_are_its_joules_tokens_and_requests_over_each_other() -> None:
    """1200 J in 20 s for 4 requests of 100 prompt and 150 generated tokens; one request of 0.5 s end to end."""
    window = Window(0, 20 * S, 2, 4, 400, 600)
    request = {
        "t_submit_mono_ns": 0, "t_first_mono_ns": S // 4, "t_last_mono_ns": S // 2,
        "token_mono_ns": [S // 4, S // 2], "output_tokens": 2,
    }  # fmt: skip
    found = {name: value for name, value in measured(1200.0, window, request).items() if value is not None}
    assert found == pytest.approx(
        {
            "window_s": 20.0,
            "output_tokens": 600.0,
            "input_tokens": 400.0,
            "requests": 4.0,
            "load_s": 4.0,
            "warmup_s": 2.0,
            "output_tokens_per_s": 30.0,
            "total_tokens_per_s": 50.0,
            "requests_per_s": 0.2,
            "energy_j": 1200.0,
            "energy_active_j": 800.0,
            "average_power_w": 60.0,
            "energy_per_output_token_j": 2.0,
            "energy_per_total_token_j": 1.2,
            "energy_per_request_j": 300.0,
            "output_tokens_per_j": 0.5,
            "energy_delay_product_j_s": 150.0,
            **{f"ttft_{key}_s": 0.25 for key in ("mean", "p50")},
            **{f"tpot_{key}_s": 0.25 for key in ("mean", "p50")},
            **{f"itl_{key}_s": 0.25 for key in ("mean", "p50")},
            **{f"token_gap_{key}_s": 0.25 for key in ("mean", "p50")},
            **{f"e2el_{key}_s": 0.5 for key in ("mean", "p50")},
        }
    )


def test_without_joules_or_latency_what_needs_them_is_not_known() -> None:
    window = Window(0, 20 * S, 2, 4, 400, 600)
    told = measured(None, window)
    assert {name for name, value in told.items() if value is not None} == {
        "window_s", "output_tokens", "input_tokens", "requests", "load_s", "warmup_s",
        "output_tokens_per_s", "total_tokens_per_s", "requests_per_s",
    }  # fmt: skip
    assert measured(1200.0, window)["energy_delay_product_j_s"] is None
    assert measured(math.inf, window)["energy_j"] is None


def test_an_imported_window_tells_neither_requests_nor_prompts_that_it_does_not_have() -> None:
    told = measured(1200.0, Window(0, 20 * S, 2, 0, 0, 600))
    absent = {
        "requests", "requests_per_s", "input_tokens", "total_tokens_per_s", "energy_per_total_token_j",
        "energy_per_request_j",
    }  # fmt: skip
    assert {name for name in absent if told[name] is not None} == set()
    assert (told["output_tokens"], told["energy_per_output_token_j"]) == (600.0, 2.0)
    assert measured(1200.0, Window(0, 0, 2, 4, 4, 0))["energy_per_output_token_j"] is None


# what the streams say of each other

POWER = StoredPower({}, None, None, None)


def flags(
    result: CycleResult, *requests: Mapping[str, Any], power: StoredPower = POWER, problem: str | None = None
) -> list[tuple[str, str]]:
    table = pa.Table.from_pylist([{**row, "phase": "measure"} for row in requests], schema=REQUESTS_SCHEMA)
    found = rows._own_flags(power, problem, Requests.of(table), result)
    assert all((flag.severity, flag.threshold) == ("warning", "") and flag.next_step for flag in found)
    return [(flag.code, flag.message) for flag in found]


ANSWER = {
    "t_submit_mono_ns": 0, "t_first_mono_ns": 1, "t_last_mono_ns": 2, "token_mono_ns": [1, 2], "output_tokens": 2,
}  # fmt: skip
EMPTY = {"t_submit_mono_ns": 0, "token_mono_ns": [], "output_tokens": 0}
TWO = replace(RESULT, window=Window(0, S, 1, 2, 2, 4))


def test_requests_that_agree_with_the_result_say_nothing_and_none_at_all_neither() -> None:
    assert flags(TWO, ANSWER, ANSWER) == []
    assert flags(TWO) == []


@pytest.mark.parametrize(
    ("requests", "told"),
    [
        (
            (ANSWER,),
            [
                (
                    "requests_disagree",
                    "requests.parquet has 1 request and 2 output tokens, the result says 2 and 4",
                )
            ],
        ),
        (
            (ANSWER, EMPTY),
            [
                (
                    "empty_answers",
                    "1 of 2 requests got no token; they count in requests and energy, and have no TTFT",
                ),
                (
                    "requests_disagree",
                    "requests.parquet has 2 requests and 2 output tokens, the result says 2 and 4",
                ),
            ],
        ),
        (
            (ANSWER, {**ANSWER, "t_first_mono_ns": -1}),
            [("clock_backwards", "the times of 1 of 2 requests run backwards; their latencies are absent")],
        ),
    ],
)
def test_requests_that_disagree_are_told_with_both_numbers(
    requests: tuple[Mapping[str, Any], ...], told: list[tuple[str, str]]
) -> None:
    assert flags(TWO, *requests) == told


def test_of_a_server_the_tokens_of_the_window_are_of_any_request_and_failed_ones_are_none() -> None:
    served = replace(TWO, served=SERVED, window=Window(0, S, 0, 1, 2, 99))
    lost = {"t_submit_mono_ns": 0, "status": "error", "output_tokens": None}
    assert flags(served, {**ANSWER, "status": "ok"}, lost) == []
    assert [code for code, _ in flags(served, *[{**ANSWER, "status": "ok"}] * 2)] == ["requests_disagree"]


@pytest.mark.parametrize(
    ("power", "problem", "codes"),
    [
        (StoredPower({}, None, None, "it broke"), None, ["power_series_unreadable"]),
        (StoredPower({}, None, False, None), "gone", ["power_series_changed", "requests_unreadable"]),
        (StoredPower({}, None, True, None), None, []),
        (StoredPower({}, None, None, None), None, []),
    ],
)
def test_streams_that_do_not_read_or_changed_are_told(
    power: StoredPower, problem: str | None, codes: list[str]
) -> None:
    assert [code for code, _ in flags(TWO, ANSWER, ANSWER, power=power, problem=problem)] == codes
