"""A server under load, from its start to the result; the server is a stand-in, and all around it is real."""

from __future__ import annotations

import csv
import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.measurement.load.arrivals import arrival_times
from llem_airflow.measurement.server.traffic import traffic_of
from llem_airflow.protocol.files import LOAD_PLAN, SERVER_COLUMNS, SERVER_LOG, SERVER_METRICS
from llem_airflow.protocol.result import Served
from llem_airflow.protocol.spec import ExperimentSpec, Limits
from tests.measurement.running import PLUGIN, ROOT, Ran, run, spec_of

STUB = Path(__file__).parent / "stub_server"
RATE = 20.0
TOKENS = 8


def served(
    *, limits: Limits | None = None, engine_params: dict[str, Any] | None = None, **server: Any
) -> ExperimentSpec:
    """A window of 2 s at 20 requests/s, after 0.5 s of warm-up and 0.5 s of ramp."""
    traffic = {
        "rate": RATE,
        "arrival": "poisson",
        "burstiness": None,
        "window_seconds": 2.0,
        "ramp_exclusion_seconds": 0.5,
        "concurrency_cap": None,
        "seed": 3,
        "request_timeout_seconds": 20.0,
    }
    full = {
        "traffic": traffic | server.pop("traffic", {}),
        "warmup": {"mode": "fixed", "duration_seconds": 0.5, "timeout_seconds": 900},
        "cooldown_seconds": 0,
        "startup_timeout_seconds": 10.0,
        "max_failed_ratio": 0.05,
    }
    config = {
        "serving_mode": "server",
        "server": full | server,
        "measurement": {"baseline": {"enabled": False}},
    }
    return spec_of(
        "vllm", {"engine_params": engine_params or {}}, output_tokens=TOKENS, config=config, limits=limits
    )


def attempt(folder: Path, spec: ExperimentSpec, mode: str = "") -> Ran:
    return run(spec, folder, PYTHONPATH=f"{ROOT}:{PLUGIN}:{STUB}", STUB_SERVER=mode)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    found = attempt(tmp_path_factory.mktemp("served"), served())
    assert found.code == 0, found.stdout
    return found


def said(ran: Ran) -> Served:
    found = ran.result.served
    assert found is not None
    return found


def of_window(ran: Ran) -> list[dict[str, Any]]:
    return [row for row in ran.requests if row["phase"] == "measure"]


def test_requests_of_the_window_are_those_that_were_due_in_it(ran: Ran) -> None:
    window = ran.result.window
    begin_ns, end_ns = window.t_begin_mono_ns, window.t_end_mono_ns
    assert (end_ns - begin_ns) / 1e9 == pytest.approx(2.0, abs=1e-6)
    for row in ran.requests:
        assert (row["phase"] == "measure") == (begin_ns <= row["t_due_mono_ns"] < end_ns)
    assert {row["phase"] for row in ran.requests} == {"warmup", "ramp", "measure", "drain"}
    assert len(of_window(ran)) == window.requests == said(ran).scheduled


def test_the_schedule_was_drawn_before_and_is_evidence(ran: Ran) -> None:
    plan = json.loads((ran.out / LOAD_PLAN).read_text())
    drawn = arrival_times("poisson", rate_per_s=RATE, duration_s=3.5, seed=3)
    assert plan["due_s"] == drawn
    due_ns = sorted(row["t_due_mono_ns"] for row in ran.requests if row["phase"] != "warmup")
    assert due_ns == [plan["start_mono_ns"] + round(at_s * 1e9) for at_s in drawn]


def test_tokens_of_the_window_are_those_that_came_in_it(ran: Ran) -> None:
    window = ran.result.window
    came = [t for row in ran.requests if row["phase"] != "warmup" for t in row["token_mono_ns"]]
    inside = sum(window.t_begin_mono_ns <= t < window.t_end_mono_ns for t in came)
    assert window.output_tokens == inside
    assert window.input_tokens == sum(row["input_tokens"] for row in of_window(ran))


def test_every_answer_has_the_length_that_was_asked_for_and_a_time_for_each_token(ran: Ran) -> None:
    for row in of_window(ran):
        assert (row["status"], row["output_tokens"], len(row["token_mono_ns"])) == ("ok", TOKENS, TOKENS)
        assert (
            row["t_due_mono_ns"] <= row["t_submit_mono_ns"] < row["t_first_mono_ns"] <= row["t_last_mono_ns"]
        )


def test_the_metrics_page_is_kept_once_a_second(ran: Ran) -> None:
    with (ran.out / SERVER_METRICS).open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(SERVER_COLUMNS)
    assert len(rows) >= 4
    assert {row["kv_cache_usage_ratio"] for row in rows} == {"0.25"}
    assert int(rows[-1]["generation_tokens"]) >= ran.result.window.output_tokens


