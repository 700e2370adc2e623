"""What the engines' servers are given against their recorded flags and request fields. Text only: none runs here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.measurement.engines.contract import Prompt
from llem_airflow.measurement.server.command import ON_ONLY, flags, server_command
from llem_airflow.measurement.server.traffic import load_plan, traffic_of
from llem_airflow.runners.engine_api.recorded import load_record
from llem_airflow.study import load_study_text
from llem_airflow.study.config.engines import known_keys, not_of_a_server
from tests.measurement.running import spec_of
from tests.measurement.test_server_attempt import served

RECORDED = {"vllm": load_record("vllm", "0.32.0").server, "tensorrt": load_record("tensorrt").server}
NEWER = {"monokernel", "sleep_mode_backend", "watchdog_config"}
"""Engine parameters that vLLM 0.33 added: its server's flags are not recorded."""


def flags_in(argv: tuple[str, ...]) -> set[str]:
    return {word for word in argv if word.startswith("--")}


@pytest.mark.parametrize(("engine", "of_its_python"), [("vllm", {"-m"}), ("tensorrt", set())])
def test_every_flag_of_ours_is_one_that_the_server_has(
    engine: str, of_its_python: set[str], tmp_path: Path
) -> None:
    argv = server_command(spec_of(engine, {}), 8123, tmp_path).argv
    known = set(RECORDED[engine]["flags"])
    known |= {f"--no-{flag[2:]}" for flag in known} - {
        f"--no-{flag[2:]}" for flag in RECORDED[engine].get("on_only", ())
    }
    assert flags_in(argv) - of_its_python <= known
    assert {"--host", "--port"} <= flags_in(argv)


def test_every_engine_parameter_of_vllm_is_a_flag_of_its_server_or_the_plan_says_that_it_is_none() -> None:
    known = [name for name in known_keys("vllm", "engine_params") if not name.startswith("_")]
    given = dict(zip(known, flags(dict.fromkeys(known, True)), strict=True))
    without = {name for name, flag in given.items() if flag not in RECORDED["vllm"]["flags"]}
    assert without - NEWER == not_of_a_server("vllm", "engine_params")
    assert set(ON_ONLY) == {flag[2:].replace("-", "_") for flag in RECORDED["vllm"]["on_only"]}


@pytest.mark.parametrize("backend", [None, "pytorch", "tensorrt", "trt"])
def test_the_arguments_of_tensorrt_s_server_are_those_of_its_class(
    backend: str | None, tmp_path: Path
) -> None:
    own = {} if backend is None else {"backend": backend}
    command = server_command(
        spec_of("tensorrt", {"engine_params": {"max_batch_size": 4, **own}}), 8123, tmp_path
    )
    argv = command.argv
    assert argv[argv.index("--backend") + 1] in RECORDED["tensorrt"]["backends"]
    written = json.loads(Path(argv[argv.index("--extra_llm_api_options") + 1]).read_text())
    name = "tensorrt_llm._tensorrt_engine.LLM" if backend in ("tensorrt", "trt") else "tensorrt_llm.LLM"
    load_record("tensorrt").classes[name].check_call("__init__", model=argv[1], **written)


@pytest.mark.parametrize("engine", ["vllm", "tensorrt"])
def test_every_field_of_a_request_is_one_that_the_server_has(engine: str) -> None:
    spec = replace(served(), engine=engine)
    asks = load_plan(
        spec,
        traffic_of(spec),
        [Prompt(0, (1, 2), 4)],
        {"due_s": (0.0,), "duration_s": 1.0},
        model="m",
        port=1,
        phase="measure",
        start_mono_ns=0,
    )
    assert set(json.loads(asks.bodies()[0])) <= set(RECORDED[engine]["request"])


@pytest.mark.parametrize("engine", ["vllm", "tensorrt"])
def test_every_sampling_parameter_is_a_field_of_a_request_or_the_plan_says_that_it_is_none(
    engine: str,
) -> None:
    without = set(known_keys(engine, "sampling_params")) - set(RECORDED[engine]["request"])
    assert without == not_of_a_server(engine, "sampling_params")
    study: dict[str, Any] = {
        "engine": engine,
        "task": {"model": "org/model"},
        engine: {"sampling_params": {}},
    }
    keys = study[engine]["sampling_params"]
    keys |= dict.fromkeys(without - {"output_kind"}, 1)  # which the plan refuses, batch or server

    def told(mode: dict[str, Any]) -> set[str]:
        found = load_study_text(json.dumps(study | mode)).plan.warnings
        return {one.message.split()[0].rpartition(".")[2] for one in found if "to the server" in one.message}

    assert told({"serving_mode": "server", "server": {"traffic": {"rate": 1}}}) == set(keys)
    assert told({"serving_mode": "offline"}) == set()
