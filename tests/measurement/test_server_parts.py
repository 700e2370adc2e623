"""The pure parts around a server: its command, its metrics page, its warm-up."""

from __future__ import annotations

import csv
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.measurement.engines.contract import Prompt
from llem_airflow.measurement.failure import MeasurementError
from llem_airflow.measurement.recent_power import DeviceRow
from llem_airflow.measurement.server.command import flags, pinned_port, sampling_fields, server_command
from llem_airflow.measurement.server.process import server_error
from llem_airflow.measurement.server.scrape import Scraper, labels, row
from llem_airflow.measurement.server.traffic import load_plan, traffic_of
from llem_airflow.measurement.warmup import closed_gates, load_warmup
from llem_airflow.protocol.spec import ModelSource
from tests.measurement.running import spec_of
from tests.measurement.test_server_attempt import served


def test_engine_parameters_become_flags() -> None:
    parameters: dict[str, Any] = {
        "max_num_seqs": 8,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "gpu_memory_utilization": 0.9,
        "dtype": "auto",
        "compilation_config": {"level": 3},
        "cudagraph_capture_sizes": [1, 2, 4],
        "middleware": [],
        "quantization": None,
        "disable_log_stats": False,
    }
    assert list(flags(parameters)) == [
        *("--max-num-seqs", "8", "--enforce-eager", "--no-enable-prefix-caching"),
        *("--gpu-memory-utilization", "0.9", "--dtype", "auto", "--compilation-config", '{"level": 3}'),
        *("--cudagraph-capture-sizes", "1", "2", "4"),
    ]


def test_what_the_study_says_of_the_engine_wins_over_ours(tmp_path: Path) -> None:
    spec = spec_of(
        "vllm",
        {"engine_params": {"dtype": "bfloat16", "enable_prefix_caching": True, "port": 9, "host": "x"}},
    )
    command = server_command(spec, 8123, tmp_path).argv
    assert command[command.index("--dtype") + 1] == "bfloat16"
    assert command[command.index("--port") + 1] == "8123"
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert "--enable-prefix-caching" in command
    assert "--no-enable-prefix-caching" not in command
    assert pinned_port(spec) == 9


def test_tensorrt_gets_its_parameters_as_a_file(tmp_path: Path) -> None:
    spec = spec_of("tensorrt", {"engine_params": {"max_batch_size": 4, "backend": "trt"}})
    command = server_command(spec, 8123, tmp_path).argv
    assert command[:2] == ("trtllm-serve", "m")
    assert command[command.index("--backend") + 1] == "tensorrt"
    options = Path(command[command.index("--extra_llm_api_options") + 1])
    assert json.loads(options.read_text()) == {
        "max_batch_size": 4,
        "kv_cache_config": {"enable_block_reuse": False},
    }
    with pytest.raises(MeasurementError, match="'cpp' is not known; use pytorch or tensorrt"):
        server_command(spec_of("tensorrt", {"engine_params": {"backend": "cpp"}}), 8123, tmp_path)


def test_both_servers_load_the_revision_that_was_pinned(tmp_path: Path) -> None:
    pinned = ModelSource("org/model", revision="main", commit="0123abc")
    spec = replace(spec_of("tensorrt", {}), model=pinned)
    command = server_command(spec, 8123, tmp_path).argv
    options = Path(command[command.index("--extra_llm_api_options") + 1])
    assert json.loads(options.read_text())["revision"] == "0123abc"
    command = server_command(replace(spec_of("vllm", {}), model=pinned), 8123, tmp_path).argv
    for flag in ("--revision", "--tokenizer-revision"):
        assert command[command.index(flag) + 1] == "0123abc"


@pytest.mark.parametrize(
    "said",
    [
        "vllm serve: error: unrecognized arguments: --max-num-sqs 4",
        "api_server.py: error: argument --dtype: invalid choice: 'foo' (choose from auto, half)",
        "Error: No such option: --extra_llm_options",
        "Error: Invalid value for '--backend': 'cpp' is not one of 'pytorch', 'tensorrt'.",
    ],
)
def test_an_argument_that_a_server_refuses_is_a_bad_parameter_and_not_its_death(
    said: str, tmp_path: Path
) -> None:
    (tmp_path / "server.log").write_text(f"usage: serve [options]\n{said}\n")
    failed = server_error("the server ended by itself", tmp_path / "server.log", "server_died")
    assert failed.category == "bad_parameter"
    assert said in str(failed)


def test_an_engine_without_a_server_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="transformers has no inference server"):
        server_command(spec_of("transformers", {}), 8123, tmp_path)


def test_requests_have_a_fixed_length_and_the_study_s_sampling() -> None:
    fixed = sampling_fields(spec_of("vllm", {"sampling_params": {"top_p": 0.9, "top_k": None}}), 16)
    assert fixed == {"min_tokens": 16, "temperature": 0.0, "top_p": 0.9}
    open_ended = sampling_fields(spec_of("vllm", {"sampling_params": {"ignore_eos": False}}), 16)
    assert "min_tokens" not in open_ended