def test_the_phases_follow_each_other(ran: Ran) -> None:
    begun = [event["phase"] for event in ran.events if event["event"] == "phase_begin"]
    assert begun == ["load", "warmup", "ramp", "measure", "drain", "cooldown"]


def test_the_result_says_how_the_server_was_started_and_what_the_client_took(ran: Ran) -> None:
    served = said(ran)
    assert "--served-model-name" in served.command
    assert served.ready_s > 0
    assert served.rate_per_s == RATE
    assert served.client_cpu_s is not None
    assert 0 < served.client_cpu_s < served.client_wall_s
    assert ran.result.engine_version == "0.0.stub"


def test_two_cycles_have_arrivals_of_their_own() -> None:
    first, again, second = (traffic_of(replace(served(), cycle=cycle)).measured for cycle in (1, 1, 2))
    assert first == again != second
    assert first != traffic_of(served()).warmup(3.5)


def test_a_closed_loop_keeps_every_user_at_one_request_through_all_phases(tmp_path: Path) -> None:
    spec = served(max_failed_ratio=0)
    traffic = {
        key: spec.config["server"]["traffic"][key] for key in ("window_seconds", "request_timeout_seconds")
    }
    server = spec.config["server"] | {
        "traffic": traffic | {"ramp_exclusion_seconds": 0.5, "concurrency": 3, "slo": {"ttft_ms": 1000}}
    }
    ran = attempt(tmp_path, replace(spec, config=spec.config | {"server": server}))
    assert ran.code == 0, ran.stdout
    assert "a closed loop of 3 users" in ran.stdout
    assert (said(ran).users, said(ran).rate_per_s) == (3, None)
    assert {row["phase"] for row in ran.requests} >= {"warmup", "ramp", "measure"}
    plan = json.loads((ran.out / LOAD_PLAN).read_text())
    assert (plan["users"], plan["due_s"]) == (3, None)
    window = ran.result.window
    load = [row for row in ran.requests if row["phase"] != "warmup"]
    for at_ns in range(window.t_begin_mono_ns, window.t_end_mono_ns, 50_000_000):
        # A user asks at the instant of the answer, which belongs to both requests.
        assert 2 <= sum(row["t_due_mono_ns"] <= at_ns < row["t_end_mono_ns"] for row in load) <= 3
    assert window.requests == len(of_window(ran)) == said(ran).scheduled > 3
    assert {row["status"] for row in of_window(ran)} == {"ok"}


FAILURES: dict[str, tuple[dict[str, Any], str, str]] = {
    "deaf": ({"startup_timeout_seconds": 1.0}, "server_not_ready", "did not answer /health within 1 s"),
    "broken": ({}, "out_of_memory_gpu", "No available memory for the cache blocks"),
    "die": ({}, "server_died", "the engine core has died"),
    "refuse": ({}, "server_errors", "HTTP 500"),
    "slow": ({"traffic": {"request_timeout_seconds": 1.0}}, "server_errors", "timeout"),
}


@pytest.mark.parametrize("mode", FAILURES)
def test_each_failure_of_a_server_has_its_own_name_and_the_end_of_its_log(mode: str, tmp_path: Path) -> None:
    keys, category, words = FAILURES[mode]
    failed = attempt(tmp_path, served(**keys), mode)
    assert failed.code == 1, failed.stdout
    assert not failed.has_result
    assert failed.error.category == category
    assert words in failed.error.message
    assert "server.log" in failed.error.message
    assert (failed.out / SERVER_LOG).exists()


def test_some_failed_requests_are_borne_where_the_study_says_so(tmp_path: Path) -> None:
    borne = attempt(tmp_path, served(max_failed_ratio=0.5), "refuse")
    assert borne.code == 0, borne.stdout
    failed = [row for row in of_window(borne) if row["status"] != "ok"]
    assert failed
    assert {(row["status"], row["error_class"], row["http_status"]) for row in failed} == {
        ("error", "http_status", 500)
    }
    assert borne.result.window.requests == len(of_window(borne)) - len(failed)
    assert said(borne).scheduled == len(of_window(borne))


def test_a_pinned_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        failed = attempt(tmp_path, served(engine_params={"port": port}))
    assert failed.error.category == "port_taken"
    assert str(port) in failed.error.message


def test_prompts_that_the_server_would_refuse_are_told_before_the_load(tmp_path: Path) -> None:
    spec = served()
    task = spec.config["task"] | {"max_output_tokens": 64}
    failed = attempt(tmp_path, replace(spec, config=spec.config | {"task": task}))
    assert failed.error.category == "bad_parameter"
    assert "the server takes 64" in failed.error.message
