"""The steps of an attempt whose engine serves, each by itself: what its window must be, what the server tells."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.measurement.engines.contract import EngineFacts, Prompt
from llem_airflow.measurement.failure import MeasurementError
from llem_airflow.measurement.load.client import ClientFacts
from llem_airflow.measurement.load.process import LoadError
from llem_airflow.measurement.output import EventLog
from llem_airflow.measurement.server import attempt as steps
from llem_airflow.measurement.server.attempt import ServerAttempt
from llem_airflow.measurement.server.command import ServerCommand
from llem_airflow.measurement.server.living import LivingServer, check_lives_on, environment_of
from llem_airflow.measurement.server.traffic import WindowTotals
from llem_airflow.measurement.warmup import LoadWarmup
from llem_airflow.protocol.files import POWER_COLUMNS, SERVER_LOG
from tests.measurement.test_server_attempt import served

FACTS = ClientFacts(
    requests=20,
    lateness_p50_ms=0.1,
    lateness_p99_ms=0.2,
    lateness_max_ms=0.3,
    held_by_cap=0,
    peak_connections=7,
    out_of_file_handles=0,
    cpu_s=0.1,
    duration_s=3.0,
)


@dataclass
class Pages:
    """Of a server what it tells, and whether it lives."""

    pages: dict[str, bytes] = field(default_factory=dict)
    checked: int = 0
    log: Path = Path("unused")

    def get(self, path: str) -> bytes | None:
        return self.pages.get(path)

    post = get

    def check(self, when: str = "") -> None:
        self.checked += 1


@dataclass
class Client:
    """Of a load process whether it has ended too early."""

    broken_off: bool = False

    def how_it_ended(self) -> str:
        return "ended with exit code 3"


class Boards:
    """Of a sampler the devices that it reads."""

    class facts:  # noqa: N801  # an attribute
        devices = ("GPU-a",)

    def describe_gpus(self) -> list[dict[str, Any]]:
        return []


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[ServerAttempt]:
    log = EventLog(tmp_path / "events.jsonl")
    made = ServerAttempt(served(), tmp_path, log)
    log.phase_name = "measure"
    (tmp_path / SERVER_LOG).write_text("listening\n")
    yield made
    made.close()
    log.close()


def totals(due: int, answered: int, **failed: int) -> WindowTotals:
    return WindowTotals(due, answered, 0, 0, failed, "busy" if failed else "")


def test_a_window_stands_with_the_share_of_failures_that_the_study_bears(attempt: ServerAttempt) -> None:
    attempt._check_window(totals(20, 20), FACTS)
    attempt._check_window(totals(20, 19, timeout=1), FACTS)  # 5 %
    with pytest.raises(MeasurementError) as told:
        attempt._check_window(totals(20, 18, timeout=1, connect=1), FACTS)
    assert told.value.category == "server_errors"
    assert str(told.value).startswith(
        "2 of 20 requests of the window failed (1 connect, 1 timeout), more than the 5% of "
        "server.max_failed_ratio; the first was told: busy."
    )
    assert "listening" in str(told.value)


def test_a_window_in_which_nothing_was_due_says_nothing(attempt: ServerAttempt) -> None:
    with pytest.raises(MeasurementError, match="no request was due in the window") as told:
        attempt._check_window(totals(0, 0), FACTS)
    assert told.value.category == "bad_parameter"


def test_one_request_without_a_connection_is_the_clients_fault(attempt: ServerAttempt) -> None:
    with pytest.raises(MeasurementError, match=r"for 1 requests \(7 were open\)") as told:
        attempt._check_window(totals(20, 19, out=1), replace(FACTS, out_of_file_handles=1))
    assert told.value.category == "client_limit"


def test_a_client_that_ends_before_the_phase_cuts_the_window(attempt: ServerAttempt) -> None:
    server: Any = Pages()
    load: Any = Client(broken_off=True)
    with pytest.raises(
        MeasurementError, match=r"ended \d+\.\d s before the end of the phase measure"
    ) as told:
        attempt._wait_until(time.monotonic_ns() + 600 * 10**9, 600.0, server, load)
    assert told.value.category == "window_cut"
    assert "(ended with exit code 3)" in str(told.value)
    attempt._wait_until(time.monotonic_ns(), 600.0, server, load)  # over: how it ended does not matter
    assert server.checked == 1
    with (
        pytest.raises(MeasurementError, match="the load client failed: no plan") as told,
        attempt._load_errors(),
    ):
        raise LoadError("no plan")
    assert told.value.category == "window_cut"


def until_warm(attempt: ServerAttempt, rules: LoadWarmup, ago_s: float) -> tuple[str, str]:
    """How a warm-up that began so long ago ends."""
    sampler: Any = Boards()
    server: Any = Pages()
    load: Any = Client()
    return attempt._until_warm(sampler, server, load, rules, time.monotonic_ns() - round(ago_s * 1e9))


def write_power(folder: Path, seconds: int) -> None:
    """Constant power of the last so many seconds, ten samples a second."""
    now_ns = time.monotonic_ns()
    lines = [",".join(POWER_COLUMNS)]
    for number in range(seconds * 10, -1, -1):
        told = {"t_before_mono_ns": now_ns - number * 10**8, "gpu": "GPU-a", "power_instant_mw": 200_000}
        lines.append(",".join(str(told.get(name, "")) for name in POWER_COLUMNS))
    (folder / "power.csv").write_text("\n".join(lines) + "\n")


def test_a_warm_up_of_a_given_length_ends_after_it(attempt: ServerAttempt, tmp_path: Path) -> None:
    assert until_warm(attempt, LoadWarmup(gated=False, longest_s=30.0), 30.0) == (
        "fixed",
        "30 s of load, as the study asks",
    )
    assert (
        until_warm(attempt, LoadWarmup(gated=False, longest_s=30.0, reason="no eyes"), 31.0)[1] == "no eyes"
    )
    lines: list[str] = []
    while not lines:  # a machine that stands still for a fifth of a second has nothing to tell
        begun_s = time.monotonic()
        until_warm(attempt, LoadWarmup(gated=False, longest_s=30.2), 30.0)
        assert time.monotonic() - begun_s >= 0.19
        lines = (tmp_path / "events.jsonl").read_text().splitlines()
    (line,) = lines  # only every five seconds
    told = json.loads(line)
    assert (told["event"], told["total"], told["text"][-9:]) == ("progress", 30.2, "s of load")
    assert 30.0 <= told["done"] <= 30.2


def test_a_gated_warm_up_ends_when_the_gates_open_or_its_time_is_over(
    attempt: ServerAttempt, tmp_path: Path
) -> None:
    write_power(tmp_path, 70)
    outcome, reason = until_warm(attempt, LoadWarmup(gated=True, longest_s=900.0), 100.0)
    said = re.fullmatch(r"power and temperature are level after (\d+) s of load", reason)
    assert outcome == "converged"
    assert said is not None
    assert 100 <= int(said[1]) < 160
    write_power(tmp_path, 50)
    assert until_warm(attempt, LoadWarmup(gated=True, longest_s=90.0), 100.0) == (
        "cap_time",
        "not steady when the time ran out (90 s): less than 60 s under load",
    )


def test_what_a_server_tells_of_itself(attempt: ServerAttempt) -> None:
    page = b'vllm:cache_config_info{block_size="16",kv_cache_size_tokens="4096"} 1.0\n'
    server: Any = Pages(
        {
            "/version": b'{"version": "0.11.2"}',
            "/metrics": page,
            "/v1/models": b'{"data": [{"id": "llem", "max_model_len": 64}]}',
        }
    )
    command = ServerCommand(("vllm", "serve"), "llem", {"dtype": "float16"})
    prompts = (Prompt(0, (1, 2), 8), Prompt(1, (1, 2), 16))
    facts = attempt._facts(steps._Ready(server, command, prompts))
    assert (facts.version, facts.model["dtype"], facts.model["name"]) == ("0.11.2", "float16", "m")
    assert facts.settings["server_command"] == ["vllm", "serve"]
    assert facts.settings["engine_params"] == {"dtype": "float16"}
    assert facts.settings["sampling_params"]["min_tokens"] == 8
    assert facts.settings["max_model_len_tokens"] == 64
    assert facts.settings["kv_cache_capacity_tokens"] == 4096
    silent: Any = Pages({"/version": b"[]", "/v1/models": b"oops"})
    facts = attempt._facts(steps._Ready(silent, command, prompts))
    assert (facts.version, facts.settings["max_model_len_tokens"]) == ("unknown", None)
    assert facts.settings["kv_cache_capacity_tokens"] is None


@pytest.mark.parametrize(
    ("told", "most"),
    [
        ({"data": [{"max_model_len": 64}, {"max_model_len": 9}]}, 64),
        ({"data": [{"max_model_len": "64"}]}, None),
        ({"data": [{}]}, None),
        ({"data": [7]}, None),
        ({"data": []}, None),
        ({"data": {"max_model_len": 64}}, None),
        ({}, None),
        ([{"max_model_len": 64}], None),
    ],
)
def test_the_longest_prompt_and_answer_of_a_server_that_tells(told: Any, most: int | None) -> None:
    server: Any = Pages({"/v1/models": json.dumps(told).encode()})
    assert steps._longest(server) == most


def test_a_prompt_fits_with_its_answer_or_is_told() -> None:
    server: Any = Pages({"/v1/models": b'{"data": [{"max_model_len": 20}]}'})
    steps._check_lengths(server, (Prompt(0, (1,) * 4, 16), Prompt(1, (1,) * 12, 8)))
    with pytest.raises(MeasurementError, match="are 21 tokens, and the server takes 20") as told:
        steps._check_lengths(server, (Prompt(0, (1,) * 4, 16), Prompt(1, (1,) * 12, 9)))
    assert told.value.category == "bad_parameter"
    unknown: Any = Pages()
    steps._check_lengths(unknown, (Prompt(0, (1,) * 4, 16),))


def test_a_server_that_starts_says_so_when_it_is_time_and_it_has_done_something(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, output = EventLog(tmp_path / "events.jsonl"), tmp_path / "server.log"
    output.write_text("")
    starting = steps._StartUp(log, 600.0, output)

    def said(*, after_s: float) -> list[str]:
        starting._line_ns = time.monotonic_ns() - round(after_s * 1e9)
        starting.look()
        return capsys.readouterr().out.splitlines()

    starting._begin_ns = time.monotonic_ns() - 90 * 10**9
    output.write_text("loading\n")
    assert said(after_s=-60.0) == []
    (line,) = said(after_s=20.001)
    told = re.search(r" the server starts, (\d+) s$", line)
    assert told is not None
    assert 90 <= int(told[1]) < 150
    output.write_text("loading more\n")
    assert len(said(after_s=30.0)) == 1
    log.close()


def living(folder: Path, pages: dict[str, bytes], **settings: Any) -> tuple[LivingServer, Pages]:
    """A server of a session that tells these pages; its log is in the first attempt's folder."""
    server = Pages(pages)
    out = folder / "first"
    out.mkdir()
    (out / SERVER_LOG).write_text("listening\n")
    told: Any = server
    facts = EngineFacts("1", {}, (), {})
    return LivingServer(told, ServerCommand(("vllm",), "llem", settings), facts, folder, out), server