def test_each_request_has_the_length_of_its_own_answer() -> None:
    given = {"engine_params": {}, "sampling_params": {"top_p": 0.9}}
    spec = replace(served(), config=served().config | {"vllm": given})
    prompts = [Prompt(index, (1, 2), tokens) for index, tokens in enumerate((16, 3, 16))]
    plan = load_plan(
        spec,
        traffic_of(spec),
        prompts,
        {"due_s": (0.0,)},
        model="m",
        port=1,
        phase="measure",
        start_mono_ns=0,
    )
    bodies = [json.loads(body) for body in plan.bodies()]
    assert [(body["max_tokens"], body["min_tokens"]) for body in bodies] == [(16, 16), (3, 3), (16, 16)]
    assert {body["top_p"] for body in bodies} == {0.9}


PAGE = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="llem"} 3.0
vllm:num_requests_running{engine="1",model_name="llem"} 2.0
vllm:num_requests_waiting{engine="0",model_name="llem"} 7.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0"} 0.5
vllm:kv_cache_usage_perc{engine="1"} 0.25
vllm:num_preemptions_created{engine="0"} 1.7958e+09
vllm:num_preemptions_total{engine="0"} 4.0
vllm:generation_tokens_total{engine="0"} NaNsense
vllm:prompt_tokens_total{engine="0"} 640.0
vllm:cache_config_info{block_size="16",kv_cache_size_tokens="4096",note="a \\"b\\", c"} 1.0
"""


def test_a_metrics_page_becomes_a_row_and_what_is_not_on_it_is_not_known() -> None:
    assert row(PAGE, 5) == {
        "t_mono_ns": 5,
        "running": 5,
        "waiting": 7,
        "kv_cache_usage_ratio": 0.375,
        "preemptions": 4,
        "prompt_tokens": 640,
        "generation_tokens": None,
    }
    assert row("vllm:gpu_cache_usage_perc 0.25\nvllm:generation_tokens_total 7", 1) == {
        "t_mono_ns": 1,
        **dict.fromkeys(("running", "waiting", "preemptions", "prompt_tokens")),
        "kv_cache_usage_ratio": 0.25,
        "generation_tokens": 7,
    }
    told = row("vllm:num_requests_waiting NaN\nvllm:kv_cache_usage_perc +Inf\nvllm:num_requests_running 2", 1)
    assert [told[name] for name in ("waiting", "kv_cache_usage_ratio", "running")] == [None, None, 2]
    assert labels(PAGE, "vllm:cache_config_info")["kv_cache_size_tokens"] == "4096"
    assert labels("", "vllm:cache_config_info") == {}


def test_the_page_is_read_at_once_and_where_there_is_none_there_is_no_row(tmp_path: Path) -> None:
    for page in (PAGE.encode(), None):
        asked = threading.Event()

        def read(page: bytes | None = page, asked: threading.Event = asked) -> bytes | None:
            asked.set()
            return page

        begun_ns = time.monotonic_ns()
        scraper = Scraper(read, tmp_path / "server.csv")
        asked.wait()
        scraper.stop()
        scraper.stop()
        with (tmp_path / "server.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [one["running"] for one in rows[:1]] == ["5"] * (page is not None)
        assert all(begun_ns <= int(one["t_mono_ns"]) <= time.monotonic_ns() for one in rows)


def samples(
    power: Any, *, temperature: Any = lambda _t: 60.0, reasons: Any = lambda _t: 0, device: str = "g"
) -> list[DeviceRow]:
    """Seventy seconds at 10 Hz."""
    return [
        DeviceRow(round(t * 1e9), device, power(t), temperature(t), reasons(t))
        for t in (i / 10 for i in range(700))
    ]


@pytest.mark.parametrize(
    ("rows", "closed"),
    [
        pytest.param(samples(lambda _t: 200e3), "", id="level"),
        pytest.param(samples(lambda t: 100e3 if int(t) % 4 else 300e3), "", id="bursts"),
        pytest.param(samples(lambda t: 200e3 + 500 * t), "power changed by", id="rises"),
        pytest.param(
            samples(lambda _t: 2e5, temperature=lambda t: 50 + t / 10), "temperature moved", id="heats"
        ),
        pytest.param(
            samples(lambda _t: 2e5, reasons=lambda t: 0x20 if t > 69 else 4), "throttled", id="throttled"
        ),
        pytest.param(samples(lambda _t: 2e5, reasons=lambda _t: 4), "", id="power cap is no fault"),
        pytest.param(samples(lambda _t: 2e5)[:300], "less than 60 s", id="too short"),
        pytest.param(
            sorted(samples(lambda _t: 2e5) + samples(lambda t: 1e5 + 1e3 * t, device="h")),
            "h: power",
            id="one of two",
        ),
    ],
)
def test_a_warm_up_ends_when_power_temperature_and_clocks_of_every_device_are_steady(
    rows: list[DeviceRow], closed: str
) -> None:
    found = "; ".join(closed_gates(rows, 0))
    assert (closed in found) if closed else found == ""


def test_load_before_the_warm_up_does_not_count() -> None:
    assert closed_gates(samples(lambda _t: 2e5), round(20e9)) == ["less than 60 s under load"]


@pytest.mark.parametrize(
    ("warmup", "meter", "gated", "longest_s"),
    [
        ({"mode": "composite"}, "nvml", True, 900),
        ({"mode": "composite"}, "cpu-estimate", False, 30),
        ({"mode": "composite", "timeout_seconds": 5}, "none", False, 5),
        ({"mode": "fixed"}, "nvml", False, 300),
        ({"mode": "fixed", "duration_seconds": 0}, "nvml", False, 0),
    ],
)
def test_a_warm_up_is_gated_where_the_meter_can_see(
    warmup: dict[str, Any], meter: str, gated: bool, longest_s: float
) -> None:
    rules = load_warmup(
        {"server": {"warmup": {"timeout_seconds": 900, "duration_seconds": 300} | warmup}}, meter
    )
    assert (rules.gated, rules.longest_s) == (gated, longest_s)
    assert bool(rules.reason) == (warmup["mode"] == "composite" and not gated)


def two_halves(
    before_mw: float = 100e3,
    after_mw: float = 100e3,
    *,
    celsius: tuple[float | None, float | None] = (60.0, 60.0),
    reasons: int | None = 0,
    first_s: float = 0.0,
) -> list[DeviceRow]:
    """A sample every second from ``first_s`` to 60 s; the second half begins after 30 s."""
    return [
        DeviceRow(t * 10**9, "g", after_mw if t > 30 else before_mw, celsius[t > 30], reasons)
        for t in range(int(first_s), 61)
    ]


@pytest.mark.parametrize(
    ("rows", "closed"),
    [
        (two_halves(after_mw=104.9e3), []),
        (two_halves(after_mw=95.1e3), []),
        (two_halves(after_mw=105.2e3), ["g: power changed by 5.2% (limit 5%)"]),
        (two_halves(after_mw=94.8e3), ["g: power changed by 5.2% (limit 5%)"]),
        (two_halves(0.0, 0.0), []),
        (two_halves(0.0, 50e3), []),
        (two_halves(1.0, 2.0), ["g: power changed by 100.0% (limit 5%)"]),
        (
            [*two_halves(90e3, 100e3)[:30], *two_halves(130e3, 95e3)[30:]],
            [],
        ),  # the sample at 30 s is of the first half
        (two_halves(celsius=(60.0, 62.0)), []),
        (two_halves(celsius=(60.0, 63.0)), ["g: the temperature moved by 3 degrees Celsius (limit 2)"]),
        (two_halves(celsius=(63.0, 60.0)), ["g: the temperature moved by 3 degrees Celsius (limit 2)"]),
        (two_halves(celsius=(None, None), reasons=None), []),
        (two_halves(celsius=(None, 60.0)), []),
        *[(two_halves(reasons=bit), ["g: its clock was throttled"]) for bit in (0x08, 0x20, 0x40, 0x80)],
        *[(two_halves(reasons=bit), []) for bit in (0x01, 0x02, 0x04, 0x10, 0x100)],
        (two_halves(first_s=3), []),  # a tenth of a span may be missing
        (two_halves(first_s=4), ["less than 60 s under load"]),
        ([], ["less than 60 s under load"]),
        ([one for one in two_halves() if one.t_ns in {0, 60 * 10**9}], ["g: too few samples of power"]),
    ],
)
def test_the_limits_of_a_steady_load(rows: list[DeviceRow], closed: list[str]) -> None:
    """The event bits are nvml.h's: hardware slowdown, thermal by software and by hardware, power brake."""
    assert closed_gates(rows, 0) == closed


def test_a_steady_load_is_one_of_a_minute_after_it_began() -> None:
    assert closed_gates(two_halves(), 0) == []
    assert closed_gates(two_halves(), 1) == ["less than 60 s under load"]
    # Only the last minute counts: what moved before it is over.
    earlier = [DeviceRow(-t * 10**9, "g", 300e3, 20.0, 0x40) for t in range(30, 0, -1)]
    assert closed_gates([*earlier, *two_halves()[1:]], -(10**11)) == []


def test_a_warm_up_whose_meter_sees_no_device_says_which() -> None:
    rules = load_warmup({"server": {"warmup": {"mode": "composite", "timeout_seconds": 900}}}, "rapl")
    assert (rules.gated, rules.reason) == (True, "")
    rules = load_warmup({"server": {"warmup": {"mode": "composite", "timeout_seconds": 900}}}, "none")
    assert rules.reason == (
        "the meter none tells neither power nor temperature of a device: so many seconds instead of gates"
    )