@pytest.mark.parametrize(
    ("pages", "settings", "what"),
    [
        ({}, {}, "/health does not answer"),
        ({"/health": b""}, {}, ""),
        ({"/health": b"", "/metrics": b"vllm:num_requests_running 2\nvllm:num_requests_waiting 1"}, {},
         "it still works on 3 requests"),
        ({"/health": b"", "/metrics": b"vllm:num_requests_running 0"}, {}, ""),
        ({"/health": b""}, {"enable_prefix_caching": True},
         "/reset_prefix_cache does not say that the prefix cache is empty"),
        ({"/health": b"", "/reset_prefix_cache": b'{"success": false}'}, {"enable_prefix_caching": True},
         "/reset_prefix_cache does not say that the prefix cache is empty"),
        ({"/health": b"", "/reset_prefix_cache": b"oops"}, {"enable_prefix_caching": True},
         "/reset_prefix_cache does not say that the prefix cache is empty"),
        ({"/health": b"", "/reset_prefix_cache": b'{"success": true}'}, {"enable_prefix_caching": True}, ""),
        ({"/health": b""}, {"enable_prefix_caching": False}, ""),
    ],
)  # fmt: skip
def test_a_server_is_ready_for_the_next_experiment_when_it_rests_and_its_cache_is_empty(
    tmp_path: Path, pages: dict[str, bytes], settings: dict[str, Any], what: str
) -> None:
    one, server = living(tmp_path, pages, **settings)
    config = served().config
    spec = replace(served(), config=config | {"server": config["server"] | {"startup_timeout_seconds": 0}})
    if not what:
        one.reset(spec)
        assert server.checked == 1
        return
    with pytest.raises(
        MeasurementError, match=f"not ready for the next experiment after 0 s: {what}"
    ) as told:
        one.reset(spec)
    assert told.value.category == "server_not_ready"
    assert "listening" in str(told.value)


def test_each_attempt_has_what_the_server_printed_in_its_time(tmp_path: Path) -> None:
    one, server = living(tmp_path, {})
    first, second = tmp_path / "first", tmp_path / "second"
    second.mkdir()
    with (first / SERVER_LOG).open("a") as output:  # the server's own descriptor
        output.write("first\n")
        output.flush()
        one.leave_log(first)
        output.write("between\n")
        output.flush()
        one.take_log(second)
        output.write("second\n")
        output.flush()
        one.leave_log(second)
    assert (first / SERVER_LOG).read_text() == "listening\nfirst\n"
    assert (second / SERVER_LOG).read_text() == "between\nsecond\n"
    assert server.log == tmp_path / "server-log"
    assert server.log.read_text() == ""


def test_only_vllm_s_server_serves_several_experiments() -> None:
    check_lives_on(served())
    with pytest.raises(MeasurementError, match="the server of tensorrt cannot be made ready") as told:
        check_lives_on(replace(served(), engine="tensorrt"))
    assert told.value.category == "bad_parameter"
    assert environment_of(ServerCommand((), "", {"enable_prefix_caching": True})) == {
        "VLLM_SERVER_DEV_MODE": "1"
    }
    assert environment_of(ServerCommand((), "", {})) == {}
